//! Neighbor GRPO's likelihood of deterministic samplers (arXiv 2511.16955): which of a group's points a step goes to.
//!
//! The samples of a group start near one noise, √(1 − s²) ε + s δ_i (`start_noise = "per-group"`, `start_spread = s`), and walk an ODE. At
//! a step from x_k, the policy that an anchor of the group has is a softmax over the points x_{i,k+1} of all:
//!
//! ln π_θ(i) = −‖x_{i,k+1} − x_θ‖²/T − ln Σ_j e^{−‖x_{j,k+1} − x_θ‖²/T},  x_θ the anchor's next point under the weights
//!
//! with squares as means over latent dimensions. What the source leaves open and is ours: the anchor is another sample of the group at each
//! step, by a random number of the group; the forward pass runs for every sample though all of a group ask at one point; T is in units of
//! that mean.

use super::{Likelihood, Merge, Queries, Query, Ratio, Score, share};
use crate::{
    batch::Batch,
    functions,
    gaussian::{self, to_f64},
    noise::{Key, Purpose},
    sampler::{self, Step, Visit},
    setting::{Scored, Setting, StartNoise},
};
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Softmax over neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Neighbor {
    /// T, in units of a squared distance, a mean over latent dimensions.
    pub temperature: f64,
    /// Share of the steps that are scored, from the first on, rounded down; at least one is.
    pub fraction: f64,
    /// What a ratio compares.
    pub ratio: Ratio,
}

impl Default for Neighbor {
    fn default() -> Self {
        Self { temperature: 0.01, fraction: 0.6, ratio: Ratio::PerDraw }
    }
}

impl Likelihood for Neighbor {
    fn needs_path(&self) -> bool {
        true
    }

    fn scored(&self) -> Scored {
        Scored::Neighbors
    }

    fn count(&self, walk: &[Step]) -> usize {
        ((walk.len() as f64 * self.fraction) as usize).clamp(1, walk.len().max(1))
    }

    fn queries<'a>(&self, part: &'a Batch, whole: &'a Batch) -> Queries<'a> {
        let neighbor = *self;
        let count = part.samples.first().map_or(0, |sample| self.count(&sample.walk));
        let queries = (0..count).map(move |k| neighbor.query(part, whole, k));
        match self.ratio {
            Ratio::PerDraw => Box::new(queries),
            Ratio::PerSample => Query::merged(queries, Merge::Sum),
            Ratio::PerSampleMean => Query::merged(queries, Merge::Mean),
        }
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = share("likelihood.fraction", self.fraction).into_iter().collect();
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            problems.push(format!("likelihood.temperature = {}: must be a positive number", self.temperature));
        }
        if setting.stochastic_steps > 0 || setting.remembers {
            problems.push(
                "likelihood `neighbor` is for samplers without noise whose steps look at one velocity: use sampler `euler`, or likelihood \
                 `trajectory`"
                    .into(),
            );
        }
        if setting.start_noise != StartNoise::PerGroup {
            problems.push("likelihood `neighbor` compares samples that start near each other: set start_noise = \"per-group\" and start_spread".into());
        }
        problems
    }
}

impl Neighbor {
    /// Step `k` of each sample's anchor.
    fn query(self, part: &Batch, whole: &Batch, k: usize) -> Query {
        let of_group = |group: usize| (0..whole.len()).filter(|&i| whole.samples[i].group == group).collect();
        let members: Vec<Vec<usize>> = part.samples.iter().map(|sample| of_group(sample.group)).collect();
        let rows = part.samples.iter().zip(&members);
        let anchors: Vec<usize> = rows.clone().map(|(sample, members)| anchor(sample.shared_key, k, members)).collect();
        let is = |key: Key| move |&&i: &&usize| whole.samples[i].key == key;
        let own = rows.map(|(sample, members)| *members.iter().find(is(sample.key)).expect("invariant: of its group"));
        let own: Vec<usize> = own.collect();
        let x = select(&whole.points[k], &anchors);
        let drawn = whole.velocities.get(k).map(|velocity| select(velocity, &anchors));
        let steps: Vec<Step> = anchors.iter().map(|&i| whole.samples[i].walk[k]).collect();
        let score = self.score(x.clone(), steps, &members, &own, &whole.points[k + 1]);
        let t = vec![part.grid.times[k]; part.len()];
        Query { drawn, ..Query::new(x, &t, part, score) }
    }

    /// ln π of each row's own point; `next` has the points of all samples after the step.
    fn score(self, x: Tensor<2>, steps: Vec<Step>, members: &[Vec<usize>], own: &[usize], next: &Tensor<2>) -> Score {
        let (x, own) = (to_f64(x), to_f64(select(next, own)));
        // The j-th of each row's group. A smaller group has its last again, which then does not count.
        let column = |j: usize| {
            let rows: Vec<usize> = members.iter().map(|members| members[j.min(members.len() - 1)]).collect();
            let counts: Vec<f64> = members.iter().map(|members| if j < members.len() { 1.0 } else { 0.0 }).collect();
            (to_f64(select(next, &rows)), gaussian::rows(&counts, &next.device()))
        };
        let largest = members.iter().map(Vec::len).max().unwrap_or(0);
        let columns: Vec<(Tensor<2>, Tensor<1>)> = (0..largest).map(column).collect();
        Box::new(move |velocity, _: Option<&Tensor<2>>| {
            let predicted = sampler::mean(&steps, &[Visit { x: x.clone(), velocity: to_f64(velocity) }]);
            let near =
                |point: &Tensor<2>| gaussian::mean((point.clone() - predicted.clone()).square()) / -self.temperature;
            let all: Vec<Tensor<1>> = columns.iter().map(|(point, _)| near(point)).collect();
            let greatest =
                all.iter().cloned().reduce(Tensor::max_pair).expect("invariant: a group has members").detach();
            let shares = all.into_iter().zip(&columns);
            let shares = shares.map(|(near, (_, counts))| functions::exp(near - greatest.clone()) * counts.clone());
            let sum = shares.reduce(|a, b| a + b).expect("invariant: a group has members");
            near(&own) - functions::ln(sum) - greatest
        })
    }
}

/// Whose point is stepped from: a random member, the same for all of a group.
fn anchor(group: Key, k: usize, members: &[usize]) -> usize {
    let key = Key { purpose: Purpose::Timestep, ..group }.draw(k as u32);
    let number = key.uniforms().next().map_or(0, |u| (u * members.len() as f64) as usize);
    members[number.min(members.len() - 1)]
}

/// These rows of `all`.
fn select(all: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    all.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &all.device()))
}
