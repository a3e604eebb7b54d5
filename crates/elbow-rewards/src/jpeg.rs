//! Size of the JPEG file: the (in)compressibility of DDPO (arXiv 2305.13301, §5.1).
//!
//! reward = ∓ bytes / 1000 of the image at quality 95 with 4:2:0 chroma, as Pillow's default encoder writes it: −kB for
//! compressibility, +kB for incompressibility. The header alone is 0.6 kB.

use elbow::{Request, Reward, RewardError, RgbImage, Score};
use jpeg_encoder::{ChromaSubsamplingMethod, Encoder, ImageBuffer, JpegColorType, SamplingFactor};
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

/// The reward, in kB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jpeg {
    /// Name in the metrics.
    pub name: String,
    /// Which size is better.
    pub aim: Aim,
}

impl Reward for Jpeg {
    fn name(&self) -> &str {
        &self.name
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let sign = if self.aim == Aim::Compress { -1.0 } else { 1.0 };
        let score = |image: &RgbImage| {
            let bytes = size(image).map_err(|error| RewardError::Failed(format!("cannot encode a JPEG: {error}")))?;
            Ok((sign * bytes as f32 / 1000.0).into())
        };
        request.images.par_iter().map(score).collect()
    }
}

/// Bytes of the file at quality 95.
pub fn size(image: &RgbImage) -> Result<usize, jpeg_encoder::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, 95);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode_image(Picture(image))?;
    Ok(file.len())
}

/// An image in libjpeg's YCbCr: luma is rounded to nearest, where the encoder's own conversion rounds half down.
struct Picture<'a>(&'a RgbImage);

impl ImageBuffer for Picture<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        u16::try_from(self.0.width()).unwrap_or(0)
    }

    fn height(&self) -> u16 {
        u16::try_from(self.0.height()).unwrap_or(0)
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        for x in 0..self.0.width() {
            let [r, g, b] = self.0.get_pixel(x, u32::from(y)).0;
            let (_, cb, cr) = jpeg_encoder::rgb_to_ycbcr(r, g, b);
            let luma = 19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b);
            buffers[0].push(((luma + 0x8000) >> 16) as u8);
            buffers[1].push(cb);
            buffers[2].push(cr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pictures of `fixtures/make/jpeg.py`, from their formulas.
    fn picture(name: &str) -> RgbImage {
        let side = name[name.len() - 2..].parse().expect("a size");
        let mut state = 1u32;
        RgbImage::from_fn(side, side, |x, y| {
            let disk = (2 * x as i64 - side as i64).pow(2) + (2 * y as i64 - side as i64).pow(2)
                < side as i64 * side as i64 / 2;
            image::Rgb(match &name[..name.len() - 2] {
                "plain" => [200, 120, 40],
                "ramp" => [(x * 7) as u8, (y * 7) as u8, ((x + y) * 3) as u8],
                "disk" if disk => [250, 210, 20],
                "disk" => [20, 60, 160],
                _ => std::array::from_fn(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                }),
            })
        })
    }

    #[test]
    fn sizes_are_those_of_pillow() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../fixtures/rewards/jpeg.json")).expect("JSON");
        let sizes = golden["bytes"].as_object().expect("an object");
        assert!(sizes.len() >= 4);
        for (name, expected) in sizes {
            let got = size(&picture(name)).expect("encodes") as i64;
            // Forward DCTs differ in the last bit; on real pictures that is a byte or so.
            assert!((got - expected.as_i64().expect("a number")).abs() <= 2, "{name}: {got} {expected}");
        }
    }

    /// A reward of pictures alone looks at no prompt.
    fn request(images: &[RgbImage]) -> Request<'_> {
        Request { images, prompts: &[], latents: None, groups: &[] }
    }

    #[test]
    fn noise_is_larger_than_a_plain_image_and_the_aim_is_the_sign() {
        let images = [picture("plain32"), picture("noise32")];
        let score = |aim| -> Vec<f64> {
            let scores = Jpeg { name: "jpeg".into(), aim }.score(&request(&images));
            scores.into_iter().map(|score| score.expect("scored").value).collect()
        };
        let (small, large) = (score(Aim::Compress), score(Aim::Incompress));
        assert!(
            small[0] > small[1] && large[1] > large[0] && small.iter().zip(&large).all(|(a, b)| (a + b).abs() < 1e-6)
        );
    }

    #[test]
    fn an_image_too_large_for_the_format_has_no_reward() {
        let scores = Jpeg { name: "jpeg".into(), aim: Aim::Compress }.score(&request(&[RgbImage::new(70_000, 1)]));
        assert!(scores[0].is_err());
    }
}
