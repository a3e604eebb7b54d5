//! Writes the files of a made-up run, to look at: `cargo run --release -p elbow-runlog --example write_run -- <folder>`.

use std::path::{Path, PathBuf};

use elbow_runlog::{
    EventWriter, MetricsWriter, RunFolder, RunLogError, Tile, checkpoint, grid, metrics, save_png, write_atomic,
};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

const PROMPTS: [&str; 4] = [
    "a photo of a red apple",
    "a photo of four suitcases",
    "a photo of a yellow bird and a black motorcycle",
    "a photo of a toaster left of a café umbrella in the very last light of a long summer evening",
];

fn main() -> Result<(), RunLogError> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("runs/example"), PathBuf::from);
    let run = RunFolder::create(folder)?;
    write_atomic(&run.config(), b"seed = 7\n")?;
    let mut metrics = MetricsWriter::open(run.metrics())?;
    let mut events = EventWriter::create(run.path())?;
    epochs(0..5, &mut metrics, &mut events)?;
    checkpoint::write(&run.checkpoints(), 2, &[("weights", b"123")], &json!({ "epoch": 2 }))?;
    let mut events = resume(run.path())?;

    let (before, after) = (tiles(0.2), tiles(0.9));
    save_png(&run.images().join("samples.png"), &grid::grid(&after, 4, 4))?;
    let pair = grid::before_after(("before", &before), ("after 7 epochs", &after), 2, 4);
    save_png(&run.images().join("before_after.png"), &pair)?;
    let large = RgbImage::from_fn(512, 512, |x, y| Rgb([(x / 2) as u8, (y / 2) as u8, 128]));
    let large: Vec<_> = tiles(0.7).into_iter().take(2).map(|tile| Tile { image: large.clone(), ..tile }).collect();
    save_png(&run.images().join("large.png"), &grid::grid(&large, 2, 1))?;
    events.image(7, "samples", &grid::grid(&after, 4, 2))
}

/// Goes on from the checkpoint after epoch 2, as after a kill in epoch 4.
fn resume(folder: &Path) -> Result<EventWriter, RunLogError> {
    let run = RunFolder::open(folder)?;
    let epoch = checkpoint::recover(&run.checkpoints())?.map_or(0, |(epoch, _)| epoch);
    metrics::truncate_after(&run.metrics(), epoch)?;
    let mut metrics = MetricsWriter::open(run.metrics())?;
    let mut events = EventWriter::resume(run.path(), epoch + 1)?;
    epochs(epoch + 1..8, &mut metrics, &mut events)?;
    Ok(events)
}

fn epochs(
    epochs: std::ops::Range<u64>,
    metrics: &mut MetricsWriter,
    events: &mut EventWriter,
) -> Result<(), RunLogError> {
    for epoch in epochs {
        let reward = 1.0 - 1.0 / (epoch + 1) as f32;
        if let Value::Object(record) = json!({ "epoch": epoch, "reward_jpeg": reward, "kl_loss": 0.01 }) {
            metrics.append(&record)?;
        }
        events.scalars(epoch, [("reward_jpeg", reward), ("kl_loss", 0.01)])?;
    }
    Ok(())
}

fn tiles(score: f32) -> Vec<Tile> {
    let tile = |(index, prompt): (usize, &&str)| {
        let image = RgbImage::from_fn(32, 32, |x, y| {
            let (dx, dy) = (x as f32 - 15.5, y as f32 - 15.5);
            let inside = dx.hypot(dy) < 4.0 + 9.0 * score;
            if inside { Rgb([220, 60 * index as u8, 90]) } else { Rgb([235, 240, 200 + 10 * index as u8]) }
        });
        Tile { image, caption: vec![(*prompt).to_owned(), format!("score {score:.2}")] }
    };
    PROMPTS.iter().enumerate().map(tile).collect()
}
