//! The judge: a second detector with features of its own, for evaluation only. It is never trained on, so that a policy that
//! has learned to please [`SceneDetector`](crate::SceneDetector) instead of its prompt is found out.
//!
//! Class: gradient-orientation histograms (Dalal and Triggs, 2005) of the smoothed area plus the silhouette's area and moments,
//! nearest of all sprites in all tints, with a distance ratio to the best other class. Color: a histogram of hue, gray and
//! black, by intersection with that of the class in each tint.

use crate::object::{self, Color, Object};
use crate::scene::{AREA, AREAS, Placement, SIDE, Scene};
use elbow_rewards::geneval::{Detection, Detector, Record};
use image::RgbImage;
use std::f32::consts::PI;

/// Cells along a side of an area; each 4 px wide.
const CELLS: usize = 4;
/// Orientations in [0, π).
const ORIENTATIONS: usize = 8;
const GRADIENTS: usize = CELLS * CELLS * ORIENTATIONS;
/// Area, center x and y, spread xx, yy, xy of the silhouette.
const MOMENTS: usize = 6;
/// Weight of the moments beside the unit-norm gradient histogram.
const MOMENT_WEIGHT: f32 = 0.6;
/// Part of a gradient (channels in 0..=1, per 2 px) that noise may make.
const NOISE_FLOOR: f32 = 0.08;
/// Distance from white (Euclidean, channels in 0..=1) from which on a smoothed pixel belongs to the silhouette.
const SILHOUETTE: f32 = 0.2;
/// An area with fewer pixels in its silhouette is empty.
const MIN_SILHOUETTE: usize = 24;
/// Largest feature distance of a class.
const MAX_DISTANCE: f32 = 0.45;
/// Largest ratio of its distance to that of the best other class.
const MAX_RATIO: f32 = 0.7;
/// Where a sprite may lie, from its place in the area, in pixels; the first that shows a class counts.
const SHIFTS: [[i32; 2]; 9] = [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, 1], [1, -1], [-1, -1]];
/// Darkest background that a color cast is thought to make.
const MIN_WHITE: f32 = 0.85;
/// Hues, then gray, then black.
const HUES: usize = 18;
const COLORS: usize = HUES + 2;
/// Smallest intersection of color histograms.
const MIN_OVERLAP: f32 = 0.45;
/// Smallest lead over the best other tint.
const MIN_COLOR_LEAD: f32 = 0.08;

/// One area's pixels, channels in 0..=1.
type Patch = [[[f32; 3]; AREA]; AREA];

#[derive(Clone, Debug)]
struct Features {
    shape: Vec<f32>,
    colors: [f32; COLORS],
    /// Of the silhouette, within the area.
    bbox: [f32; 4],
}

#[derive(Clone, Debug)]
struct Exemplar {
    placement: Placement,
    features: Features,
}

/// The evaluation's detector of emoji scenes.
#[derive(Clone, Debug)]
pub struct SceneJudge {
    exemplars: Vec<Exemplar>,
}

impl Default for SceneJudge {
    fn default() -> Self {
        Self::new()
    }
}

impl SceneJudge {
    /// A judge that knows all sprites in all tints.
    pub fn new() -> Self {
        let tints = || std::iter::once(None).chain(Color::ALL.map(Some));
        let placements =
            Object::ALL.into_iter().flat_map(|object| tints().map(move |color| Placement { object, color }));
        let exemplar = |placement| {
            let scene = Scene { areas: [Some(placement), None, None, None] };
            let features = Features::of(&patch(&scene.render(), 0, [0, 0]))?;
            Some(Exemplar { placement, features })
        };
        Self { exemplars: placements.filter_map(exemplar).collect() }
    }

    /// What an area shows.
    fn look(&self, image: &RgbImage, area: usize) -> Option<Detection> {
        for [dx, dy] in SHIFTS {
            let features = Features::of(&patch(image, area, [dx, dy]))?;
            let Some((object, distance)) = self.class(&features) else { continue };
            let [x, y] = [(area % 2 * AREA) as f32 + dx as f32, (area / 2 * AREA) as f32 + dy as f32];
            let [x0, y0, x1, y1] = features.bbox;
            return Some(Detection {
                class: object.name().into(),
                score: 1.0 - distance / 2.0,
                bbox: [x + x0, y + y0, x + x1, y + y1],
                color: self.color(object, &features).map(|c| c.name().into()),
            });
        }
        None
    }

