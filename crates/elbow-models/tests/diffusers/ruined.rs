//! Text encoders that are of no use any more.

use safetensors::SafeTensors;
use std::{fs, io::Write, path::Path};

/// Fills the text encoders of a folder with `NaN`, but for what the names of embeddings in a cache go by: sixteen pieces of 64
/// bytes of each tensor. In place, so that it is seen by who mapped the files before.
pub(crate) fn ruin(folder: &Path) {
    let parts = ["text_encoder", "text_encoder_2", "text_encoder_3"].map(|part| fs::read_dir(folder.join(part)));
    for entry in parts.into_iter().flatten().flatten() {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let mut bytes = fs::read(&path).expect("read");
        let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
        for info in metadata.tensors().values() {
            let (start, end) = info.data_offsets;
            let piece = |i: usize| 8 + header + start + (end - start) * i / 16;
            (0..16).for_each(|i| bytes[(piece(i) + 64).min(piece(i + 1))..piece(i + 1)].fill(0xff));
        }
        let mut file = fs::OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all(&bytes).expect("written");
    }
}
