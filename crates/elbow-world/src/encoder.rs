//! The nano model's text encoder: codes instead of embeddings.
//!
//! Each word is a one-hot code of its id next to a one-hot code of its place in the prompt; the pooled vector is the sum of
//! the words'. The network's first layer over text therefore *is* a learned embedding of words and places, and nothing here
//! has weights. The empty prompt is all zeros.

use crate::vocabulary;
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    policy::{Conditioning, EncodeError, TextEncoder},
};

/// Width of a token and of the pooled vector: words first, then places, then unused zeros.
pub const WIDTH: usize = 64;

/// Writes codes on a device.
#[derive(Clone, Debug)]
pub struct WordCodes {
    /// Where the codes go.
    pub device: Device,
}

impl TextEncoder for WordCodes {
    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let words = vocabulary::MAX_WORDS;
        let mut tokens = vec![0.0f32; prompts.len() * words * WIDTH];
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
                    tokens[(row * words + place) * WIDTH + code] = 1.0;
                    pooled[row * WIDTH + code] += 1.0;
                }
            }
        }
        let rows = prompts.len();
        Ok(Conditioning {
            tokens: Tensor::from_data(TensorData::new(tokens, [rows, words, WIDTH]), &self.device),
            pooled: Tensor::from_data(TensorData::new(pooled, [rows, WIDTH]), &self.device),
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
        assert!(cond.pooled.narrow(0, 2, 1).into_data().iter::<f32>().all(|code| code == 0.0));
    }

    #[test]
    fn an_unknown_word_is_named() {
        let error = WordCodes { device: Device::flex() }.encode(&["a photo of a unicorn".into()]).expect_err("unknown");
        assert!(error.reason.contains("unicorn"), "{error}");
    }
}
