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

use super::{Likelihood, Queries, Query, Ratio, Score, share, share_of};
use crate::{
    batch::{Batch, Sample},
    functions,
    gaussian::{self, to_f64},
    noise::{Key, Purpose},
    policy::rows_of,
    sampler::{self, Step, Visit},
    setting::{Scored, Setting, StartNoise, positive_number},
};
use burn::tensor::Tensor;
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
        share_of(walk.len(), self.fraction)
    }

    fn queries<'a>(&self, part: &'a Batch, whole: &'a Batch) -> Queries<'a> {
        let neighbor = *self;
        let count = part.samples.first().map_or(0, |sample| self.count(&sample.walk));
        let places: Vec<Place> = part.samples.iter().map(|sample| Place::of(sample, whole)).collect();
        let queries = (0..count).map(move |k| neighbor.query(part, whole, &places, k));
        Query::of_steps(queries, self.ratio)
    }

    fn validate(&self, setting: &Setting) -> Vec<String> {
        let mut problems: Vec<String> = share("likelihood.fraction", self.fraction).into_iter().collect();
        problems.extend(positive_number("likelihood.temperature", self.temperature));
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

/// Where a sample stands in the whole batch.
struct Place {
    /// Its number.
    own: usize,
    /// The numbers of its group.
    members: Vec<usize>,
    /// Decides the anchors of its group.
    group: Key,
}

impl Place {
    fn of(sample: &Sample, whole: &Batch) -> Self {
        let members: Vec<usize> = (0..whole.len()).filter(|&i| whole.samples[i].group == sample.group).collect();
        let own = members.iter().copied().find(|&i| whole.samples[i].key == sample.key);
        Self { own: own.expect("invariant: of its group"), members, group: sample.shared_key }
    }

    /// Whose point is stepped from: a random member, the same for all of a group.
    fn anchor(&self, k: usize) -> usize {
        let key = Key { purpose: Purpose::Timestep, ..self.group }.draw(k as u32);
        let number = key.uniforms().next().map_or(0, |u| (u * self.members.len() as f64) as usize);
        self.members[number.min(self.members.len() - 1)]
    }

    /// The `j`-th of its group; of a smaller one its last.
    fn member(&self, j: usize) -> usize {
        self.members[j.min(self.members.len() - 1)]
    }
}

impl Neighbor {
    /// Step `k` of each sample's anchor.
    fn query(self, part: &Batch, whole: &Batch, places: &[Place], k: usize) -> Query {
        let anchors: Vec<usize> = places.iter().map(|place| place.anchor(k)).collect();
        let x = rows_of(&whole.points[k], &anchors);
        let drawn = whole.velocities.get(k).map(|velocity| rows_of(velocity, &anchors));
        let steps: Vec<Step> = anchors.iter().map(|&i| whole.samples[i].walk[k]).collect();
        let score = self.score(x.clone(), steps, places, &whole.points[k + 1]);
        let t = vec![part.grid.times[k]; part.len()];
        Query { drawn, ..Query::new(x, &t, part, score) }
    }

    /// ln π of each row's own point; `next` has the points of all samples after the step.
    fn score(self, x: Tensor<2>, steps: Vec<Step>, places: &[Place], next: &Tensor<2>) -> Score {
        let own: Vec<usize> = places.iter().map(|place| place.own).collect();
        let (x, own) = (to_f64(x), to_f64(rows_of(next, &own)));
        // The j-th of each row's group. What a smaller group has beyond its own does not count.
        let column = |j: usize| {
            let rows: Vec<usize> = places.iter().map(|place| place.member(j)).collect();
            let counts: Vec<f64> = places.iter().map(|place| if j < place.members.len() { 1.0 } else { 0.0 }).collect();
            (to_f64(rows_of(next, &rows)), gaussian::rows(&counts, &next.device()))
        };
        let largest = places.iter().map(|place| place.members.len()).max().unwrap_or(0);
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
