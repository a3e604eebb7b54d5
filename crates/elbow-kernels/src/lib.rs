//! Fused, differentiable CPU operations for the transformer blocks of diffusion models.
//!
//! An engine that runs one elementwise operation after another reads and writes the activations once for each. The
//! functions here do the work of several in one pass over the data, on all cores, with a backward pass of their own:
//!
//! | function | value |
//! |---|---|
//! | [`linear`] | `x Wᵀ + b` |
//! | [`gelu_linear`] | `gelu(x) Wᵀ + b` |
//! | [`layer_norm_modulate`] | `LayerNorm(x) · (1 + scale) + shift` |
//! | [`attention`] | `softmax(Q Kᵀ / √d) V` for each head |
//! | [`gated_residual`] | `x + gate · y` |
//! | [`gelu_tanh`] | GELU, tanh form |
//! | [`AdamW`] | one optimizer step, in place |
//! | [`normals`] | uniform integers to normal numbers |
//!
//! They apply to `f32` tensors on the CPU backend, tracked or not; everywhere else the functions are the ordinary
//! tensor operations of [`composite`]. [`linear`] also takes frozen weights in `bf16` or `f16`:
//! one is widened for a product at a time, and the graph holds no copy of it. Shapes use `B` for the batch, `N` for tokens, `H` for features.
//!
//! Three properties hold and are tested: gradients equal those of the composite to rounding; no gradient is computed,
//! and nothing kept, for an input that is not tracked; results have the same bits on repetition and for any number of
//! threads, because work is divided by shape alone and sums have a fixed order. The kernels choose their instruction
//! set when they run ([`isa()`]).
//!
//! `mechanism.rs` explains how an operation is added.

#![expect(
    clippy::inline_always,
    reason = "helpers are compiled with the instruction set of the kernel they are inlined into"
)]

mod adamw;
mod attention;
mod bf16;
mod buffer;
pub mod composite;
mod frozen;
mod gate;
mod gelu;
mod gemm;
mod isa;
mod linear;
mod math;
mod mechanism;
mod norm;
mod normal;
mod panels;
mod precision;
#[cfg(target_arch = "x86_64")]
mod turn;

pub use adamw::AdamW;
pub use attention::attention;
pub use gate::gated_residual;
pub use gelu::gelu_tanh;
pub use isa::{Isa, IsaError, VARIABLE, isa};
pub use linear::{gelu_linear, linear};
pub use norm::layer_norm_modulate;
pub use normal::normals;
pub use precision::Precision;
