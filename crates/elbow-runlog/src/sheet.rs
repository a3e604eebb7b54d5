//! Reads contact sheets back: the pictures of [`grid`](crate::grid), at their own size, and what stands under them.
//!
//! A run keeps the pictures of its evaluations and of its epochs as sheets. Their geometry follows from the size of a picture, and their
//! text is drawn dot by dot from a bitmap font, so that both can be read without a loss. Sheets of large pictures have hundreds of
//! megapixels: they are read row by row, and only so many of them are kept as the pictures and the text need.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::{Rgb, RgbImage, imageops};
use png::{BitDepth, ColorType, Decoder};

use crate::grid::{GAP, INK, LINE, NARROWEST, PAPER, ROWS, TITLE};
use crate::text::{self, CHARACTER};
use crate::{RunLogError, Tile};

/// Bytes that a sheet may take in memory.
const MOST: u64 = 1 << 30;
/// Entries of a caption that geometry is tried with: a prompt and a score.
const ENTRIES: u32 = 2;

/// Reads a sheet that [`grid`](crate::grid::grid) drew of pictures of `side × side` pixels with an enlargement of `scale`.
pub fn read_grid(path: &Path, side: u32, scale: u32) -> Result<Vec<Tile>, RunLogError> {
    let sheet = Sheet::open(path, side, scale)?;
    sheet.tiles(0, sheet.image.width(), 0).ok_or_else(|| sheet.unlike(path))
}

/// Reads a sheet that [`before_after`](crate::grid::before_after) drew: the pictures before, and those after.
pub fn read_before_after(path: &Path, side: u32, scale: u32) -> Result<(Vec<Tile>, Vec<Tile>), RunLogError> {
    let sheet = Sheet::open(path, side, scale)?;
    let both = || {
        let half = sheet.image.width().checked_sub(2 * sheet.gap())? / 2;
        let top = TITLE / sheet.step;
        Some((sheet.tiles(0, half, top)?, sheet.tiles(half + 2 * sheet.gap(), half, top)?))
    };
    both().ok_or_else(|| sheet.unlike(path))
}

/// Every `step`-th pixel of a sheet. All lengths of its layout are multiples of `step`.
struct Sheet {
    image: RgbImage,
    step: u32,
    side: u32,
    scale: u32,
    /// Enlargement of the text.
    text: u32,
}

impl Sheet {
    fn open(path: &Path, side: u32, scale: u32) -> Result<Self, RunLogError> {
        let (side, scale) = (side.max(1), scale.max(1));
        let text = text_size(place(side, scale));
        // All lengths are multiples of 4, half a gap among them.
        let step = [4, 2].into_iter().find(|n| scale.is_multiple_of(*n) && text.is_multiple_of(*n)).unwrap_or(1);
        Ok(Self { image: every(path, step)?, step, side, scale, text })
    }

    fn gap(&self) -> u32 {
        GAP / self.step
    }

    /// The tiles of a grid whose top left corner is at `(left, top)` and that is `width` wide; nothing if no grid fits.
    fn tiles(&self, left: u32, width: u32, top: u32) -> Option<Vec<Tile>> {
        let (gap, line) = (self.gap(), LINE * self.text / self.step);
        let (across, picture) = (place(self.side, self.scale) / self.step + gap, self.side * self.scale / self.step);
        let columns = exactly(width.checked_sub(gap)?, across)?;
        let height = self.image.height().checked_sub(top + gap)?;
        // A row is a picture, a gap and a half, and some lines of text. The sheet beside it may have more of them, so that paper is left.
        let down = |lines: u32| picture + gap / 2 + lines * line + gap;
        let shape = |lines: u32| {
            let rows = height / down(lines);
            let left_over = height - rows * down(lines);
            let above = |row: u32| top + row * down(lines);
            let fits =
                left_over.is_multiple_of(line) && (0..=rows).all(|row| self.is_paper(left, width, above(row), gap));
            fits.then_some((rows, lines))
        };
        let shapes = (0..=ENTRIES * ROWS as u32).filter_map(shape);
        let (rows, lines) = shapes.filter(|(rows, _)| *rows > 0 || height == 0).max()?;
        let mut tiles = Vec::new();
        for place in 0..columns * rows {
            let (x, y) = (left + gap + place % columns * across, top + gap + place / columns * down(lines));
            let enlarged = imageops::crop_imm(&self.image, x, y, picture, picture);
            let pixel = self.scale / self.step;
            let image = RgbImage::from_fn(self.side, self.side, |i, j| {
                *enlarged.inner().get_pixel(x + i * pixel, y + j * pixel)
            });
            let caption = (0..lines).map(|k| self.line(x, y + picture + gap / 2 + k * line, across - gap));
            tiles.push(Tile { image, caption: caption.take_while(|words| !words.is_empty()).collect() });
        }
        // Places after the last tile are empty paper.
        while tiles.last().is_some_and(|tile| tile.caption.is_empty() && tile.image.pixels().all(|p| *p == PAPER)) {
            tiles.pop();
        }
        Some(tiles)
    }

