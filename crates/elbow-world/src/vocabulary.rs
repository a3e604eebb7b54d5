//! The words of the world's prompts and their ids, for the small text embedding of the nano model.
//!
//! Id 0 is padding. Then, in this order, which trained weights depend on: the words of the object names in atlas order (`wine
//! glass` is two words, here as everywhere), those of the plurals in the same order, the colors, the numbers, the joining words.
//! New words go to the end.

use crate::object::{Color, Object};
use std::sync::LazyLock;

/// The longest prompt of the world in words: `red wine glass and blue car`.
pub const MAX_WORDS: usize = 6;
/// Words that say nothing: the opening of each prompt and the articles.
const DROPPED: [&str; 4] = ["photo", "of", "a", "an"];
const NUMBERS: [&str; 3] = ["two", "three", "four"];
const JOINING: [&str; 5] = ["and", "left", "right", "above", "below"];

static WORDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let singular = Object::ALL.iter().flat_map(|o| o.name().split(' ').map(str::to_owned));
    let plural = Object::ALL.iter().flat_map(|o| o.plural().split(' ').map(str::to_owned).collect::<Vec<_>>());
    let rest = Color::ALL.map(Color::name).into_iter().chain(NUMBERS).chain(JOINING).map(str::to_owned);
    let mut words = Vec::new();
    for word in singular.chain(plural).chain(rest) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
});

/// A prompt the vocabulary cannot write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{prompt:?}: unknown word `{word}`; this world's words are {}", WORDS.join(", "))]
pub struct UnknownWord {
    /// The prompt.
    pub prompt: String,
    /// Its first unknown word.
    pub word: String,
}

/// Number of ids, padding included.
pub fn size() -> usize {
    WORDS.len() + 1
}

/// The words in the order of their ids; the first has id 1.
pub fn words() -> &'static [String] {
    &WORDS
}

/// The ids of a prompt's words, in order, without padding. Case, a final period and the words `photo`, `of`, `a` and `an` do not
/// count, so `a photo of a cat left of a car` is `cat left car`.
pub fn encode(prompt: &str) -> Result<Vec<u16>, UnknownWord> {
    let lower = prompt.to_lowercase();
    let id = |word: &str| match WORDS.iter().position(|w| w == word) {
        Some(i) => Ok((i + 1) as u16),
        None => Err(UnknownWord { prompt: prompt.to_owned(), word: word.to_owned() }),
    };
    lower.trim_end_matches('.').split_whitespace().filter(|word| !DROPPED.contains(word)).map(id).collect()
}
