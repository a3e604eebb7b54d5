//! Rewards that are missing: whether an epoch goes on without them, waits for them, or ends the run.

use crate::{
    batch::Batch,
    observer::{Observer, Waiting},
    policy,
    reward::{self, Pictures, Reward, RewardError, Score},
};
use image::RgbImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What happens where too many rewards are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnMissing {
    /// The run saves and stops.
    #[default]
    Stop,
    /// The run asks again, until those who score are back. Rewards that asking again does not bring stop it.
    Wait,
    /// The run trains on the samples that have a reward.
    GoOn,
}

/// How many rewards may be missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// Largest share, in [0, 1], of the samples that are drawn together.
    pub most: f64,
    /// What happens where more are.
    pub then: OnMissing,
}

/// Why samples cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsettled {
    /// Too many have no reward.
    Missing {
        /// How many.
        missing: usize,
        /// Why the first has none.
        first: String,
    },
    /// Whoever watches wants to wait no longer.
    Stopped,
}

/// Asks again for the scores that may still come, as far as `patience` says. A sample that is `broken` has none.
pub(crate) fn settle(
    reward: &dyn Reward,
    batch: &Batch,
    broken: &[Option<&str>],
    scores: &mut [Result<Score, RewardError>],
    patience: Patience,
    observer: &dyn Observer,
) -> Result<(), Unsettled> {
    for attempt in 0.. {
        // Whole groups that are asked again have them among them.
        for (score, broken) in scores.iter_mut().zip(broken) {
            if let Some(reason) = broken {
                *score = Err(RewardError::Failed((*reason).into()));
            }
        }
        let errors: Vec<&RewardError> = scores.iter().filter_map(|score| score.as_ref().err()).collect();
        if errors.len() as f64 <= patience.most * scores.len() as f64 || patience.then == OnMissing::GoOn {
            return Ok(());
        }
        let (missing, first) = (errors.len(), errors[0].to_string());
        let again = to_ask_again(reward, batch, scores);
        if patience.then == OnMissing::Stop || again.is_empty() {
            return Err(Unsettled::Missing { missing, first });
        }
        let waiting = Waiting { reward: reward.name(), missing, total: scores.len(), first: &first, attempt };
        if !observer.wait(&waiting) {
            return Err(Unsettled::Stopped);
        }
        for (&row, score) in again.iter().zip(ask(reward, batch, &again)) {
            scores[row] = score;
        }
    }
    unreachable!("invariant: attempts have no end")
}

/// The samples whose reward may yet come; with them the rest of their groups, if the reward wants these whole.
fn to_ask_again(reward: &dyn Reward, batch: &Batch, scores: &[Result<Score, RewardError>]) -> Vec<usize> {
    let may_come = |row: &usize| matches!(scores[*row], Err(RewardError::Unavailable(_)));
    if !reward.needs().whole_groups {
        return (0..scores.len()).filter(may_come).collect();
    }
    let mut rows: Vec<usize> = batch.groups().into_iter().filter(|rows| rows.iter().any(may_come)).flatten().collect();
    rows.sort_unstable();
    rows
}

/// The scores of some samples of a batch.
fn ask(reward: &dyn Reward, batch: &Batch, rows: &[usize]) -> Vec<Result<Score, RewardError>> {
    let samples = || rows.iter().map(|&row| &batch.samples[row]);
    let pictures = Pictures {
        images: samples().map(|sample| RgbImage::clone(&sample.image)).collect(),
        prompts: samples().map(|sample| Arc::clone(&sample.prompt)).collect(),
        latents: Some(policy::rows_of(batch.clean(), rows)),
        groups: samples().map(|sample| sample.group).collect(),
    };
    reward::ask(reward, &pictures.request())
}

/// Why a sample that is not finite has no reward: the policy has diverged, which is not the reward's fault.
pub const NOT_FINITE: &str = "the sample is not finite";
/// The same of one whose picture is not finite.
pub const NOT_DECODED: &str = "its picture is not finite: the decoder overflows on a sample that is";

/// Why a sample of a batch is of no use whatever it shows, one entry a sample.
pub(crate) fn broken(batch: &Batch) -> Vec<Option<&'static str>> {
    let values: Vec<f32> = batch.clean().clone().into_data().iter::<f32>().collect();
    let dims = (values.len() / batch.len().max(1)).max(1);
    let finite = values.chunks(dims).map(|sample| sample.iter().all(|value| value.is_finite()));
    let reason = |(finite, decoded): (bool, bool)| match (finite, decoded) {
        (false, _) => Some(NOT_FINITE),
        (true, false) => Some(NOT_DECODED),
        (true, true) => None,
    };
    finite.zip(batch.samples.iter().map(|sample| sample.decoded)).map(reason).collect()
}
