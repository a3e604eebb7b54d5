//! An adapter that training starts from.

use crate::error::{At, Error, Result};
use elbow_models::{
    lora::LoraConfig,
    lora_file::{self, Adapter},
    policy::Network,
};
use std::path::Path;

/// Reads the adapter at `path` for a network. `asked` is the recipe's own setting, which must agree with the adapter or be left at its default.
pub(super) fn read(path: &Path, asked: &LoraConfig, network: &Network) -> Result<Adapter> {
    let place = || format!("cannot start from adapter {}", path.display());
    if path.join("checkpoints").is_dir() {
        let hint = format!("write what it trained with `elbow export {} --format peft --out my-lora`", path.display());
        return Err(Error::new("it is a run of this program", hint)).at(place);
    }
    let adapter = lora_file::read(path, &network.layout().to_shapes()).at(place)?;
    let (own, nothing) = (&adapter.config, LoraConfig::default());
    // A default counts as not set.
    let rank = [own.rank, nothing.rank].contains(&asked.rank);
    let alpha = [own.alpha, nothing.alpha].contains(&asked.alpha);
    let layers = [&own.target_modules, &nothing.target_modules].contains(&&asked.target_modules);
    if rank && alpha && layers {
        return Ok(adapter);
    }
    let told = |LoraConfig { rank, alpha, target_modules }: &LoraConfig| {
        format!("rank {rank}, alpha {alpha}, layers [{}]", target_modules.join(", "))
    };
    let message = format!("the recipe says {}, and the adapter has {}", told(asked), told(own));
    Err(Error::new(message, "leave out rank, alpha and target_modules: the adapter's own are trained")).at(place)
}
