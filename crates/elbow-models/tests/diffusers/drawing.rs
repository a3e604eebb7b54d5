//! Pictures of the tiny pipelines, drawn as `fixtures/make/pipeline.py` has them drawn, and what diffusers made of the same
//! noise.

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    guidance::GuidedField,
    params::Params,
    policy::{Policy, VelocityField},
    sampler::{self, Ddim, Euler, Sampler, Visit},
    schedule::Grid,
};
use elbow_models::{
    folder::{Checkpoint, FrozenWeights},
    linear::Precision,
    pipeline::{Options, Setup, Source, SourceError},
    policy::{NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use std::path::Path;

pub(crate) const OPTIONS: Options<'static> =
    Options { variant: None, resolution: Some([32; 2]), text_length: 24, guidance: 3.5 };
const PROMPTS: [&str; 2] = ["a photo of a red cat left of 3 dogs!", "a horse, and on and on"];

pub(crate) fn open(folder: &Path) -> Result<Source, SourceError> {
    Source::open(folder, &OPTIONS)
}

pub(crate) fn setup(cache: &Path, tuning: Tuning, decode_slice: usize) -> Setup<'_> {
    let checkpointing = Checkpointing::None;
    let precision = Precision::F32;
    let frozen_weights = FrozenWeights::Stored;
    Setup { tuning, precision, checkpointing, frozen_weights, decode_slice, cache, adapter: None, seed: 0 }
}

pub(crate) fn load(folder: &Path, tuning: Tuning, decode_slice: usize) -> NetworkPolicy {
    loaded(folder, open(folder).expect("a model"), tuning, decode_slice)
}

pub(crate) fn loaded(folder: &Path, source: Source, tuning: Tuning, decode_slice: usize) -> NetworkPolicy {
    let cache = folder.join("cache");
    source.load(setup(&cache, tuning, decode_slice), &Device::flex()).expect("weights")
}

/// The latents `[2, C, h, w]` that the solver and the guidance of the pipeline end with, from `start` at the first of `times`.
pub(crate) fn draw(
    pipeline: &str,
    policy: &NetworkPolicy,
    trained: Option<&Params>,
    start: Tensor<4>,
    times: &[f64],
) -> Tensor<4> {
    let (rule, scale): (&dyn Sampler, f64) = match pipeline {
        "sd3" => (&Euler {}, 2.5),
        "flux" => (&Euler {}, 1.0),
        _ => (&Ddim { eta: 0.0 }, 3.0),
    };
    let trained = trained.map(|params| params.tensors(&Device::flex()));
    let unconditional = policy.encode(&["".into()]).expect("an embedding");
    let cond = policy.encode(&PROMPTS.map(Prompt::from)).expect("embeddings");
    let field = GuidedField { field: policy.bind(trained.as_ref()), scale, detach: false, unconditional };
    let (shape, grid) = (start.dims(), Grid::new(policy.schedule, times.to_vec()));
    let mut x: Tensor<2> = start.reshape([2, -1]);
    for (k, &time) in times[..grid.steps()].iter().enumerate() {
        let velocity = field.velocity(x.clone(), Tensor::full([2], time, &Device::flex()), &cond);
        x = sampler::mean(&[rule.step(&grid, k); 2], &[Visit { x, velocity }]);
    }
    x.reshape(shape)
}

/// Tensors that diffusers made, by name.
pub(crate) struct Reference(Checkpoint);

impl Reference {
    pub(crate) fn open(file: &Path) -> Self {
        Self(Checkpoint::open_file(file).expect("a fixture"))
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor<4> {
        let shape = self.0.shapes().find(|(n, _)| *n == name).expect("a reference").1.to_vec();
        Tensor::from_data(TensorData::new(self.0.values(name), shape), &Device::flex())
    }

    /// The grid of times.
    pub(crate) fn times(&self) -> Vec<f64> {
        self.0.values("times").into_iter().map(f64::from).collect()
    }

    /// The largest difference of `got`, and the largest value of the reference.
    pub(crate) fn off(&self, name: &str, got: Tensor<4>) -> (f64, f64) {
        let got: Vec<f32> = got.into_data().try_to_vec().expect("f32");
        let expected = self.0.values(name);
        assert!(got.len() == expected.len() && got.iter().all(|v| v.is_finite()), "{name}");
        let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
        let off = got.iter().zip(&expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
        (off, size)
    }
}
