//! ELBO of the final image alone (arXiv 2602.04663, §3.2 and eqs. 13–15): no trajectory is kept, any sampler will do.
//!
//! ln π(x₀) ≥ C(x₀) − E_{t,ε}[ w(t) ‖v_θ(x_t, t) − u‖² ],  x_t = α x₀ + σ ε,  u = α′ x₀ + σ′ ε.
//!
//! C does not depend on θ and cancels in ratios. With e = v_θ − u, d = x̂₀ − x₀ = −(σ/Δ) e (rectified flow: −t e) and
//! G the guidance scale, a draw's log-probability is
//!
//! | weighting | log-probability |
//! |---|---|
//! | adaptive | −mean d² / sg(mean ∣d∣) / G |
//! | simple | −mean e² / G² |
//! | path-kl | −α/(σΔ + 10⁻³) mean e²; on rectified flow −(1 − t)/(t + 10⁻³) mean e² |
//! | t | −mean d² |
//! | noise | −mean (α e/Δ)² |
//! | awm-t | −t mean e² |
//! | huber | −t (√(mean e² + 10⁻¹⁰) − 10⁻⁵) |
//! | ghuber | −t ((mean e² + 10⁻¹⁰)^p − 10^(−10p)) / p |
//!
//! `normalizer` says whose d the m of adaptive is. path-kl is Girsanov's exact weight (g² = 2σΔ/α, on rectified flow 2t/(1 − t)); adaptive
//! makes the gradient independent of the residual's scale. The last three are AWM's (arXiv 2509.25050), for rectified flow; its `Uniform`
//! is simple, its `t**2` is t, and ghuber is twice huber at p = ½ and awm-t at p = 1. Departures from the reference code: sums in f64;
//! adaptive's normalizer floor 10⁻⁵ is the same.

use super::{Likelihood, Merge, Queries, Query, Ratio, Score, Timesteps, gather};
use crate::{
    batch::{Batch, Sample},
    functions,
    gaussian::{Reduction, reduce, rows, to_f64},
    noise::{self, Key, Purpose},
    sampler::Step,
    schedule::{Level, Schedule},
    setting::{Scored, Setting, positive_number},
};
use burn::tensor::{FloatDType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Weight of the error at each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Normalized by the error's mean magnitude, see `normalizer` (arXiv 2602.04663's default; DiffusionNFT, arXiv 2509.16117).
    #[default]
    Adaptive,
    /// Velocity error, weight 1 (arXiv 2602.04663).
    Simple,
    /// The exact path-KL weight, (1 − t)/t on rectified flow; unstable in practice (arXiv 2602.04663).
    PathKl,
    /// Clean-sample error: t² times the velocity error on rectified flow, which AWM calls `t**2` (arXiv 2509.25050).
    T,
    /// Noise error, (ε̂ − ε)²: the loss of DDPM (arXiv 2006.11239, eq. 14) and of reward-weighted regression.
    Noise,
    /// AWM's `t`: t times the velocity error (arXiv 2509.25050).
    AwmT,
    /// AWM's: t times the root of the velocity error (arXiv 2509.25050).
    Huber,
    /// AWM's default: t times a power of the velocity error, see `power` (arXiv 2509.25050).
    Ghuber,
}

/// Keeps the slope of AWM's powers finite where there is no error.
const FLOOR: f64 = 1e-10;

/// Which images share their draws of (t, ε).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Draws {
    /// Each image has its own: the reference's.
    #[default]
    PerSample,
    /// All images of a group share them (V-GRPO, arXiv 2604.23380). Advantages of a group add up to zero, so what its images
    /// have in common at a point cancels in the gradient instead of adding to its variance.
    PerGroup,
}

/// Whose error is the normalizer m = mean ∣d∣ of the adaptive weighting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Normalizer {
    /// Each set of weights has its own, as in the reference code (arXiv 2602.04663). L is then of first degree in the error, while
    /// its gradient, m held still, is that of a second degree: where an error grows by a factor, ln ρ moves half as far as the
    /// gradient says.
    #[default]
    Own,
    /// The behavior policy's serves current, behavior and reference weights (and both branches of objective `nft`): L is one
    /// function of the weights, and ln ρ moves as its gradient says.
    Shared,
}

