//! The size of pictures.

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};
use std::{borrow::Cow, fmt};

/// Height and width of pictures in pixels. A recipe says `512` for both or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Pixels from top to bottom.
    pub height: usize,
    /// Pixels from left to right.
    pub width: usize,
}

impl Resolution {
    /// As wide as high.
    pub fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// `[height, width]`.
    pub fn sides(self) -> [usize; 2] {
        [self.height, self.width]
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.height == self.width { self.height.fmt(to) } else { write!(to, "[{}, {}]", self.height, self.width) }
    }
}

impl Serialize for Resolution {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.height == self.width { self.height.serialize(to) } else { self.sides().serialize(to) }
    }
}

impl<'de> Deserialize<'de> for Resolution {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Read)
    }
}

struct Read;

const EXPECTED: &str = "a number of pixels for both sides, or [height, width]";

impl<'de> Visitor<'de> for Read {
    type Value = Resolution;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(EXPECTED)
    }

    fn visit_u64<E: Error>(self, side: u64) -> Result<Resolution, E> {
        usize::try_from(side)
            .map(Resolution::square)
            .map_err(|_| E::custom(format!("invalid value: expected {EXPECTED}")))
    }

    fn visit_i64<E: Error>(self, side: i64) -> Result<Resolution, E> {
        u64::try_from(side)
            .map_err(|_| E::custom(format!("invalid value: expected {EXPECTED}")))
            .and_then(|side| self.visit_u64(side))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Resolution, A::Error> {
        let mut sides = Vec::new();
        while let Some(side) = list.next_element::<usize>()? {
            sides.push(side);
        }
        match sides[..] {
            [height, width] => Ok(Resolution { height, width }),
            _ => Err(A::Error::custom(format!("invalid length: expected {EXPECTED}"))),
        }
    }
}

impl JsonSchema for Resolution {
    fn schema_name() -> Cow<'static, str> {
        "Resolution".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["integer", "array"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_or_two() {
        let read = |text: &str| serde_json::from_str::<Resolution>(text);
        assert_eq!(read("512").expect("a number"), Resolution::square(512));
        let wide = read("[256, 512]").expect("a list");
        assert_eq!((wide.height, wide.width, wide.to_string()), (256, 512, "[256, 512]".to_owned()));
        for text in ["512", "[256,512]"] {
            assert_eq!(serde_json::to_string(&read(text).expect("reads")).expect("text"), text);
        }
        for wrong in ["-1", "[1]", "[1, 2, 3]", "\"512\"", "0.5", "[1, -2]", "{}"] {
            let error = read(wrong).expect_err(wrong).to_string();
            assert!(error.contains("[height, width]") || error.contains("usize"), "{wrong}: {error}");
        }
    }
}
