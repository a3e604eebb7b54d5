//! The prompts of a trial: one training prompt in four is held out of it and measured on, so that neither the prompts nor the seeds of the
//! comparison's measurement decide what is chosen.

use elbow::{Prompt, noise::Key, prompts::PromptSource};
use elbow_run::{Error, Recipe, Result, data::Data, machine::sha256, recipe::PromptsConfig};
use elbow_world::prompts::{TrainPrompts, train_records};

/// One prompt in so many is held out of trials.
const ONE_IN: u8 = 4;

/// Whether a training prompt is held out of trials: by a hash of its text, so that the split never changes.
pub(crate) fn is_held_out(prompt: &str) -> bool {
    let hash = sha256(format!("trial: {prompt}").as_bytes());
    u8::from_str_radix(&hash[..2], 16).is_ok_and(|byte| byte % ONE_IN == 0)
}

/// Puts the prompts of a trial in place of the recipe's.
pub(crate) fn split(recipe: &Recipe, data: &mut Data) -> Result<()> {
    match &recipe.setting.prompts {
        PromptsConfig::Scenes { weights } => {
            data.test = held_out_scenes(recipe.setting.eval.prompts_per_task);
            data.train = Box::new(Kept(TrainPrompts::new(*weights)));
        }
        PromptsConfig::Files { train, .. } => {
            let all = elbow::prompts::read(train)?;
            let (test, train): (Vec<Prompt>, Vec<Prompt>) =
                all.into_iter().partition(|prompt| is_held_out(&prompt.text));
            if test.is_empty() || train.is_empty() {
                let message =
                    format!("its {} prompts leave nothing to train on or to measure on", test.len() + train.len());
                return Err(Error::new(message, "give the file more prompts: a trial holds out about one in four"));
            }
            data.test = test;
            data.train = Box::new(train);
        }
    }
    data.sha256 = sha256(format!("trial of {}", data.sha256).as_bytes());
    Ok(())
}

/// So many held-out training prompts of each task, task by task, in an order that mixes classes; a task with fewer repeats them.
fn held_out_scenes(per_task: usize) -> Vec<Prompt> {
    let records = train_records();
    let mut prompts = Vec::new();
    for task in elbow_world::Task::ALL {
        let mut of_task: Vec<_> = records.iter().filter(|r| r.tag == task && is_held_out(&r.prompt)).collect();
        of_task.sort_by_key(|record| sha256(record.prompt.as_bytes()));
        prompts.extend(of_task.into_iter().cycle().take(per_task).map(Prompt::from));
    }
    prompts
}

/// Training prompts of the scenes that trials train on.
struct Kept(TrainPrompts);

impl PromptSource for Kept {
    fn draw(&self, key: Key, groups: usize) -> Vec<Prompt> {
        let mut integers = key.integers();
        let mut rng = || integers.next().expect("invariant: endless");
        let mut one = || {
            loop {
                let record = self.0.sample(&mut rng);
                if !is_held_out(&record.prompt) {
                    return Prompt::from(record);
                }
            }
        };
        (0..groups).map(|_| one()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elbow::noise::Purpose;
    use elbow_run::data;
    use std::collections::BTreeSet;

    /// What a trial is measured on is neither trained on there, nor measured on in the comparison; every task has some of either.
    #[test]
    fn trials_share_no_prompt_with_what_they_are_measured_on_or_the_comparison() {
        let (_, recipe) = elbow_run::recipe::load(None, &[]).expect("a recipe");
        let mut data = Data::read(&recipe).expect("prompts");
        let (compared, whole) = (data::held_out(&recipe).expect("prompts").0, data.sha256.clone());
        split(&recipe, &mut data).expect("prompts");
        let texts = |prompts: &[Prompt]| prompts.iter().map(|p| p.text.clone()).collect::<BTreeSet<_>>();
        let tags =
            |prompts: &[Prompt]| prompts.iter().filter_map(Prompt::tag).map(str::to_owned).collect::<BTreeSet<_>>();
        let trained: Vec<Prompt> = (0..40).flat_map(|e| data.train.draw(Key::new(0, Purpose::Prompt, e), 50)).collect();
        assert_eq!((tags(&trained).len(), tags(&data.test).len()), (6, 6));
        assert_eq!(data.test.len(), compared.len());
        assert!(texts(&data.test).is_disjoint(&texts(&trained)) && texts(&data.test).is_disjoint(&texts(&compared)));
        assert!(texts(&trained).is_disjoint(&texts(&compared)));
        assert_ne!(data.sha256, whole);
    }
}