/// Where on the path between noise and image the network is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Points {
    /// Fresh noise is added to the final image.
    #[default]
    Renoised,
    /// The sampler's own points, with the ε that leads from the final image to them. Keeps the trajectory.
    Sampler,
}

/// ELBO from the final image.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Elbo {
    /// Weight of the error at each time.
    pub weighting: Weighting,
    /// Whose error normalizes the `adaptive` weighting; the others do not use it.
    pub normalizer: Normalizer,
    /// Exponent p of the `ghuber` weighting; the others do not use it.
    pub power: f64,
    /// Which times each sample is evaluated at.
    pub timesteps: Timesteps,
    /// Which images share their draws.
    pub draws: Draws,
    /// Look at each time twice, with ε and with −ε.
    pub antithetic: bool,
    /// Where on the path the network is asked.
    pub points: Points,
    /// What a ratio compares.
    pub ratio: Ratio,
    /// Mean or sum over latent dimensions.
    pub reduction: Reduction,
}

impl Default for Elbo {
    fn default() -> Self {
        Self {
            weighting: Weighting::Adaptive,
            normalizer: Normalizer::Own,
            power: 0.25,
            timesteps: Timesteps::default(),
            draws: Draws::PerSample,
            antithetic: false,
            points: Points::Renoised,
            ratio: Ratio::PerDraw,
            reduction: Reduction::Mean,
        }
    }
}

impl Likelihood for Elbo {
    fn needs_path(&self) -> bool {
        self.points == Points::Sampler
    }

    fn scored(&self) -> Scored {
        Scored::Velocities
    }

    fn means_over_dimensions(&self) -> bool {
        self.reduction == Reduction::Mean
    }

    fn count(&self, walk: &[Step]) -> usize {
        self.timesteps.count(walk.len()) * if self.antithetic { 2 } else { 1 }
    }

    fn queries<'a>(&self, part: &'a Batch, _: &'a Batch) -> Queries<'a> {
        let elbo = *self;
        let times = |key| elbo.timesteps.draw(key, &part.grid.times);
        let chosen: Vec<Vec<f64>> = elbo.keys(part).into_iter().map(times).collect();
        let count = part.samples.first().map_or(0, |sample| elbo.count(&sample.walk));
        let queries = (0..count).map(move |i| {
            let (draw, negative) = if elbo.antithetic { (i / 2, i % 2 == 1) } else { (i, false) };
            let t: Vec<f64> = chosen.iter().map(|times| times[draw]).collect();
            match elbo.points {
                Points::Renoised => elbo.renoised(part, draw as u32, negative, &t),
                Points::Sampler => elbo.visited(part, &t),
            }
        });
        match self.ratio {
            Ratio::PerDraw => Box::new(queries),
            Ratio::PerSample | Ratio::PerSampleMean => Query::merged(queries, Merge::Mean),
        }
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        use Weighting::{Adaptive, AwmT, Ghuber, Huber, Noise, PathKl, Simple, T};
        let weighting = match self.weighting {
            AwmT => Some("awm-t"),
            Huber => Some("huber"),
            Ghuber => Some("ghuber"),
            Adaptive | Simple | PathKl | T | Noise => None,
        };
        let mut problems = Vec::new();
        if let Some(name) = weighting.filter(|_| setting.grid.schedule != Schedule::RectifiedFlow) {
            let instead = "is derived for rectified flow; use `simple` or `adaptive` here";
            problems.push(format!("likelihood weighting `{name}` {instead}"));
        }
        problems.extend(positive_number("likelihood.power", self.power));
        if self.points == Points::Sampler && (self.antithetic || !self.timesteps.on_grid()) {
            problems.push(
                "likelihood points = \"sampler\" are those of the sampler's grid and noise: use timesteps of the grid and \
                 antithetic = false, or points = \"renoised\""
                    .into(),
            );
        }
        problems.extend(self.timesteps.validate(setting.grid.steps()));
        problems
    }
}

impl Elbo {
    /// What decides the draws of each sample.
    fn keys(self, batch: &Batch) -> Vec<Key> {
        let key = |sample: &Sample| match self.draws {
            Draws::PerSample => sample.key,
            Draws::PerGroup => sample.shared_key,
        };
        batch.samples.iter().map(key).collect()
    }

