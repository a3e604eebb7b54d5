//! The rewards of a batch as numbers, by group.

use crate::{batch::Sample, reward::Score};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Whether the parts of rewards that are sums are standardized before they are added up: then Σ w_k (R_k − mean)/deviation takes the place
/// of Σ w_k R_k, for every advantage, and the reward that varies most decides no more than the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StandardizeParts {
    /// No: the sum is compared as it is.
    #[default]
    No,
    /// With mean and deviation of the sample's group.
    ByGroup,
    /// With mean and deviation of all samples of the epoch.
    ByBatch,
}

impl StandardizeParts {
    /// Samples as an advantage is to see them.
    pub fn of(self, samples: &[Sample]) -> Cow<'_, [Sample]> {
        let parts = Rewards::of_parts(samples);
        if self == Self::No || parts.is_empty() {
            return Cow::Borrowed(samples);
        }
        let standardized = |part: &Rewards| -> Vec<Option<f64>> {
            let total = part.total();
            part.map(|value, group| {
                let whose = if self == Self::ByGroup { group } else { total };
                (value - whose.mean) / (whose.std + 1e-6)
            })
        };
        let columns: Vec<(f64, Vec<Option<f64>>)> = parts.iter().map(|(w, part)| (*w, standardized(part))).collect();
        let mut samples = samples.to_vec();
        for (i, sample) in samples.iter_mut().enumerate() {
            if let Ok(Score { value, .. }) = &mut sample.reward {
                *value = columns.iter().map(|(w, column)| w * column[i].unwrap_or(0.0)).sum();
            }
        }
        Cow::Owned(samples)
    }
}

/// Mean and population deviation of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Mean; NaN of nothing.
    pub mean: f64,
    /// √ of the mean squared distance to the mean.
    pub std: f64,
    /// How many.
    pub count: usize,
    /// Whether they are all equal (or none).
    pub agree: bool,
}

impl Moments {
    /// Of the given numbers.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let agree = values.windows(2).all(|w| w[0] - w[1] == 0.0);
        // The mean of equal numbers is that number, whatever the rounding of their sum.
        let mean = if agree { values.first().copied().unwrap_or(f64::NAN) } else { values.iter().sum::<f64>() / n };
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        Self { mean, std, count: values.len(), agree }
    }
}

/// One number a sample, and the group of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewards {
    /// Sample after sample; `None` is missing.
    pub values: Vec<Option<f64>>,
    /// The group of each sample.
    pub groups: Vec<usize>,
}

impl Rewards {
    /// The rewards of samples.
    pub fn of(samples: &[Sample]) -> Self {
        let groups = samples.iter().map(|sample| sample.group).collect();
        Self { values: samples.iter().map(Sample::value).collect(), groups }
    }

    /// What samples scored by each reward of a sum, with its weight; none of a single reward.
    pub fn of_parts(samples: &[Sample]) -> Vec<(f64, Self)> {
        let Some(first) = samples.iter().find_map(|sample| sample.reward.as_ref().ok()) else { return Vec::new() };
        let column = |name: &str| Self::of(samples).with(samples.iter().map(|sample| sample.part(name)).collect());
        first.parts.iter().map(|part| (part.weight, column(&part.name))).collect()
    }

    /// The same samples with other numbers.
    #[must_use]
    pub fn with(&self, values: Vec<Option<f64>>) -> Self {
        Self { values, groups: self.groups.clone() }
    }

    /// Samples and rewards of each group, missing rewards left out.
    pub fn members(&self) -> Vec<Vec<(usize, f64)>> {
        let count = self.groups.iter().max().map_or(0, |last| last + 1);
        let mut members = vec![Vec::new(); count];
        for (i, (&group, value)) in self.groups.iter().zip(&self.values).enumerate() {
            members[group].extend(value.map(|value| (i, value)));
        }
        members
    }

    /// Moments of each group, missing rewards left out.
    pub fn moments(&self) -> Vec<Moments> {
        let moments = |members: Vec<(usize, f64)>| {
            let values: Vec<f64> = members.into_iter().map(|(_, value)| value).collect();
            Moments::of(&values)
        };
        self.members().into_iter().map(moments).collect()
    }

    /// Moments of the whole batch.
    pub fn total(&self) -> Moments {
        Moments::of(&self.values.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// `f(reward, moments of its group)` for every reward that is there.
    pub fn map(&self, f: impl Fn(f64, Moments) -> f64) -> Vec<Option<f64>> {
        let moments = self.moments();
        let pairs = self.values.iter().zip(&self.groups);
        pairs.map(|(value, &group)| value.map(|value| f(value, moments[group]))).collect()
    }

    /// Rewards in deviations of their group.
    pub fn standardized(&self) -> Vec<Option<f64>> {
        self.map(|reward, group| (reward - group.mean) / (group.std + 1e-6))
    }
}
