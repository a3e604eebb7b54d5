//! One frame for regression on moved velocities (reward score matching, arXiv 2604.17415).
//!
//! loss = mean ‖v_θ − sg[ v_o + γ Ψ ]‖² + c mean ‖v_θ − v_ref‖²
//!
//! | target | Ψ | with v_o |
//! |---|---|---|
//! | residual | A (u − v_b), u = ε − x₀ | reference: RAM (arXiv 2605.10759), [`super::Ram`] |
//! | covariance | −Cov_k(R_k, x₀_k) over the group, of root mean square 1 | behavior: DiffusionART (arXiv 2610.12572) |
//! | pair | the same in pairs of the group | behavior: DiffusionART of K = 2, FDFO (arXiv 2603.12893) |
//!
//! A step of the clean sample along G is one of the velocity along −G. The points are those that the rollout visited: `likelihood.points =
//! "sampler"` for the last two. v_o does not move between the updates of an epoch. In a pair only the sign of the difference counts. FDFO's
//! starts are correlated: `start_noise = "per-group"` with a `start_spread`; pairs are the first and second sample of a group, the third
//! and fourth, and so on.
//!
//! What the sources do not say and is ours: the sign for v = ε − x₀, the scale of Ψ (root mean square 1, so that γ is in units of the
//! velocity), and that a pair or group without difference has Ψ = 0.

use super::{Objective, Setting, finite};
use crate::{
    advantage::Moments,
    batch::{Batch, Sample},
    evaluation::{Evaluation, Groups, Weights},
    gaussian,
    setting::Scored,
};
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Ψ: what the velocity is moved along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The advantage times the residual of the behavior weights.
    Residual,
    /// The covariance of rewards and clean samples in the group.
    #[default]
    Covariance,
    /// The same in each pair of the group.
    Pair,
}

/// Whose velocity is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// That of the weights that drew.
    #[default]
    Behavior,
    /// The base's.
    Reference,
}

/// Regression on a velocity that a reward moved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Guided {
    /// What the velocity is moved along.
    pub target: Target,
    /// Whose velocity is moved.
    pub origin: Origin,
    /// γ: how far.
    pub step: f64,
    /// c: how much the distance to the base counts.
    pub anchor: f64,
}

impl Default for Guided {
    fn default() -> Self {
        Self { target: Target::Covariance, origin: Origin::Behavior, step: 0.1, anchor: 0.0 }
    }
}

impl Guided {
    /// Ψ `[N, D]`.
    fn direction(self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<2> {
        if self.target == Target::Residual {
            let target = e.target().expect("invariant: refused without a velocity to compare with");
            let rows = e.repeat(groups.advantages.clone());
            let residual = gaussian::to_f64(target - e.velocity(Weights::Behavior));
            return residual * rows.clone().reshape([rows.dims()[0], 1]);
        }
        let all = &groups.batch.samples;
        let mut own: BTreeMap<usize, Vec<Vec<f64>>> = BTreeMap::new();
        for sample in groups.samples {
            own.entry(sample.group).or_insert_with(|| {
                let members: Vec<usize> = (0..all.len()).filter(|&i| all[i].group == sample.group).collect();
                self.covariances(groups.batch, &members)
            });
        }
        let moved = groups.samples.iter().flat_map(|sample| {
            let members = all.iter().filter(|other| other.group == sample.group);
            let place = members.map(|other| other.key).position(|key| key == sample.key);
            own[&sample.group][place.expect("invariant: of its group")].clone()
        });
        let moved: Vec<f64> = moved.collect();
        let (n, dims) = (groups.samples.len(), groups.batch.clean().dims()[1]);
        let kind = (&groups.advantages.device(), groups.advantages.dtype());
        Tensor::<2>::from_data(TensorData::new(moved, [n, dims]), kind).repeat_dim(0, e.draws())
    }

    /// −Cov(R, x₀) of each of a group's members and those that it is compared with, of root mean square 1; 0 where rewards agree.
    fn covariances(self, batch: &Batch, members: &[usize]) -> Vec<Vec<f64>> {
        let (group, dims) = (batch.select(members), batch.clean().dims()[1]);
        let clean: Vec<f64> = group.clean().clone().into_data().iter::<f64>().collect();
        let size = if self.target == Target::Pair { 2 } else { members.len() };
        let compared = group.samples.chunks(size).zip(clean.chunks(size * dims));
        compared.flat_map(|(samples, clean)| vec![covariance(samples, clean, dims); samples.len()]).collect()
    }
}

/// −Cov(R, x₀) of samples, over those that have a reward.
fn covariance(samples: &[Sample], clean: &[f64], dims: usize) -> Vec<f64> {
    let rewards = Moments::of(&samples.iter().filter_map(Sample::value).collect::<Vec<_>>());
    let mut direction = vec![0.0; dims];
    if rewards.agree {
        return direction;
    }
    for (sample, x) in samples.iter().zip(clean.chunks(dims)) {
        if let Some(reward) = sample.value() {
            direction.iter_mut().zip(x).for_each(|(sum, x)| *sum -= (reward - rewards.mean) * x);
        }
    }
    let size = (direction.iter().map(|d| d * d).sum::<f64>() / dims as f64).sqrt();
    direction.iter().map(|d| if size > 0.0 { d / size } else { 0.0 }).collect()
}

impl Objective for Guided {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let origin = match self.origin {
            Origin::Behavior => Weights::Behavior,
            Origin::Reference => Weights::Reference,
        };
        let wanted = gaussian::to_f64(e.velocity(origin)) + self.direction(e, groups) * self.step;
        let moved = e.mean(gaussian::mean((gaussian::to_f64(e.velocity(Weights::Current)) - wanted).square()));
        if self.anchor == 0.0 { moved } else { moved + e.mean(e.distance(Weights::Reference)) * self.anchor }
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> =
            finite([("objective.step", self.step), ("objective.anchor", self.anchor)]).collect();
        if setting.scored != Scored::Velocities {
            problems.push("objective `guided` regresses velocities: use likelihood `elbo`".to_owned());
        }
        if self.target == Target::Pair && setting.compared % 2 == 1 {
            let size = setting.compared;
            problems.push(format!(
                "objective.target = \"pair\" and {size} samples that are compared: pairs need an even number"
            ));
        }
        problems
    }
}