    fn is_paper(&self, left: u32, width: u32, top: u32, height: u32) -> bool {
        (top..top + height).all(|y| (left..left + width).all(|x| self.image.get_pixel_checked(x, y) == Some(&PAPER)))
    }

    /// A line of text in a place of this width.
    fn line(&self, left: u32, top: u32, width: u32) -> String {
        let dot = self.text / self.step;
        let characters = (0..width / (CHARACTER * dot)).map(|index| {
            let left = left + index * CHARACTER * dot;
            text::character(|column, row| self.inked(left + column * dot, top + row * dot))
        });
        characters.collect::<String>().trim_end().to_owned()
    }

    fn inked(&self, x: u32, y: u32) -> bool {
        self.image.get_pixel_checked(x, y).is_some_and(|pixel| *pixel == INK)
    }

    fn unlike(&self, path: &Path) -> RunLogError {
        let (width, height) = (self.image.width() * self.step, self.image.height() * self.step);
        let side = self.side;
        let reason = format!("{width} × {height} pixels are no sheet of pictures of {side} × {side}");
        RunLogError::Sheet { path: path.to_path_buf(), reason }
    }
}

/// Every `step`-th pixel of every `step`-th row of a PNG file in RGB.
fn every(path: &Path, step: u32) -> Result<RgbImage, RunLogError> {
    let damaged = |reason: String| RunLogError::Sheet { path: path.to_path_buf(), reason };
    let file = File::open(path).map_err(RunLogError::io("read", path))?;
    let mut reader = Decoder::new(BufReader::new(file)).read_info().map_err(|error| damaged(error.to_string()))?;
    let info = reader.info();
    if (info.color_type, info.bit_depth) != (ColorType::Rgb, BitDepth::Eight) {
        return Err(damaged("it is not in RGB with 8 bits".into()));
    }
    let (width, height) = (info.width / step, info.height / step);
    if 3 * u64::from(width) * u64::from(height) > MOST || 3 * u64::from(info.width) > MOST {
        return Err(damaged(format!("{} × {} pixels are too many to read", info.width, info.height)));
    }
    let mut image = RgbImage::new(width, height);
    let mut number = 0;
    while let Some(row) = reader.next_row().map_err(|error| damaged(error.to_string()))? {
        if number % step == 0 && number / step < height {
            for x in 0..width {
                let at = 3 * (x * step) as usize;
                image.put_pixel(x, number / step, Rgb([row.data()[at], row.data()[at + 1], row.data()[at + 2]]));
            }
        }
        number += 1;
    }
    Ok(image)
}

/// Width of a place for a picture.
fn place(side: u32, scale: u32) -> u32 {
    (side * scale).max(NARROWEST)
}

/// Enlargement of the text under pictures in places of this width.
pub(crate) fn text_size(width: u32) -> u32 {
    (width / 256).max(1)
}

