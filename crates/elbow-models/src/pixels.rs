//! Pictures of 8 bits to numbers and back.

use burn::tensor::{Device, Tensor, TensorData};
use elbow::RgbImage;

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

/// Pixels in [−1, 1] `[N, 3, H, W]` to 8-bit pictures, rounded to nearest, clamped.
pub(crate) fn pictures(pixels: Tensor<4>) -> Vec<RgbImage> {
    let [n, _, height, width] = pixels.dims();
    let pixels = pixels.permute([0, 2, 3, 1]).reshape([n, height * width * 3]).into_data();
    let pixels = pixels.as_slice::<f32>().expect("invariant: pixels are f32");
    let byte = |v: &f32| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    let image = |row: &[f32]| RgbImage::from_raw(width as u32, height as u32, row.iter().map(byte).collect());
    pixels.chunks(height * width * 3).map(|row| image(row).expect("invariant: three bytes a pixel")).collect()
}
