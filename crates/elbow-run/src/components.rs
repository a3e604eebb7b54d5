//! What a run works with, each part by itself: a command loads what it needs.

use crate::{
    data::{Data, Early},
    error::{At, Error, Result},
    event::{Event, Progress, Watch},
    machine::sha256,
    memory,
    recipe::Recipe,
    reward::{Probe, RewardConfig, Tools},
    self_test,
};
use burn::tensor::Device;
use elbow::{
    Prompt, Reward,
    config::{Config, Reuse},
    eval::{self, MeasureError, Measured},
    params::Params,
    policy::{Policy, TextEncoder},
    train::{TrainError, Trainer},
};
use elbow_models::{
    lora_file,
    policy::{NetworkPolicy, Tuning},
};
use elbow_rewards::Log;
use elbow_runlog::{RunFolder, checkpoint};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What training needs: a model, prompts and a reward.
pub struct Components {
    /// The policy.
    pub model: LoadedModel,
    /// The prompts.
    pub data: Data,
    /// The training reward.
    pub reward: Box<dyn Reward>,
    /// What it and the judges of an evaluation are made with.
    pub tools: Tools,
    /// Weights that the objective learns from.
    pub teachers: Vec<Params>,
    /// SHA-256 of their values, one after the other.
    pub teachers_sha256: Option<String>,
}

impl Components {
    /// Loads them as a recipe says. Nothing is written but embeddings of prompts, into their cache.
    pub fn load(recipe: &Recipe, device: &Device, watch: &Watch<'_>) -> Result<Self> {
        recipe.setting.reward.check_resolution(recipe.setting.model.resolution())?;
        let data = Data::read(recipe)?;
        let tools = tools(recipe, &data.test);
        let reward = reward(recipe, &data.test, &tools)?;
        let advice = "give such prompts what the reward wants, or set another reward";
        let checked = reward.check(&data.listed).map_err(|error| Error::new(error.to_string(), advice));
        checked.at(|| data.early.place.clone())?;
        let model = LoadedModel::load(recipe, &data.early, device, watch)?;
        drop(tools.policy.set(model.policy.clone()));
        let objective = recipe.method.objective.get();
        let teachers: Vec<Params> =
            objective.teachers().into_iter().map(|place| model.teacher(place)).collect::<Result<_>>()?;
        let teachers_sha256 = (!teachers.is_empty()).then(|| values_sha256(&teachers));
        Ok(Self { model, data, reward, tools, teachers, teachers_sha256 })
    }

    /// The micro-batch of a method: what it says, or for `"auto"` as many samples as fit into memory.
    pub fn micro_batch(&self, config: &Config) -> usize {
        memory::micro_batch(config, &self.model.policy, &self.model.device)
    }

    /// Whether updates of a method take velocities from the rollout: what it says, or for `"auto"` whether a micro-batch of an update
    /// gives the rollout's bits.
    pub fn reuse_velocities(&self, config: &Config) -> Result<Reuse> {
        if config.batch.reuse_velocities != Reuse::Auto {
            return Ok(config.batch.reuse_velocities);
        }
        let useful = config.build(self.model.policy.schedule())?.can_reuse_velocities();
        Ok(if useful && self.trainer(config)?.reproduces()? { Reuse::Yes } else { Reuse::No })
    }

    /// A trainer of these by a method, before its first epoch.
    pub fn trainer(&self, config: &Config) -> Result<Trainer<'_>, TrainError> {
        let mut method = config.build(self.model.policy.schedule())?;
        method.batch.micro_batch = self.micro_batch(config);
        let device = self.model.device.clone();
        let mut trainer = Trainer::new(method, &*self.model.policy, &*self.data.train, &*self.reward, device)?;
        trainer.teachers.clone_from(&self.teachers);
        Ok(trainer)
    }
}

/// SHA-256 of the values of several sets of weights, one after the other.
pub fn values_sha256<'a>(all: impl IntoIterator<Item = &'a Params>) -> String {
    let bytes: Vec<u8> = all.into_iter().flat_map(Params::values).flat_map(|value| value.to_le_bytes()).collect();
    sha256(&bytes)
}