    /// The class, if it is near enough and clearly nearer than any other; with its distance.
    fn class(&self, features: &Features) -> Option<(Object, f32)> {
        let mut nearest = [f32::INFINITY; Object::ALL.len()];
        for exemplar in &self.exemplars {
            let squares = exemplar.features.shape.iter().zip(&features.shape).map(|(a, b)| (a - b) * (a - b));
            let slot = &mut nearest[exemplar.placement.object as usize];
            *slot = slot.min(squares.sum::<f32>().sqrt());
        }
        let mut ranked = Object::ALL.map(|object| (object, nearest[object as usize]));
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        let [first, second, ..] = ranked;
        (first.1 <= MAX_DISTANCE && first.1 <= MAX_RATIO * second.1).then_some(first)
    }

    /// The tint of an object whose colors these are; `None` if they are natural or like no tint.
    fn color(&self, object: Object, features: &Features) -> Option<Color> {
        let of_class = self.exemplars.iter().filter(|e| e.placement.object == object);
        let mut ranked: Vec<(Color, f32)> = of_class
            .filter_map(|e| Some((e.placement.color?, overlap(&e.features.colors, &features.colors))))
            .collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let [first, second, ..] = ranked.as_slice() else { return None };
        (first.1 >= MIN_OVERLAP && first.1 - second.1 >= MIN_COLOR_LEAD).then_some(first.0)
    }
}

impl Detector for SceneJudge {
    fn never_finds(&self, record: &Record) -> Option<String> {
        object::never_found(record)
    }

    /// Images of another size than 32×32 show nothing.
    fn detect(&self, image: &RgbImage, _: &Record) -> Vec<Detection> {
        if image.dimensions() != (SIDE as u32, SIDE as u32) {
            return Vec::new();
        }
        (0..AREAS).filter_map(|area| self.look(image, area)).collect()
    }
}

impl Features {
    /// None for an area that is as good as empty.
    fn of(patch: &Patch) -> Option<Self> {
        let smooth = smoothed(patch);
        let pixels = || (0..AREA).flat_map(|y| (0..AREA).map(move |x| (x, y)));
        let depth = |(x, y): (usize, usize)| smooth[y][x].iter().map(|c| (1.0 - c) * (1.0 - c)).sum::<f32>().sqrt();
        let silhouette: Vec<(usize, usize)> = pixels().filter(|&p| depth(p) >= SILHOUETTE).collect();
        if silhouette.len() < MIN_SILHOUETTE {
            return None;
        }
        let mut shape = gradient_histogram(&smooth);
        shape.extend(moments(&silhouette).map(|m| MOMENT_WEIGHT * m));
        let edge = |axis: fn(&(usize, usize)) -> usize| {
            let span = silhouette.iter().map(axis);
            [span.clone().min().unwrap_or(0) as f32, span.max().unwrap_or(AREA - 1) as f32 + 1.0]
        };
        let ([x0, x1], [y0, y1]) = (edge(|p| p.0), edge(|p| p.1));
        let colors = color_histogram(&smooth, &silhouette);
        Some(Self { shape, colors, bbox: [x0, y0, x1, y1] })
    }
}

/// An area, moved by `shift`, divided by its rim's median color: a slight cast of the whole image is no color of the sprite.
/// Outside the image is white.
fn patch(image: &RgbImage, area: usize, shift: [i32; 2]) -> Patch {
    let [x0, y0] = [(area % 2 * AREA) as i32 + shift[0], (area / 2 * AREA) as i32 + shift[1]];
    let raw = |x: usize, y: usize| match (u32::try_from(x0 + x as i32), u32::try_from(y0 + y as i32)) {
        (Ok(x), Ok(y)) => image.get_pixel_checked(x, y).map_or([1.0; 3], |p| p.0.map(|c| f32::from(c) / 255.0)),
        _ => [1.0; 3],
    };
    let last = AREA - 1;
    let rim: Vec<[f32; 3]> =
        (0..last).flat_map(|i| [raw(i, 0), raw(last, i), raw(last - i, last), raw(0, last - i)]).collect();
    let white = [0, 1, 2].map(|c| {
        let mut channel: Vec<f32> = rim.iter().map(|p| p[c]).collect();
        channel.sort_by(f32::total_cmp);
        channel[channel.len() / 2].max(MIN_WHITE)
    });
    std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            let pixel = raw(x, y);
            [0, 1, 2].map(|c| (pixel[c] / white[c]).min(1.0))
        })
    })
}

/// The 3×3 binomial filter; outside is white.
fn smoothed(patch: &Patch) -> Patch {
    let at = |x: i32, y: i32, c: usize| {
        let inside = (0..AREA as i32).contains(&x) && (0..AREA as i32).contains(&y);
        if inside { patch[y as usize][x as usize][c] } else { 1.0 }
    };
    let weight = |d: i32| if d == 0 { 0.5 } else { 0.25 };
    let around = || (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dx, dy)));
    std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            [0, 1, 2].map(|c| {
                around().map(|(dx, dy)| weight(dx) * weight(dy) * at(x as i32 + dx, y as i32 + dy, c)).sum::<f32>()
            })
        })
    })
}

