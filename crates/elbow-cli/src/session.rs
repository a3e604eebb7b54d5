//! A recipe made real: weights loaded, prompts read, rewards built.

use crate::{
    device::DeviceName,
    failure::Hint,
    machine,
    model::{Model, ModelPolicy},
    recipe::{PromptsConfig, Recipe},
};
use anyhow::{Context, Result};
use burn::tensor::Device;
use elbow::{
    Prompt, Reward,
    eval::{self, Measured},
    noise::Key,
    params::Params,
    policy::{Policy, TextEncoder},
    prompts::{self, PromptSource},
    train::Observer,
};
use elbow_rewards::geneval::{GenEval, Mode};
use elbow_runlog::{RunFolder, checkpoint};
use elbow_world::{Record, SceneDetector, SceneJudge, prompts::TrainPrompts, scene::SIDE};
use std::path::Path;

/// Prompts of a file that a latent model encodes before its network is read; a longer file's are encoded when they are drawn.
const PREPARED: usize = 4096;

/// What a command works with.
pub struct Session {
    /// The policy under training or test.
    pub policy: ModelPolicy,
    /// Prompts to train on.
    pub train: Box<dyn PromptSource>,
    /// Prompts to evaluate on.
    pub test: Vec<Prompt>,
    /// The training reward.
    pub reward: Box<dyn Reward>,
    /// What evaluation scores with: the reward, and where images can be scenes, `GenEval`'s strict form and an independent
    /// judge.
    pub measures: Vec<Box<dyn Reward>>,
    /// SHA-256 of the base weights.
    pub base_hash: String,
    /// SHA-256 of all prompts.
    pub prompts_hash: String,
    /// Where tensors live.
    pub device: Device,
}

impl Session {
    /// Loads everything; nothing is written but embeddings of prompts, into their cache.
    pub fn new(recipe: &Recipe, device: DeviceName, observer: &dyn Observer) -> Result<Self> {
        reward_sees_images(recipe)?;
        Self::load(recipe, prompt_lists(recipe)?, device, observer)
    }

    /// The same with these prompts in place of the recipe's.
    pub fn of_prompts(
        recipe: &Recipe,
        prompts: Vec<Prompt>,
        device: DeviceName,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let lists = Lists {
            train: Box::new(prompts.clone()),
            early: prompts.clone(),
            listing: listing(&prompts, &prompts)?,
            test: prompts,
            place: "cannot use the prompts".into(),
        };
        Self::load(recipe, lists, device, observer)
    }

    fn load(recipe: &Recipe, lists: Lists, device: DeviceName, observer: &dyn Observer) -> Result<Self> {
        let Lists { train, test, mut early, listing, place } = lists;
        let device = device.open()?;
        if !early.is_empty() {
            early.push(Prompt::from("")); // which guidance needs
        }
        let progress = |done, total| observer.progress("encoding prompts", done, total);
        let prepare = |text: &dyn TextEncoder| match &*early {
            [] => Ok(()),
            early => text.prepare(early, &progress).context(place),
        };
        let (policy, base_hash) = recipe.setting.model.policy(&recipe.method, &device, prepare)?;
        let (measures, reward) = (measures(recipe, &test), recipe.setting.reward.build());
        let prompts_hash = machine::sha256(listing.as_bytes());
        Ok(Self { policy, train, test, reward, measures, base_hash, prompts_hash, device })
    }

