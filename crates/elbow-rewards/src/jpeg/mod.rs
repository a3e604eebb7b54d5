//! Size of the JPEG file: the (in)compressibility of DDPO (arXiv 2305.13301, §5.1).
//!
//! reward = ∓ bytes / 1000 of the image at quality 95 with 4:2:0 chroma: −kB for compressibility, +kB for incompressibility; with
//! [`Unit::FlowGrpo`] a 500th of it. The file is [the same](encode()), byte for byte, as Pillow's default encoder writes. The header
//! alone is 0.6 kB.

mod encode;

pub use encode::{MAX_SIDE, SizeError, encode};

use elbow::{Request, Reward, RewardError, RgbImage, Score};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which size is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// Small files: smooth images.
    #[default]
    Compress,
    /// Large files: detailed or noisy images.
    Incompress,
}

/// What the size is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Unit {
    /// 1000 bytes (DDPO).
    #[default]
    #[serde(rename = "kB")]
    Kilobytes,
    /// 500 kB: what Flow-GRPO's code divides the compressing aim by, and this one both.
    #[serde(rename = "flow-grpo")]
    FlowGrpo,
}

impl Unit {
    /// Its bytes.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Kilobytes => 1e3,
            Self::FlowGrpo => 5e5,
        }
    }
}

/// The reward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jpeg {
    /// Name in the metrics.
    pub name: String,
    /// Which size is better.
    pub aim: Aim,
    /// In what.
    pub unit: Unit,
}

impl Default for Jpeg {
    fn default() -> Self {
        Self { name: "jpeg".into(), aim: Aim::default(), unit: Unit::default() }
    }
}

impl Reward for Jpeg {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let sign = if self.aim == Aim::Compress { -1.0 } else { 1.0 };
        let score = |image: &RgbImage| {
            let bytes = size(image).map_err(|error| RewardError::Failed(error.to_string()))?;
            Ok((sign * bytes as f64 / self.unit.bytes()).into())
        };
        request.images.par_iter().map(score).collect()
    }
}

/// Bytes of the file at quality 95.
pub fn size(image: &RgbImage) -> Result<usize, SizeError> {
    Ok(encode(image, 95)?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reward of pictures alone looks at no prompt.
    fn request(images: &[RgbImage]) -> Request<'_> {
        Request { images, prompts: &[], latents: None, groups: &[] }
    }

    #[test]
    fn noise_is_larger_than_a_plain_image_and_the_aim_is_the_sign() {
        let mut state = 1u32;
        let noise = |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb(state.to_be_bytes()[..3].try_into().expect("three bytes"))
        };
        let images = [RgbImage::new(32, 32), RgbImage::from_fn(32, 32, noise)];
        let values = |reward: Jpeg| -> Vec<f64> {
            let scores = reward.score(&request(&images));
            scores.into_iter().map(|score| score.expect("scored").value).collect()
        };
        let score = |aim| values(Jpeg { aim, ..Jpeg::default() });
        let unit = values(Jpeg { unit: Unit::FlowGrpo, ..Jpeg::default() });
        assert!(score(Aim::Compress).iter().zip(unit).all(|(kilobytes, unit)| (kilobytes / 500.0 - unit).abs() < 1e-9));
        let (small, large) = (score(Aim::Compress), score(Aim::Incompress));
        assert!(
            small[0] > small[1] && large[1] > large[0] && small.iter().zip(&large).all(|(a, b)| (a + b).abs() < 1e-6)
        );
    }

    #[test]
    fn the_unit_is_kilobytes_or_what_flow_grpo_divides_by() {
        let images = [RgbImage::new(32, 32)];
        let bytes = size(&images[0]).expect("encodes") as f64;
        let score = |aim, unit| Jpeg { aim, unit, ..Jpeg::default() }.score(&request(&images)).remove(0);
        assert_eq!(score(Aim::Compress, Unit::Kilobytes), Ok((-bytes / 1000.0).into()));
        assert_eq!(score(Aim::Incompress, Unit::FlowGrpo), Ok((bytes / 500_000.0).into()));
        let names = [Unit::Kilobytes, Unit::FlowGrpo].map(|unit| serde_json::to_value(unit).expect("JSON"));
        assert_eq!(names, ["kB", "flow-grpo"]);
    }

    #[test]
    fn an_image_too_large_for_the_format_has_no_reward() {
        let scores = Jpeg::default().score(&request(&[RgbImage::new(70_000, 1)]));
        assert!(scores[0].is_err());
    }
}
