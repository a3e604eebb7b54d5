//! PNG files.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use crate::{RunLogError, write_atomic};

/// Writes an image as a PNG file, whole or not at all.
pub fn save_png(path: &Path, image: &RgbImage) -> Result<(), RunLogError> {
    write_atomic(path, &encode(image)?)
}

/// The bytes of an image's PNG file.
pub(crate) fn encode(image: &RgbImage) -> Result<Vec<u8>, RunLogError> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}
