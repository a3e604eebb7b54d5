//! Trajectory balance of flow networks, its partition function estimated by the group (arXiv 2201.13259, eq. 13; VarGrad,
//! arXiv 2010.10436).
//!
//! loss = ½ ( A − (d − mean sg(d)) )²,  d = L − L_ref,  the mean over the samples of the prompt
//!
//! With A = (R − mean)/β its minimum is π ∝ π_ref e^{R/β}: the reference is part of the loss, and `kl.weight` may be 0. ln Z depends on
//! the prompt, so that its estimate is the mean of d over one group, never over several.

use super::Objective;
use crate::evaluation::{Evaluation, Groups, Weights};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Least squares on the log-ratio to the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrajectoryBalance {}

impl Objective for TrajectoryBalance {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let advantages = groups.advantages.clone();
        let d = e.log_prob(Weights::Current) - e.log_prob(Weights::Reference);
        let level = groups.means(d.clone().detach());
        (advantages - d + level).square() * 0.5
    }

    fn groupwise(&self) -> bool {
        true
    }
}
