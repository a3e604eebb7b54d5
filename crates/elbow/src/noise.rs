//! Random numbers that depend only on what they are for.
//!
//! A counter-based generator (Philox4x32-10, Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011)
//! turns a [`Key`] into numbers. There is no state: the same key gives the same numbers in any order, on any thread,
//! in any batch and after any resume, and nothing needs to be saved.

use burn::tensor::{Device, Tensor, TensorData};

/// What a random number is used for; keys of different purposes never share numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Start noise of a rollout.
    Start = 1,
    /// Noise of the steps of a stochastic sampler.
    Step,
    /// Fresh noise of an ELBO draw.
    Draw,
    /// Timesteps of an ELBO draw.
    Timestep,
    /// Which prompts an epoch uses.
    Prompt,
    /// Start noise of an evaluation.
    Evaluation,
    /// Initial parameters.
    Initialization,
    /// Scenes, captions, noise and timesteps of pre-training.
    Pretraining,
    /// Where a sampler's window is.
    Window,
    /// Noise that a reward adds to a sample.
    Probe,
    /// Which values a resample of a statistic takes, and which trials a study makes.
    Resampling,
}

/// Names a stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's seed.
    pub seed: u64,
    /// What the numbers are for.
    pub purpose: Purpose,
    /// Epoch or step, counted over the whole run.
    pub epoch: u64,
    /// Sample within the epoch.
    pub sample: u64,
    /// Draw or step within the sample.
    pub draw: u32,
}

impl Key {
    /// A key for one purpose and epoch; sample and draw are 0.
    pub fn new(seed: u64, purpose: Purpose, epoch: u64) -> Self {
        Self { seed, purpose, epoch, sample: 0, draw: 0 }
    }

    /// The same key for another sample.
    #[must_use]
    pub fn sample(self, sample: u64) -> Self {
        Self { sample, ..self }
    }

    /// The same key for another draw.
    #[must_use]
    pub fn draw(self, draw: u32) -> Self {
        Self { draw, ..self }
    }

    /// The `index`-th block of four uniform 32-bit integers.
    pub fn block(self, index: u32) -> [u32; 4] {
        let stream = mix(mix(mix(self.seed) ^ self.purpose as u64) ^ self.epoch);
        let counter = [index, self.draw, self.sample as u32, (self.sample >> 32) as u32];
        philox(counter, [stream as u32, (stream >> 32) as u32])
    }

    /// Uniform 64-bit integers, one after the other.
    pub fn integers(self) -> impl Iterator<Item = u64> {
        (0..).flat_map(move |i| {
            let [a, b, c, d] = self.block(i);
            [u64::from(a) << 32 | u64::from(b), u64::from(c) << 32 | u64::from(d)]
        })
    }

    /// Uniform numbers in [0, 1) with 53 random bits.
    pub fn uniforms(self) -> impl Iterator<Item = f64> {
        self.integers().map(|i| (i >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// A uniformly random permutation of `0..n` (Fisher–Yates).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for (i, u) in (1..n).rev().zip(self.uniforms()) {
            order.swap(i, (u * (i + 1) as f64) as usize);
        }
        order
    }

    /// Appends `n` standard normal numbers (Box–Muller).
    pub fn extend_normals(self, n: usize, out: &mut Vec<f32>) {
        let start = out.len();
        let integers: Vec<u32> = (0..n.div_ceil(4) as u32).flat_map(|index| self.block(index)).collect();
        out.resize(start + integers.len(), 0.0);
        elbow_kernels::normals(&integers, &mut out[start..]);
        out.truncate(start + n);
    }
}

/// Standard normal noise `[N, D]`, row `i` from `keys[i]` alone.
pub fn normal(keys: impl IntoIterator<Item = Key>, dims: usize, device: &Device) -> Tensor<2> {
    let mut values = Vec::new();
    let mut rows = 0;
    for key in keys {
        key.extend_normals(dims, &mut values);
        rows += 1;
    }
    Tensor::from_data(TensorData::new(values, [rows, dims]), device)
}

/// The finalizer of `SplitMix64`: spreads every input bit over the output.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xd251_1f53;
        let high = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library.
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn rows_do_not_depend_on_the_batch() {
        let key = Key::new(7, Purpose::Start, 3);
        let device = Device::flex();
        let both = normal([key.sample(0), key.sample(1)], 12, &device);
        let second = normal([key.sample(1)], 12, &device);
        assert_eq!(both.narrow(0, 1, 1).into_data(), second.into_data());
    }

    #[test]
    fn normals_have_the_moments_of_a_standard_normal() {
        let mut values = Vec::new();
        Key::new(1, Purpose::Draw, 0).extend_normals(200_000, &mut values);
        let moment = |p: i32| values.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / values.len() as f64;
        let [mean, variance, fourth] = [1, 2, 4].map(moment);
        // Five standard errors each: 1, √2 and √96 over √n.
        let close = mean.abs() < 0.0112 && (variance - 1.0).abs() < 0.0159 && (fourth - 3.0).abs() < 0.1096;
        assert!(close, "{mean} {variance} {fourth}");
    }

    /// The formula in plain words; numbers behind the first do not change those before.
    #[test]
    fn normals_are_box_and_mullers() {
        let (key, mut values) = (Key::new(3, Purpose::Start, 5), vec![7.0]);
        key.extend_normals(4001, &mut values);
        assert_eq!((values.len(), values.remove(0).to_bits()), (4002, 7f32.to_bits()));
        let mut same = 0;
        for (i, pair) in values.chunks_exact(2).enumerate() {
            let [u, v] = [0, 1].map(|j| f64::from(key.block(i as u32 / 2)[i % 2 * 2 + j]));
            let radius = (-2.0 * ((u + 1.0) / 4_294_967_296.0).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * v / 4_294_967_296.0).sin_cos();
            for (value, exact) in pair.iter().zip([radius * cos, radius * sin]) {
                assert!((f64::from(*value) - exact).abs() <= 6e-8 * exact.abs(), "{value} for {exact}");
                same += usize::from(value.to_bits() == (exact as f32).to_bits());
            }
        }
        assert!(same >= 3999, "{same} of 4000 are rounded alike");
    }

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = Key::new(1, Purpose::Timestep, 0).permutation(10);
        order.sort_unstable();
        assert_eq!(order, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn every_part_of_a_key_matters() {
        let key = Key::new(1, Purpose::Start, 1).sample(1).draw(1);
        let others = [
            Key { seed: 2, ..key },
            Key { purpose: Purpose::Step, ..key },
            Key { epoch: 2, ..key },
            key.sample(2),
            key.sample(1 << 32 | 1),
            key.draw(2),
        ];
        assert!(others.iter().all(|other| other.block(0) != key.block(0)));
    }
}
