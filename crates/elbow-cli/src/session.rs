//! A recipe made real: weights loaded, prompts read, rewards built.

use crate::{
    failure::Hint,
    machine,
    recipe::{Model, PromptsConfig, Recipe},
    reward::RewardConfig,
};
use anyhow::{Context, Result};
use burn::tensor::Device;
use elbow::{
    Prompt, Reward,
    eval::{self, Measured},
    noise::Key,
    params::Params,
    policy::Policy,
    prediction::{Predicting, Prediction},
    prompts::{self, PromptSource},
    schedule::Schedule,
    train::Observer,
};
use elbow_models::{
    mmdit::MmditConfig,
    policy::{Network, NetworkPolicy, Tuning},
    recompute::Checkpointing,
};
use elbow_rewards::geneval::{GenEval, Mode};
use elbow_world::{SceneDetector, SceneJudge, encoder::WordCodes, prompts::TrainPrompts};
use safetensors::SafeTensors;
use std::path::Path;

/// The embedded base models: one for each path from data to noise.
const NANO: &[u8] = include_bytes!("../../../assets/nano.safetensors");
const NANO_VP: &[u8] = include_bytes!("../../../assets/nano-vp.safetensors");

/// The nano model as a policy.
pub type Nano = Predicting<NetworkPolicy>;

/// What a command works with.
pub struct Session {
    /// The policy under training or test.
    pub policy: Nano,
    /// Prompts to train on.
    pub train: Box<dyn PromptSource>,
    /// Prompts to evaluate on.
    pub test: Vec<Prompt>,
    /// The training reward.
    pub reward: Box<dyn Reward>,
    /// What evaluation scores with: the reward's strict form and an independent judge.
    pub measures: Vec<Box<dyn Reward>>,
    /// SHA-256 of the base weights.
    pub base_hash: String,
    /// SHA-256 of all prompts.
    pub prompts_hash: String,
    /// Where tensors live.
    pub device: Device,
}

impl Session {
    /// Loads everything; nothing is written.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let device = Device::flex();
        let (policy, base_hash) = policy(recipe, &device)?;
        let (train, test, listing) = prompt_lists(recipe, &policy)?;
        let mut judge = GenEval::new(SceneJudge::new(), Mode::Strict);
        judge.name = "judge".into();
        let mut dense = GenEval::new(SceneDetector::new(), Mode::Dense);
        dense.name = "geneval_dense".into();
        let mut measures: Vec<Box<dyn Reward>> =
            vec![Box::new(GenEval::new(SceneDetector::new(), Mode::Strict)), Box::new(judge), Box::new(dense)];
        let reward = recipe.setting.reward.build();
        if measures.iter().all(|measure| measure.name() != reward.name()) {
            measures.push(recipe.setting.reward.build());
        }
        let prompts_hash = machine::sha256(listing.as_bytes());
        Ok(Self { policy, train, test, reward, measures, base_hash, prompts_hash, device })
    }

    /// Measures the policy under `params` (`None`: the base) on the held-out prompts.
    pub fn measure(&self, recipe: &Recipe, params: Option<&Params>, observer: &dyn Observer) -> Result<Measured> {
        let tensors = params.map(|p| p.tensors(&self.device));
        let field = self.policy.bind(tensors.as_ref());
        let rewards: Vec<&dyn Reward> = self.measures.iter().map(|r| &**r).collect();
        let config = &recipe.setting.eval.measure;
        let schedule = recipe.method.schedule;
        Ok(eval::measure(&self.policy, field, &self.test, &rewards, config, schedule, &self.device, observer)?)
    }
}

/// The nano model over the given weights, predicting what is customary on the path.
pub fn nano(base: Params, tuning: Tuning, seed: u64, schedule: Schedule, device: &Device) -> Nano {
    let network = pixels(MmditConfig::default(), base, tuning, seed, device);
    Predicting { network, prediction: Prediction::customary(schedule), schedule }
}

/// A network of the nano model's kind, of any size, over the given weights.
pub fn pixels(config: MmditConfig, base: Params, tuning: Tuning, seed: u64, device: &Device) -> NetworkPolicy {
    NetworkPolicy {
        latent: config.latent(),
        network: Network::Mmdit(config),
        base: base.tensors(&device.clone().without_autodiff()),
        tuning,
        checkpointing: Checkpointing::None,
        text: Box::new(WordCodes { device: device.clone() }),
        seed,
    }
}

