//! The MMDiT against `SD3Transformer2DModel` of diffusers: names, shapes, positions, output and gradients
//! (`fixtures/README.md` says how the references were made).

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    noise::{Key, Purpose},
    params::Params,
    policy::Conditioning,
};
use elbow_models::{
    linear::Weights,
    lora::LoraConfig,
    mmdit::{Mmdit, MmditConfig},
};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};

type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Relative to the largest value of the reference.
const OUTPUT: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;
const POSITIONS: f64 = 1e-6;

fn read(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/mmdit").join(file)).expect("a fixture")
}

fn named(file: &[u8]) -> Named {
    let values =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let tensors = SafeTensors::deserialize(file).expect("a safetensors file");
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

/// A network of diffusers, its weights in this crate's layout, and what it computed.
struct Golden {
    config: MmditConfig,
    weights: Params,
    reference: Named,
}

impl Golden {
    fn new(variant: &str) -> Self {
        let config = MmditConfig {
            sample_size: 8,
            patch_size: 2,
            in_channels: 4,
            num_layers: 3,
            attention_head_dim: 8,
            num_attention_heads: 2,
            joint_attention_dim: 12,
            pooled_projection_dim: 10,
            pos_embed_max_size: 6,
            qk_norm: variant == "qk-norm",
        };
        let fresh = config.initial(Key::new(0, Purpose::Initialization, 0));
        let weights = fresh
            .with_values_of(&read(&format!("{variant}.weights.safetensors")))
            .expect("diffusers' names and shapes");
        let reference = named(&read(&format!("{variant}.reference.safetensors")));
        Self { config, weights, reference }
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = &self.reference[name];
        Tensor::from_data(TensorData::new(values.clone(), shape.clone()), device)
    }

    /// The entries under `prefix`, which is taken off their names.
    fn under(&self, prefix: &str) -> Named {
        let rest = |(name, entry): (&String, &_)| Some((name.strip_prefix(prefix)?.to_owned(), Clone::clone(entry)));
        self.reference.iter().filter_map(rest).collect()
    }

    /// Output of a case, and the sum of its products with the case's direction.
    fn forward(&self, case: &str, weights: Weights<'_>, device: &Device) -> (Vec<f32>, Tensor<1>) {
        let input = |name: &str| format!("{case}.{name}");
        let cond = Conditioning {
            tokens: self.tensor(&input("tokens"), device),
            pooled: self.tensor(&input("pooled"), device),
        };
        let (x, t) = (self.tensor::<4>(&input("latent"), device), self.tensor::<1>(&input("time"), device));
        let y = Mmdit::new(&self.config, weights).forward(x, t, &cond);
        let loss = (y.clone() * self.tensor::<4>(&input("direction"), device)).sum();
        (y.into_data().try_to_vec().expect("f32"), loss)
    }

    /// Compares the output of a case and the gradients it holds, all of them with respect to tensors of `trained`.
    fn check(&self, case: &str, trained: &Params, adapter: Option<f64>) {
        let device = Device::flex().autodiff();
        let (base, leaves) = (self.weights.tensors(&Device::flex().autodiff()), trained.tensors(&device));
        let weights = match adapter {
            None => Weights { base: &leaves, adapter: None },
            Some(scale) => Weights { base: &base, adapter: Some((&leaves, scale)) },
        };
        let (output, loss) = self.forward(case, weights, &device);
        close(&format!("{case} output"), &output, &self.reference[&format!("{case}.output")].1, OUTPUT);
        let mut gradients = trained.zeros_like();
        gradients.add_gradients(&leaves, &mut loss.backward());
        let expected = self.under(&format!("{case}.gradient."));
        assert!(!expected.is_empty(), "{case} has gradients");
        for (name, (shape, values)) in expected {
            let entry =
                trained.entries().iter().find(|e| e.name == name).unwrap_or_else(|| panic!("{name} is unknown"));
            assert_eq!(shape, entry.shape, "{name}");
            close(&format!("{case} gradient of {name}"), &gradients.values()[entry.range.clone()], &values, GRADIENT);
        }
    }

    fn check_all(&self) {
        self.check("square", &self.weights, None);
        self.check("narrow", &self.weights, None);
        let lora = LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() };
        let factors = self.under("factor.").into_iter().map(|(name, (shape, values))| (name, shape, values));
        let file = Params::new(factors).to_safetensors(None);
        let fresh = lora.initial(&self.weights, Key::new(0, Purpose::Initialization, 1));
        self.check("lora", &fresh.with_values_of(&file).expect("PEFT's names and shapes"), Some(lora.scale()));
    }
}

/// A reference that is zero everywhere must be met exactly.
fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
    let off = got.iter().zip(expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
    assert!(off <= tolerance * size && got.iter().all(|v| v.is_finite()), "{what}: off by {off:e}, largest {size:e}");
}

#[test]
fn without_query_key_norm() {
    Golden::new("plain").check_all();
}

#[test]
fn with_query_key_norm() {
    Golden::new("qk-norm").check_all();
}

#[test]
fn own_positions_are_the_reference_positions() {
    let golden = Golden::new("plain");
    let fresh = golden.config.initial(Key::new(0, Purpose::Initialization, 0));
    let entry = fresh.entries().iter().find(|e| e.name == "pos_embed.pos_embed").unwrap();
    let (own, reference) = (&fresh.values()[entry.range.clone()], &golden.weights.values()[entry.range.clone()]);
    close("positions", own, reference, POSITIONS);
}
