//! Pictures of 8 bits to numbers and back.

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{RgbImage, policy::Decoded};

/// 8-bit pictures of one size to `[N, 3, H, W]` in [−1, 1]: what an autoencoder encodes.
///
/// # Panics
/// If their sizes differ, or there are none.
pub fn pixels(pictures: &[RgbImage], device: &Device) -> Tensor<4> {
    let (width, height) = pictures[0].dimensions();
    assert!(pictures.iter().all(|p| p.dimensions() == (width, height)), "invariant: pictures of one size");
    let values: Vec<f32> = pictures.iter().flat_map(|p| p.iter().map(|&v| f32::from(v) / 127.5 - 1.0)).collect();
    let data = TensorData::new(values, [pictures.len(), height as usize, width as usize, 3]);
    Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2])
}

/// Pixels in [−1, 1] `[N, 3, H, W]` to 8-bit pictures, rounded to nearest, clamped; with whether they were finite.
pub(crate) fn pictures(pixels: Tensor<4>) -> Vec<Decoded> {
    let [n, _, height, width] = pixels.dims();
    let pixels = pixels.permute([0, 2, 3, 1]).reshape([n, height * width * 3]).into_data();
    let pixels = pixels.as_slice::<f32>().expect("invariant: pixels are f32");
    let byte = |v: &f32| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    let decoded = |row: &[f32]| Decoded {
        picture: RgbImage::from_raw(width as u32, height as u32, row.iter().map(byte).collect())
            .expect("invariant: three bytes a pixel"),
        finite: row.iter().all(|value| value.is_finite()),
    };
    pixels.chunks(height * width * 3).map(decoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_values_that_are_not_finite_says_so() {
        let mut values = vec![0.5; 4 * 3 * 2];
        (values[3], values[9], values[15]) = (f32::NAN, f32::INFINITY, 1e30);
        let pixels = Tensor::<4>::from_data(TensorData::new(values, [4, 3, 1, 2]), &Device::flex());
        let pictures = pictures(pixels);
        assert_eq!(pictures.iter().map(|d| d.finite).collect::<Vec<_>>(), [false, false, true, true]);
        assert_eq!(pictures[2].picture.as_raw()[4], 255, "a large value is a bright pixel");
    }
}
