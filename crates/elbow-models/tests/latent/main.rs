//! The UNet, the autoencoder and the schedulers against those of diffusers with adapters of PEFT (`fixtures/README.md` says
//! how the references were made).

#[path = "../common/mod.rs"]
mod common;
mod scheduler;
mod unet;
mod vae;

use burn::tensor::{Device, Tensor};
use common::{Named, close, named, read};

fn text(file: &str) -> String {
    String::from_utf8(read(file)).expect("text")
}

fn tensor<const D: usize>(named: &Named, name: &str) -> Tensor<D> {
    common::tensor(named, name, &Device::flex())
}

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_to_vec().expect("f32")
}
