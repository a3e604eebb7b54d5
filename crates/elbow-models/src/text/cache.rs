//! Embeddings on disk: text encoders are large, frozen, and needed once a prompt.

use super::{BATCH, Part, TextParts};
use crate::folder::{Checkpoint, FolderError, FrozenWeights, Pipeline};
use burn::tensor::{Device, Tensor, TensorData};
use elbow::{
    Prompt,
    params::Params,
    policy::{Conditioning, EncodeError, TextEncoder},
};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Text encoders that remember. Each prompt has a file, named by a hash of the prompt and of everything that decides its
/// embedding: tokenizer files, configurations, lengths, weights. Prompts without a file are encoded together; for that
/// the encoders are loaded, and dropped again, so it pays to encode a whole prompt set in one call before training.
///
/// A file holds `tokens [L, E]` and `pooled [P]` in f32: 5.4 MB for SD3, 4.2 MB for FLUX with 512 tokens. One that is
/// damaged counts as absent. Of weights, the hash covers names, types, shapes and a sample of each tensor's bytes.
#[derive(Debug)]
pub struct Cached {
    parts: Arc<TextParts>,
    cache: PathBuf,
    encoders: [u8; 32],
    weights: FrozenWeights,
    device: Device,
}

impl Cached {
    /// `cache` is made when the first embedding is written.
    pub fn new(
        parts: impl Into<Arc<TextParts>>,
        cache: &Path,
        weights: FrozenWeights,
        device: &Device,
    ) -> Result<Self, FolderError> {
        let parts = parts.into();
        let encoders = parts.digest()?;
        Ok(Self { parts, cache: cache.into(), encoders, weights, device: device.clone() })
    }

    /// Where the embedding of a prompt is kept.
    fn file(&self, prompt: &Prompt) -> PathBuf {
        let hash = Sha256::new().chain_update(self.encoders).chain_update(&prompt.text).finalize();
        self.cache.join(format!("{hash:x}.safetensors"))
    }

    /// Encodes prompts and keeps them; the encoders live as long as this call. `progress` is told how many of how many are kept.
    fn add(&self, mut prompts: Vec<Prompt>, progress: &dyn Fn(usize, usize)) -> Result<(), EncodeError> {
        prompts.sort_by(|a, b| a.text.cmp(&b.text));
        prompts.dedup_by(|a, b| a.text == b.text);
        let Some(first) = prompts.first() else { return Ok(()) };
        let failed = |reason: String| EncodeError { prompt: first.text.clone(), reason };
        let model = self.parts.load(self.weights, &self.device).map_err(|error| failed(error.to_string()))?;
        let make = |error| failed(format!("cannot make the cache {}: {error}", self.cache.display()));
        fs::create_dir_all(&self.cache).map_err(make)?;
        progress(0, prompts.len());
        for (k, chunk) in prompts.chunks(BATCH).enumerate() {
            let rows = model.encode(chunk)?;
            for (i, prompt) in chunk.iter().enumerate() {
                let Conditioning { tokens, pooled, .. } = rows.select(&[i]);
                let pooled = pooled.expect("invariant: every text model has a pooled embedding");
                let shapes = (tokens.dims()[1..].to_vec(), pooled.dims()[1..].to_vec());
                let values = |data: TensorData| data.try_to_vec::<f32>().expect("invariant: embeddings are f32");
                let file = Params::new([
                    ("tokens".to_owned(), shapes.0, values(tokens.into_data())),
                    ("pooled".to_owned(), shapes.1, values(pooled.into_data())),
                ]);
                elbow_runlog::write_atomic(&self.file(prompt), &file.to_safetensors(None))
                    .map_err(|error| failed(error.to_string()))?;
            }
            progress(k * BATCH + chunk.len(), prompts.len());
        }
        Ok(())
    }

