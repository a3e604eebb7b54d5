//! A reward without a reward model: how well the base recovers noise that was added to the sample (SOLACE, arXiv 2603.00918).
//!
//! R = −mean over draws (t, ε) of ‖ε̂(x_t, t, c) − ε‖²/D, with x_t = α x₀ + σ ε and ε̂ that of the reference weights under the sample's
//! prompt, without guidance. It is at most 0; a sample that the base finds likely scores higher. The paper leaves times and draws open to us
//! as far as we know them: here they are settings, and each sample has noise of its own, decided by its latent.

use crate::{
    gaussian::{self, to_f64},
    noise::{self, Key, Purpose},
    policy::Policy,
    prompts::Prompt,
    reward::{Needs, Request, Reward, RewardError, Score},
};
use burn::tensor::Tensor;
use std::sync::{Arc, OnceLock};

/// The reward. It scores latents, so that nothing needs to be decoded for it.
pub struct SelfConsistency {
    /// Name in the metrics.
    pub name: String,
    /// The policy whose reference recovers the noise, once it is loaded.
    pub policy: Arc<OnceLock<Arc<dyn Policy>>>,
    /// Times in (0, 1) at which noise is added.
    pub times: Vec<f64>,
    /// Noises at each time, at least 1.
    pub draws: usize,
}

impl SelfConsistency {
    /// −‖ε̂ − ε‖²/D of every sample, the mean over all draws.
    fn scores(
        &self,
        policy: &dyn Policy,
        latents: &Tensor<2>,
        prompts: &[Arc<Prompt>],
    ) -> Result<Vec<f64>, RewardError> {
        let distinct: Vec<Prompt> = prompts.iter().map(|prompt| Prompt::clone(prompt)).collect();
        let cond = policy.encode(&distinct).map_err(|error| RewardError::Failed(error.to_string()))?;
        let (reference, schedule, device) = (policy.bind(None), policy.schedule(), latents.device());
        let rows = prompts.len();
        let keys = keys(latents, rows);
        let mut sums = vec![0.0; rows];
        for (k, &t) in self.times.iter().enumerate() {
            for draw in 0..self.draws {
                let draw = (k * self.draws + draw) as u32;
                let noise = noise::normal(keys.iter().map(|key| key.draw(draw)), policy.dims(), &device);
                let times = vec![t; rows];
                let x = schedule.mix(latents.clone(), noise.clone(), &times);
                let velocity =
                    reference.velocity(x.clone(), Tensor::from_floats(&*vec![t as f32; rows], &device), &cond);
                let off = to_f64(schedule.noise(x, velocity, t) - noise);
                let errors = gaussian::mean(off.square()).into_data();
                sums.iter_mut().zip(errors.iter::<f64>()).for_each(|(sum, error)| *sum -= error);
            }
        }
        let count = (self.times.len() * self.draws) as f64;
        Ok(sums.into_iter().map(|sum| sum / count).collect())
    }
}

/// One key a sample, of the bits of its latent.
fn keys(latents: &Tensor<2>, rows: usize) -> Vec<Key> {
    let values: Vec<f32> = latents.clone().into_data().iter::<f32>().collect();
    let dims = (values.len() / rows.max(1)).max(1);
    // FNV-1a of the numbers' bits.
    let hash = |sample: &[f32]| {
        sample.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3))
    };
    values.chunks(dims).map(|sample| Key::new(0, Purpose::Probe, 0).sample(hash(sample))).collect()
}

impl Reward for SelfConsistency {
    fn name(&self) -> &str {
        &self.name
    }

    fn needs(&self) -> Needs {
        Needs { latents: true, ..Needs::default() }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let failed = |text: &str| Err(RewardError::Failed(text.to_owned()));
        let scores = match (self.policy.get(), request.latents) {
            (Some(policy), Some(latents)) => self.scores(&**policy, latents, request.prompts),
            (None, _) => failed("the model is not loaded yet"),
            (_, None) => failed("this reward scores latents, and there are none beside the pictures"),
        };
        match scores {
            Ok(scores) => scores.into_iter().map(|score| Ok(score.into())).collect(),
            Err(error) => vec![Err(error); request.prompts.len()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::Toy;
    use burn::tensor::Device;
    use image::RgbImage;

    /// The toy's reference field is known in closed form, so the error of its noise is too: the score of a sample is computed here by hand.
    #[test]
    fn the_score_is_the_error_of_the_noise_of_the_reference() {
        let (toy, device) = (Toy::default(), Device::flex());
        let latents = Tensor::<2>::from_floats([[0.5f32, -1.0], [2.0, 0.25], [0.5, -1.0]], &device);
        let prompts: Vec<Arc<Prompt>> = ["a", "b", "a"].map(|text| Arc::new(text.into())).into();
        let images = vec![RgbImage::new(1, 1); 3];
        let policy: Arc<OnceLock<Arc<dyn Policy>>> = Arc::default();
        let reward =
            SelfConsistency { name: "self".into(), policy: Arc::clone(&policy), times: vec![0.3, 0.6], draws: 2 };
        let request = Request { images: &images, prompts: &prompts, latents: Some(&latents), groups: &[0, 1, 0] };
        assert!(reward.score(&request).iter().all(Result::is_err), "without a model there is no score");
        policy.set(Arc::new(Toy::default())).unwrap_or_else(|_| panic!("set once"));
        let scores: Vec<f64> = reward.score(&request).into_iter().map(|score| score.expect("a score").value).collect();

        let field = toy.bind(None);
        let clean: Vec<f32> = latents.clone().into_data().iter::<f32>().collect();
        for (i, key) in keys(&latents, 3).into_iter().enumerate() {
            let mut sum = 0.0;
            for (draw, t) in [0.3f64, 0.3, 0.6, 0.6].into_iter().enumerate() {
                let mut noise = Vec::new();
                key.draw(draw as u32).extend_normals(2, &mut noise);
                let x: Vec<f64> =
                    (0..2).map(|d| (1.0 - t) * f64::from(clean[2 * i + d]) + t * f64::from(noise[d])).collect();
                let point = Tensor::<2>::from_floats([[x[0] as f32, x[1] as f32]], &device);
                let cond = toy.encode(&[Prompt::clone(&prompts[i])]).expect("encodes");
                let v: Vec<f64> = field
                    .velocity(point, Tensor::from_floats([t as f32], &device), &cond)
                    .into_data()
                    .iter::<f64>()
                    .collect();
                // Rectified flow: ε̂ = x_t + (1 − t) v.
                let error = |d: usize| (x[d] + (1.0 - t) * v[d] - f64::from(noise[d])).powi(2);
                sum += f64::midpoint(error(0), error(1));
            }
            assert!((scores[i] + sum / 4.0).abs() < 1e-6, "{i}: {} {}", scores[i], -sum / 4.0);
        }
        assert_eq!(scores[0].to_bits(), scores[2].to_bits(), "the noise is the latent's own");
        assert!(scores[0] < 0.0 && scores[0].to_bits() != scores[1].to_bits());
    }
}
