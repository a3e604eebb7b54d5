//! Fused operations against their composites: values, gradients and determinism.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attention;
mod determinism;
mod elementwise;
mod frozen;
mod isa;
mod linear;
mod norm;
mod optimizer;
mod support;
