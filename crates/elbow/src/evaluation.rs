//! What an objective may ask about a query: velocities and log-probabilities under each set of weights, computed when asked for.

use crate::{
    batch::{self, Batch, Sample},
    functions,
    gaussian::{self, rows, to_f64},
    likelihood::{Query, Transitions},
    policy::VelocityField,
};
use burn::tensor::{Device, Tensor};
use std::{cell::RefCell, collections::BTreeMap};

/// A set of weights of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weights {
    /// Those that are trained. Only they have a gradient.
    Current,
    /// Those that drew the samples.
    Behavior,
    /// A moving average of the current ones: the behavior weights, unless `behavior.on_policy` keeps one beside them.
    Lagged,
    /// The base, or with `kl.reference = "adapter"` what training started from.
    Reference,
    /// The same under the guidance of `kl.guidance`, or the sampler's if that is not set.
    GuidedReference,
    /// One of the trainer's [teachers](crate::train::Trainer::teachers), by number.
    Teacher(usize),
}

/// The frozen fields of an update.
pub struct Fields<'a> {
    /// `None`: the behavior policy *is* the current one. Its log-probability is then the current one without gradient, and no
    /// forward pass is spent on it.
    pub behavior: Option<&'a dyn VelocityField>,
    /// `None`: the lagged weights are the behavior weights.
    pub lagged: Option<&'a dyn VelocityField>,
    /// The base, or what training started from.
    pub reference: &'a dyn VelocityField,
    /// The same under a guidance of its own. `None`: it has none.
    pub guided_reference: Option<&'a dyn VelocityField>,
    /// Further policies over the same base.
    pub teachers: &'a [Box<dyn VelocityField + 'a>],
}

impl Fields<'_> {
    /// The weights that stand for `weights`, as far as some are others.
    fn resolve(&self, weights: Weights) -> Weights {
        match weights {
            Weights::Lagged if self.lagged.is_none() => self.resolve(Weights::Behavior),
            Weights::Behavior if self.behavior.is_none() => Weights::Current,
            Weights::GuidedReference if self.guided_reference.is_none() => Weights::Reference,
            weights => weights,
        }
    }

    /// The field of frozen weights.
    ///
    /// # Panics
    /// If the weights are the current ones, or a teacher that is not there.
    pub fn get(&self, weights: Weights) -> &dyn VelocityField {
        let known = "invariant: resolved before";
        match weights {
            Weights::Current => panic!("{known}"),
            Weights::Behavior => self.behavior.expect(known),
            Weights::Lagged => self.lagged.expect(known),
            Weights::Reference => self.reference,
            Weights::GuidedReference => self.guided_reference.expect(known),
            Weights::Teacher(i) => &*self.teachers[i],
        }
    }
}

/// The samples of an evaluation, B of them, and the batch that they are of.
pub struct Groups<'a> {
    /// Their advantages `[B]`.
    pub advantages: Tensor<1>,
    /// The same as numbers.
    pub values: Vec<f64>,
    /// B samples.
    pub samples: &'a [Sample],
    /// All samples of the update: their rewards and clean latents, for objectives that compare a sample with its group.
    pub batch: &'a Batch,
}

impl<'a> Groups<'a> {
    /// Samples with these advantages, of a batch.
    pub fn new(advantages: &[f64], samples: &'a [Sample], batch: &'a Batch, device: &Device) -> Self {
        Self { advantages: rows(advantages, device), values: advantages.to_vec(), samples, batch }
    }

    /// How many samples the group of each has.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.samples.len()];
        for members in self.members() {
            for &i in &members {
                sizes[i] = members.len();
            }
        }
        sizes
    }

    /// The mean of some numbers `[B]` over each sample's group, `[B]`.
    pub fn means(&self, values: Tensor<1>) -> Tensor<1> {
        self.weighted_means(values, &vec![1.0; self.samples.len()])
    }

    /// Σ_j w_j values_j / Σ_j w_j over the group of each sample `[B]`; 0 where all weights are 0.
    pub fn weighted_means(&self, values: Tensor<1>, weights: &[f64]) -> Tensor<1> {
        let (n, device) = (self.samples.len(), values.device());
        let mut matrix = vec![0.0; n * n];
        for members in self.members() {
            let norm: f64 = members.iter().map(|&j| weights[j]).sum();
            for (&i, &j) in members.iter().flat_map(|i| members.iter().map(move |j| (i, j))) {
                matrix[i * n + j] = if norm == 0.0 { 0.0 } else { weights[j] / norm };
            }
        }
        let matrix: Tensor<2> = rows(&matrix, &device).reshape([n, n]);
        (matrix * values.reshape([1, n])).sum_dim(1).reshape([n])
    }

    /// The numbers of the samples of each group, 0 to B − 1.
    pub fn members(&self) -> Vec<Vec<usize>> {
        batch::groups(self.samples).into_iter().filter(|members| !members.is_empty()).collect()
    }
}