/// The quotient of a division without a remainder.
fn exactly(length: u32, part: u32) -> Option<u32> {
    (part > 0 && length.is_multiple_of(part)).then(|| length / part)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::{grid, save_png};

    /// No two pixels of neighboring tiles are alike, and none is paper.
    fn tile(number: u32, side: u32, caption: &[&str]) -> Tile {
        let image = RgbImage::from_fn(side, side, |x, y| Rgb([(17 * number) as u8, (x * 5) as u8, (y * 3) as u8]));
        Tile { image, caption: caption.iter().map(ToString::to_string).collect() }
    }

    fn drawn(sheet: &RgbImage) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        save_png(&path, sheet).unwrap();
        (folder, path)
    }

    #[test]
    fn a_grid_is_read_with_its_words() {
        let tiles = [
            tile(1, 32, &["a photo of a red apple and a green suitcase", "0.52"]),
            tile(2, 32, &["café <b> & ΔΩ", "missing"]),
            tile(3, 32, &["two cats", "-1.00"]),
        ];
        let (_folder, path) = drawn(&grid::grid(&tiles, 2, 4));
        let read = read_grid(&path, 32, 4).unwrap();
        assert_eq!(
            read.iter().map(|tile| &tile.image).collect::<Vec<_>>(),
            tiles.iter().map(|t| &t.image).collect::<Vec<_>>()
        );
        assert_eq!(read[0].caption, ["a photo of a red", "apple and a", "green suitcase", "0.52"]);
        assert_eq!(read[1].caption, ["café <b> & ΔΩ", "missing"]);
        assert_eq!(read[2].caption, ["two cats", "-1.00"]);
    }

    #[test]
    fn large_pictures_are_thinned_to_their_own_pixels() {
        let tiles: Vec<Tile> = (0..3).map(|n| tile(n, 256, &["a prompt", "1.00"])).collect();
        let (_folder, path) = drawn(&grid::grid(&tiles, 2, 4));
        let sheet = Sheet::open(&path, 256, 4).unwrap();
        assert_eq!(sheet.step, 4);
        let read = read_grid(&path, 256, 4).unwrap();
        assert_eq!(
            read,
            tiles.iter().map(|t| Tile { caption: t.caption.clone(), image: t.image.clone() }).collect::<Vec<_>>()
        );
    }

    #[test]
    fn both_halves_of_before_and_after_are_read_though_one_has_more_text() {
        let before: Vec<Tile> = (0..8).map(|n| tile(n, 32, &["a long prompt of more than a line", "wrong"])).collect();
        let after: Vec<Tile> = (8..16).map(|n| tile(n, 32, &["right"])).collect();
        let (_folder, path) = drawn(&grid::before_after(("base", &before), ("tuned", &after), 6, 4));
        let (left, right) = read_before_after(&path, 32, 4).unwrap();
        let images = |tiles: &[Tile]| tiles.iter().map(|tile| tile.image.clone()).collect::<Vec<_>>();
        assert_eq!((images(&left), images(&right)), (images(&before), images(&after)));
        assert_eq!(
            (left[7].caption.last().unwrap(), &right[7].caption[..]),
            (&"wrong".to_owned(), &["right".to_owned()][..])
        );
    }

    #[test]
    fn what_is_no_sheet_is_named() {
        let (folder, path) = drawn(&grid::grid(&[tile(1, 32, &["x"])], 1, 4));
        let error = read_grid(&path, 48, 4).unwrap_err();
        assert!(
            error.to_string().contains("sheet.png: 144 × 159 pixels are no sheet of pictures of 48 × 48"),
            "{error}"
        );
        let torn = folder.path().join("torn.png");
        let bytes = fs::read(&path).unwrap();
        for length in [0, 9, 40, bytes.len() / 2] {
            fs::write(&torn, &bytes[..length]).unwrap();
            assert!(read_grid(&torn, 32, 4).unwrap_err().to_string().contains("torn.png"));
        }
        assert!(matches!(read_grid(&folder.path().join("absent.png"), 32, 4), Err(RunLogError::Io { .. })));
    }

    #[test]
    fn an_empty_sheet_has_no_pictures() {
        let (_folder, path) = drawn(&grid::grid(&[], 8, 4));
        assert_eq!(read_grid(&path, 32, 4).unwrap(), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

        #[test]
        fn what_was_drawn_is_read(
            captions in proptest::collection::vec(("[a-z]{1,7}( [a-z]{1,7}){0,9}", "[01]\\.[0-9]{2}"), 1..20),
            columns in 1usize..9,
            size in 0usize..4,
        ) {
            let side = [8, 32, 40, 64][size];
            let tiles: Vec<Tile> = captions.iter().enumerate()
                .map(|(n, (prompt, score))| tile(n as u32, side, &[prompt, score])).collect();
            let (_folder, path) = drawn(&grid::grid(&tiles, columns, 4));
            let read = read_grid(&path, side, 4).unwrap();
            prop_assert_eq!(read.len(), tiles.len());
            for (read, (drawn, (prompt, score))) in read.iter().zip(tiles.iter().zip(&captions)) {
                prop_assert_eq!(&read.image, &drawn.image);
                prop_assert_eq!(read.caption.last(), Some(score));
                // A prompt of more than four lines is cut.
                let words = read.caption[..read.caption.len() - 1].join(" ");
                prop_assert!(words == *prompt || words.ends_with("..."), "{} became {}", prompt, words);
            }
        }
    }
}
