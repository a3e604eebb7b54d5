//! What an epoch leaves in the log, under the field's names.

use super::{Trainer, update::Outcome};
use crate::{
    advantage::{Moments, Rewards},
    batch::Sample,
    collection::Collected,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// One epoch's numbers and samples.
#[derive(Clone, Debug)]
pub struct EpochReport {
    /// One record of `metrics.jsonl`, whose names `docs/metrics.md` explains. Those that [`depends_on_machine`] holds for may differ between two
    /// equal runs, all others depend on the run alone.
    pub record: Map<String, Value>,
    /// All samples of the batch, group after group.
    pub samples: Vec<Logged>,
}

/// A sample, and what was made of its reward.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The sample.
    pub sample: Sample,
    /// Its advantage; `None` where its reward is missing, or the advantage leaves it out.
    pub advantage: Option<f64>,
    /// Whether it was trained on.
    pub trained: bool,
}

/// Whether a number of a record is a time or a speed: two runs that are equal bit for bit may differ in it.
pub fn depends_on_machine(key: &str) -> bool {
    key.starts_with("time_") || key == "images_per_second"
}

/// How long the parts of an epoch took.
pub(super) struct Timing {
    pub(super) rollout: Duration,
    pub(super) reward: Duration,
    pub(super) update: Duration,
}

pub(super) fn report(trainer: &Trainer<'_>, collected: &Collected, outcome: &Outcome, timing: &Timing) -> EpochReport {
    let mut record = Map::new();
    record.insert("epoch".into(), trainer.state.epoch.into());
    record.insert("step".into(), trainer.state.optimizer.step.into());
    rewards(trainer, &collected.batch.samples, &mut record);
    record.insert("drawn_samples".into(), collected.drawn.into());
    update(outcome, &mut record);
    times(collected.drawn, timing, &mut record);
    record.extend(collected.log.iter().cloned());

    let made = outcome.advantages.iter().zip(&outcome.used);
    let logged = |(sample, (&advantage, &trained)): (&Sample, (&Option<f64>, &bool))| Logged {
        sample: sample.clone(),
        advantage,
        trained,
    };
    EpochReport { record, samples: collected.batch.samples.iter().zip(made).map(logged).collect() }
}

/// What the samples drawn in this epoch scored, and how the groups of the batch differ.
fn rewards(trainer: &Trainer<'_>, samples: &[Sample], record: &mut Map<String, Value>) {
    let name = trainer.reward.name();
    let new: Vec<&Sample> = samples.iter().filter(|sample| !sample.replayed).collect();
    let scored: Vec<f64> = new.iter().filter_map(|sample| sample.value()).collect();
    let moments = Moments::of(&scored);
    record.insert(format!("reward_{name}"), moments.mean.into());
    record.insert(format!("reward_{name}_std"), moments.std.into());

    let groups = Rewards::of(samples).moments();
    let deviations: Vec<f64> = groups.iter().filter(|group| group.count > 0).map(|group| group.std).collect();
    let zero_variance = groups.iter().filter(|group| group.agree).count();
    record.insert("reward_std_mean".into(), mean(&deviations));
    record.insert("reward_missing".into(), (new.len() - scored.len()).into());
    record.insert("zero_std_ratio".into(), (zero_variance as f64 / groups.len() as f64).into());

    let mut by_tag = BTreeMap::<&str, Vec<f64>>::new();
    for sample in &new {
        if let (Some(tag), Some(value)) = (sample.prompt.tag(), sample.value()) {
            by_tag.entry(tag).or_default().push(value);
        }
    }
    for (tag, values) in by_tag {
        record.insert(format!("reward_{name}_{tag}"), mean(&values));
    }

    for name in parts(&new) {
        let moments = Moments::of(&new.iter().filter_map(|sample| sample.part(&name)).collect::<Vec<_>>());
        record.insert(format!("reward_{name}"), moments.mean.into());
        record.insert(format!("reward_{name}_std"), moments.std.into());
    }
}

/// The names of the parts that rewards are sums of, each once.
fn parts(samples: &[&Sample]) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for part in samples.iter().filter_map(|sample| sample.reward.as_ref().ok()).flat_map(|score| &score.parts) {
        if !names.contains(&part.name) {
            names.push(Arc::clone(&part.name));
        }
    }
    names
}

