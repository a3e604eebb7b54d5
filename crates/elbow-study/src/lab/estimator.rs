//! Log-ratios and gradients as the library's likelihoods read them off a policy, sample by sample.

use super::world::{Mixture, World};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Needs, Policy, Prompt,
    batch::{Batch, Sample},
    draw::{Drawing, Seat},
    likelihood::{Elbo, LikelihoodKind, Query, Ratio, Timesteps, Trajectory, Weighting},
    noise::{Key, Purpose},
    policy::VelocityField,
    sampler::{Ddim, Dpm2, FlowSde, Keep, SamplerConfig, SamplerKind},
    schedule::Spacing,
};
use std::sync::Arc;

/// Levels of the grid that final samples are looked at on: t = 1, 15/16, …, 1/16.
pub const LEVELS: usize = 16;

/// A likelihood, the sampler whose grid and path it looks at, and what a report calls it.
#[derive(Clone, Debug)]
pub struct Estimator {
    /// What a report calls it.
    pub name: String,
    /// The likelihood: one query a draw.
    pub likelihood: LikelihoodKind,
    /// How samples are drawn.
    pub sampler: SamplerConfig,
    /// Whether samples are exact ones, which no sampler drew.
    pub exact: bool,
    /// Whether θ and the policy that drew look at other draws.
    pub separate: bool,
}

/// A sampler of so many even steps.
pub fn even(rule: SamplerKind, steps: usize) -> SamplerConfig {
    SamplerConfig { rule, steps, grid: Spacing::Uniform, shift: Some(1.0), ..SamplerConfig::default() }
}

/// Weightings by the names of recipes.
pub const WEIGHTINGS: [(&str, Weighting); 8] = [
    ("path-kl", Weighting::PathKl),
    ("simple", Weighting::Simple),
    ("adaptive", Weighting::Adaptive),
    ("t", Weighting::T),
    ("noise", Weighting::Noise),
    ("awm-t", Weighting::AwmT),
    ("huber", Weighting::Huber),
    ("ghuber", Weighting::Ghuber),
];

impl Estimator {
    /// An ELBO of exact final samples, at `draws` of the [`LEVELS`] without repetition.
    pub fn elbo(name: &str, weighting: Weighting, draws: usize) -> Self {
        let fraction = (draws as f64 + 0.5) / LEVELS as f64;
        let timesteps = if draws == LEVELS { Timesteps::All } else { Timesteps::Permutation { fraction } };
        let elbo = Elbo { weighting, timesteps, reduction: elbow::gaussian::Reduction::Sum, ..Elbo::default() };
        let sampler = even(Dpm2::default().into(), LEVELS);
        Self { name: name.into(), likelihood: elbo.into(), sampler, exact: true, separate: false }
    }

    /// The sampler's own steps, all of those that have noise.
    pub fn trajectory(rule: SamplerKind, name: &str, steps: usize) -> Self {
        let trajectory =
            Trajectory { fraction: 1.0, reduction: elbow::gaussian::Reduction::Sum, ..Trajectory::default() };
        let sampler = even(rule, steps);
        Self { name: name.into(), likelihood: trajectory.into(), sampler, exact: false, separate: false }
    }

    /// The same ELBO with other options.
    #[must_use]
    pub fn elbo_with(mut self, change: impl FnOnce(&mut Elbo)) -> Self {
        if let LikelihoodKind::Elbo(elbo) = &mut self.likelihood {
            change(elbo);
        }
        self
    }

    /// Samples of a mixture, whose numbers are those of `key`.
    pub fn batch(&self, world: &World, old: &Mixture, n: usize, key: Key) -> Batch {
        let field = world.bind(Some(&old.params(1).tensors(&Device::flex())));
        let mut batch = self.drawn(world, &*field, &vec![Prompt::from(""); n], key);
        if self.exact {
            let keys = (0..n).map(|i| Key { purpose: Purpose::Start, ..key.sample(i as u64) });
            batch.points = vec![points(&old.samples(keys))];
        }
        batch
    }

    /// Samples of any policy that this sampler draws, one a prompt.
    pub fn drawn(&self, policy: &dyn Policy, field: &dyn VelocityField, prompts: &[Prompt], key: Key) -> Batch {
        let cond = policy.encode(prompts).expect("invariant: any prompt of the lab is known");
        let seat = |(i, prompt): (usize, &Prompt)| {
            let key = key.sample(i as u64);
            let sample = Sample { row: i, group: i, ..Sample::new(Arc::new(prompt.clone()), key) };
            Seat::new(sample, Key { purpose: Purpose::Start, ..key })
        };
        let sampling = self.sampler.build();
        let drawing = Drawing {
            policy,
            field,
            sampling: &sampling,
            keep: Keep { points: !self.exact, velocities: false },
            micro_batch: prompts.len(),
            in_flight: 1,
            needs: Needs::default(),
            device: &Device::flex(),
            phase: "lab",
            observer: &(),
        };
        let seats = prompts.iter().enumerate().map(seat).collect();
        drawing.draw(seats, cond, |request| vec![(); request.images.len()]).batch
    }