/// What the rewards of a recipe are made with; they are tried with the first of the held-out prompts.
pub fn tools(recipe: &Recipe, test: &[Prompt]) -> Tools {
    let setting = &recipe.setting;
    let probe = |prompt: &Prompt| Probe {
        prompt: prompt.clone(),
        size: setting.model.resolution(),
        given: !setting.self_test.is_empty(),
    };
    Tools { cache: setting.keep.score_cache.clone(), probe: test.first().map(probe), ..Tools::default() }
}

/// The reward of a recipe. It has scored pictures of which something is known, and those of `[[self_test]]` in the right order.
pub fn reward(recipe: &Recipe, test: &[Prompt], tools: &Tools) -> Result<Box<dyn Reward>> {
    let reward = recipe.setting.reward.build(tools)?;
    if let Some(prompt) = test.first() {
        self_test::known(&recipe.setting.self_test, &*reward, prompt)?;
    }
    Ok(reward)
}

/// Asks every reward of a recipe by itself about pictures of which something is known; what each answered, or what is wrong with it.
pub fn try_each(recipe: &Recipe, test: &[Prompt], log: &Log) -> Vec<Result<String>> {
    let Some(probe) = tools(recipe, test).probe else { return Vec::new() };
    // Without a probe, or it would be asked when it is built.
    let tools = Tools { log: log.clone(), ..Tools::default() };
    let ask = |(name, config): (String, &RewardConfig)| {
        config.named(&name, &tools).and_then(|reward| self_test::try_out(config, &*reward, &probe))
    };
    recipe.setting.reward.leaves().into_iter().map(ask).collect()
}

/// The policy of a recipe, on its device.
pub struct LoadedModel {
    /// The policy under training or test.
    pub policy: Arc<NetworkPolicy>,
    /// SHA-256 of the base weights.
    pub sha256: String,
    /// SHA-256 of the values of the adapter that training starts from, if there is one.
    pub adapter_sha256: Option<String>,
    /// Where tensors live.
    pub device: Device,
}

/// Which weights of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// The averaged ones, which evaluation uses.
    Averaged,
    /// Those of the last update.
    Last,
}

impl Weights {
    fn file(self) -> &'static str {
        match self {
            Self::Averaged => "ema.safetensors",
            Self::Last => "weights.safetensors",
        }
    }
}

/// Weights in a checkpoint, as they are stored.
pub(crate) struct Saved {
    /// Epochs trained until then.
    pub epoch: u64,
    /// The checkpoint.
    pub path: PathBuf,
    /// A safetensors file.
    pub bytes: Vec<u8>,
}

/// The weights in a run's checkpoint: of the given epoch, or the last one.
pub(crate) fn saved(folder: &RunFolder, epoch: Option<u64>, weights: Weights) -> Result<Saved> {
    let mut all = checkpoint::all(&folder.checkpoints())?;
    let found = match epoch {
        None => all.pop(),
        Some(epoch) => all.iter().position(|(step, _)| *step == epoch).map(|i| all.swap_remove(i)),
    };
    let Some((epoch, path)) = found else {
        let run = folder.path().display();
        return Err(match epoch {
            Some(epoch) if !all.is_empty() => {
                let there: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
                Error::new(
                    format!("{run} has no checkpoint of epoch {epoch}"),
                    format!("there are those of epoch {}", there.join(", ")),
                )
            }
            _ => Error::new(
                format!("{run} has no checkpoint yet"),
                "let the run reach its first checkpoint (keep.checkpoint_every), or stop it with Ctrl-C, which writes one",
            ),
        });
    };
    let mut checkpoint = checkpoint::read(&path)?;
    let file = weights.file();
    let missing = || Error::new(format!("it has no {file}"), "choose another epoch: this checkpoint is not of a run");
    let bytes = checkpoint.files.remove(file).ok_or_else(missing);
    let bytes = bytes.at(|| format!("cannot use checkpoint {}", path.display()))?;
    Ok(Saved { epoch, path, bytes })
}

