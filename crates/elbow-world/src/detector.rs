//! The detector of the training reward: template matching on ink, color by the hues inside the match.
//!
//! It sees pixels only. *Ink* is 255 minus the smallest channel: 0 on white, large on dark and on saturated pixels alike, and all
//! but independent of a sprite's tint, so two templates an object suffice (natural and tinted). Each area of the grid is a
//! proposal; templates may be shifted by up to [`REACH`] pixels. A match needs a high normalized correlation, a lead over the
//! second-best class, ink of about the template's strength, and no part of the area that the template leaves unexplained: so
//! blanks, noise, blobs, halves and mixtures of sprites are no objects.

use crate::object::{self, Color, Object};
use crate::scene::{AREA, AREAS, SIDE, corner};
use crate::sprites::{SPRITE, sprite};
use elbow_rewards::geneval::{Detection, Detector, Record};
use image::RgbImage;

/// Shift of a template from its place in the area, in pixels.
pub const REACH: usize = 2;
/// Smallest normalized correlation of a match.
const MIN_CORRELATION: f32 = 0.9;
/// Smallest lead over the best other class.
const MIN_LEAD: f32 = 0.05;
/// Ink of the image over ink of the template (the regression slope), within these.
const GAIN: [f32; 2] = [0.45, 1.5];
/// Largest residual in a 4×4 cell, see [`worst_residual`]: sprites with blur and noise reach 0.59, halves and discs start at 0.75.
const MAX_RESIDUAL: f32 = 0.65;
/// Part of the masked pixels that has to have the color.
const MIN_SHARE: f32 = 0.6;
/// An area whose ink has a smaller zero-mean norm is empty; that of the faintest sprite is 787.
const MIN_NORM: f32 = 350.0;
/// A pixel belongs to the mask of a sprite from this alpha on.
const MASK_ALPHA: f32 = 0.6;
/// Chroma (largest minus smallest channel, 0..=255) below which a pixel has no hue.
const MIN_CHROMA: f32 = 50.0;
/// Largest channel below which a pixel without hue is black.
const MAX_BLACK: f32 = 150.0;
/// Side of the ink plane: the image with a white border of [`REACH`].
const PLANE: usize = SIDE + 2 * REACH;
const WINDOW: usize = AREA * AREA;

/// Zero-mean ink of a sprite in its area.
#[derive(Clone, Debug)]
struct Template {
    object: Object,
    ink: [f32; WINDOW],
    norm: f32,
}

/// One template where it fits best.
#[derive(Clone, Copy)]
struct Match<'a> {
    template: &'a Template,
    correlation: f32,
    gain: f32,
    /// Upper left corner of the window in the plane.
    at: [usize; 2],
}

/// The training reward's detector of emoji scenes.
#[derive(Clone, Debug)]
pub struct SceneDetector {
    templates: Vec<Template>,
}

impl Default for SceneDetector {
    fn default() -> Self {
        Self::new()
    }
}

impl SceneDetector {
    /// A detector of all objects of the world.
    pub fn new() -> Self {
        let both = |object| [None, Some(Color::Blue)].map(|color| Template::new(object, color));
        Self { templates: Object::ALL.into_iter().flat_map(both).collect() }
    }

    /// The object in an area, if there is one.
    fn find(&self, plane: &[f32], area: usize) -> Option<Match<'_>> {
        let [x0, y0] = [area % 2 * AREA, area / 2 * AREA];
        let mut best: [Option<Match>; Object::ALL.len()] = [None; Object::ALL.len()];
        if centered(plane, [x0 + REACH, y0 + REACH]).1 < MIN_NORM {
            return None;
        }
        for (dx, dy) in (0..=2 * REACH).flat_map(|dy| (0..=2 * REACH).map(move |dx| (dx, dy))) {
            let at = [x0 + dx, y0 + dy];
            let (window, norm) = centered(plane, at);
            for template in &self.templates {
                let product = dot(&window, &template.ink);
                let correlation = product / (norm * template.norm).max(1.0);
                let slot = &mut best[template.object as usize];
                if slot.is_none_or(|m| correlation > m.correlation) {
                    let gain = product / (template.norm * template.norm);
                    *slot = Some(Match { template, correlation, gain, at });
                }
            }
        }
        let mut ranked: Vec<Match> = best.into_iter().flatten().collect();
        ranked.sort_by(|a, b| b.correlation.total_cmp(&a.correlation));
        let [first, second, ..] = ranked.as_slice() else { return None };
        let sure = first.correlation >= MIN_CORRELATION && first.correlation - second.correlation >= MIN_LEAD;
        let strong = (GAIN[0]..=GAIN[1]).contains(&first.gain);
        let whole = || worst_residual(&centered(plane, first.at).0, first.template, first.gain) <= MAX_RESIDUAL;
        (sure && strong && whole()).then_some(*first)
    }
}

impl Detector for SceneDetector {
    fn never_finds(&self, record: &Record) -> Option<String> {
        object::never_found(record)
    }

    /// Images of another size than 32×32 show nothing.
    fn detect(&self, image: &RgbImage, _: &Record) -> Vec<Detection> {
        if image.dimensions() != (SIDE as u32, SIDE as u32) {
            return Vec::new();
        }
        let plane = ink_plane(image);
        let found = (0..AREAS).filter_map(|area| self.find(&plane, area));
        found
            .map(|m| {
                let origin = m.at.map(|c| c as i32 - REACH as i32 + corner(0)[0] as i32);
                Detection {
                    class: m.template.object.name().into(),
                    score: m.correlation.min(1.0),
                    bbox: ink_box(m.template.object, origin),
                    color: color_of(image, m.template.object, origin).map(|c| c.name().into()),
                }
            })
            .collect()
    }
}

