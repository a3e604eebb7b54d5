//! Networks that predict velocities, with `diffusers`' names and shapes, and the policies made of them.
//!
//! A network is written once, as a constructor that asks a [weight source](weight_source) for named layers. With
//! tensors ([`elbow::params::Tensors`]) that makes the network, each time it is bound, which costs nothing: tensors are
//! shared. On a source that records it makes the [layout]: names, shapes, fresh values, adapted layers, and
//! [cost]. Architecture and weights stay apart, so one set of frozen weights serves the reference, the behavior and the
//! trained policy.

mod architectures;
pub mod config_json;
pub mod cost;
pub mod flux;
pub mod folder;
mod joint;
pub mod layout;
pub mod linear;
pub mod lora;
pub mod lora_file;
pub mod mmdit;
pub mod network;
pub mod pipeline;
mod pixels;
pub mod policy;
pub mod recompute;
mod resnet;
pub mod scheduler;
pub mod text;
pub mod unet;
pub mod vae;
pub mod weight_source;
