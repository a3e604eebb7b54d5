//! What an objective may ask about a query: log-probabilities under each set of weights, computed when asked for.

use crate::{likelihood::Query, policy::VelocityField};
use burn::tensor::Tensor;
use std::cell::OnceCell;

/// One query under current, behavior and reference weights; each forward pass runs at most once, and only if needed.
pub struct Evaluation<'a> {
    query: &'a Query,
    velocity: Tensor<4>,
    log_prob: Tensor<1>,
    behavior: Option<&'a dyn VelocityField>,
    reference: &'a dyn VelocityField,
    behavior_log_prob: OnceCell<Tensor<1>>,
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
        let velocity = query.velocity(current);
        let log_prob = query.log_prob(velocity.clone());
        Self {
            query,
            velocity,
            log_prob,
            behavior,
            reference,
            behavior_log_prob: OnceCell::new(),
            reference_velocity: OnceCell::new(),
        }
    }

    /// L `[B]`, with gradient.
    pub fn log_prob(&self) -> Tensor<1> {
        self.log_prob.clone()
    }

    /// v_θ `[N, C, H, W]`, with gradient.
    pub fn velocity(&self) -> Tensor<4> {
        self.velocity.clone()
    }

    /// L_b `[B]`, without gradient.
    pub fn behavior_log_prob(&self) -> Tensor<1> {
        let compute = || match self.behavior {
            None => self.log_prob.clone().detach(),
            Some(field) => self.query.log_prob(self.query.velocity(field)),
        };
        self.behavior_log_prob.get_or_init(compute).clone()
    }

    /// ln ρ = L − L_b `[B]`, with gradient.
    pub fn log_ratio(&self) -> Tensor<1> {
        self.log_prob() - self.behavior_log_prob()
    }

    /// ln ρ without gradient, if it has been computed or costs no forward pass.
    pub fn known_log_ratio(&self) -> Option<Tensor<1>> {
        let known = self.behavior.is_none() || self.behavior_log_prob.get().is_some();
        known.then(|| self.log_ratio().detach())
    }

    /// ρ `[B]`, with gradient.
    pub fn ratio(&self) -> Tensor<1> {
        self.log_ratio().exp()
    }

    /// v_ref `[N, C, H, W]`, without gradient.
    pub fn reference_velocity(&self) -> Tensor<4> {
        self.reference_velocity.get_or_init(|| self.query.velocity(self.reference)).clone()
    }

    /// L_ref `[B]`, without gradient.
    pub fn reference_log_prob(&self) -> Tensor<1> {
        self.query.log_prob(self.reference_velocity())
    }

    /// Brings one number a row of the query to one a sample, `[N] → [B]`.
    pub fn merge(&self, rows: Tensor<1>) -> Tensor<1> {
        self.query.merge(rows)
    }
}