    /// Fresh noise for every sample or group, or its negative, at one time each.
    fn renoised(&self, batch: &Batch, draw: u32, negative: bool, t: &[f64]) -> Query {
        let (clean, schedule) = (batch.clean(), batch.grid.schedule);
        let keys = self.keys(batch).into_iter().map(|key| Key { purpose: Purpose::Draw, ..key }.draw(draw));
        let noise = noise::normal(keys, clean.dims()[1], &clean.device());
        let noise = if negative { -noise } else { noise };
        self.query(batch, schedule.mix(clean.clone(), noise.clone(), t), noise, t)
    }

    /// The points of the path at these times, and ε = (x_t − α x₀)/σ.
    fn visited(&self, batch: &Batch, t: &[f64]) -> Query {
        let (clean, grid) = (batch.clean(), &batch.grid);
        let places: Vec<usize> = t.iter().map(|t| grid.times.partition_point(|g| g > t)).collect();
        let x = gather(&batch.points, &places);
        let drawn = (!batch.velocities.is_empty()).then(|| gather(&batch.velocities, &places));
        let column = |values: Vec<f64>| -> Tensor<2> { rows(&values, &clean.device()).reshape([t.len(), 1]) };
        let levels: Vec<Level> = t.iter().map(|&t| grid.schedule.level(t)).collect();
        // In `f64`, since the difference is divided by a σ that is small near data.
        let signal = to_f64(clean.clone()) * column(levels.iter().map(|level| level.alpha).collect());
        let noise = (to_f64(x.clone()) - signal) / column(levels.iter().map(|level| level.sigma).collect());
        Query { drawn, ..self.query(batch, x, noise.cast(FloatDType::F32), t) }
    }

    fn query(&self, batch: &Batch, x: Tensor<2>, noise: Tensor<2>, t: &[f64]) -> Query {
        let gains: Vec<f64> = t.iter().map(|&t| batch.grid.schedule.level(t).clean_gain()).collect();
        let target = batch.grid.schedule.target(batch.clean().clone(), noise, t);
        let score = self.score(target.clone(), rows(&gains, &x.device()), batch, t);
        let shared = self.weighting == Weighting::Adaptive && self.normalizer == Normalizer::Shared;
        let divisor = self.divisor(batch.guidance);
        Query { divisor, shared, ..Query::new(x, t, batch, score).with_target(target) }
    }

    /// What the guidance scale G divides by: it keeps ln ρ independent of G where both weights share the unconditional branch.
    fn divisor(self, guidance: f64) -> f64 {
        match self.weighting {
            Weighting::Adaptive => guidance,
            Weighting::Simple => guidance * guidance,
            _ => 1.0,
        }
    }

    fn score(self, target: Tensor<2>, gain: Tensor<1>, batch: &Batch, t: &[f64]) -> Score {
        let (device, schedule, divisor) = (target.device(), batch.grid.schedule, self.divisor(batch.guidance));
        let per_row = |f: &dyn Fn(f64) -> f64| rows(&t.iter().map(|&t| f(t)).collect::<Vec<_>>(), &device);
        let factor = per_row(&|t| match self.weighting {
            Weighting::PathKl => schedule.level(t).path_weight(),
            Weighting::Noise => schedule.level(t).noise_gain(),
            _ => t,
        });
        // Widened before subtracting: an `f32` difference of O(1) numbers would lose what log-ratios of 1e-5 are made of.
        let target = to_f64(target);
        Box::new(move |velocity, normalizer| {
            let error = to_f64(velocity) - target.clone();
            let square = reduce(error.clone().square(), self.reduction);
            match self.weighting {
                Weighting::Adaptive => {
                    let measured = normalizer.map_or(error, |n| to_f64(n.clone()) - target.clone()).detach();
                    let size = (reduce(measured.abs(), Reduction::Mean) * gain.clone()).clamp_min(1e-5);
                    square * gain.clone().square() / size / -divisor
                }
                Weighting::Simple => square / -divisor,
                Weighting::PathKl | Weighting::AwmT => -square * factor.clone(),
                Weighting::T => -square * gain.clone().square(),
                Weighting::Noise => -square * factor.clone().square(),
                Weighting::Huber => ((square + FLOOR).sqrt() - FLOOR.sqrt()) * -factor.clone(),
                Weighting::Ghuber => {
                    let power = functions::power(square + FLOOR, self.power) - FLOOR.powf(self.power);
                    power * factor.clone() / -self.power
                }
            }
        })
    }
}
