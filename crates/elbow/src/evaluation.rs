//! What an objective may ask about a query: log-probabilities under each set of weights, computed when asked for.

use crate::{
    functions,
    gaussian::{self, wide},
    likelihood::{Query, Transitions},
    policy::VelocityField,
};
use burn::tensor::Tensor;
use std::cell::OnceCell;

/// One query under current, behavior, lagged and reference weights; each forward pass runs at most once, and only if needed.
pub struct Evaluation<'a> {
    query: &'a Query,
    velocity: Tensor<4>,
    behavior: Option<&'a dyn VelocityField>,
    lagged: Option<&'a dyn VelocityField>,
    reference: &'a dyn VelocityField,
    log_prob: OnceCell<Tensor<1>>,
    behavior_velocity: OnceCell<Tensor<4>>,
    behavior_log_prob: OnceCell<Tensor<1>>,
    lagged_velocity: OnceCell<Tensor<4>>,
    reference_velocity: OnceCell<Tensor<4>>,
}

impl<'a> Evaluation<'a> {
    /// Runs the current weights. `behavior: None` says that the behavior policy *is* the current one: its
    /// log-probability is then the current one without gradient, and no forward pass is spent on it.
    pub fn new(
        query: &'a Query,
        current: &dyn VelocityField,
        behavior: Option<&'a dyn VelocityField>,
        reference: &'a dyn VelocityField,
    ) -> Self {
        Self {
            query,
            velocity: query.velocity(current),
            behavior,
            lagged: None,
            reference,
            log_prob: OnceCell::new(),
            behavior_velocity: OnceCell::new(),
            behavior_log_prob: OnceCell::new(),
            lagged_velocity: OnceCell::new(),
            reference_velocity: OnceCell::new(),
        }
    }

    /// The same with lagged weights of their own; without (`None`) the behavior weights are the lagged ones.
    #[must_use]
    pub fn with_lagged(self, lagged: Option<&'a dyn VelocityField>) -> Self {
        Self { lagged, ..self }
    }

    /// L `[B]`, with gradient.
    pub fn log_prob(&self) -> Tensor<1> {
        self.log_prob.get_or_init(|| self.log_prob_of(self.velocity())).clone()
    }

    /// v_θ `[N, C, H, W]`, with gradient.
    pub fn velocity(&self) -> Tensor<4> {
        self.velocity.clone()
    }

    /// v_b `[N, C, H, W]`, without gradient.
    pub fn behavior_velocity(&self) -> Tensor<4> {
        let compute = || match self.behavior {
            None => self.velocity.clone().detach(),
            Some(field) => self.query.velocity(field),
        };
        self.behavior_velocity.get_or_init(compute).clone()
    }

    /// L_b `[B]`, without gradient.
    pub fn behavior_log_prob(&self) -> Tensor<1> {
        let compute = || match self.behavior {
            None => self.log_prob().detach(),
            Some(_) => self.log_prob_of(self.behavior_velocity()),
        };
        self.behavior_log_prob.get_or_init(compute).clone()
    }

    /// Log-probability `[B]` under another velocity `[N, C, H, W]`.
    pub fn log_prob_of(&self, velocity: Tensor<4>) -> Tensor<1> {
        self.merge(self.log_prob_rows(velocity))
    }

    /// The same of every draw on its own `[N]`.
    fn log_prob_rows(&self, velocity: Tensor<4>) -> Tensor<1> {
        let normalizer = self.query.shared.then(|| self.behavior_velocity());
        self.query.row_log_prob(velocity, normalizer.as_ref())
    }

    /// ln ρ = L − L_b `[B]`, with gradient.
    pub fn log_ratio(&self) -> Tensor<1> {
        self.log_prob() - self.behavior_log_prob()
    }

    /// ln ρ without gradient, if it has been computed or costs no forward pass.
    pub fn known_log_ratio(&self) -> Option<Tensor<1>> {
        let known = self.behavior.is_none() || self.behavior_velocity.get().is_some();
        known.then(|| self.log_ratio().detach())
    }

