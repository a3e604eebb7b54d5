//! In which order a model is read.

#[path = "../../../elbow-models/tests/diffusers/model_folder.rs"]
mod model_folder;

use super::*;
use safetensors::SafeTensors;
use std::{fs, io::Write};

#[test]
fn a_folders_network_is_read_after_its_prompts_were_prepared() {
    let folder = model_folder::whole("sd3");
    let weights = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let cache = Some(folder.path().join("cache"));
    let model = Model::Diffusers(Diffusers { resolution: 32, cache, ..Diffusers::at(folder.path().to_owned()) });
    // The file is mapped before: what is written into it is seen by who reads later.
    let ruin = |_: &dyn TextEncoder| {
        let mut bytes = fs::read(&weights)?;
        let (header, _) = SafeTensors::read_metadata(&bytes)?;
        bytes[8 + header..].fill(0xff);
        Ok(fs::OpenOptions::new().write(true).open(&weights)?.write_all(&bytes)?)
    };
    let (policy, _) = model.policy(0, &Device::flex(), ruin).expect("a policy");
    assert!(policy.base().values().iter().all(|value| value.is_nan()));
}
