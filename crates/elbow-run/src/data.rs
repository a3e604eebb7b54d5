//! The prompts of a recipe: to train on, and held out.

use crate::{
    error::{At, Error, Result},
    machine,
    model::Model,
    recipe::{PromptsConfig, Recipe},
};
use elbow::{
    Prompt,
    noise::Key,
    prompts::{self, PromptSource},
};
use elbow_world::{Record, prompts::TrainPrompts};
use std::path::Path;

/// Prompts of a file that a latent model encodes before its network is read; a longer file's are encoded when they are drawn.
const PREPARED: usize = 4096;

/// Prompts to train on and held out.
pub struct Data {
    /// Prompts to train on.
    pub train: Box<dyn PromptSource>,
    /// Prompts to evaluate on.
    pub test: Vec<Prompt>,
    /// All prompts of files; none of the scenes.
    pub listed: Vec<Prompt>,
    /// SHA-256 of all.
    pub sha256: String,
    /// Those that are encoded before the network is read.
    pub early: Early,
}

/// Prompts that are encoded, or known to be of words that the policy knows, before the network is read.
#[derive(Clone, Debug, Default)]
pub struct Early {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// These and all others that were listed: a run says which of them are too long.
    pub listed: Vec<Prompt>,
    /// What to say if one cannot be encoded.
    pub place: String,
}

impl Early {
    /// Prompts that were given by hand.
    pub fn given(prompts: Vec<Prompt>) -> Self {
        Self { listed: prompts.clone(), prompts, place: "cannot use the prompts".into() }
    }
}

impl Data {
    /// Reads the prompts of a recipe. Those of files are known to suit the reward then; those of the scenes do.
    pub fn read(recipe: &Recipe) -> Result<Self> {
        match &recipe.setting.prompts {
            PromptsConfig::Scenes { weights } => {
                let train: Vec<Prompt> = elbow_world::prompts::train_records().iter().map(Prompt::from).collect();
                let test = scenes(recipe);
                let sha256 = digest(&train, &test)?;
                let train = Box::new(ScenePrompts(TrainPrompts::new(*weights)));
                Ok(Self { train, test, listed: Vec::new(), sha256, early: Early::default() })
            }
            PromptsConfig::Files { train: train_file, test: test_file } => {
                let (train, test) = (file(train_file, recipe)?, file(test_file, recipe)?);
                let listed: Vec<Prompt> = train.iter().chain(&test).cloned().collect();
                let early = Early {
                    listed: listed.clone(),
                    prompts: [&train, &test].into_iter().filter(|all| early(all, recipe)).flatten().cloned().collect(),
                    place: format!("cannot use prompt files {} and {}", train_file.display(), test_file.display()),
                };
                let sha256 = digest(&train, &test)?;
                Ok(Self { train: Box::new(train), test, listed, sha256, early })
            }
        }
    }
}

/// The held-out prompts of a recipe alone, and those of them that are encoded before the network is read.
pub fn held_out(recipe: &Recipe) -> Result<(Vec<Prompt>, Early)> {
    let PromptsConfig::Files { test: path, .. } = &recipe.setting.prompts else {
        return Ok((scenes(recipe), Early::default()));
    };
    let test = file(path, recipe)?;
    let prompts = if early(&test, recipe) { test.clone() } else { Vec::new() };
    let place = format!("cannot use prompt file {}", path.display());
    Ok((test.clone(), Early { prompts, listed: test, place }))
}

fn scenes(recipe: &Recipe) -> Vec<Prompt> {
    elbow_world::prompts::benchmark(recipe.setting.eval.prompts_per_task).iter().map(Prompt::from).collect()
}

/// The embedded model has words of its own, which a file's prompts may not; other models take a while for many prompts.
fn early(prompts: &[Prompt], recipe: &Recipe) -> bool {
    matches!(recipe.setting.model, Model::Nano { .. }) || prompts.len() <= PREPARED
}

fn digest(train: &[Prompt], test: &[Prompt]) -> Result<String> {
    Ok(machine::sha256(serde_json::to_string(&(train, test))?.as_bytes()))
}

fn file(path: &Path, recipe: &Recipe) -> Result<Vec<Prompt>> {
    let prompts = prompts::read(path)?;
    if !recipe.setting.reward.wants_records() {
        return Ok(prompts);
    }
    for prompt in &prompts {
        if let Err(error) = Record::try_from(prompt) {
            let hint = "reward `geneval` wants a .jsonl file whose lines have `prompt`, `tag` and `include`, for example \
                        {\"prompt\": \"a photo of a cat\", \"tag\": \"single_object\", \"include\": [{\"class\": \"cat\", \"count\": 1}]}";
            let error = Error::new(format!("prompt {:?}: {error}", prompt.text), hint);
            return Err(error).at(|| format!("cannot use prompt file {}", path.display()));
        }
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
