//! Small text in images, from an 8×8 bitmap font.

use font8x8::unicode::FontUnicode;
use font8x8::{BASIC_FONTS, GREEK_FONTS, LATIN_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage};

/// Width and height of a character.
pub(crate) const CHARACTER: u32 = 8;

/// Draws one line with its top left corner at `(left, top)`, each dot of the font `size` pixels wide. What lies
/// outside the image is cut off, and a character that the font lacks is drawn as `?`.
pub(crate) fn draw(image: &mut RgbImage, (left, top): (u32, u32), size: u32, color: Rgb<u8>, line: &str) {
    for (index, character) in line.chars().enumerate() {
        let left = left + index as u32 * CHARACTER * size;
        for (row, dots) in glyph(character).into_iter().enumerate() {
            for column in (0..CHARACTER).filter(|column| dots >> column & 1 == 1) {
                square(image, (left + column * size, top + row as u32 * size), size, color);
            }
        }
    }
}

fn square(image: &mut RgbImage, (left, top): (u32, u32), size: u32, color: Rgb<u8>) {
    for y in top..(top + size).min(image.height()) {
        for x in left..(left + size).min(image.width()) {
            image.put_pixel(x, y, color);
        }
    }
}

/// The rows of a character from the top, the leftmost dot in the lowest bit.
fn glyph(character: char) -> [u8; 8] {
    const UNKNOWN: [u8; 8] = [0x1e, 0x33, 0x30, 0x18, 0x0c, 0x00, 0x0c, 0x00];
    BASIC_FONTS
        .get(character)
        .or_else(|| LATIN_FONTS.get(character))
        .or_else(|| GREEK_FONTS.get(character))
        .unwrap_or(UNKNOWN)
}

/// The character whose dots these are, by column and row; `\u{fffd}` if there is none.
pub(crate) fn character(inked: impl Fn(u32, u32) -> bool) -> char {
    let row = |row| (0..CHARACTER).fold(0, |dots: u8, column| dots | u8::from(inked(column, row)) << column);
    let dots: Vec<u8> = (0..CHARACTER).map(row).collect();
    let fonts = [&BASIC_FONTS as &dyn UnicodeFonts, &LATIN_FONTS, &GREEK_FONTS];
    // Control characters have glyphs too, which are empty: a space comes first.
    let found =
        fonts.iter().flat_map(|font| font.iter()).find(|glyph| glyph.char() >= ' ' && glyph.byte_array()[..] == dots);
    found.map_or('\u{fffd}', FontUnicode::char)
}

/// Breaks text between words into lines of at most `columns` characters, and a longer word inside. What does not fit
/// into `rows` lines is cut, and the last line then ends in dots.
pub(crate) fn wrap(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        for (index, piece) in word.chunks(columns).enumerate() {
            match lines.last_mut() {
                Some(line) if index == 0 && line.chars().count() + 1 + piece.len() <= columns => {
                    line.push(' ');
                    line.extend(piece);
                }
                _ => lines.push(piece.iter().collect()),
            }
        }
    }
    if lines.len() > rows {
        lines.truncate(rows);
        if let Some(last) = lines.last_mut() {
            *last = last.chars().take(columns.saturating_sub(3)).chain("...".chars()).take(columns).collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn breaks_between_words_and_cuts_with_dots() {
        let prompt = "a photo of a red apple and a green suitcase";
        assert_eq!(wrap(prompt, 16, 9), ["a photo of a red", "apple and a", "green suitcase"]);
        assert_eq!(wrap(prompt, 16, 2), ["a photo of a red", "apple and a..."]);
        assert_eq!(wrap("incomprehensibilities", 8, 9), ["incompre", "hensibil", "ities"]);
        assert_eq!(wrap("  ", 8, 2), [""; 0]);
    }

    #[test]
    fn draws_what_the_font_has_and_cuts_at_the_edge() {
        let mut image = RgbImage::new(12, 8);
        draw(&mut image, (0, 0), 1, Rgb([255; 3]), "I\u{4e2d}");
        let row: Vec<bool> = (0..12).map(|x| image.get_pixel(x, 0).0[0] > 0).collect();
        assert_eq!(row[..8], [false, true, true, true, true, false, false, false]);
        assert!(row[9] && row[11], "the unknown character is a question mark");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn never_longer_than_asked(text in ".{0,80}", columns in 1usize..30, rows in 0usize..5) {
            let lines = wrap(&text, columns, rows);
            prop_assert!(lines.len() <= rows);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= columns));
        }
    }
}
