//! Scenes: which object is where, in which color; sampling them for a record and rendering them.

use crate::draw;
use crate::object::{Color, Object};
use crate::sprites::{SPRITE, sprite};
use elbow_rewards::geneval::score::relations;
use elbow_rewards::geneval::{Detection, Position, Record};
use image::{Rgb, RgbImage};

/// Side of a scene in pixels.
pub const SIDE: usize = 32;
/// Side of an area in pixels.
pub const AREA: usize = 16;
/// Areas of a scene: row by row, upper left first.
pub const AREAS: usize = 4;
/// Empty pixels around a sprite within its area.
const MARGIN: usize = (AREA - SPRITE) / 2;

/// One sprite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    /// What it shows.
    pub object: Object,
    /// Its tint; `None` shows the natural colors.
    pub color: Option<Color>,
}

/// What each of the four areas holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scene {
    /// Row by row, upper left first.
    pub areas: [Option<Placement>; AREAS],
}

/// Why no scene can show a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SceneError {
    /// The world has no such object.
    #[error("{prompt:?}: no object `{class}` in this world; it has {}", names(Object::ALL.map(Object::name)))]
    Class {
        /// The record's prompt.
        prompt: String,
        /// The class asked for.
        class: String,
    },
    /// The world has no such color.
    #[error("{prompt:?}: no color `{color}` in this world; it has {}", names(Color::ALL.map(Color::name)))]
    Color {
        /// The record's prompt.
        prompt: String,
        /// The color asked for.
        color: String,
    },
    /// More than four objects, or relations that no layout of the grid has.
    #[error("{prompt:?}: no layout of {AREAS} areas shows this")]
    Layout {
        /// The record's prompt.
        prompt: String,
    },
}

fn names<const N: usize>(all: [&str; N]) -> String {
    all.join(", ")
}

impl Scene {
    /// Draws uniformly among the layouts that show exactly what the record asks for and nothing else; objects without a
    /// color get their natural ones. Uses one number of `rng`.
    pub fn sample(record: &Record, rng: &mut impl FnMut() -> u64) -> Result<Self, SceneError> {
        let prompt = || record.prompt.clone();
        let mut wanted: Vec<(usize, Placement)> = Vec::new();
        for (clause, c) in record.include.iter().enumerate() {
            let class = || SceneError::Class { prompt: prompt(), class: c.class.clone() };
            let object = Object::from_name(&c.class).ok_or_else(class)?;
            let color = match &c.color {
                None => None,
                Some(name) => Some(
                    Color::from_name(name)
                        .ok_or_else(|| SceneError::Color { prompt: prompt(), color: name.clone() })?,
                ),
            };
            wanted.extend(std::iter::repeat_n((clause, Placement { object, color }), c.count.min(AREAS + 1)));
        }
        let mut layouts = arrangements(wanted.len());
        layouts.retain(|areas| related(record, &wanted, areas));
        if layouts.is_empty() {
            return Err(SceneError::Layout { prompt: prompt() });
        }
        let mut scene = Self::default();
        for (&area, (_, placement)) in layouts[draw::index(layouts.len(), rng)].iter().zip(wanted) {
            scene.areas[area] = Some(placement);
        }
        Ok(scene)
    }

    /// The image, 32×32 RGB: sprites in the middle of their areas on white.
    pub fn render(&self) -> RgbImage {
        let mut image = RgbImage::from_pixel(SIDE as u32, SIDE as u32, Rgb([255; 3]));
        for (area, placement) in self.areas.iter().enumerate() {
            let Some(Placement { object, color }) = *placement else { continue };
            let [x0, y0] = corner(area);
            for (y, row) in sprite(object, color).iter().enumerate() {
                for (x, &[r, g, b, a]) in row.iter().enumerate() {
                    let over = |c: f32| (255.0 + a * (c - 255.0)).round() as u8;
                    image.put_pixel((x0 + x) as u32, (y0 + y) as u32, Rgb([over(r), over(g), over(b)]));
                }
            }
        }
        image
    }

    /// What a perfect detector sees: confidence 1, the whole sprite as the box, the tint as the color.
    pub fn detections(&self) -> Vec<Detection> {
        let one = |(area, p): (usize, &Option<Placement>)| {
            p.map(|p| Detection {
                class: p.object.name().into(),
                score: 1.0,
                bbox: sprite_box(area),
                color: p.color.map(|c| c.name().into()),
            })
        };
        self.areas.iter().enumerate().filter_map(one).collect()
    }
}

/// Upper left pixel of an area's sprite.
pub(crate) fn corner(area: usize) -> [usize; 2] {
    [area % 2 * AREA + MARGIN, area / 2 * AREA + MARGIN]
}

fn sprite_box(area: usize) -> [f32; 4] {
    let [x, y] = corner(area).map(|c| c as f32);
    [x, y, x + SPRITE as f32, y + SPRITE as f32]
}

/// Every way to give each of `n` sprites an area of its own; none if there are more sprites than areas.
fn arrangements(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..n {
        all = all
            .iter()
            .flat_map(|taken: &Vec<usize>| {
                (0..AREAS).filter(|a| !taken.contains(a)).map(|a| [taken.as_slice(), &[a]].concat())
            })
            .collect();
    }
    all
}

/// Whether the sprites of each clause with a position stand in that relation to all sprites of its target clause.
fn related(record: &Record, wanted: &[(usize, Placement)], areas: &[usize]) -> bool {
    let of = |clause: usize| wanted.iter().zip(areas).filter(move |((c, _), _)| *c == clause).map(|(_, &area)| area);
    record.include.iter().enumerate().all(|(clause, c)| {
        let Some(Position(relation, target)) = c.position else { return true };
        of(clause).all(|a| of(target).all(|b| relations(sprite_box(a), sprite_box(b)).contains(&relation)))
    })
}
