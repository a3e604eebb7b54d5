//! Golden files of networks: inputs, outputs and gradients that the reference implementations computed
//! (`fixtures/README.md` says how).

#![allow(dead_code, reason = "each test uses a part of it")]

use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    noise::{Key, Purpose},
    params::Params,
    policy::{Conditioning, VelocityField},
};
use elbow_models::{
    layout::Layout,
    linear::{Precision, Weights},
    lora::LoraConfig,
    policy::Network,
    recompute::Checkpointing,
};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};

/// Shapes and values by name.
pub(crate) type Named = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Relative to the largest value of the reference.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) output: f64,
    pub(crate) gradient: f64,
}

/// A file under `fixtures/`.
pub(crate) fn read(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(file)).expect("a fixture")
}

/// The float32 tensors of a file under `fixtures/`.
pub(crate) fn named(file: &str) -> Named {
    let values =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
    let file = read(file);
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(view.data())))).collect()
}

/// The entries under `prefix`, which is taken off their names.
pub(crate) fn under(named: &Named, prefix: &str) -> Named {
    let rest = |(name, entry): (&String, &_)| Some((name.strip_prefix(prefix)?.to_owned(), Clone::clone(entry)));
    named.iter().filter_map(rest).collect()
}

pub(crate) fn tensor<const D: usize>(named: &Named, name: &str, device: &Device) -> Tensor<D> {
    let (shape, values) = &named[name];
    Tensor::from_data(TensorData::new(values.clone(), shape.clone()), device)
}

/// What `run` computes under the given weights, and the gradients of its second result with respect to `trained`: all weights,
/// or factors of adapters with their scale.
pub(crate) fn differentiate(
    device: &Device,
    weights: &Params,
    (trained, adapter): (&Params, Option<f64>),
    run: impl FnOnce(Weights<'_>) -> (Vec<f32>, Tensor<1>),
) -> (Vec<f32>, Params) {
    let (base, leaves) = (weights.tensors(device), trained.tensors(&device.clone().autodiff()));
    let (output, loss) = run(match adapter {
        None => Weights::plain(&leaves),
        Some(scale) => Weights { base: &base, adapter: Some((&leaves, scale)), precision: Precision::F32 },
    });
    let mut gradients = trained.zeros_like();
    gradients.add_gradients(&leaves, &mut loss.backward());
    (output, gradients)
}

/// The devices that this build is to be tested on.
pub(crate) fn devices() -> Vec<Device> {
    let cpu = Device::flex();
    #[cfg(feature = "wgpu")]
    return vec![cpu, Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)];
    #[cfg(not(feature = "wgpu"))]
    vec![cpu]
}

/// Compares with the output of a case and the gradients it holds, all of them with respect to tensors of `gradients`.
pub(crate) fn check(
    at: &str,
    case: &str,
    reference: &Named,
    (output, gradients): &(Vec<f32>, Params),
    tolerance: Tolerance,
) {
    close(&format!("{at}: {case} output"), output, &reference[&format!("{case}.output")].1, tolerance.output);
    let expected = under(reference, &format!("{case}.gradient."));
    assert!(!expected.is_empty(), "{case} has gradients");
    for (name, (shape, values)) in expected {
        let entry = gradients.entries().iter().find(|e| e.name == name).unwrap_or_else(|| panic!("{name} is unknown"));
        assert_eq!(shape, entry.shape, "{name}");
        let got = &gradients.values()[entry.range.clone()];
        close(&format!("{at}: {case} gradient of {name}"), got, &values, tolerance.gradient);
    }
}

