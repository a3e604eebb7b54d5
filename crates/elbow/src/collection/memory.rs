//! What a collection carries from one epoch to the next.

use crate::params::Params;
use serde_json::Value;

/// Notes and numbers, as a checkpoint holds them; both empty if there is nothing to remember.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Anything that is text or counts. A number that must come back exactly is stored by its bits.
    pub notes: Value,
    /// Named tensors. Look each up by its name: a checkpoint gives them back in another order.
    pub tensors: Params,
}

impl Default for Memory {
    fn default() -> Self {
        Self { notes: Value::Null, tensors: Params::new([]) }
    }
}

impl Memory {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.notes.is_null() && self.tensors.entries().is_empty()
    }
}

/// Numbers by their bits: numbers in text may come back rounded.
pub(super) mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
    pub(in crate::collection) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub(in crate::collection) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}
