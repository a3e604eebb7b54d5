//! What products round their factors to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the factors of a product are rounded to; sums are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Nothing: they are `f32`.
    #[default]
    F32,
    /// bf16, 8 bits of mantissa: faster where the CPU multiplies them (`elbow doctor` says), no faster elsewhere.
    Bf16,
}
