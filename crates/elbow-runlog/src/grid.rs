//! Contact sheets: samples side by side, enlarged, with the prompt and the score under each.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use crate::sheet;
use crate::text::{self, CHARACTER};

pub(crate) const PAPER: Rgb<u8> = Rgb([255; 3]);
pub(crate) const INK: Rgb<u8> = Rgb([40; 3]);
/// Pixels between tiles.
pub(crate) const GAP: u32 = 8;
/// Pixels from one line of text to the next, before enlargement.
pub(crate) const LINE: u32 = CHARACTER + 3;
/// Narrower tiles would leave no room for a caption.
pub(crate) const NARROWEST: u32 = 16 * CHARACTER;
/// Lines that one caption may take.
pub(crate) const ROWS: usize = 4;

/// Enlargement of the text of a title.
const TITLE_SIZE: u32 = 2;
/// Pixels that a title takes above its sheet.
pub(crate) const TITLE: u32 = 2 * GAP + TITLE_SIZE * CHARACTER;

/// One image of a sheet.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    /// The sample, at its own size.
    pub image: RgbImage,
    /// What stands under it, such as the prompt and then the score. Each is wrapped over at most four lines.
    pub caption: Vec<String>,
}

/// Lays tiles out in rows of `columns`, each pixel enlarged to `scale` × `scale`.
///
/// All places have the size of the largest tile. A `columns` or `scale` of 0 counts as 1.
pub fn grid(tiles: &[Tile], columns: usize, scale: u32) -> RgbImage {
    Layout::of(tiles, columns, scale).draw(tiles)
}

/// Two sheets side by side under their titles: the same prompts before and after training.
pub fn before_after(before: (&str, &[Tile]), after: (&str, &[Tile]), columns: usize, scale: u32) -> RgbImage {
    let [left, right] = [before, after].map(|(title, tiles)| titled(title, &grid(tiles, columns, scale)));
    let (width, height) = (left.width() + 2 * GAP + right.width(), left.height().max(right.height()));
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    imageops::replace(&mut sheet, &left, 0, 0);
    imageops::replace(&mut sheet, &right, (left.width() + 2 * GAP).into(), 0);
    sheet
}

/// A sheet with a line of large text above.
fn titled(title: &str, sheet: &RgbImage) -> RgbImage {
    let width = sheet.width().max(2 * GAP + NARROWEST);
    let mut page = RgbImage::from_pixel(width, TITLE + sheet.height(), PAPER);
    let columns = (width - 2 * GAP) / (TITLE_SIZE * CHARACTER);
    for line in text::wrap(title, columns as usize, 1) {
        text::draw(&mut page, (GAP, GAP), TITLE_SIZE, INK, &line);
    }
    imageops::replace(&mut page, sheet, 0, TITLE.into());
    page
}

/// Where everything goes. Lengths in pixels of the sheet.
struct Layout {
    columns: u32,
    rows: u32,
    scale: u32,
    /// Width of a place, and height of its image.
    width: u32,
    height: u32,
    /// Enlargement of the text, so that it can be read under large images too.
    text: u32,
    /// Wrapped captions, one list of lines a tile.
    captions: Vec<Vec<String>>,
}

impl Layout {
    fn of(tiles: &[Tile], columns: usize, scale: u32) -> Self {
        let scale = scale.max(1);
        let columns = columns.clamp(1, tiles.len().max(1));
        let largest = |side: fn(&RgbImage) -> u32| tiles.iter().map(|tile| side(&tile.image)).max().unwrap_or(0);
        let width = (largest(RgbImage::width) * scale).max(NARROWEST);
        let text = sheet::text_size(width);
        let fit = (width / (text * CHARACTER)) as usize;
        let wrap = |tile: &Tile| tile.caption.iter().flat_map(|line| text::wrap(line, fit, ROWS)).collect();
        Self {
            columns: columns as u32,
            rows: tiles.len().div_ceil(columns) as u32,
            scale,
            width,
            height: largest(RgbImage::height) * scale,
            text,
            captions: tiles.iter().map(wrap).collect(),
        }
    }

    fn draw(&self, tiles: &[Tile]) -> RgbImage {
        let lines = self.captions.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let line = LINE * self.text;
        let (across, down) = (self.width + GAP, self.height + GAP / 2 + lines * line + GAP);
        let mut sheet = RgbImage::from_pixel(GAP + self.columns * across, GAP + self.rows * down, PAPER);
        for (index, (tile, caption)) in tiles.iter().zip(&self.captions).enumerate() {
            let (column, row) = (index as u32 % self.columns, index as u32 / self.columns);
            let (left, top) = (GAP + column * across, GAP + row * down);
            let (width, height) = (tile.image.width() * self.scale, tile.image.height() * self.scale);
            let enlarged = imageops::resize(&tile.image, width, height, FilterType::Nearest);
            imageops::replace(&mut sheet, &enlarged, left.into(), top.into());
            for (index, words) in caption.iter().enumerate() {
                let below = top + self.height + GAP / 2 + index as u32 * line;
                text::draw(&mut sheet, (left, below), self.text, INK, words);
            }
        }
        sheet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(color: [u8; 3], caption: &[&str]) -> Tile {
        let image = RgbImage::from_fn(32, 32, |x, y| if x == y { Rgb([0; 3]) } else { Rgb(color) });
        Tile { image, caption: caption.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn places_images_enlarged_without_blending() {
        let tiles = [tile([255, 0, 0], &["red", "0.5"]), tile([0, 0, 255], &["blue"]), tile([0, 255, 0], &[])];
        let sheet = grid(&tiles, 2, 4);
        let caption = GAP / 2 + 2 * LINE;
        assert_eq!(sheet.dimensions(), (GAP + 2 * (128 + GAP), GAP + 2 * (128 + caption + GAP)));
        assert_eq!(sheet.get_pixel(GAP + 4, GAP).0, [255, 0, 0]);
        assert_eq!(sheet.get_pixel(GAP + 3, GAP + 3).0, [0, 0, 0]);
        assert_eq!(sheet.get_pixel(GAP + 128 + GAP + 4, GAP).0, [0, 0, 255]);
        assert_eq!(sheet.get_pixel(GAP + 4, GAP + 128 + caption + GAP).0, [0, 255, 0]);
        let inked = |left: u32| {
            (left..left + 128).any(|x| (GAP + 128..GAP + 128 + caption).any(|y| *sheet.get_pixel(x, y) == INK))
        };
        assert!(inked(GAP) && inked(GAP + 128 + GAP));
    }

    #[test]
    fn odd_arguments_are_no_panic() {
        assert_eq!(grid(&[], 4, 4).dimensions(), (GAP + NARROWEST + GAP, GAP));
        let one = [tile([1, 2, 3], &["a very long caption that cannot possibly fit under so small an image, ever"])];
        assert_eq!(grid(&one, 0, 0).width(), GAP + NARROWEST + GAP);
        assert!(grid(&[Tile { image: RgbImage::new(0, 0), caption: vec![] }], 1, 1).width() > 0);
        assert!(before_after(("before", &[]), ("after", &one), 1, 1).width() > 2 * NARROWEST);
    }
}
