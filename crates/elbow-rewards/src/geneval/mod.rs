//! GenEval (Ghosh et al., arXiv 2310.11513): does the image show the objects, counts, colors and relations of its prompt?
//!
//! A [`Detector`] says what is in the image, [`score`] compares it with the prompt's [`Record`], and [`GenEval`] makes a
//! reward of the two.

pub mod record;
pub mod score;

pub use record::{Clause, Exclusion, Position, Record, RecordError, Relation, Task};
pub use score::Rules;

use elbow::{Prompt, Request, Reward, RewardError, RgbImage, Score};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One object a detector found.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Name of its class.
    pub class: String,
    /// Confidence in [0, 1].
    pub score: f32,
    /// `[x0, y0, x1, y1]` in pixels, right and lower edge exclusive.
    pub bbox: [f32; 4],
    /// Name of its color, if the detector can tell.
    pub color: Option<String>,
}

/// Finds objects in images.
pub trait Detector: Send + Sync {
    /// Everything found, in any order. The record is there for thresholds per task (the benchmark's detector wants more
    /// confidence when counting), not as a hint of what to find.
    fn detect(&self, image: &RgbImage, record: &Record) -> Vec<Detection>;

    /// What a record asks for that it never finds: a class or a color that it has no name for. Every picture would score the same.
    fn never_finds(&self, record: &Record) -> Option<String> {
        let _ = record;
        None
    }
}

/// Which of GenEval's scores is the reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Partial credit per clause: what training uses. At most 1, may be negative.
    #[default]
    Dense,
    /// 0 or 1 by the benchmark's at-least rule: what papers report.
    Lenient,
    /// 0 or 1, with exact counts.
    Strict,
}

/// The GenEval reward over a detector.
#[derive(Clone, Debug)]
pub struct GenEval<D> {
    /// Says what is in an image.
    pub detector: D,
    /// Which score.
    pub mode: Mode,
    /// Choices within the rules.
    pub rules: Rules,
    /// Name in the metrics.
    pub name: String,
}

impl<D: Detector> GenEval<D> {
    /// A reward named `geneval` under the default rules.
    pub fn new(detector: D, mode: Mode) -> Self {
        Self { detector, mode, rules: Rules::default(), name: "geneval".into() }
    }

    /// The score of one image.
    pub fn score_one(&self, image: &RgbImage, record: &Record) -> f32 {
        score::score(record, &self.detector.detect(image, record), self.mode, self.rules)
    }
}

impl<D: Detector> Reward for GenEval<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        prompts.iter().try_for_each(|prompt| match self.detector.never_finds(&record(prompt)?) {
            Some(reason) => Err(RewardError::Prompt { prompt: prompt.text.clone(), reason }),
            None => Ok(()),
        })
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let score = |(image, prompt): (&RgbImage, &Arc<Prompt>)| {
            record(prompt).map(|record| self.score_one(image, &record).into())
        };
        request.images.par_iter().zip(request.prompts).map(score).collect()
    }
}

/// What the image of a prompt should show.
pub(crate) fn record(prompt: &Prompt) -> Result<Record, RewardError> {
    let wrong = |error: RecordError| RewardError::Prompt { prompt: prompt.text.clone(), reason: error.to_string() };
    Record::try_from(prompt).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Always(&'static str);

    impl Detector for Always {
        fn detect(&self, _: &RgbImage, _: &Record) -> Vec<Detection> {
            vec![Detection { class: self.0.into(), score: 1.0, bbox: [0.0, 0.0, 1.0, 1.0], color: None }]
        }
    }

    #[test]
    fn scores_come_in_order_and_a_prompt_without_metadata_is_an_error_of_its_own() {
        let reward = GenEval::new(Always("cat"), Mode::Strict);
        let record = |class: &str| Record {
            tag: Task::SingleObject,
            include: vec![Clause::new(class, 1)],
            exclude: Vec::new(),
            prompt: format!("a photo of a {class}"),
        };
        let prompts = [Prompt::from(&record("cat")), Prompt::from("a cat"), Prompt::from(&record("dog"))];
        let (images, shared) = (vec![RgbImage::new(1, 1); 3], prompts.clone().map(Arc::new));
        let request = Request { images: &images, prompts: &shared, latents: None, groups: &[0, 1, 2] };
        let scores = reward.score(&request);
        assert_eq!(scores[0], Ok(1.0.into()));
        assert_eq!(scores[2], Ok(0.0.into()));
        let error = scores[1].clone().expect_err("no record").to_string();
        assert!(error.contains("\"a cat\"") && error.contains("missing field `tag`"), "{error}");
        assert_eq!(reward.name(), "geneval");
        // The same before any work.
        assert_eq!(reward.check(&prompts).expect_err("no record").to_string(), error);
        assert!(reward.check(&[prompts[0].clone(), prompts[2].clone()]).is_ok());
    }
}
