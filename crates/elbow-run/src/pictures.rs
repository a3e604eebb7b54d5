//! Grids of images for a run folder.

use elbow::{eval::Measured, train::Logged};
use elbow_runlog::Tile;

/// Images with their prompts and, where there is one, whether GenEval's strict score holds; at most so many, spread evenly over all.
pub fn measured(measured: &Measured, most: usize) -> Vec<Tile> {
    let total = measured.images.len();
    let count = total.min(most);
    let scores = measured.scores.get("geneval");
    let tile = |i: usize| {
        let mut caption = vec![measured.prompts[i].text.clone()];
        let score = scores.and_then(|scores| scores[i]);
        caption.extend(score.map(|score| if score > 0.5 { "right".to_owned() } else { "wrong".to_owned() }));
        Tile { image: measured.images[i].clone(), caption }
    };
    (0..count).map(|k| tile(k * total / count)).collect()
}

/// Images of an epoch with their prompts and rewards, one of every `group_size`; at most so many.
pub fn samples(samples: &[Logged], group_size: usize, most: usize) -> Vec<Tile> {
    let tile = |Logged { sample, .. }: &Logged| {
        let reward = sample.value().map_or_else(|| "missing".to_owned(), |reward| format!("{reward:.2}"));
        Tile { image: (*sample.image).clone(), caption: vec![sample.prompt.text.clone(), reward] }
    };
    samples.iter().step_by(group_size).take(most).map(tile).collect()
}
