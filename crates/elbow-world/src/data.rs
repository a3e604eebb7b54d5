//! Scenes and captions to pre-train on: every combination of the world, tasks in equal shares, some captions wrong.
//!
//! Captions from the web are often wrong about what their image shows, and a model trained on them follows its prompts only
//! loosely. So here: each fact of a caption (which object, which color, how many, where) is wrong with a fixed probability. The
//! base then draws well and obeys badly, most badly where a prompt states many facts, as the real ones do.

use crate::{
    Scene, draw,
    encoder::WordCodes,
    object::{Color, Object},
    prompts,
};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    noise::Key,
    policy::{Conditioning, TextEncoder},
    pretrain::Data,
};
use elbow_rewards::geneval::{Position, Record, Relation, Task};

/// Endless scenes with captions.
#[derive(Clone, Debug)]
pub struct SceneData {
    /// Probability that the image departs from a fact of its caption, in [0, 1].
    pub caption_noise: f64,
    /// Steps before the first with such captions; all before are right.
    pub noisy_from: u64,
    /// Where the batches go.
    pub device: Device,
}

impl Data for SceneData {
    fn batch(&self, keys: &[Key], drop: &[bool]) -> (Tensor<2>, Conditioning) {
        let mut pixels = Vec::new();
        let mut captions = Vec::with_capacity(keys.len());
        for (key, &drop) in keys.iter().zip(drop) {
            let mut integers = key.integers();
            let mut rng = || integers.next().expect("invariant: endless");
            let record = prompts::pretrain_caption(&mut rng);
            let noise = if key.epoch < self.noisy_from { 0.0 } else { self.caption_noise };
            let shown = departing(record, noise, &mut rng);
            let scene = Scene::sample(&shown, &mut rng).expect("invariant: the world shows its own records");
            extend_pixels(&mut pixels, scene);
            captions.push(Prompt::from(if drop { "" } else { record.prompt.as_str() }));
        }
        let side = crate::scene::SIDE;
        let images = Tensor::from_data(TensorData::new(pixels, [keys.len(), 3 * side * side]), &self.device);
        let encoder = WordCodes { device: self.device.clone() };
        (images, encoder.encode(&captions).expect("invariant: the vocabulary writes the world's captions"))
    }
}

/// What the image of a caption shows: the caption's record, each of its facts replaced by another with probability `noise`.
fn departing(record: &Record, noise: f64, rng: &mut impl FnMut() -> u64) -> Record {
    let mut shown = record.clone();
    shown.exclude.clear();
    for clause in 0..shown.include.len() {
        let named: Vec<String> = shown.include.iter().map(|c| c.class.clone()).collect();
        let clause = &mut shown.include[clause];
        if draw::unit(rng) < noise {
            let others = Object::ALL.map(Object::name).into_iter().filter(|name| !named.iter().any(|n| n == name));
            clause.class = one_of(others.collect(), rng).to_owned();
        }
        if let Some(color) = &mut clause.color
            && draw::unit(rng) < noise
        {
            *color = one_of(Color::ALL.map(Color::name).into_iter().filter(|c| *c != color.as_str()).collect(), rng)
                .to_owned();
        }
        if shown.tag == Task::Counting && draw::unit(rng) < noise {
            clause.count = one_of((1..=crate::scene::AREAS).filter(|&n| n != clause.count).collect(), rng);
        }
        if let Some(Position(relation, _)) = &mut clause.position
            && draw::unit(rng) < noise
        {
            *relation = one_of(Relation::ALL.into_iter().filter(|r| *r != *relation).collect(), rng);
        }
    }
    shown
}

/// One of them, uniformly; there is at least one.
fn one_of<T>(mut of: Vec<T>, rng: &mut impl FnMut() -> u64) -> T {
    of.swap_remove(draw::index(of.len(), rng))
}

/// Appends a scene as planes of values in [−1, 1].
fn extend_pixels(out: &mut Vec<f32>, scene: Scene) {
    let image = scene.render();
    for channel in 0..3 {
        out.extend(image.pixels().map(|p| f32::from(p.0[channel]) / 127.5 - 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of the records of each task whose image keeps to its caption, n draws each.
    fn kept(noise: f64, n: usize) -> [f64; 6] {
        let mut rng = draw::splitmix(5);
        Task::ALL.map(|task| {
            let records = prompts::records_of(task);
            let mut keeps = || {
                let record = &records[draw::index(records.len(), &mut rng)];
                departing(record, noise, &mut rng).include == record.include
            };
            (0..n).filter(|_| keeps()).count() as f64 / n as f64
        })
    }

    #[test]
    fn a_caption_is_right_if_each_of_its_facts_is() {
        assert!(kept(0.0, 50).iter().all(|share| share.to_bits() == 1.0f64.to_bits()));
        // One fact in a single object, two in a pair, a count and a coloring, three in a relation, four in two colorings.
        for (share, facts) in kept(0.2, 4000).into_iter().zip([1, 2, 2, 2, 3, 4]) {
            let expected = 0.8f64.powi(facts);
            // Four standard errors.
            assert!((share - expected).abs() < 4.0 * (expected * (1.0 - expected) / 4000.0).sqrt(), "{share} {facts}");
        }
    }

    #[test]
    fn what_departs_can_still_be_shown() {
        let mut rng = draw::splitmix(6);
        for record in prompts::all_records().iter().step_by(7) {
            let shown = departing(record, 1.0, &mut rng);
            let differs = shown.include.iter().zip(&record.include).all(|(s, r)| s.class != r.class);
            assert!(differs && Scene::sample(&shown, &mut rng).is_ok(), "{record:?}");
        }
    }
}
