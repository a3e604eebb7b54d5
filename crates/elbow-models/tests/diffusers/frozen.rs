//! Model folders in half precision: held as they are stored, everything computed from them has the bits that the weights
//! widened when they are read would give.

use crate::{model_folder::whole, stored_as::store_as};
use burn::tensor::{DType, Device, Tensor};
use elbow::{
    noise::{self, Key, Purpose},
    params::Params,
    policy::{Conditioning, Policy},
};
use elbow_models::{
    folder::FrozenWeights,
    linear::Precision,
    lora::LoraConfig,
    pipeline::{Options, Setup, Source},
    policy::{NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use safetensors::tensor::Dtype;
use std::path::Path;

fn load(folder: &Path, tuning: &Tuning, frozen_weights: FrozenWeights, checkpointing: Checkpointing) -> NetworkPolicy {
    let options = Options { variant: None, resolution: Some([32; 2]), text_length: 24, guidance: 3.5 };
    let setup = Setup {
        precision: Precision::F32,
        tuning: tuning.clone(),
        checkpointing,
        frozen_weights,
        decode_slice: 1,
        // One cache each: the second shall not read what the first encoded.
        cache: &folder.join(format!("cache-{frozen_weights:?}")),
        adapter: None,
        seed: 0,
    };
    Source::open(folder, &options).expect("a model").load(setup, &Device::flex()).expect("weights")
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    tensor.into_data().as_slice::<f32>().expect("f32").iter().map(|v| v.to_bits()).collect()
}

/// The initial values, none of them zero, so that every factor has a gradient.
fn stirred(policy: &NetworkPolicy) -> Params {
    let mut trained = policy.initial();
    let mut normals = Vec::new();
    Key::new(3, Purpose::Initialization, 0).sample(0).extend_normals(trained.values().len(), &mut normals);
    for (value, normal) in trained.values_mut().iter_mut().zip(normals) {
        *value += 0.05 * normal;
    }
    trained
}

/// Embeddings, velocity, gradients and pictures.
fn everything(policy: &NetworkPolicy) -> Vec<Vec<u32>> {
    let device = Device::flex();
    let cond: Conditioning = policy.encode(&["a red cat".into(), "3 dogs".into()]).expect("embeddings");
    let x = noise::normal((0..2).map(|i| Key::new(1, Purpose::Start, 0).sample(i)), policy.dims(), &device);
    let [c, h, w] = policy.latent;
    let t = Tensor::<1>::from_data([0.3, 0.8], &device);
    let trained = stirred(policy);
    let leaves = trained.tensors(&device.autodiff());
    let velocity = policy.bind(Some(&leaves)).velocity(x.clone(), t, &cond);
    let mut gradients = trained.zeros_like();
    gradients.add_gradients(&leaves, &mut velocity.clone().square().mean().backward());
    assert!(gradients.norm() > 0.0);
    let gradients = gradients.values().iter().map(|v| v.to_bits()).collect();
    let pictures = bits(policy.decoder.values(x.reshape([2, c as i32, h as i32, w as i32])));
    vec![bits(cond.tokens), bits(cond.pooled.expect("a pooled embedding")), bits(velocity.inner()), gradients, pictures]
}

#[test]
fn results_have_the_bits_of_widened_weights() {
    let lora = Tuning::Lora(LoraConfig { rank: 2, ..LoraConfig::default() });
    for (pipeline, layer) in [
        ("sd3", "transformer_blocks.0.attn.to_q.weight"),
        ("flux", "single_transformer_blocks.0.attn.to_q.weight"),
        ("sd1", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
    ] {
        for (stored, held) in [(Dtype::BF16, DType::BF16), (Dtype::F16, DType::F16)] {
            let folder = whole(pipeline);
            store_as(stored, folder.path());
            let mut ways = vec![(&lora, Checkpointing::None), (&Tuning::Full, Checkpointing::None)];
            if pipeline != "sd1" {
                ways.push((&lora, Checkpointing::Block));
            }
            for (tuning, checkpointing) in ways {
                let [half, wide] = [FrozenWeights::Stored, FrozenWeights::F32]
                    .map(|weights| load(folder.path(), tuning, weights, checkpointing));
                let dtype = |policy: &NetworkPolicy| policy.base.tensor::<2>(layer).dtype();
                assert_eq!((dtype(&half), dtype(&wide)), (held, DType::F32));
                let at = format!("{pipeline} {stored:?} {tuning:?} {checkpointing:?}");
                assert!(everything(&half) == everything(&wide), "{at}");
                assert_eq!(half.base(), wide.base(), "{at}");
            }
        }
    }
}

/// The fixtures are in half precision: the same values in f32 give the same results.
#[test]
fn results_have_the_bits_of_the_same_values_in_an_f32_file() {
    let (half, wide) = (whole("sd3"), whole("sd3"));
    store_as(Dtype::F32, wide.path());
    let load = |folder: &Path| load(folder, &Tuning::default(), FrozenWeights::Stored, Checkpointing::None);
    let (half, wide) = (load(half.path()), load(wide.path()));
    let dtype = |policy: &NetworkPolicy| policy.base.tensor::<2>("proj_out.weight").dtype();
    assert_eq!((dtype(&half), dtype(&wide)), (DType::F16, DType::F32));
    assert!(everything(&half) == everything(&wide));
}
