//! What evaluation scores with: the reward, and where images can be scenes, GenEval's strict form and an independent judge.

use crate::{
    error::Result,
    model::Resolution,
    recipe::Recipe,
    reward::{Named, Tools},
};
use elbow::{Prompt, Reward, eval::Measured};
use elbow_rewards::geneval::{GenEval, Mode};
use elbow_world::{Record, SceneDetector, SceneJudge, scene::SIDE};
use serde_json::{Value, json};

/// The judges of a recipe's held-out prompts, beside its reward: those that it names in `eval.rewards`, and detectors of scenes, which can
/// say something of images of their size whose prompts come with GenEval's records.
pub fn judges(recipe: &Recipe, test: &[Prompt], tools: &Tools) -> Result<Vec<Box<dyn Reward>>> {
    let mut judges = Vec::new();
    if are_scenes(recipe, test) {
        judges.extend(scene_judges());
    }
    for Named { name, reward } in &recipe.setting.eval.rewards {
        judges.push(reward.named(name, tools)?);
    }
    Ok(judges)
}

/// The names of all that an evaluation scores with: those of the judges, and the reward's if none of them has it. Nothing is asked for it.
pub fn names(recipe: &Recipe, test: &[Prompt]) -> Vec<String> {
    let mut names = Vec::new();
    if are_scenes(recipe, test) {
        names.extend(scene_judges().iter().map(|judge| judge.name().to_owned()));
    }
    names.extend(recipe.setting.eval.rewards.iter().map(|named| named.name.clone()));
    let reward = recipe.setting.reward.name();
    if !names.contains(&reward) {
        names.push(reward);
    }
    names
}

fn are_scenes(recipe: &Recipe, test: &[Prompt]) -> bool {
    recipe.setting.model.resolution() == Resolution::square(SIDE)
        && test.iter().all(|prompt| Record::try_from(prompt).is_ok())
}

fn scene_judges() -> [Box<dyn Reward>; 3] {
    let detector = SceneDetector::new();
    let mut dense = GenEval::new(detector.clone(), Mode::Dense);
    dense.name = "geneval_dense".into();
    let mut judge = GenEval::new(SceneJudge::new(), Mode::Strict);
    judge.name = "judge".into();
    [Box::new(GenEval::new(detector, Mode::Strict)), Box::new(judge), Box::new(dense)]
}

/// The judges, and the reward if none of them has its name.
pub fn measures<'a>(judges: &'a [Box<dyn Reward>], reward: &'a dyn Reward) -> Vec<&'a dyn Reward> {
    let mut measures: Vec<&dyn Reward> = judges.iter().map(|judge| &**judge).collect();
    if measures.iter().all(|measure| measure.name() != reward.name()) {
        measures.push(reward);
    }
    measures
}

/// How an evaluation is to be had again, but for its prompts and weights.
pub fn protocol(recipe: &Recipe, prompts: usize) -> Value {
    let measure = &recipe.setting.eval.measure;
    json!({
        "prompts": prompts,
        "images_per_prompt": measure.images_per_prompt,
        "resolution": recipe.setting.model.resolution(),
        "seed": measure.seed,
        "sampler": measure.sampler,
    })
}

/// `eval_reward_<name>` and `eval_reward_<name>_<tag>` of every measure.
pub fn entries(measured: &Measured, measures: &[&dyn Reward]) -> Vec<(String, Value)> {
    let mut entries = Vec::new();
    for measure in measures {
        let name = measure.name();
        let Some(summary) = measured.summary(name) else { continue };
        entries.push((format!("eval_reward_{name}"), Value::from(summary.mean)));
        for (tag, mean) in summary.by_tag {
            entries.push((format!("eval_reward_{name}_{tag}"), Value::from(mean)));
        }
    }
    entries
}
