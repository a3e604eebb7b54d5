//! The nano model's text encoder: codes instead of embeddings.
//!
//! The code of a word is a one-hot code of its id next to a one-hot code of its place in the prompt. Real text encoders give
//! tokens that know their neighbors (what is red, what is on the left), and so here: a token is the code of its word, that of
//! the word before and that of the word after. The pooled vector is the sum of the words' codes. The network's first layer
//! over text therefore *is* a learned embedding of words, places and neighbors, and nothing here has weights. The empty prompt
//! is all zeros.

use crate::vocabulary;
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    policy::{Conditioning, EncodeError, TextEncoder},
};

/// Width of a word's code and of the pooled vector: words first, then places, then unused zeros.
pub const WIDTH: usize = 64;
/// Width of a token: the codes of its word, of the word before and of the word after.
pub const TOKEN_WIDTH: usize = 3 * WIDTH;

/// Writes codes on a device.
#[derive(Clone, Debug)]
pub struct WordCodes {
    /// Where the codes go.
    pub device: Device,
}

impl TextEncoder for WordCodes {
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let words = vocabulary::MAX_WORDS;
        let mut tokens = vec![0.0f32; prompts.len() * words * TOKEN_WIDTH];
        let mut pooled = vec![0.0f32; prompts.len() * WIDTH];
        for (row, prompt) in prompts.iter().enumerate() {
            let wrong = |reason: String| EncodeError { prompt: prompt.text.clone(), reason };
            let unknown = |e: vocabulary::UnknownWord| {
                wrong(format!("unknown word `{}`; this world's words are {}", e.word, vocabulary::words().join(", ")))
            };
            let ids = vocabulary::encode(&prompt.text).map_err(unknown)?;
            if ids.len() > words {
                return Err(wrong(format!("{} words count; the nano model reads at most {words}", ids.len())));
            }
            for (place, &id) in ids.iter().enumerate() {
                for code in [usize::from(id), vocabulary::size() + place] {
                    let mut write = |token: usize, part: usize| {
                        tokens[(row * words + token) * TOKEN_WIDTH + part * WIDTH + code] = 1.0;
                    };
                    write(place, 0);
                    if place + 1 < ids.len() {
                        write(place + 1, 1);
                    }
                    if place > 0 {
                        write(place - 1, 2);
                    }
                    pooled[row * WIDTH + code] += 1.0;
                }
            }
        }
        let rows = prompts.len();
        Ok(Conditioning {
            tokens: Tensor::from_data(TensorData::new(tokens, [rows, words, TOKEN_WIDTH]), &self.device),
            mask: None,
            pooled: Some(Tensor::from_data(TensorData::new(pooled, [rows, WIDTH]), &self.device)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_fits_and_prompts_differ() {
        assert!(vocabulary::size() + vocabulary::MAX_WORDS <= WIDTH);
        let encoder = WordCodes { device: Device::flex() };
        let prompts = ["a photo of a cat left of a car", "a photo of a car left of a cat", ""].map(Prompt::from);
        let cond = encoder.encode(&prompts).expect("known words");
        let row = |i: usize| cond.tokens.clone().narrow(0, i, 1).into_data();
        assert_ne!(row(0), row(1));
        assert!(
            cond.pooled
                .expect("every prompt has one")
                .narrow(0, 2, 1)
                .into_data()
                .iter::<f32>()
                .all(|code| code == 0.0)
        );
    }

    #[test]
    fn a_token_knows_its_neighbors() {
        let encoder = WordCodes { device: Device::flex() };
        let tokens = encoder.encode(&["a photo of a red car and a cat".into()]).expect("known words").tokens;
        let code =
            |token, part| tokens.clone().slice([0..1, token..token + 1, part * WIDTH..(part + 1) * WIDTH]).into_data();
        for token in 0..4 {
            if token > 0 {
                assert_eq!(code(token, 1), code(token - 1, 0));
            }
            if token < 3 {
                assert_eq!(code(token, 2), code(token + 1, 0));
            }
        }
        for (token, part) in [(0, 1), (3, 2), (4, 0), (4, 1)] {
            assert!(code(token, part).iter::<f32>().all(|code| code == 0.0), "{token} {part}");
        }
    }

    #[test]
    fn an_unknown_word_is_named() {
        let error = WordCodes { device: Device::flex() }.encode(&["a photo of a unicorn".into()]).expect_err("unknown");
        assert!(error.reason.contains("unicorn"), "{error}");
    }
}
