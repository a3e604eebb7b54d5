//! Networks that predict velocities, with `diffusers`' names and shapes, and the policies made of them.
//!
//! A network is built from named tensors ([`elbow::params::Tensors`]) each time it is bound, which costs nothing: tensors
//! are shared. Architecture and weights stay apart, so one set of frozen weights serves the reference, the behavior and
//! the trained policy.

pub mod config_json;
pub mod cost;
pub mod flux;
pub mod folder;
pub mod layout;
pub mod linear;
pub mod lora;
pub mod lora_file;
pub mod mmdit;
pub mod pipeline;
pub mod policy;
pub mod recompute;
mod resnet;
pub mod scheduler;
pub mod text;
pub mod unet;
pub mod vae;
