//! Contact sheets for the eye: `cargo test -p elbow-world --test sheets -- --ignored` writes them to the folder for temporary
//! files.

use elbow_world::{Color, Object, Placement, Scene, prompts, splitmix};
use image::{RgbImage, imageops};

const ZOOM: u32 = 4;

fn save(name: &str, columns: usize, scenes: &[Scene]) {
    let cell = 32 * ZOOM + 4;
    let rows = scenes.len().div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(columns as u32 * cell, rows as u32 * cell, image::Rgb([160; 3]));
    for (i, scene) in scenes.iter().enumerate() {
        let big = imageops::resize(&scene.render(), 32 * ZOOM, 32 * ZOOM, imageops::FilterType::Nearest);
        let (x, y) = ((i % columns) as u32 * cell, (i / columns) as u32 * cell);
        imageops::replace(&mut sheet, &big, i64::from(x) + 2, i64::from(y) + 2);
    }
    sheet.save(std::env::temp_dir().join(name)).expect("writable");
}

#[test]
#[ignore = "writes images to look at"]
fn contact_sheets() {
    let colors = [None].into_iter().chain(Color::ALL.map(Some)).collect::<Vec<_>>();
    let mut sprites = Vec::new();
    for object in Object::ALL {
        for pair in colors.chunks(4) {
            let mut scene = Scene::default();
            for (area, &color) in scene.areas.iter_mut().zip(pair) {
                *area = Some(Placement { object, color });
            }
            sprites.push(scene);
        }
    }
    save("elbow-sprites.png", 8, &sprites);
    let mut rng = splitmix(3);
    let scenes: Vec<_> =
        (0..48).map(|_| Scene::sample(prompts::pretrain_caption(&mut rng), &mut rng).expect("showable")).collect();
    save("elbow-scenes.png", 8, &scenes);
}