    /// The embedding in a file; `None` if it is absent or damaged.
    fn read(&self, prompt: &Prompt) -> Option<Conditioning> {
        let bytes = fs::read(self.file(prompt)).ok()?;
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let read = |name: &str| {
            let view = tensors.tensor(name).ok()?;
            Some((view.shape().to_vec(), elbow::params::to_f32(view.dtype(), view.data())?))
        };
        let ((tokens_shape, tokens), (pooled_shape, pooled)) = (read("tokens")?, read("pooled")?);
        let (&[length, width], &[pooled_width]) = (&tokens_shape[..], &pooled_shape[..]) else { return None };
        Some(Conditioning {
            tokens: Tensor::from_data(TensorData::new(tokens, [1, length, width]), &self.device),
            mask: None,
            pooled: Some(Tensor::from_data(TensorData::new(pooled, [1, pooled_width]), &self.device)),
        })
    }
}

impl TextParts {
    /// A hash of everything that decides an embedding, as [`Cached`] uses it.
    pub fn digest(&self) -> Result<[u8; 32], FolderError> {
        let mut hash = Sha256::new();
        hash.update(format!("elbow-text/1 {:?} {}\n", self.pipeline, self.width));
        if self.t5.is_none() && self.pipeline == Pipeline::StableDiffusion3 {
            hash.update(format!("zeros {}\n", self.length));
        }
        for part in &self.clips {
            digest(part, &mut hash)?;
        }
        if let Some(part) = &self.t5 {
            digest(part, &mut hash)?;
        }
        Ok(hash.finalize().into())
    }
}

impl TextEncoder for Cached {
    /// Encodes those without a file; nothing is read back.
    fn prepare(&self, prompts: &[Prompt], progress: &dyn Fn(usize, usize)) -> Result<(), EncodeError> {
        let absent = prompts.iter().filter(|prompt| self.read(prompt).is_none()).cloned();
        self.add(absent.collect(), progress)
    }

    fn encode(&self, prompts: &[Prompt]) -> Result<Conditioning, EncodeError> {
        let mut rows: Vec<Option<Conditioning>> = prompts.iter().map(|prompt| self.read(prompt)).collect();
        let absent = prompts.iter().zip(&rows).filter(|(_, row)| row.is_none());
        self.add(absent.map(|(prompt, _)| prompt.clone()).collect(), &|_, _| ())?;
        for (row, prompt) in rows.iter_mut().zip(prompts).filter(|(row, _)| row.is_none()) {
            let reason = || format!("its embedding cannot be read back from {}", self.file(prompt).display());
            let read = self.read(prompt);
            *row = Some(read.ok_or_else(|| EncodeError { prompt: prompt.text.clone(), reason: reason() })?);
        }
        let rows: Vec<&Conditioning> = rows.iter().flatten().collect();
        Ok(Conditioning::cat(&rows))
    }

    fn cut(&self, prompts: &[Prompt]) -> Vec<String> {
        self.parts.cut(prompts)
    }
}

/// Everything in a part that decides an embedding.
fn digest<C: std::fmt::Debug>(part: &Part<C>, hash: &mut Sha256) -> Result<(), FolderError> {
    hash.update(format!("{} {:?}\n", part.tokenizer.length(), part.config));
    let folder = &part.folders[0];
    let entries = fs::read_dir(folder).map_err(FolderError::read(folder))?;
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(FolderError::read(folder))?;
    paths.sort();
    for path in paths.iter().filter(|path| path.is_file()) {
        hash.update(Sha256::digest(fs::read(path).map_err(FolderError::read(path))?));
    }
    weights(&part.checkpoint, hash);
    Ok(())
}

/// Sixteen pieces of 64 bytes, evenly spread, of each tensor: training changes all of them.
fn weights(checkpoint: &Checkpoint, hash: &mut Sha256) {
    for (name, shape) in checkpoint.shapes() {
        let (dtype, _, bytes) = checkpoint.stored(name).expect("invariant: a name of the checkpoint");
        hash.update(format!("{name} {dtype:?} {shape:?}\n"));
        for i in 0..16 {
            let start = bytes.len() * i / 16;
            hash.update(&bytes[start..bytes.len().min(start + 64)]);
        }
    }
}
