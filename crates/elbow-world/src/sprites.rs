//! The sprite atlas: each object in its natural colors and in each tint.

use crate::object::{Color, Object};
use image::RgbaImage;
use std::sync::LazyLock;

/// Side of a sprite in pixels.
pub const SPRITE: usize = 14;
/// Sprites in a row of the atlas.
const COLUMNS: usize = 4;
/// Alpha-weighted luminance quantiles that a tint maps to its darkest and lightest shade.
const STRETCH: [f32; 2] = [0.04, 0.96];
/// Smallest luminance span the stretch assumes, so that a flat sprite stays flat.
const MIN_SPAN: f32 = 60.0;

/// A sprite: 14×14 rows of `[r, g, b, a]`, colors in 0..=255 (not premultiplied), alpha in 0..=1.
pub type Sprite = [[[f32; 4]; SPRITE]; SPRITE];

struct Atlas {
    natural: Vec<Sprite>,
    tinted: Vec<[Sprite; Color::ALL.len()]>,
}

static ATLAS: LazyLock<Atlas> = LazyLock::new(|| {
    let bytes = include_bytes!("../../../assets/atlas.png");
    let image = image::load_from_memory(bytes).expect("invariant: the embedded atlas is a PNG").to_rgba8();
    let natural: Vec<Sprite> = (0..Object::ALL.len()).map(|i| cut(&image, i)).collect();
    let tinted = natural.iter().map(|sprite| Color::ALL.map(|color| tint(sprite, color))).collect();
    Atlas { natural, tinted }
});

/// The sprite of an object, in a color or (`None`) in its natural ones.
pub fn sprite(object: Object, color: Option<Color>) -> &'static Sprite {
    match color {
        None => &ATLAS.natural[object as usize],
        Some(color) => &ATLAS.tinted[object as usize][color as usize],
    }
}

/// Luminance of an RGB color (Rec. 601), in the range of its channels.
pub(crate) fn luminance(rgb: [f32; 3]) -> f32 {
    0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
}

fn cut(atlas: &RgbaImage, i: usize) -> Sprite {
    let (x0, y0) = (i % COLUMNS * SPRITE, i / COLUMNS * SPRITE);
    std::array::from_fn(|y| {
        std::array::from_fn(|x| {
            let [r, g, b, a] = atlas.get_pixel((x0 + x) as u32, (y0 + y) as u32).0.map(f32::from);
            [r, g, b, a / 255.0]
        })
    })
}

/// Recolors a sprite: its luminance, stretched over the sprite's own range, goes from the color's darkest to its lightest
/// shade; alpha stays.
fn tint(sprite: &Sprite, color: Color) -> Sprite {
    let [low, high] = luminance_range(sprite);
    let [dark, light] = color.shades();
    sprite.map(|row| {
        row.map(|[r, g, b, a]| {
            let s = ((luminance([r, g, b]) - low) / (high - low)).clamp(0.0, 1.0);
            let c = |i: usize| dark[i] + s * (light[i] - dark[i]);
            [c(0), c(1), c(2), a]
        })
    })
}

fn luminance_range(sprite: &Sprite) -> [f32; 2] {
    let mut pixels: Vec<[f32; 2]> =
        sprite.iter().flatten().map(|&[r, g, b, a]| [luminance([r, g, b]), a]).filter(|p| p[1] > 0.0).collect();
    pixels.sort_by(|p, q| p[0].total_cmp(&q[0]));
    let total: f32 = pixels.iter().map(|p| p[1]).sum();
    let quantile = |q: f32| {
        let mut sum = 0.0;
        let reached = |p: &&[f32; 2]| {
            sum += p[1];
            sum >= q * total
        };
        pixels.iter().find(reached).map_or(255.0, |p| p[0])
    };
    let [low, high] = STRETCH.map(quantile);
    let (middle, half) = (f32::midpoint(low, high), (high - low).max(MIN_SPAN) / 2.0);
    [middle - half, middle + half]
}
