//! What a run was measured with: `eval_reward_<name>` and `eval_reward_<name>_<tag>` told apart.

use serde_json::{Map, Value};

/// A reward that held-out prompts were scored with, and the tags that it was averaged by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
}

impl Measure {
    /// All measures of a record. A run writes each measure, then its tags in order; so a key goes on with the measure before it if it
    /// begins with its name and sorts behind its last tag.
    pub(crate) fn all(scores: &Map<String, Value>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for name in scores.keys().filter_map(|key| key.strip_prefix("eval_reward_")) {
            if let Some(measure) = all.last_mut()
                && let Some(tag) = name.strip_prefix(&measure.name).and_then(|rest| rest.strip_prefix('_'))
                && measure.tags.last().is_none_or(|last| &**last < tag)
            {
                measure.tags.push(tag.to_owned());
            } else {
                all.push(Self { name: name.to_owned(), tags: Vec::new() });
            }
        }
        all
    }

    /// Its key in a record.
    pub(crate) fn key(&self) -> String {
        format!("eval_reward_{}", self.name)
    }

    /// The key of one of its tags.
    pub(crate) fn tag_key(&self, tag: &str) -> String {
        format!("eval_reward_{}_{tag}", self.name)
    }

    /// Its name in words.
    pub(crate) fn words(&self) -> String {
        words(&self.name)
    }
}

/// The name of a measure in words.
pub(crate) fn words(name: &str) -> String {
    match name {
        "geneval" => "strict score".into(),
        "geneval_dense" => "partial credit".into(),
        "jpeg" => "JPEG reward".into(),
        name => name.to_owned(),
    }
}

/// What is said of a measure once on a page, where it is known.
pub(crate) fn meaning(name: &str) -> Option<&'static str> {
    match name {
        "geneval" => Some("the share of pictures that show exactly what their prompt says (GenEval’s strict rule)"),
        "geneval_dense" => Some("GenEval’s rule with credit for what is partly right"),
        "judge" => Some("the strict rule with an independent detector that is never trained on"),
        _ => None,
    }
}

/// A tag in words.
pub(crate) fn tag(tag: &str) -> String {
    match tag {
        "color_attr" => "color attribution".into(),
        "two_object" => "two objects".into(),
        tag => tag.replace('_', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(keys: &[&str]) -> Vec<(String, Vec<String>)> {
        let scores = keys.iter().map(|key| (format!("eval_reward_{key}"), Value::from(0.5))).collect();
        Measure::all(&scores).into_iter().map(|measure| (measure.name, measure.tags)).collect()
    }

    fn expected(measures: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        measures
            .iter()
            .map(|(name, tags)| ((*name).to_owned(), tags.iter().map(ToString::to_string).collect()))
            .collect()
    }

    #[test]
    fn a_measure_whose_name_begins_like_another_is_no_tag_of_it() {
        let keys = ["geneval", "geneval_color_attr", "geneval_colors", "judge", "judge_color_attr", "judge_colors"];
        let dense = ["geneval_dense", "geneval_dense_color_attr", "geneval_dense_colors"];
        let tags: &[&str] = &["color_attr", "colors"];
        let all = [("geneval", tags), ("judge", tags), ("geneval_dense", tags)];
        assert_eq!(measures(&[&keys[..], &dense].concat()), expected(&all));
        // Even side by side, since tags are in order.
        let side_by_side = ["geneval", "geneval_two", "geneval_dense", "geneval_dense_two"];
        assert_eq!(measures(&side_by_side), expected(&[("geneval", &["two"]), ("geneval_dense", &["two"])]));
        assert_eq!(measures(&["jpeg"]), expected(&[("jpeg", &[])]));
        assert_eq!(measures(&[]), []);
    }
}
