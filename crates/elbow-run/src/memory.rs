//! How many samples go through the network at a time, from what a sample holds in memory.

use burn::tensor::Device;
use elbow::{
    Prompt,
    config::{Config, MicroBatch},
    lanes,
    policy::Policy,
};
use elbow_models::{
    cost::{self, Row},
    policy::NetworkPolicy,
};

/// Share of the free memory that the activations of all micro-batches in flight may take: the rest is for what is drawn, gradients
/// and judges.
const SHARE: f64 = 0.4;

/// Bytes that are taken to be free where nobody says.
const UNKNOWN: f64 = 8.0 * (1u64 << 30) as f64;

/// The micro-batch of a recipe: what it says, or for `"auto"` as many samples as fit into memory, up to [`MicroBatch::MOST`].
pub(crate) fn micro_batch(config: &Config, policy: &NetworkPolicy, device: &Device) -> usize {
    if let MicroBatch::Size(size) = config.batch.micro_batch {
        return size;
    }
    let text = policy.encode(&[Prompt::from("")]).map_or(0, |cond| cond.tokens.dims()[1]);
    let row = Row { latent: policy.latent, text };
    let values = cost::activations(&policy.network, row, &policy.tuning, policy.checkpointing);
    let guided = if config.sampler.guidance.to_bits() == 1f64.to_bits() { 1.0 } else { 2.0 };
    let in_flight = lanes::count(device) as f64;
    let fits = SHARE * free(device) / (4.0 * values * guided * in_flight);
    (fits as usize).clamp(1, MicroBatch::MOST)
}

/// Free memory in bytes: of the machine, where that is what computes and it says so.
fn free(device: &Device) -> f64 {
    if *device != Device::flex() {
        return UNKNOWN;
    }
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()
    });
    available.map_or(UNKNOWN, |kilobytes| kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoadedModel, Recipe, data::Early};
    use elbow::config::BatchConfig;

    #[test]
    fn auto_is_a_number_and_a_number_stays() {
        let mut recipe = Recipe::default();
        let model = LoadedModel::load(&recipe, &Early::default(), &Device::flex(), &|_| {}).expect("it is embedded");
        recipe.method.batch = BatchConfig { micro_batch: MicroBatch::Size(7), ..BatchConfig::default() };
        let size = |recipe: &Recipe| micro_batch(&recipe.method, &model.policy, &model.device);
        assert_eq!(size(&recipe), 7);
        recipe.method.batch.micro_batch = MicroBatch::Auto;
        // The nano model's sample holds some 3 MB.
        let chosen = size(&recipe);
        assert!((1..=MicroBatch::MOST).contains(&chosen), "{chosen}");
    }
}