fn policy(recipe: &Recipe, device: &Device) -> Result<(Nano, String)> {
    let (weights, tuning, checkpointing) = match &recipe.setting.model {
        Model::Nano { weights, tuning, checkpointing } => (weights.as_deref(), tuning.clone(), *checkpointing),
        Model::Diffusers { path, .. } => {
            return Err(Hint::error(
                format!("model {}: diffusers folders cannot be loaded by this version yet", path.display()),
                "use [model] kind = \"nano\", the embedded model",
            ));
        }
    };
    let schedule = recipe.method.schedule;
    let bytes = nano_weights(weights, schedule)?;
    let config = MmditConfig::default();
    let layout = config.initial(Key::new(0, elbow::noise::Purpose::Initialization, 0));
    let place = weights.map_or_else(|| "the embedded weights".to_owned(), |p| format!("weights {}", p.display()));
    let base = layout.with_values_of(&bytes).with_context(|| format!("cannot use {place}"))?;
    made_for(&bytes, schedule).with_context(|| format!("cannot use {place}"))?;
    let mut policy = nano(base, tuning, recipe.method.seed, schedule, device);
    policy.network.checkpointing = checkpointing;
    let problems = policy.network.problems();
    if !problems.is_empty() {
        return Err(Hint::error(problems.join("\n"), "the model's section of the recipe must fit the network"));
    }
    Ok((policy, machine::sha256(&bytes)))
}

/// The file of the nano model's base weights: the given one, or the embedded one for the path from data to noise.
pub fn nano_weights(weights: Option<&Path>, schedule: Schedule) -> Result<Vec<u8>> {
    match weights {
        None if schedule == Schedule::RectifiedFlow => Ok(NANO.to_vec()),
        None => Ok(NANO_VP.to_vec()),
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read weights {}", path.display())),
    }
}

/// An error if the weights say that they were made for another path; files made elsewhere say nothing.
fn made_for(weights: &[u8], schedule: Schedule) -> Result<()> {
    let (_, metadata) = SafeTensors::read_metadata(weights)?;
    let made = metadata.metadata().as_ref().and_then(|entries| entries.get("elbow"));
    let Some(made) = made.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok()) else { return Ok(()) };
    // Before there were several, it went without saying.
    let path = &made["pretrain"]["config"]["schedule"];
    let path = if path.is_null() { Schedule::RectifiedFlow } else { serde_json::from_value(path.clone())? };
    if path == schedule {
        return Ok(());
    }
    Err(Hint::error(
        format!("they were made for {}, and the recipe says {}", written(path), written(schedule)),
        "set `schedule` to what the weights were made for, or make others with `elbow pretrain --schedule`",
    ))
}

fn written(schedule: Schedule) -> String {
    serde_json::to_string(&schedule).unwrap_or_default()
}

/// Prompts to train on, prompts to test on, and the text of both for the hash. Prompts of files are known to suit the reward
/// and the policy; those of the scenes do.
fn prompt_lists(recipe: &Recipe, policy: &Nano) -> Result<(Box<dyn PromptSource>, Vec<Prompt>, String)> {
    let listing = |train: &[Prompt], test: &[Prompt]| serde_json::to_string(&(train, test));
    match &recipe.setting.prompts {
        PromptsConfig::Scenes { weights } => {
            let from = |records: Vec<elbow_world::Record>| records.iter().map(Prompt::from).collect::<Vec<_>>();
            let test = from(elbow_world::prompts::benchmark(recipe.setting.eval.prompts_per_task));
            let listing = listing(&from(elbow_world::prompts::train_records()), &test)?;
            Ok((Box::new(ScenePrompts(TrainPrompts::new(*weights))), test, listing))
        }
        PromptsConfig::Files { train, test } => {
            let reward = &recipe.setting.reward;
            let (train, test) = (prompt_file(train, policy, reward)?, prompt_file(test, policy, reward)?);
            let listing = listing(&train, &test)?;
            Ok((Box::new(train), test, listing))
        }
    }
}

fn prompt_file(path: &Path, policy: &Nano, reward: &RewardConfig) -> Result<Vec<Prompt>> {
    let place = || format!("cannot use prompt file {}", path.display());
    let prompts = prompts::read(path)?;
    let records = reward.wants_records();
    for prompt in prompts.iter().filter(|_| records) {
        elbow_world::Record::try_from(prompt).map_err(|error| {
            let hint = "reward `geneval` wants a .jsonl file whose lines have `prompt`, `tag` and `include`, for example \
                        {\"prompt\": \"a photo of a cat\", \"tag\": \"single_object\", \"include\": [{\"class\": \"cat\", \"count\": 1}]}";
            Hint::error(format!("prompt {:?}: {error}", prompt.text), hint).context(place())
        })?;
    }
    policy.encode(&prompts).with_context(place)?;
    Ok(prompts)
}

/// Training prompts of the scenes, drawn by task.
struct ScenePrompts(TrainPrompts);

impl PromptSource for ScenePrompts {
    fn draw(&self, key: Key, groups: usize) -> Vec<Prompt> {
        let mut integers = key.integers();
        let mut rng = || integers.next().expect("invariant: endless");
        (0..groups).map(|_| Prompt::from(self.0.sample(&mut rng))).collect()
    }
}