impl Template {
    fn new(object: Object, color: Option<Color>) -> Self {
        let mut plane = vec![0.0; PLANE * PLANE];
        let [x0, y0] = corner(0).map(|c| c + REACH);
        for (y, row) in sprite(object, color).iter().enumerate() {
            for (x, &[r, g, b, a]) in row.iter().enumerate() {
                plane[(y0 + y) * PLANE + x0 + x] = a * ink([r, g, b]);
            }
        }
        let (ink, norm) = centered(&plane, [REACH, REACH]);
        Self { object, ink, norm }
    }
}

fn ink([r, g, b]: [f32; 3]) -> f32 {
    255.0 - r.min(g).min(b)
}

/// Ink of an image with a white border, row by row.
fn ink_plane(image: &RgbImage) -> Vec<f32> {
    let mut plane = vec![0.0; PLANE * PLANE];
    for (x, y, pixel) in image.enumerate_pixels() {
        plane[(y as usize + REACH) * PLANE + x as usize + REACH] = ink(pixel.0.map(f32::from));
    }
    plane
}

/// The 16×16 window of a plane minus its mean, and its norm.
fn centered(plane: &[f32], [x0, y0]: [usize; 2]) -> ([f32; WINDOW], f32) {
    let mut window = [0.0; WINDOW];
    for (row, y) in window.chunks_exact_mut(AREA).zip(y0..) {
        row.copy_from_slice(&plane[y * PLANE + x0..][..AREA]);
    }
    let mean = window.iter().sum::<f32>() / WINDOW as f32;
    for w in &mut window {
        *w -= mean;
    }
    let norm = window.iter().map(|w| w * w).sum::<f32>().sqrt();
    (window, norm)
}

/// Dot product, in lanes so that it is vectorized.
fn dot(a: &[f32; WINDOW], b: &[f32; WINDOW]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}

/// Root mean square of what a template with this gain leaves unexplained, in the worst 4×4 cell, over the template's own
/// root mean square.
fn worst_residual(window: &[f32; WINDOW], template: &Template, gain: f32) -> f32 {
    let mut cells = [0.0f32; 16];
    for (i, (w, t)) in window.iter().zip(&template.ink).enumerate() {
        let (x, y) = (i % AREA, i / AREA);
        cells[y / 4 * 4 + x / 4] += (w - gain * t) * (w - gain * t) / 16.0;
    }
    let worst = cells.into_iter().fold(0.0, f32::max);
    worst.sqrt() * (WINDOW as f32).sqrt() / (gain * template.norm).max(1.0)
}

/// Box of an object's ink when its sprite's corner is at `origin`.
fn ink_box(object: Object, origin: [i32; 2]) -> [f32; 4] {
    let sprite = sprite(object, None);
    let inked = |x: usize, y: usize| sprite[y][x][3] >= 0.25;
    let columns: Vec<usize> = (0..SPRITE).filter(|&x| (0..SPRITE).any(|y| inked(x, y))).collect();
    let rows: Vec<usize> = (0..SPRITE).filter(|&y| (0..SPRITE).any(|x| inked(x, y))).collect();
    let span = |v: &[usize], start: i32| {
        let (first, last) = (v.first().copied().unwrap_or(0), v.last().copied().unwrap_or(SPRITE - 1));
        [(start + first as i32) as f32, (start + last as i32 + 1) as f32]
    };
    let ([x0, x1], [y0, y1]) = (span(&columns, origin[0]), span(&rows, origin[1]));
    [x0, y0, x1, y1]
}

/// The color of most of the pixels under an object's mask, if one is that of [`MIN_SHARE`] of them.
fn color_of(image: &RgbImage, object: Object, origin: [i32; 2]) -> Option<Color> {
    let mut votes = [0.0f32; Color::ALL.len()];
    let mut total = 0.0;
    for (y, row) in sprite(object, None).iter().enumerate() {
        for (x, &[.., alpha]) in row.iter().enumerate() {
            let [px, py] = [origin[0] + x as i32, origin[1] + y as i32];
            if alpha < MASK_ALPHA || !(0..SIDE as i32).contains(&px) || !(0..SIDE as i32).contains(&py) {
                continue;
            }
            total += 1.0;
            if let Some(color) = color_name(image.get_pixel(px as u32, py as u32).0.map(f32::from)) {
                votes[color as usize] += 1.0;
            }
        }
    }
    Color::ALL.into_iter().find(|&c| votes[c as usize] >= MIN_SHARE * total && total > 0.0)
}

/// The color a pixel has, if it has one of the six; gray, white, orange and cyan have none.
fn color_name([r, g, b]: [f32; 3]) -> Option<Color> {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = high - low;
    if chroma < MIN_CHROMA {
        return (high < MAX_BLACK).then_some(Color::Black);
    }
    let sixth = if high <= r {
        ((g - b) / chroma).rem_euclid(6.0)
    } else if high <= g {
        (b - r) / chroma + 2.0
    } else {
        (r - g) / chroma + 4.0
    };
    match sixth * 60.0 {
        h if !(18.0..330.0).contains(&h) => Some(Color::Red),
        h if (36.0..70.0).contains(&h) => Some(Color::Yellow),
        h if (75.0..170.0).contains(&h) => Some(Color::Green),
        h if (190.0..247.0).contains(&h) => Some(Color::Blue),
        h if (247.0..320.0).contains(&h) => Some(Color::Purple),
        _ => None,
    }
}
