//! One frame for regression on moved velocities (reward score matching, arXiv 2604.17415).
//!
//! loss = mean ‖v_θ − sg[ v_o + γ Ψ ]‖² + c mean ‖v_θ − v_ref‖²
//!
//! | target | Ψ | with v_o |
//! |---|---|---|
//! | residual | A (u − v_b), u = ε − x₀ | reference: RAM (arXiv 2605.10759), [`super::Ram`] |
//! | covariance | −Cov_k(R_k, x₀_k) over the group, of root mean square 1 | behavior: DiffusionART (arXiv 2610.12572) |
//! | pair | the same over pairs of the group, with R = 1 for the better, 0 for the worse and ½ for equals | behavior: DiffusionART of K = 2, and FDFO (arXiv 2603.12893) where the two start noises are correlated |
//!
//! A step of the clean sample along G is one of the velocity along −G. The points are those that the rollout visited: `likelihood.points =
//! "sampler"` for the last two. v_o does not move between the updates of an epoch. FDFO's starts are `start_noise = "per-group"` with a
//! `start_spread`; pairs are the first and second sample of a group, the third and fourth, and so on.
//!
//! What the sources do not say and is ours: the sign for v = ε − x₀, the scale of Ψ (root mean square 1, so that γ is in units of the
//! velocity), and that a pair or group without difference has Ψ = 0.

use super::{Objective, Setting, finite};
use crate::{
    batch::Batch,
    evaluation::{Evaluation, Groups, Weights},
    gaussian,
    noise::Key,
    setting::Scored,
};
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
        let clean = numbers(groups.batch);
        let moved: Vec<f64> =
            groups.samples.iter().flat_map(|sample| self.covariance(groups.batch, &clean, sample.key)).collect();
        let (n, dims) = (groups.samples.len(), groups.batch.clean().dims()[1]);
        let device = groups.advantages.device();
        let direction = Tensor::<2>::from_data(TensorData::new(moved, [n, dims]), (&device, groups.advantages.dtype()));
        direction.repeat_dim(0, e.draws())
    }

    /// −Cov(R, x₀) over those that the sample of `key` is compared with, of root mean square 1; 0 if they do not differ.
    fn covariance(self, batch: &Batch, clean: &[Vec<f64>], key: Key) -> Vec<f64> {
        let number = batch.samples.iter().position(|sample| sample.key == key).expect("invariant: of this batch");
        let members: Vec<usize> =
            (0..batch.len()).filter(|&i| batch.samples[i].group == batch.samples[number].group).collect();
        let place = members.iter().position(|&i| i == number).expect("invariant: of its group");
        let compared = match self.target {
            Target::Pair => members.chunks(2).nth(place / 2).unwrap_or_default(),
            Target::Residual | Target::Covariance => &members[..],
        };
        let known: Vec<(usize, f64)> = compared.iter().filter_map(|&i| Some((i, batch.samples[i].value()?))).collect();
        let mean = known.iter().map(|(_, reward)| reward).sum::<f64>() / known.len().max(1) as f64;
        let mut direction = vec![0.0; clean[number].len()];
        for (i, reward) in known {
            direction.iter_mut().zip(&clean[i]).for_each(|(sum, x)| *sum -= (reward - mean) * x);
        }
        let size = (direction.iter().map(|d| d * d).sum::<f64>() / direction.len() as f64).sqrt();
        if size > 0.0 {
            direction.iter_mut().for_each(|d| *d /= size);
        }
        direction
    }
}

/// The clean samples of a batch.
fn numbers(batch: &Batch) -> Vec<Vec<f64>> {
    let values: Vec<f64> = batch.clean().clone().into_data().iter::<f64>().collect();
    values.chunks(batch.clean().dims()[1]).map(<[f64]>::to_vec).collect()
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
        if self.target == Target::Pair && setting.batch.group_size % 2 == 1 {
            let size = setting.batch.group_size;
            problems
                .push(format!("objective.target = \"pair\" and batch.group_size = {size}: pairs need an even number"));
        }
        problems
    }
}
