//! The GenEval prompt record: what an image of this prompt has to show.
//!
//! One JSON object a line, as in the benchmark's `evaluation_metadata.jsonl`:
//! `{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
//! "prompt": "a photo of a cat left of a dog"}`.

use elbow::Prompt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// The six GenEval tasks, in the benchmark's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One object.
    SingleObject,
    /// Two objects of different classes.
    TwoObject,
    /// Two to four objects of one class.
    Counting,
    /// One object of a named color.
    Colors,
    /// Two objects and their spatial relation.
    Position,
    /// Two objects, each of a named color.
    ColorAttr,
}

impl Task {
    /// Every task, in the benchmark's order.
    pub const ALL: [Self; 6] =
        [Self::SingleObject, Self::TwoObject, Self::Counting, Self::Colors, Self::Position, Self::ColorAttr];

    /// The `tag` of a record.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::SingleObject => "single_object",
            Self::TwoObject => "two_object",
            Self::Counting => "counting",
            Self::Colors => "colors",
            Self::Position => "position",
            Self::ColorAttr => "color_attr",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tag())
    }
}

/// Where one object lies as seen from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    /// Smaller x.
    #[serde(rename = "left of")]
    LeftOf,
    /// Larger x.
    #[serde(rename = "right of")]
    RightOf,
    /// Smaller y.
    Above,
    /// Larger y.
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::LeftOf, Self::RightOf, Self::Above, Self::Below];

    /// The words of the prompt.
    pub const fn words(self) -> &'static str {
        match self {
            Self::LeftOf => "left of",
            Self::RightOf => "right of",
            Self::Above => "above",
            Self::Below => "below",
        }
    }
}

/// The relation a clause's objects have to those of an earlier clause; in JSON `["left of", 0]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position(
    /// Where this clause's objects lie.
    pub Relation,
    /// Index in `include` of the clause they are compared with; smaller than the clause's own index.
    pub usize,
);

/// Objects that have to be in the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clause {
    /// Name of the object class, as the detector says it.
    pub class: String,
    /// How many, at least 1.
    pub count: usize,
    /// Their color, as the detector says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// Where they lie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
}

impl Clause {
    /// `count` objects of a class, of any color and anywhere.
    pub fn new(class: impl Into<String>, count: usize) -> Self {
        Self { class: class.into(), count, color: None, position: None }
    }
}

/// Objects that may not be in the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclusion {
    /// Name of the object class.
    pub class: String,
    /// So many or more make the image wrong; at least 1.
    pub count: usize,
}

/// A GenEval prompt with its checklist. Unknown top-level keys are allowed and dropped; inside the clauses they are errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The task.
    pub tag: Task,
    /// All of these have to hold; at least one.
    pub include: Vec<Clause>,
    /// None of these may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Exclusion>,
    /// What the model is conditioned on.
    pub prompt: String,
}

/// Why metadata is no GenEval record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A key is missing, unknown or of the wrong type.
    #[error("not a GenEval record: {0}")]
    Shape(#[from] serde_json::Error),
    /// `include` is empty: every image would be right.
    #[error("not a GenEval record: `include` is empty")]
    Empty,
    /// A clause asks for zero objects.
    #[error("not a GenEval record: `{list}` clause {clause} ({class}) has count 0")]
    Count {
        /// `include` or `exclude`.
        list: &'static str,
        /// Index of the clause.
        clause: usize,
        /// Its class.
        class: String,
    },
    /// A position refers to the clause itself or a later one.
    #[error(
        "not a GenEval record: `include` clause {clause} is placed relative to clause {target}, which must come before it"
    )]
    Target {
        /// Index of the clause.
        clause: usize,
        /// The index it names.
        target: usize,
    },
}

impl Record {
    /// Checks what the types cannot say: counts of at least 1, positions relative to earlier clauses.
    pub fn validate(&self) -> Result<(), RecordError> {
        if self.include.is_empty() {
            return Err(RecordError::Empty);
        }
        for (clause, c) in self.include.iter().enumerate() {
            if c.count == 0 {
                return Err(RecordError::Count { list: "include", clause, class: c.class.clone() });
            }
            if let Some(Position(_, target)) = c.position
                && target >= clause
            {
                return Err(RecordError::Target { clause, target });
            }
        }
        match self.exclude.iter().position(|e| e.count == 0) {
            Some(i) => Err(RecordError::Count { list: "exclude", clause: i, class: self.exclude[i].class.clone() }),
            None => Ok(()),
        }
    }
}

impl TryFrom<&Prompt> for Record {
    type Error = RecordError;

    fn try_from(prompt: &Prompt) -> Result<Self, RecordError> {
        let mut object: Map<String, Value> = prompt.metadata.clone();
        object.insert("prompt".into(), Value::String(prompt.text.clone()));
        let record: Self = serde_json::from_value(Value::Object(object))?;
        record.validate()?;
        Ok(record)
    }
}

impl From<&Record> for Prompt {
    fn from(record: &Record) -> Self {
        let Ok(Value::Object(mut metadata)) = serde_json::to_value(record) else {
            unreachable!("invariant: a record is a JSON object of strings and small integers")
        };
        metadata.shift_remove("prompt");
        Self { text: record.prompt.clone(), metadata }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"tag":"position","include":[{"class":"dog","count":1},{"class":"cat","count":1,"position":["left of",0]}],"prompt":"a photo of a cat left of a dog"}"#;

    fn parse(line: &str) -> Result<Record, RecordError> {
        Record::try_from(&serde_json::from_str::<Prompt>(line).expect("a prompt line"))
    }

    #[test]
    fn a_benchmark_line_round_trips() {
        let record = parse(LINE).expect("valid");
        assert_eq!(record.include[1].position, Some(Position(Relation::LeftOf, 0)));
        assert_eq!(serde_json::to_string(&record).expect("serializable"), LINE);
        assert_eq!(Record::try_from(&Prompt::from(&record)).expect("valid"), record);
    }

    #[test]
    fn mistakes_are_named() {
        let says = |line: &str| parse(line).expect_err("invalid").to_string();
        assert!(says(&LINE.replace("position\",\"inc", "place\",\"inc")).contains("unknown variant `place`"));
        assert!(says(&LINE.replace("left of\",0", "left of\",1")).contains("clause 1 is placed relative to clause 1"));
        assert!(
            says(&LINE.replace("\"dog\",\"count\":1", "\"dog\",\"count\":0")).contains("clause 0 (dog) has count 0")
        );
        assert!(says(&LINE.replace("\"class\":\"dog\"", "\"classs\":\"dog\"")).contains("classs"));
        assert!(says(r#"{"tag":"colors","include":[],"prompt":"x"}"#).contains("`include` is empty"));
        assert!(says(r#"{"prompt":"x"}"#).contains("missing field `tag`"));
    }
}