    /// The epoch and the weights of a run's checkpoint: of the given epoch, or the last one; `file` is one of a checkpoint's.
    pub fn trained(&self, folder: &RunFolder, epoch: Option<u64>, file: &str) -> Result<(u64, Params)> {
        let mut all = checkpoint::all(&folder.checkpoints())?;
        let found = match epoch {
            None => all.pop(),
            Some(epoch) => all.iter().position(|(step, _)| *step == epoch).map(|i| all.swap_remove(i)),
        };
        let Some((epoch, path)) = found else {
            let listed: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
            let run = folder.path().display();
            return Err(match epoch {
                Some(epoch) if !all.is_empty() => Hint::error(
                    format!("{run} has no checkpoint of epoch {epoch}"),
                    format!("there are those of epoch {}", listed.join(", ")),
                ),
                _ => Hint::error(
                    format!("{run} has no checkpoint yet"),
                    "let the run reach its first checkpoint (keep.checkpoint_every), or stop it with Ctrl-C, which writes one",
                ),
            });
        };
        let saved = checkpoint::read(&path)?;
        let place = || format!("cannot use checkpoint {}", path.display());
        let file = saved.files.get(file).with_context(|| format!("it has no {file}")).with_context(place)?;
        Ok((epoch, self.policy.initial().with_values_of(file).with_context(place)?))
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

/// An error if images are of a size at which the detector of the reward sees nothing.
fn reward_sees_images(recipe: &Recipe) -> Result<()> {
    let resolution = recipe.setting.model.resolution();
    if resolution == SIDE || !recipe.setting.reward.wants_records() {
        return Ok(());
    }
    Err(Hint::error(
        format!(
            "reward `geneval` scores with the detector of the embedded scenes, which are {SIDE} × {SIDE} pixels, and \
             model.resolution = {resolution}: it would see nothing"
        ),
        "set another reward, for example --set reward.kind=jpeg; there is no detector for photographs yet",
    ))
}

/// Detectors of scenes can say something of images of their size whose prompts come with `GenEval`'s records.
fn measures(recipe: &Recipe, test: &[Prompt]) -> Vec<Box<dyn Reward>> {
    let mut measures: Vec<Box<dyn Reward>> = Vec::new();
    if recipe.setting.model.resolution() == SIDE && test.iter().all(|prompt| Record::try_from(prompt).is_ok()) {
        let mut judge = GenEval::new(SceneJudge::new(), Mode::Strict);
        judge.name = "judge".into();
        let mut dense = GenEval::new(SceneDetector::new(), Mode::Dense);
        dense.name = "geneval_dense".into();
        measures.push(Box::new(GenEval::new(SceneDetector::new(), Mode::Strict)));
        measures.push(Box::new(judge));
        measures.push(Box::new(dense));
    }
    let reward = recipe.setting.reward.build();
    if measures.iter().all(|measure| measure.name() != reward.name()) {
        measures.push(reward);
    }
    measures
}

/// The prompts of a recipe, none of which was encoded.
struct Lists {
    train: Box<dyn PromptSource>,
    test: Vec<Prompt>,
    /// Those that are encoded, or known to be of words the policy knows, before the network is read.
    early: Vec<Prompt>,
    /// The text of all, for the hash.
    listing: String,
    /// What to say if one cannot be encoded.
    place: String,
}

/// Prompts of files are known to suit the reward; those of the scenes do, and the embedded policy knows their words.
fn prompt_lists(recipe: &Recipe) -> Result<Lists> {
    match &recipe.setting.prompts {
        PromptsConfig::Scenes { weights } => {
            let from = |records: Vec<elbow_world::Record>| records.iter().map(Prompt::from).collect::<Vec<_>>();
            let test = from(elbow_world::prompts::benchmark(recipe.setting.eval.prompts_per_task));
            let listing = listing(&from(elbow_world::prompts::train_records()), &test)?;
            let train = Box::new(ScenePrompts(TrainPrompts::new(*weights)));
            Ok(Lists { train, test, early: Vec::new(), listing, place: String::new() })
        }
        PromptsConfig::Files { train: train_file, test: test_file } => {
            let (train, test) = (prompt_file(train_file, recipe)?, prompt_file(test_file, recipe)?);
            let nano = matches!(recipe.setting.model, Model::Nano { .. });
            let few = [&train, &test].into_iter().filter(|prompts| nano || prompts.len() <= PREPARED);
            let early = few.flatten().cloned().collect();
            let listing = listing(&train, &test)?;
            let place = format!("cannot use prompt files {} and {}", train_file.display(), test_file.display());
            Ok(Lists { train: Box::new(train), test, early, listing, place })
        }
    }
}

fn listing(train: &[Prompt], test: &[Prompt]) -> serde_json::Result<String> {
    serde_json::to_string(&(train, test))
}

fn prompt_file(path: &Path, recipe: &Recipe) -> Result<Vec<Prompt>> {
    let place = || format!("cannot use prompt file {}", path.display());
    let prompts = prompts::read(path)?;
    let records = recipe.setting.reward.wants_records();
    for prompt in prompts.iter().filter(|_| records) {
        Record::try_from(prompt).map_err(|error| {
            let hint = "reward `geneval` wants a .jsonl file whose lines have `prompt`, `tag` and `include`, for example \
                        {\"prompt\": \"a photo of a cat\", \"tag\": \"single_object\", \"include\": [{\"class\": \"cat\", \"count\": 1}]}";
            Hint::error(format!("prompt {:?}: {error}", prompt.text), hint).context(place())
        })?;
    }
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