    /// ρ `[B]`, with gradient.
    pub fn ratio(&self) -> Tensor<1> {
        functions::exp(self.log_ratio())
    }

    /// v_ref `[N, C, H, W]`, without gradient.
    pub fn reference_velocity(&self) -> Tensor<4> {
        self.reference_velocity.get_or_init(|| self.query.velocity(self.reference)).clone()
    }

    /// L_ref `[B]`, without gradient.
    pub fn reference_log_prob(&self) -> Tensor<1> {
        self.log_prob_of(self.reference_velocity())
    }

    /// Velocity `[N, C, H, W]` of the lagged weights, without gradient.
    pub fn lagged_velocity(&self) -> Tensor<4> {
        let compute = || self.lagged.map_or_else(|| self.behavior_velocity(), |field| self.query.velocity(field));
        self.lagged_velocity.get_or_init(compute).clone()
    }

    /// Log-probability `[B]` under the lagged weights, without gradient.
    pub fn lagged_log_prob(&self) -> Tensor<1> {
        self.log_prob_of(self.lagged_velocity())
    }

    /// Forward passes so far: one under the current weights, and those under others that were asked for and not saved.
    pub fn passes(&self) -> usize {
        let behavior = self.behavior.is_some() && self.behavior_velocity.get().is_some();
        let lagged = self.lagged.is_some() && self.lagged_velocity.get().is_some();
        1 + usize::from(behavior) + usize::from(lagged) + usize::from(self.reference_velocity.get().is_some())
    }

    /// Brings one number a row of the query to one a sample, `[N] → [B]`, as log-probabilities are.
    pub fn merge(&self, rows: Tensor<1>) -> Tensor<1> {
        self.query.merge(rows)
    }

    /// Mean over the draws of each sample, `[N] → [B]`.
    pub fn mean(&self, rows: Tensor<1>) -> Tensor<1> {
        let draws = self.query.draws();
        let samples = rows.dims()[0] / draws;
        let mean: Tensor<2> = rows.reshape([draws, samples]).mean_dim(0);
        mean.reshape([samples])
    }

    /// The number of each sample for each of its draws, `[B] → [N]`.
    pub fn repeat(&self, samples: Tensor<1>) -> Tensor<1> {
        samples.repeat_dim(0, self.query.draws())
    }

    /// ln ρ of every draw on its own `[N]`, with gradient.
    pub fn log_ratio_rows(&self) -> Tensor<1> {
        self.log_prob_rows(self.velocity()) - self.log_prob_rows(self.behavior_velocity())
    }

    /// What the likelihood compares the velocity with `[N, C, H, W]`; `None` where that is not a velocity.
    pub fn target(&self) -> Option<Tensor<4>> {
        self.query.target.clone()
    }

    /// The Gaussian steps that are scored, with KL(π_b ‖ π_θ) = mean (μ_θ − μ_b)²/(2 std²) of each, a mean over latent dimensions
    /// `[N]`, with gradient; `None` unless the likelihood is that of steps.
    pub fn steps(&self) -> Option<(&Transitions, Tensor<1>)> {
        let steps = self.query.transitions.as_ref()?;
        let scale = steps.slope.clone().square() / (steps.std.clone().square() * 2.0);
        Some((steps, self.distance(self.behavior_velocity()) * scale))
    }

    /// mean ‖v_θ − v‖² to the lagged weights' v, and the same of clean samples, `[B]`, with gradient.
    pub fn proximity(&self, clean: bool) -> Tensor<1> {
        let rows = self.distance(self.lagged_velocity());
        self.mean(if clean { rows * self.query.gain.clone().square() } else { rows })
    }

    /// mean ‖v_θ − v‖² of every draw `[N]`, with gradient.
    fn distance(&self, from: Tensor<4>) -> Tensor<1> {
        gaussian::mean(wide(self.velocity() - from).square())
    }
}