/// Orientation histograms of 4×4 cells, votes shared bilinearly between neighboring cells, with unit norm. A pixel's gradient is
/// that of its steepest channel.
fn gradient_histogram(patch: &Patch) -> Vec<f32> {
    let mut histogram = vec![0.0f32; GRADIENTS];
    let at = |x: usize, y: usize, c: usize| patch[y][x][c];
    for (x, y) in (0..AREA).flat_map(|y| (0..AREA).map(move |x| (x, y))) {
        let (left, right, up, down) =
            (x.saturating_sub(1), (x + 1).min(AREA - 1), y.saturating_sub(1), (y + 1).min(AREA - 1));
        let channels = [0, 1, 2].map(|c| [at(right, y, c) - at(left, y, c), at(x, down, c) - at(x, up, c)]);
        let [gx, gy] =
            channels.into_iter().fold([0.0f32; 2], |a, g| if g[0].hypot(g[1]) > a[0].hypot(a[1]) { g } else { a });
        let magnitude = (gx.hypot(gy) - NOISE_FLOOR).max(0.0).sqrt();
        let turn = gy.atan2(gx).rem_euclid(PI) / PI * ORIENTATIONS as f32;
        let (bin, part) = (turn.floor() as usize, turn.fract());
        let center = |p: usize| (p as f32 + 0.5) / (AREA / CELLS) as f32 - 0.5;
        for (cy, wy) in neighbors(center(y)) {
            for (cx, wx) in neighbors(center(x)) {
                let cell = (cy * CELLS + cx) * ORIENTATIONS;
                histogram[cell + bin % ORIENTATIONS] += magnitude * wx * wy * (1.0 - part);
                histogram[cell + (bin + 1) % ORIENTATIONS] += magnitude * wx * wy * part;
            }
        }
    }
    let norm = histogram.iter().map(|h| h * h).sum::<f32>().sqrt().max(1e-6);
    for h in &mut histogram {
        *h /= norm;
    }
    histogram
}

/// The cells before and after a position, with their shares; those outside the area are left out.
fn neighbors(position: f32) -> impl Iterator<Item = (usize, f32)> {
    let (low, part) = (position.floor(), position - position.floor());
    [(low, 1.0 - part), (low + 1.0, part)]
        .into_iter()
        .filter(|(cell, _)| (0.0..CELLS as f32).contains(cell))
        .map(|(cell, share)| (cell as usize, share))
}

/// Area, center and spread of a silhouette, each within about ±1.
fn moments(silhouette: &[(usize, usize)]) -> [f32; MOMENTS] {
    let n = silhouette.len() as f32;
    let scale = AREA as f32 / 2.0;
    let points = || silhouette.iter().map(|&(x, y)| [(x as f32 + 0.5) / scale - 1.0, (y as f32 + 0.5) / scale - 1.0]);
    let mean = points().fold([0.0; 2], |m, p| [m[0] + p[0] / n, m[1] + p[1] / n]);
    let spread = |i: usize, j: usize| points().map(|p| (p[i] - mean[i]) * (p[j] - mean[j])).sum::<f32>() / n;
    [n / (AREA * AREA) as f32, mean[0], mean[1], 2.0 * spread(0, 0), 2.0 * spread(1, 1), 2.0 * spread(0, 1)]
}

/// Shares of the silhouette's depth (distance from white) by hue, gray and black; hues are shared between neighboring bins.
fn color_histogram(patch: &Patch, silhouette: &[(usize, usize)]) -> [f32; COLORS] {
    let mut histogram = [0.0f32; COLORS];
    for &(x, y) in silhouette {
        let [r, g, b] = patch[y][x];
        let (value, low) = (r.max(g).max(b), r.min(g).min(b));
        let (chroma, ink) = (value - low, 1.0 - low);
        let colorful = (chroma / 0.25).min(1.0);
        let dark = ((0.75 - value) / 0.35).clamp(0.0, 1.0);
        histogram[HUES] += ink * (1.0 - colorful) * (1.0 - dark);
        histogram[HUES + 1] += ink * (1.0 - colorful) * dark;
        // Hue by projection on the color circle, unlike the detector's sextants.
        let hue = (3.0f32.sqrt() * (g - b)).atan2(2.0 * r - g - b).rem_euclid(2.0 * PI) / (2.0 * PI) * HUES as f32;
        let (bin, part) = (hue.floor() as usize, hue.fract());
        histogram[bin % HUES] += ink * colorful * (1.0 - part);
        histogram[(bin + 1) % HUES] += ink * colorful * part;
    }
    let total = histogram.iter().sum::<f32>().max(1e-6);
    histogram.map(|h| h / total)
}

/// Intersection of two histograms with sum 1.
fn overlap(a: &[f32; COLORS], b: &[f32; COLORS]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x.min(*y)).sum()
}