/// PEFT's factors for these targets, with their scale.
pub(crate) fn factors(reference: &Named, layout: &Layout, target_modules: &[&str]) -> (Params, f64) {
    let target_modules = target_modules.iter().map(|&t| t.to_owned()).collect();
    let lora = LoraConfig { rank: 2, alpha: 4.0, target_modules };
    assert_eq!(lora.validate(layout.shapes()), Vec::<String>::new());
    let factors = under(reference, "factor.").into_iter().map(|(name, (shape, values))| (name, shape, values));
    let file = Params::new(factors).to_safetensors(None);
    let fresh = lora.initial(layout.shapes(), Key::new(0, Purpose::Initialization, 1));
    (fresh.with_values_of(&file).expect("PEFT's names and shapes"), lora.scale())
}

/// A network of diffusers, its weights in this crate's layout, and what it computed.
pub(crate) struct Golden {
    pub(crate) network: Network,
    pub(crate) weights: Params,
    reference: Named,
    tolerance: Tolerance,
}

impl Golden {
    /// `weights` are those of `of`, which has at least the tensors of `network`.
    pub(crate) fn new(network: Network, of: &Network, [weights, reference]: [&str; 2], tolerance: Tolerance) -> Self {
        let key = Key::new(0, Purpose::Initialization, 0);
        let all = of.layout().initial(key).with_values_of(&read(weights)).expect("diffusers' names and shapes");
        let own = network.layout();
        let weights = all.filtered(|name| own.shapes().any(|(n, _)| n == name));
        assert_eq!(weights.entries().len(), own.slots().len());
        Self { network, weights, reference: named(reference), tolerance }
    }

    fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        tensor(&self.reference, name, device)
    }

    /// Output of a case, and the sum of its products with the case's direction.
    pub(crate) fn forward(&self, case: &str, network: &dyn VelocityField, device: &Device) -> (Vec<f32>, Tensor<1>) {
        let input = |name: &str| format!("{case}.{name}");
        let cond = Conditioning {
            tokens: self.tensor(&input("tokens"), device),
            mask: None,
            pooled: Some(self.tensor(&input("pooled"), device)),
        };
        let (x, t) = (self.tensor::<4>(&input("latent"), device), self.tensor::<1>(&input("time"), device));
        let dims = x.dims();
        let y = network.velocity(x.reshape([dims[0] as i32, -1]), t, &cond).reshape(dims);
        let loss = (y.clone() * self.tensor::<4>(&input("direction"), device)).sum();
        (y.into_data().try_to_vec().expect("f32"), loss)
    }

    /// Output of a case and its gradients with respect to `trained`: all weights, or factors of adapters with their scale.
    pub(crate) fn differentiate(
        &self,
        device: &Device,
        case: &str,
        trained: (&Params, Option<f64>),
        checkpointing: Checkpointing,
    ) -> (Vec<f32>, Params) {
        let [_, c, h, w] = self.tensor::<4>(&format!("{case}.latent"), device).dims();
        let field = |weights: Weights<'_>| self.network.bind(weights, checkpointing, [c, h, w]);
        let run = |weights: Weights<'_>| self.forward(case, &*field(weights), device);
        differentiate(device, &self.weights, trained, run)
    }

    /// Compares the output of a case and the gradients it holds, all of them with respect to tensors of `trained`.
    pub(crate) fn check(&self, case: &str, trained: &Params, adapter: Option<f64>) {
        for device in devices() {
            let got = self.differentiate(&device, case, (trained, adapter), Checkpointing::None);
            check(&format!("{device:?}"), case, &self.reference, &got, self.tolerance);
        }
    }

    /// PEFT's factors for these targets, with their scale.
    pub(crate) fn factors(&self, target_modules: &[&str]) -> (Params, f64) {
        factors(&self.reference, &self.network.layout(), target_modules)
    }
}

/// A reference that is zero everywhere must be met exactly.
pub(crate) fn close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0, |m, &v| f64::max(m, f64::from(v).abs()));
    let off = got.iter().zip(expected).fold(0.0, |m, (&a, &b)| f64::max(m, (f64::from(a) - f64::from(b)).abs()));
    assert!(off <= tolerance * size && got.iter().all(|v| v.is_finite()), "{what}: off by {off:e}, largest {size:e}");
}