/// One query under each set of weights; every forward pass runs at most once, and only if it is asked for.
pub struct Evaluation<'a> {
    source: Source<'a>,
    log_probs: RefCell<BTreeMap<Weights, Tensor<1>>>,
}

/// Where log-probabilities come from.
enum Source<'a> {
    /// From the network, at the points of a query.
    Network { query: &'a Query, fields: &'a Fields<'a>, velocities: RefCell<BTreeMap<Weights, Tensor<2>>> },
    /// From a pass over all samples that was made before, or is made when weights are asked for.
    Numbers(&'a dyn Fn(Weights) -> Tensor<1>),
}

impl<'a> Evaluation<'a> {
    /// Runs the current weights.
    pub fn new(query: &'a Query, current: &dyn VelocityField, fields: &'a Fields<'a>) -> Self {
        let velocity = current.velocity(query.x.clone(), query.t.clone(), &query.cond);
        let velocities = RefCell::new(BTreeMap::from([(Weights::Current, velocity)]));
        Self { source: Source::Network { query, fields, velocities }, log_probs: RefCell::default() }
    }

    /// Log-probabilities alone, of as many samples as `log_probs` gives for each set of weights: what an objective of whole groups
    /// sees. Its other methods are not to be called.
    pub fn of_numbers(log_probs: &'a dyn Fn(Weights) -> Tensor<1>) -> Self {
        Self { source: Source::Numbers(log_probs), log_probs: RefCell::default() }
    }

    /// The network's side of it.
    fn network(&self) -> (&Query, &Fields<'a>, &RefCell<BTreeMap<Weights, Tensor<2>>>) {
        match &self.source {
            Source::Network { query, fields, velocities } => (query, fields, velocities),
            Source::Numbers(_) => panic!("invariant: an objective of whole groups asks for log-probabilities alone"),
        }
    }

    /// The velocity `[N, D]` at the query's points; with gradient if the weights are the current ones.
    pub fn velocity(&self, weights: Weights) -> Tensor<2> {
        let (query, fields, velocities) = self.network();
        let resolved = fields.resolve(weights);
        if resolved == Weights::Current {
            let velocity = velocities.borrow()[&Weights::Current].clone();
            return if weights == Weights::Current { velocity } else { velocity.detach() };
        }
        if let Some(velocity) = velocities.borrow().get(&resolved) {
            return velocity.clone();
        }
        if let Some(velocity) = query.drawn.as_ref().filter(|_| resolved == Weights::Behavior) {
            return velocity.clone();
        }
        let velocity = fields.get(resolved).velocity(query.x.clone(), query.t.clone(), &query.cond);
        velocities.borrow_mut().insert(resolved, velocity.clone());
        velocity
    }

    /// L `[B]`; with gradient if the weights are the current ones.
    pub fn log_prob(&self, weights: Weights) -> Tensor<1> {
        let resolved = match &self.source {
            Source::Network { fields, .. } => fields.resolve(weights),
            Source::Numbers(_) => weights,
        };
        if resolved == Weights::Current && weights != Weights::Current {
            return self.log_prob(Weights::Current).detach();
        }
        if let Some(log_prob) = self.log_probs.borrow().get(&resolved) {
            return log_prob.clone();
        }
        let log_prob = match &self.source {
            Source::Network { .. } => self.log_prob_of(self.velocity(resolved)),
            Source::Numbers(log_probs) => log_probs(resolved),
        };
        self.log_probs.borrow_mut().insert(resolved, log_prob.clone());
        log_prob
    }

    /// Log-probability `[B]` under another velocity `[N, D]`.
    pub fn log_prob_of(&self, velocity: Tensor<2>) -> Tensor<1> {
        self.merge(self.log_prob_rows(velocity))
    }

    /// The same of every draw on its own `[N]`.
    fn log_prob_rows(&self, velocity: Tensor<2>) -> Tensor<1> {
        let (query, ..) = self.network();
        let normalizer = query.shared.then(|| self.velocity(Weights::Behavior));
        query.row_log_prob(velocity, normalizer.as_ref())
    }

    /// ln ρ = L − L_b `[B]`, with gradient.
    pub fn log_ratio(&self) -> Tensor<1> {
        self.log_prob(Weights::Current) - self.log_prob(Weights::Behavior)
    }

    /// L under the current weights without gradient `[B]`, if it has been computed.
    pub fn known_log_prob(&self) -> Option<Tensor<1>> {
        self.log_probs.borrow().get(&Weights::Current).map(|log_prob| log_prob.clone().inner())
    }

    /// ln ρ without gradient, if it has been computed or costs no forward pass.
    pub fn known_log_ratio(&self) -> Option<Tensor<1>> {
        let known = match &self.source {
            Source::Network { query, fields, velocities } => {
                let behavior = fields.resolve(Weights::Behavior);
                let known = velocities.borrow().contains_key(&behavior) || query.drawn.is_some();
                behavior == Weights::Current || known
            }
            Source::Numbers(_) => self.log_probs.borrow().contains_key(&Weights::Behavior),
        };
        known.then(|| self.log_ratio().detach())
    }

    /// ρ `[B]`, with gradient.
    pub fn ratio(&self) -> Tensor<1> {
        functions::exp(self.log_ratio())
    }

    /// Forward passes so far: one under the current weights, and those under others that were asked for.
    pub fn passes(&self) -> usize {
        self.network().2.borrow().len()
    }

    /// Draws of each sample: N / B.
    pub fn draws(&self) -> usize {
        self.network().0.draws()
    }

    /// Brings one number a row of the query to one a sample, `[N] → [B]`, as log-probabilities are.
    pub fn merge(&self, rows: Tensor<1>) -> Tensor<1> {
        self.network().0.merge(rows)
    }

    /// Mean over the draws of each sample, `[N] → [B]`.
    pub fn mean(&self, rows: Tensor<1>) -> Tensor<1> {
        let draws = self.draws();
        let samples = rows.dims()[0] / draws;
        let mean: Tensor<2> = rows.reshape([draws, samples]).mean_dim(0);
        mean.reshape([samples])
    }

    /// The number of each sample for each of its draws, `[B] → [N]`.
    pub fn repeat(&self, samples: Tensor<1>) -> Tensor<1> {
        samples.repeat_dim(0, self.draws())
    }

    /// ln ρ of every draw on its own `[N]`, with gradient.
    pub fn log_ratio_rows(&self) -> Tensor<1> {
        let current = self.log_prob_rows(self.velocity(Weights::Current));
        current - self.log_prob_rows(self.velocity(Weights::Behavior))
    }

    /// What the likelihood compares the velocity with `[N, D]`; `None` where that is not a velocity.
    pub fn target(&self) -> Option<Tensor<2>> {
        self.network().0.target.clone()
    }

    /// The Gaussian steps that are scored, with KL(π_w ‖ π_θ) = mean (μ_θ − μ_w)²/(2 std²) of each, a mean over latent dimensions
    /// `[N]`, with gradient; `None` unless the likelihood is that of steps.
    pub fn steps(&self, weights: Weights) -> Option<(&Transitions, Tensor<1>)> {
        let steps = self.network().0.transitions.as_ref()?;
        let scale = steps.slope.clone().square() / (steps.std.clone().square() * 2.0);
        Some((steps, self.distance(weights) * scale))
    }

    /// What the guidance scale divided log-probabilities by; 1 where it does not enter.
    pub fn divisor(&self) -> f64 {
        self.network().0.divisor
    }

    /// How far an error of the velocity moves the clean sample, σ/Δ `[N]`.
    pub fn gain(&self) -> Tensor<1> {
        self.network().0.gain.clone()
    }

    /// Weight α/(σΔ) of the distance of velocities in the divergence of paths `[N]` (Girsanov); (1 − t)/t on rectified flow. 10⁻³ is
    /// added to σΔ.
    pub fn path_weight(&self) -> Tensor<1> {
        self.network().0.path_weight.clone()
    }

    /// mean ‖v_θ − v‖² to the velocity of other weights, or the same of clean samples, `[B]`, with gradient.
    pub fn proximity(&self, weights: Weights, clean: bool) -> Tensor<1> {
        let rows = self.distance(weights);
        self.mean(if clean { rows * self.gain().square() } else { rows })
    }

    /// mean ‖v_θ − v‖² of every draw `[N]`, with gradient.
    pub fn distance(&self, weights: Weights) -> Tensor<1> {
        gaussian::mean(to_f64(self.velocity(Weights::Current) - self.velocity(weights)).square())
    }
}