    /// The estimate of ln π_θ(x)/π_old(x) of each sample.
    pub fn log_ratios(&self, batch: &Batch, theta: &dyn VelocityField, old: &dyn VelocityField) -> Vec<f64> {
        let other = if self.separate { redrawn(batch, 1 << 20) } else { batch.clone() };
        let current = self.log_probs(batch, theta, old);
        let before = self.log_probs(&other, old, old);
        current.iter().zip(before).map(|(a, b)| a - b).collect()
    }

    /// L of each sample: over draws of an ELBO the mean, over steps of a trajectory the sum.
    fn log_probs(&self, batch: &Batch, field: &dyn VelocityField, old: &dyn VelocityField) -> Vec<f64> {
        let queries = self.likelihood.get().queries(batch, batch);
        let scale = self.scale(queries.len());
        let mut sum = vec![0.0; batch.len()];
        for query in queries {
            let l = numbers(score(&query, query.velocity(field), old));
            sum.iter_mut().zip(l).for_each(|(sum, l)| *sum += scale * l);
        }
        sum
    }

    /// ∇ L of each sample by all parameters, at the weights that drew.
    pub fn gradients(&self, world: &World, batch: &Batch, old: &Mixture) -> Vec<Vec<f64>> {
        let queries = self.likelihood.get().queries(batch, batch);
        let scale = self.scale(queries.len());
        let mut sum = vec![Vec::new(); batch.len()];
        for query in queries {
            for (sum, gradient) in sum.iter_mut().zip(gradients(world, &query, old)) {
                sum.resize(gradient.len(), 0.0);
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += scale * g);
            }
        }
        sum
    }

    fn scale(&self, queries: usize) -> f64 {
        if matches!(self.likelihood, LikelihoodKind::Elbo(_)) { 1.0 / queries as f64 } else { 1.0 }
    }

    /// Network evaluations a sample that its log-probability takes.
    pub fn evaluations(&self, batch: &Batch) -> usize {
        self.likelihood.get().count(&batch.samples[0].walk)
    }

    /// Network evaluations that a sample is drawn by.
    pub fn drawing(&self) -> usize {
        self.sampler.steps
    }
}

/// ∇ L of each sample of one query: the parameters have a row a sample.
pub fn gradients(world: &World, query: &Query, old: &Mixture) -> Vec<Vec<f64>> {
    let n = query.t.dims()[0];
    let leaves = old.params(n).tensors(&Device::flex().autodiff());
    let field = world.bind(Some(&leaves));
    let l = query.log_prob(query.velocity(&*field));
    let gradient = leaves.gradients(&mut l.sum().backward()).expect("invariant: there are leaves");
    let values: Vec<f64> = gradient.into_data().iter::<f64>().collect();
    let (modes, dims) = (old.logits.len(), old.dims());
    let (means, logits) = (n * modes * dims, n * modes);
    let row = |i: usize| {
        let place = |from: usize, width: usize| &values[from + i * width..from + (i + 1) * width];
        [place(0, modes * dims), place(means, modes), place(means + logits, modes * dims)].concat()
    };
    (0..n).map(row).collect()
}

/// L under a velocity, normalized as the library does.
pub fn score(query: &Query, velocity: Tensor<2>, old: &dyn VelocityField) -> Tensor<1> {
    let normalizer = query.shared.then(|| query.velocity(old));
    query.merge(query.row_log_prob(velocity, normalizer.as_ref()))
}

/// The same samples with other draws.
#[must_use]
pub fn redrawn(batch: &Batch, epochs: u64) -> Batch {
    let mut batch = batch.clone();
    for sample in &mut batch.samples {
        sample.key.epoch += epochs;
        sample.shared_key.epoch += epochs;
    }
    batch
}

/// Points as a tensor `[N, D]`.
pub fn points(rows: &[Vec<f64>]) -> Tensor<2> {
    let values: Vec<f32> = rows.iter().flatten().map(|&x| x as f32).collect();
    Tensor::from_data(TensorData::new(values, [rows.len(), rows[0].len()]), &Device::flex())
}

/// The values of a tensor.
pub fn numbers(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// The trajectories of the report: the sampler and its steps.
pub fn trajectories() -> Vec<Estimator> {
    let of = |steps: usize| {
        [
            Estimator::trajectory(FlowSde::default().into(), &format!("trajectory, flow-sde, {steps} steps"), steps),
            Estimator::trajectory(Ddim::default().into(), &format!("trajectory, ddim, {steps} steps"), steps),
        ]
    };
    [10, 50, 200].into_iter().flat_map(of).collect()
}

/// ELBOs at the stored points of a path, at all its times: of the exact weighting and of the library's default.
pub fn full_trajectories() -> Vec<Estimator> {
    let of = |(name, weighting): (&str, Weighting)| {
        let elbo = Estimator::elbo(&format!("full-trajectory ELBO, {name}"), weighting, LEVELS);
        let elbo = elbo.elbo_with(|elbo| elbo.points = elbow::likelihood::Points::Sampler);
        Estimator { exact: false, sampler: even(FlowSde::default().into(), LEVELS), ..elbo }
    };
    [("path-kl", Weighting::PathKl), ("simple", Weighting::Simple), ("adaptive", Weighting::Adaptive)].map(of).into()
}

/// A ratio of whole samples, for likelihoods that train.
pub const WHOLE: Ratio = Ratio::PerSample;