impl LoadedModel {
    /// Loads the model of a recipe; `early` prompts are encoded before its network is read.
    pub fn load(recipe: &Recipe, early: &Early, device: &Device, watch: &Watch<'_>) -> Result<Self> {
        let prepare = |text: &dyn TextEncoder, warnings: &[String]| {
            for text in warnings.iter().chain(&text.cut(&early.listed)) {
                watch(Event::Warning { text });
            }
            if early.prompts.is_empty() {
                return Ok(());
            }
            let mut prompts = early.prompts.clone();
            // Guidance needs it.
            prompts.push(Prompt::from(""));
            let progress = |done, total| watch(Event::Progress { phase: "encoding prompts", done, total });
            text.prepare(&prompts, &progress).at(|| early.place.clone())
        };
        let (policy, sha256) = recipe.setting.model.policy(recipe.method.seed, device, prepare)?;
        let adapter_sha256 = policy.adapter.as_ref().map(|adapter| values_sha256([adapter]));
        Ok(Self { policy: Arc::new(policy), sha256, adapter_sha256, device: device.clone() })
    }

    /// The epoch and the weights of a run's checkpoint: of the given epoch, or the last one.
    pub fn trained(&self, folder: &RunFolder, epoch: Option<u64>, weights: Weights) -> Result<(u64, Params)> {
        let saved = saved(folder, epoch, weights)?;
        let place = || format!("cannot use checkpoint {}", saved.path.display());
        Ok((saved.epoch, self.policy.initial().with_values_of(&saved.bytes).at(place)?))
    }

    /// The weights of a teacher: the averaged ones of a run's last checkpoint, a safetensors file of what this model trains, or an adapter of
    /// any program.
    fn teacher(&self, place: &str) -> Result<Params> {
        let path = Path::new(place);
        let at = || format!("cannot use teacher {place}");
        if path.join("checkpoints").is_dir() {
            return Ok(self.trained(&RunFolder::open(path).at(at)?, None, Weights::Averaged)?.1);
        }
        let own = self.policy.initial();
        // Everything is trained, or the factors are named as here: else it is somebody's adapter, a file or a folder.
        let config = match &self.policy.tuning {
            Tuning::Full => return own.with_values_of(&std::fs::read(path).at(at)?).at(at),
            Tuning::Lora(config) => config,
        };
        if path.is_file()
            && let Ok(params) = own.with_values_of(&std::fs::read(path).at(at)?)
        {
            return Ok(params);
        }
        let adapter = lora_file::read(path, &self.policy.network.layout().to_shapes()).at(at)?;
        let unfit = |problems: Vec<String>| {
            let hint = "train with the rank of the largest teacher and all its layers: model.lora";
            Error::new(format!("it does not fit what is trained:\n{}", problems.join("\n")), hint)
        };
        adapter.fitted(config, &own).map_err(unfit).at(at)
    }

    /// Draws images for `prompts` under `params` (`None`: what training starts from, the base or an adapter) as the recipe evaluates, and scores
    /// them.
    pub fn measure(
        &self,
        recipe: &Recipe,
        prompts: &[Prompt],
        measures: &[&dyn Reward],
        params: Option<&Params>,
        watch: &Watch<'_>,
    ) -> Result<Measured> {
        Ok(self.measured(recipe, prompts, measures, params, &Progress { watch, stop: None })?)
    }

    /// The same, for whoever may be stopped.
    pub(crate) fn measured(
        &self,
        recipe: &Recipe,
        prompts: &[Prompt],
        measures: &[&dyn Reward],
        params: Option<&Params>,
        progress: &Progress<'_>,
    ) -> Result<Measured, MeasureError> {
        let params = params.or(self.policy.adapter.as_ref());
        let tensors = params.map(|params| params.tensors(&self.device));
        let field = self.policy.bind(tensors.as_ref());
        let (config, on_missing) = (&recipe.setting.eval.measure, recipe.method.on_missing);
        eval::measure(&*self.policy, field, prompts, measures, config, on_missing, &self.device, progress)
    }
}