/// What the updates saw.
fn update(outcome: &Outcome, record: &mut Map<String, Value>) {
    let ratios = Moments::of(&outcome.log_ratios);
    let half_squares: Vec<f64> = outcome.log_ratios.iter().map(|ratio| ratio * ratio / 2.0).collect();
    let sizes: Vec<f64> = outcome.log_ratios.iter().map(|ratio| ratio.abs()).collect();
    let importance: Vec<f64> = outcome.log_ratios.iter().map(|ratio| ratio.exp()).collect();
    record.insert("trained_samples".into(), outcome.trained.into());
    record.insert("policy_loss".into(), mean(&outcome.policy_losses));
    record.insert("log_prob".into(), mean(&outcome.log_probs));
    record.insert("kl_loss".into(), mean(&outcome.kls));
    if !outcome.reference_distances.is_empty() {
        record.insert("kl_reference".into(), mean(&outcome.reference_distances));
    }
    record.insert("approx_kl".into(), mean(&half_squares));
    record.insert("logratio_std".into(), ratios.std.into());
    record.insert("logratio_max".into(), sizes.iter().copied().fold(0.0, f64::max).into());
    record.insert("logratio_abs".into(), mean(&sizes));
    record.insert("ratio_mean".into(), mean(&importance));
    record.insert("clipfrac".into(), mean(&outcome.clipped));
    for (name, side) in [("clipfrac_high", 1.0), ("clipfrac_low", -1.0)] {
        record.insert(name.into(), mean(&one_side(outcome, side)));
    }
    record.insert("grad_norm".into(), mean(&outcome.grad_norms));
}

fn times(drawn: usize, timing: &Timing, record: &mut Map<String, Value>) {
    let Timing { rollout, reward, update } = timing;
    for (stage, time) in [("rollout", rollout), ("reward", reward), ("update", update)] {
        let seconds = time.as_secs_f64();
        record.insert(format!("time_{stage}"), seconds.into());
        record.insert(format!("time_per_image_{stage}"), (seconds / drawn as f64).into());
    }
    record.insert("images_per_second".into(), (drawn as f64 / (*rollout + *update).as_secs_f64()).into());
}

/// 1 where the ratio was clipped and lay on one side of 1; of nothing where it is not known for each.
fn one_side(outcome: &Outcome, side: f64) -> Vec<f64> {
    if outcome.clipped.len() != outcome.log_ratios.len() {
        return Vec::new();
    }
    let there = |(&clipped, ratio): (&f64, &f64)| if ratio * side > 0.0 { clipped } else { 0.0 };
    outcome.clipped.iter().zip(&outcome.log_ratios).map(there).collect()
}

/// Mean of what is there; null of nothing.
fn mean(values: &[f64]) -> Value {
    if values.is_empty() { Value::Null } else { Moments::of(values).mean.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_stage_and_by_image_and_the_comparison_of_runs_leaves_all_of_them_out() {
        let [rollout, reward, update] = [6, 1, 2].map(Duration::from_secs);
        let mut record = Map::new();
        times(4, &Timing { rollout, reward, update }, &mut record);
        let expected = [
            ("images_per_second", 0.5),
            ("time_per_image_reward", 0.25),
            ("time_per_image_rollout", 1.5),
            ("time_per_image_update", 0.5),
            ("time_reward", 1.0),
            ("time_rollout", 6.0),
            ("time_update", 2.0),
        ];
        let expected: Map<_, _> =
            expected.map(|(name, number)| (name.to_owned(), Value::from(number))).into_iter().collect();
        assert_eq!(record, expected);
        assert!(record.keys().all(|name| depends_on_machine(name)) && !depends_on_machine("policy_loss"));
        // Nothing drawn has no time per image.
        times(0, &Timing { rollout, reward, update }, &mut record);
        assert!(record["time_per_image_rollout"].is_null());
    }

    #[test]
    fn ratios_are_told_by_their_mean_and_by_the_side_on_which_they_were_clipped() {
        let ratios = [1.5_f64, 1.1, 0.5, 1.0];
        let log_ratios = ratios.map(f64::ln).to_vec();
        let outcome = Outcome { log_ratios, clipped: vec![1.0, 0.0, 1.0, 0.0], ..Outcome::default() };
        let mut record = Map::new();
        update(&outcome, &mut record);
        let number = |name: &str| record[name].as_f64().expect("a number");
        let sizes = (1.5_f64.ln() + 1.1_f64.ln() + 2.0_f64.ln()) / 4.0;
        for (name, expected) in [
            ("ratio_mean", 4.1 / 4.0),
            ("logratio_abs", sizes),
            ("clipfrac", 0.5),
            ("clipfrac_high", 0.25),
            ("clipfrac_low", 0.25),
        ] {
            assert!((number(name) - expected).abs() < 1e-12, "{name}: {} and not {expected}", number(name));
        }
        let mut without = Map::new();
        update(&Outcome::default(), &mut without);
        assert!(without["clipfrac_high"].is_null() && without["ratio_mean"].is_null());
    }
}
