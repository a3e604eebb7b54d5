//! On-policy distillation: the velocity of a teacher at the points that the student visits (DiffusionOPD and Flow-OPD, arXiv 2605.08063).
//!
//! loss = mean ‖y_θ − y_teacher‖², or over sg(mean ∣y_θ − y_teacher∣)
//!
//! | compare | y |
//! |---|---|
//! | velocity | v |
//! | clean | x̂₀, whose difference is −(σ/Δ) that of v |
//! | next | the mean of the next point, of the steps that likelihood `trajectory` scores |
//!
//! A teacher is other weights of the same network, say those of a run on one reward; with several the prompt's tag chooses. Rewards are
//! logged and not used, but a sample without one is left out. The points are those of the likelihood: `trajectory`, or `elbo` with points =
//! "sampler", for visited ones.

use super::{Objective, Setting};
use crate::{
    evaluation::{Evaluation, Groups, Weights},
    gaussian,
    setting::Scored,
};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of student and teacher is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// Velocities.
    #[default]
    Velocity,
    /// Predicted clean samples.
    Clean,
    /// Means of the next point.
    Next,
}

/// Weights to learn from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// A run folder, of which the averaged weights of the last checkpoint count, or a safetensors file of what this model trains.
    pub weights: String,
    /// The tag of the prompts that it teaches; without one it teaches those that no teacher before it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Regression on teachers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Distill {
    /// Weights to learn from. A prompt that none of them teaches adds nothing.
    pub teachers: Vec<Teacher>,
    /// What is compared.
    pub compare: Compare,
    /// Divide by the mean size of the difference, without a gradient.
    pub normalized: bool,
}

impl Distill {
    /// Which teacher each sample has.
    fn chosen(&self, groups: &Groups<'_>) -> Vec<Option<usize>> {
        let teaches = |teacher: &Teacher, tag: Option<&str>| teacher.tag.is_none() || teacher.tag.as_deref() == tag;
        let chosen = |tag: Option<&str>| self.teachers.iter().position(|teacher| teaches(teacher, tag));
        groups.samples.iter().map(|sample| chosen(sample.prompt.tag())).collect()
    }
}

impl Objective for Distill {
    fn loss(&self, e: &Evaluation<'_>, groups: &Groups<'_>) -> Tensor<1> {
        let chosen = self.chosen(groups);
        let current = gaussian::to_f64(e.velocity(Weights::Current));
        let mut losses = groups.advantages.zeros_like();
        for teacher in 0..self.teachers.len() {
            let taught: Vec<f64> = chosen.iter().map(|&c| if c == Some(teacher) { 1.0 } else { 0.0 }).collect();
            if taught.iter().all(|&share| share == 0.0) {
                continue;
            }
            let off = current.clone() - gaussian::to_f64(e.velocity(Weights::Teacher(teacher)));
            let scale = match self.compare {
                Compare::Velocity => None,
                Compare::Clean => Some(e.gain()),
                Compare::Next => {
                    let (steps, _) =
                        e.steps(Weights::Teacher(teacher)).expect("invariant: refused unless steps are scored");
                    Some(steps.slope.clone())
                }
            };
            let rows = off.dims()[0];
            let off = scale.map_or(off.clone(), |scale| off * scale.reshape([rows, 1]));
            let square = gaussian::mean(off.clone().square());
            let size = gaussian::mean(off.abs()).detach().clamp_min(1e-5);
            let loss = e.mean(if self.normalized { square / size } else { square });
            losses = losses + loss * gaussian::rows(&taught, &groups.advantages.device());
        }
        losses
    }

    fn teachers(&self) -> Vec<&str> {
        self.teachers.iter().map(|teacher| &*teacher.weights).collect()
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems = Vec::new();
        if self.teachers.is_empty() {
            problems.push(
                "objective `distill` has no teacher: set objective.teachers = [{ weights = \"runs/my-run\" }], a run folder or a file of \
                 weights"
                    .to_owned(),
            );
        }
        if self.compare == Compare::Next && !matches!(setting.scored, Scored::Steps { .. }) {
            problems
                .push("objective.compare = \"next\" compares the steps that likelihood `trajectory` scores".to_owned());
        }
        problems
    }
}
