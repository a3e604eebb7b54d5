//! The DeQA server of Flow-GRPO (yifan123/reward-server): image quality, from 0 to 1.
//!
//! `{"images": [JPEG]}` is answered by `{"outputs": [number]}`.

use super::{Sample, Scores, http::Http, pickled};
use elbow::RewardError;

/// The scores of one request.
pub(super) fn ask(http: &Http, samples: &[Sample<'_>]) -> Result<Scores, RewardError> {
    pickled::numbers(http, &pickled::ask(http, samples, Vec::new(), "outputs")?, "outputs")
}
