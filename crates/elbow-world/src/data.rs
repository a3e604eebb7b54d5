//! Scenes and captions to pre-train on: every combination of the world, tasks in equal shares.

use crate::{Scene, encoder::WordCodes, prompts};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    noise::Key,
    policy::{Conditioning, TextEncoder},
    pretrain::Data,
};

/// Endless ground truth.
#[derive(Clone, Debug)]
pub struct SceneData {
    /// Where the batches go.
    pub device: Device,
}

impl Data for SceneData {
    fn batch(&self, keys: &[Key], drop: &[bool]) -> (Tensor<4>, Conditioning) {
        let mut pixels = Vec::new();
        let mut captions = Vec::with_capacity(keys.len());
        for (key, &drop) in keys.iter().zip(drop) {
            let mut integers = key.integers();
            let mut rng = || integers.next().expect("invariant: endless");
            let record = prompts::pretrain_caption(&mut rng);
            let scene = Scene::sample(record, &mut rng).expect("invariant: the world shows its own records");
            extend_pixels(&mut pixels, scene);
            captions.push(Prompt::from(if drop { "" } else { record.prompt.as_str() }));
        }
        let side = crate::scene::SIDE;
        let images = Tensor::from_data(TensorData::new(pixels, [keys.len(), 3, side, side]), &self.device);
        let encoder = WordCodes { device: self.device.clone() };
        (images, encoder.encode(&captions).expect("invariant: the vocabulary writes the world's captions"))
    }
}

/// Appends a scene as planes of values in [−1, 1].
fn extend_pixels(out: &mut Vec<f32>, scene: Scene) {
    let image = scene.render();
    for channel in 0..3 {
        out.extend(image.pixels().map(|p| f32::from(p.0[channel]) / 127.5 - 1.0));
    }
}
