//! The radar: what tells that a policy cheats its reward, or has collapsed.
//!
//! **Hacking** is defined on held-out prompts, which are drawn from the same start noise every time. A *measure* is a judge, a reward of
//! `eval.rewards`, or any other score that nothing is trained on. Take the evaluation at which it stood best. The policy cheats if the
//! training reward has risen since then and the measure has fallen, both by more than `noise` standard errors of the mean difference, paired
//! by prompt.
//!
//! **Collapse** is told by the pictures of an epoch: a number of [`look`] whose mean has left that of the first epoch by more than `shift`
//! deviations that single pictures had then, of at least 32 pictures; or pictures of one prompt that are more alike than `diversity` times as they were (mean distance
//! of color layouts, `elbow_rewards::diversity`). A divergence from the reference or a norm of the gradient beyond a limit counts too, where one is set.

pub mod look;

use elbow::{RgbImage, advantage::Moments, eval::Measured};
use elbow_rewards::diversity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What happens when the radar finds something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing is looked at.
    Off,
    /// A warning names the epoch, what rose and what fell.
    #[default]
    Warn,
    /// The run ends there.
    Stop,
    /// Weights and optimizer go back to the checkpoint of the best evaluation, with a smaller learning rate; when that does not help, the run
    /// ends with those weights. A run that is found out after its last epoch goes back too.
    Rollback,
}

/// When a policy is held to cheat or to have collapsed, and what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RadarConfig {
    /// What happens then.
    pub action: Action,
    /// Standard errors by which the training reward must have risen, and a measure fallen, since the measure stood best.
    pub noise: f64,
    /// Deviations of a single picture of the first epoch by which the mean brightness, edges, entropy or grid of an epoch may leave the first's.
    pub shift: f64,
    /// Share of the first epoch's diversity within groups that must remain; 0 does not look.
    pub diversity: f64,
    /// Largest divergence from the reference of an epoch (`kl_loss`, or `kl_reference` where no penalty measures it); without it none is too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Largest norm of the gradient before clipping (`grad_norm`); without it none is too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Rollbacks of a run at most.
    pub rollbacks: u32,
    /// What the learning rate is multiplied with at a rollback.
    pub factor: f64,
}

impl Default for RadarConfig {
    fn default() -> Self {
        Self {
            action: Action::Warn,
            noise: 3.0,
            shift: 3.0,
            diversity: 0.1,
            kl: None,
            grad_norm: None,
            rollbacks: 3,
            factor: 0.5,
        }
    }
}

impl RadarConfig {
    /// What is wrong with it, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let limits = [("kl", self.kl), ("grad_norm", self.grad_norm)];
        let positive = [("noise", Some(self.noise)), ("shift", Some(self.shift))].into_iter().chain(limits);
        for (name, value) in positive.filter_map(|(name, value)| Some((name, value?))) {
            if !(value > 0.0 && value.is_finite()) {
                problems.push(format!("radar.{name} = {value}: must be a positive number"));
            }
        }
        if !(0.0..1.0).contains(&self.diversity) {
            problems.push(format!("radar.diversity = {}: must be at least 0 and below 1", self.diversity));
        }
        if !(self.factor > 0.0 && self.factor <= 1.0) {
            problems.push(format!("radar.factor = {}: must be above 0 and at most 1", self.factor));
        }
        problems
    }
}

/// Prompts that both evaluations must have scored before anything is said of a difference.
const PROMPTS: usize = 8;

/// Pictures that an epoch must have before anything is said of them.
const PICTURES: usize = 32;

/// The smallest deviation of a number of pictures that counts: all pictures of an epoch may be alike in it.
const LEAST: f64 = 0.02;

/// What the radar remembers between epochs; a checkpoint holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Radar {
    /// The pictures of the first epoch.
    first: Option<Pictures>,
    /// Before training, by score: the mean over prompts and the deviation between them.
    base: BTreeMap<String, (f64, f64)>,
    /// By measure, the evaluation at which it stood best.
    best: BTreeMap<String, Standing>,
    /// The epoch of the best evaluation over all measures, and how many deviations these stood above the base on average.
    peak: Option<(u64, f64)>,
    /// What was found at the last look of its kind, by a short name.
    found: BTreeSet<String>,
    /// Rollbacks so far.
    pub rollbacks: u32,
    /// Why the run ended before its last epoch.
    pub halted: Option<String>,
}

/// An evaluation by prompt: means over the pictures of each, `None` where all scores are missing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Standing {
    epoch: u64,
    reward: Vec<Option<f64>>,
    measure: Vec<Option<f64>>,
}

/// Means and deviations of [`look::NAMES`], and the mean distance of two pictures of a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Pictures {
    numbers: [(f64, f64); 4],
    diversity: Option<f64>,
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sighting {
    /// For the record.
    pub entries: Vec<(String, Value)>,
    /// A sentence for each thing that is wrong and was not at the look before.
    pub news: Vec<String>,
    /// Whether the measures stand better than ever before.
    pub best: bool,
}

impl Radar {
    /// The epoch of the best evaluation.
    pub fn best_epoch(&self) -> Option<u64> {
        self.peak.map(|(epoch, _)| epoch)
    }

    /// Looks at an evaluation of the weights that stand at `epoch`; 0 is what training starts from. `reward` is the name of the training reward.
    pub fn evaluation(&mut self, config: &RadarConfig, epoch: u64, measured: &Measured, reward: &str) -> Sighting {
        let Some(proxy) = by_prompt(measured, reward) else { return Sighting::default() };
        let others = measured.scores.keys().filter(|name| *name != reward);
        let measures: Vec<(&str, Vec<Option<f64>>)> =
            others.filter_map(|name| Some((name.as_str(), by_prompt(measured, name)?))).collect();
        if epoch == 0 {
            let all = measures.iter().map(|(name, scores)| (*name, scores)).chain([(reward, &proxy)]);
            self.base = all.map(|(name, scores)| (name.to_owned(), spread(scores))).collect();
        }
        let mut sighting = Sighting::default();
        let mut found = BTreeSet::new();
        for (name, scores) in &measures {
            if let (Some(rise), Some(change)) = (self.risen(reward, &proxy), self.risen(name, scores)) {
                sighting.entries.push((format!("radar_gap_{name}"), Value::from(rise - change)));
            }
            if let Some((up, down, since)) = self.apart(config, &proxy, name, scores) {
                let key = format!("hacking {name}");
                if !self.found.contains(&key) {
                    sighting.news.push(format!(
                        "epoch {epoch}: on held-out prompts reward `{reward}` has risen by {up} since epoch {since}, and `{name}` has \
                         fallen by {down}: what the reward sees and what it stands for come apart (reward hacking)"
                    ));
                }
                found.insert(key);
            }
            let better = |standing: &Standing| spread(scores).0 > spread(&standing.measure).0;
            if self.best.get(*name).is_none_or(better) {
                let standing = Standing { epoch, reward: proxy.clone(), measure: scores.clone() };
                self.best.insert((*name).to_owned(), standing);
            }
        }
        self.settle("hacking", found);
        let height = self.height(&measures, (reward, &proxy));
        if self.peak.is_none_or(|(_, peak)| height > peak) {
            self.peak = Some((epoch, height));
            sighting.best = epoch > 0;
        }
        sighting
    }

    /// How far the reward has risen and a measure has fallen since the measure stood best, and when that was; `None` unless both are
    /// beyond the noise.
    fn apart(
        &self,
        config: &RadarConfig,
        proxy: &[Option<f64>],
        name: &str,
        measure: &[Option<f64>],
    ) -> Option<(Difference, Difference, u64)> {
        let standing = self.best.get(name)?;
        let up = difference(proxy, &standing.reward).filter(|up| up.beyond(config.noise))?;
        let down = difference(&standing.measure, measure).filter(|down| down.beyond(config.noise))?;
        Some((up, down, standing.epoch))
    }

    /// How many deviations the measures stand above the base on average. Without measures the reward is all there is.
    fn height(&self, measures: &[(&str, Vec<Option<f64>>)], reward: (&str, &[Option<f64>])) -> f64 {
        let rises: Vec<f64> = match measures {
            [] => self.risen(reward.0, reward.1).into_iter().collect(),
            all => all.iter().filter_map(|(name, scores)| self.risen(name, scores)).collect(),
        };
        rises.iter().sum::<f64>() / rises.len().max(1) as f64
    }

    /// Looks at the pictures of an epoch, group after group, and at its record.
    pub fn epoch(
        &mut self,
        config: &RadarConfig,
        epoch: u64,
        groups: &[Vec<&RgbImage>],
        record: &Map<String, Value>,
    ) -> Sighting {
        let (mut entries, mut wrong) = (Vec::new(), Vec::new());
        let all: Vec<&RgbImage> = groups.iter().flatten().copied().collect();
        if all.len() >= PICTURES {
            let now = Pictures { numbers: look::summary(&all), diversity: diversity::within(groups) };
            let first = *self.first.get_or_insert(now);
            entries.extend(now.entries());
            wrong.extend(now.collapsed(&first, config));
        }
        for (key, limit) in [("kl_loss", config.kl), ("kl_reference", config.kl), ("grad_norm", config.grad_norm)] {
            let value = record.get(key).and_then(Value::as_f64);
            if let (Some(value), Some(limit)) = (value, limit)
                && value > limit
            {
                wrong.push((key.to_owned(), format!("`{key}` is {value:.3e}, above the limit of {limit:.3e}")));
            }
        }
        let key = |name: &str| format!("collapse {name}");
        let new = wrong.iter().filter(|(name, _)| !self.found.contains(&key(name)));
        let news = new.map(|(_, text)| format!("epoch {epoch}: {text}: the policy may have collapsed")).collect();
        self.settle("collapse", wrong.iter().map(|(name, _)| key(name)).collect());
        Sighting { entries, news, best: false }
    }

    /// Forgets what was found before: after a rollback it is news again.
    pub fn clear(&mut self) {
        self.found.clear();
    }

    /// What is found now of one kind takes the place of what was found before.
    fn settle(&mut self, kind: &str, found: BTreeSet<String>) {
        self.found.retain(|key| !key.starts_with(kind));
        self.found.extend(found);
    }

    /// How many deviations between prompts a score stands above what it was before training; `None` if it did not vary then.
    fn risen(&self, name: &str, scores: &[Option<f64>]) -> Option<f64> {
        let (mean, deviation) = *self.base.get(name)?;
        (deviation > 0.0).then(|| (spread(scores).0 - mean) / deviation)
    }
}

impl Pictures {
    /// For the record.
    fn entries(&self) -> impl Iterator<Item = (String, Value)> {
        let numbers =
            look::NAMES.iter().zip(self.numbers).map(|(name, (mean, _))| (format!("radar_{name}"), mean.into()));
        let diversity = self.diversity.map(|distance| ("radar_diversity".to_owned(), distance.into()));
        numbers.chain(diversity)
    }

    /// Where they have left those of the first epoch: a short name, and a sentence.
    fn collapsed(&self, first: &Self, config: &RadarConfig) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        for ((name, (mean, _)), (before, deviation)) in look::NAMES.iter().zip(self.numbers).zip(first.numbers) {
            if (mean - before).abs() > config.shift * deviation.max(LEAST) {
                let text = format!(
                    "pictures have changed: {name} is {mean:.3} on average and was {before:.3} at first, with {deviation:.3} between single ones"
                );
                wrong.push(((*name).to_owned(), text));
            }
        }
        if let (Some(now), Some(before)) = (self.diversity, first.diversity)
            && now < config.diversity * before
        {
            let text = format!("two pictures of a prompt are {now:.3} apart on average and were {before:.3} at first");
            wrong.push(("diversity".to_owned(), text));
        }
        wrong
    }
}

/// Means of a score over the pictures of each prompt; `None` if nothing was scored by that name, or every score is missing.
fn by_prompt(measured: &Measured, name: &str) -> Option<Vec<Option<f64>>> {
    let means: Vec<Option<f64>> = measured.by_prompt(name)?.into_iter().map(|(_, mean)| mean).collect();
    means.iter().any(Option::is_some).then_some(means)
}

/// The mean of known numbers, and their deviation.
fn spread(numbers: &[Option<f64>]) -> (f64, f64) {
    let Moments { mean, std, .. } = Moments::of(&numbers.iter().flatten().copied().collect::<Vec<_>>());
    (mean, std)
}

/// A mean difference and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Difference {
    mean: f64,
    error: f64,
}

impl Difference {
    fn beyond(&self, errors: f64) -> bool {
        self.mean > 0.0 && self.mean > errors * self.error
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ± {:.3}", self.mean, self.error)
    }
}

/// The mean of a − b over the prompts that both have, with its standard error s/√n; `None` if there are too few.
fn difference(a: &[Option<f64>], b: &[Option<f64>]) -> Option<Difference> {
    let pairs: Vec<f64> = a.iter().zip(b).filter_map(|(a, b)| Some((*a)? - (*b)?)).collect();
    if pairs.len() < PROMPTS {
        return None;
    }
    let n = pairs.len() as f64;
    let Moments { mean, std, .. } = Moments::of(&pairs);
    Some(Difference { mean, error: std / (n - 1.0).sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use elbow::Prompt;
    use std::sync::LazyLock;

    static CONFIG: LazyLock<RadarConfig> = LazyLock::new(RadarConfig::default);

    /// An evaluation of ten prompts, two pictures each: every prompt's scores of the reward and the judge.
    fn measured(reward: impl Fn(usize) -> f64, judge: impl Fn(usize) -> f64) -> Measured {
        let prompts = (0..20).map(|i| Prompt::from(format!("prompt {}", i / 2).as_str())).collect();
        // The two pictures of a prompt lie around the prompt's score.
        let scores = |of: &dyn Fn(usize) -> f64| (0..20).map(|i| Some(of(i / 2) + [0.3, -0.3][i % 2])).collect();
        let scores = BTreeMap::from([("proxy".to_owned(), scores(&reward)), ("judge".to_owned(), scores(&judge))]);
        Measured { images: Vec::new(), prompts, scores }
    }

    fn level(i: usize) -> f64 {
        [0.1, 0.9, 0.4, 0.5, 0.2, 0.8, 0.7, 0.3, 0.6, 0.0][i]
    }

    /// Numbers between −1 and 1 that differ from prompt to prompt, with mean 0.
    fn noise(i: usize) -> f64 {
        [0.3, -0.7, 0.9, -0.1, -0.4, 0.8, -0.9, 0.1, 0.4, -0.4][i]
    }

    #[test]
    fn a_reward_that_rises_while_a_judge_falls_is_flagged_once() {
        let mut radar = Radar::default();
        let mut see = |epoch, up: f64, down: f64| {
            let measured = measured(|i| level(i) + up + 0.01 * noise(i), |i| level(i) - down + 0.01 * noise(9 - i));
            radar.evaluation(&CONFIG, epoch, &measured, "proxy")
        };
        assert_eq!(see(0, 0.0, 0.0).news, Vec::<String>::new());
        let both_rise = see(10, 0.2, -0.2);
        assert!(both_rise.news.is_empty() && both_rise.best);
        let apart = see(20, 0.4, 0.1);
        assert!(apart.news.len() == 1 && !apart.best, "{:?}", apart.news);
        assert!(apart.news[0].contains("epoch 20") && apart.news[0].contains("since epoch 10"), "{}", apart.news[0]);
        assert!(
            apart.news[0].contains("risen by 0.200") && apart.news[0].contains("fallen by 0.300"),
            "{}",
            apart.news[0]
        );
        assert!(see(30, 0.5, 0.1).news.is_empty(), "it is no news");
        assert!(see(40, 0.5, -0.3).news.is_empty());
        assert_eq!(see(50, 0.7, 0.0).news.len(), 1, "it is news again");
        assert_eq!(radar.best_epoch(), Some(40));
    }

    #[test]
    fn differences_within_their_noise_are_none() {
        let mut radar = Radar::default();
        radar.evaluation(&CONFIG, 0, &measured(level, level), "proxy");
        // Mean differences of 0.1 with a deviation of 0.59 over ten prompts: half a standard error.
        let noisy = measured(|i| level(i) + 0.1 + noise(i), |i| level(i) - 0.1 - noise(i));
        assert!(radar.evaluation(&CONFIG, 10, &noisy, "proxy").news.is_empty());
        let mut radar = Radar::default();
        radar.evaluation(&CONFIG, 0, &measured(level, level), "proxy");
        let one_falls_alone = measured(level, |i| level(i) - 0.5);
        assert!(radar.evaluation(&CONFIG, 10, &one_falls_alone, "proxy").news.is_empty());
    }

    #[test]
    fn a_standard_error_is_that_of_paired_differences() {
        let known = |numbers: &[f64]| numbers.iter().copied().map(Some).collect::<Vec<_>>();
        let a = known(&[3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0]);
        let b = known(&[2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0, 2.0]);
        // Differences 1 −6 3 −7 3 1 1 −2 3: mean −1/3, sum of squares about it 118, sample variance 118/8, error √(118/8/9).
        let found = difference(&a, &b).expect("nine pairs");
        assert!(
            (found.mean + 1.0 / 3.0).abs() < 1e-12 && (found.error - 14.75_f64.sqrt() / 3.0).abs() < 1e-12,
            "{found:?}"
        );
        assert_eq!(difference(&a[..7], &b[..7]), None);
        let mut missing = b.clone();
        missing[0] = None;
        assert_ne!(difference(&a, &missing), difference(&a, &b));
    }

    /// A judge that was away at first is compared from the evaluation on at which it answered.
    #[test]
    fn an_evaluation_without_scores_of_a_measure_is_no_standing_of_it() {
        let mut radar = Radar::default();
        let mut away = measured(level, level);
        away.scores.insert("judge".into(), vec![None; 20]);
        radar.evaluation(&CONFIG, 0, &away, "proxy");
        assert!(radar.evaluation(&CONFIG, 10, &measured(level, level), "proxy").news.is_empty());
        let apart = measured(|i| level(i) + 0.3, |i| level(i) - 0.3);
        let news = radar.evaluation(&CONFIG, 20, &apart, "proxy").news;
        assert!(news.len() == 1 && news[0].contains("since epoch 10"), "{news:?}");
    }

    #[test]
    fn the_gap_is_in_deviations_between_prompts() {
        let mut radar = Radar::default();
        radar.evaluation(&CONFIG, 0, &measured(level, |i| 2.0 * level(i)), "proxy");
        let later = measured(|i| level(i) + 0.5, |i| 2.0 * level(i) - 0.5);
        let entries = radar.evaluation(&CONFIG, 1, &later, "proxy").entries;
        let deviation = 0.0825_f64.sqrt();
        let [(name, gap)] = &entries[..] else { panic!("{entries:?}") };
        let expected = 0.5 / deviation + 0.25 / deviation;
        assert!(name == "radar_gap_judge" && (gap.as_f64().expect("a number") - expected).abs() < 1e-9, "{gap}");
    }

    /// The same groups sixteen times.
    fn many<'a>(groups: &[Vec<&'a RgbImage>]) -> Vec<Vec<&'a RgbImage>> {
        groups.iter().cycle().take(16 * groups.len()).cloned().collect()
    }

    #[test]
    fn pictures_that_turn_dark_or_alike_are_flagged() {
        let plain = |v: u8| RgbImage::from_pixel(16, 16, image::Rgb([v, 255 - v, v / 2]));
        let (bright, other, dark) = (plain(250), plain(90), plain(3));
        let mut radar = Radar::default();
        let none = Map::new();
        let mixed = many(&[vec![&bright, &other], vec![&other, &bright]]);
        let first = radar.epoch(&CONFIG, 1, &mixed, &none);
        assert!(first.news.is_empty() && first.entries.iter().any(|(name, _)| name == "radar_diversity"));
        let same = radar.epoch(&CONFIG, 2, &mixed, &none);
        assert_eq!((same.news, same.entries), (first.news.clone(), first.entries));
        let alike = radar.epoch(&CONFIG, 3, &many(&[vec![&bright, &bright], vec![&other, &other]]), &none).news;
        assert!(alike.len() == 1 && alike[0].contains("apart on average"), "{alike:?}");
        let mut strict = Radar::default();
        strict.epoch(&CONFIG, 1, &many(&[vec![&bright, &bright]]), &none);
        let turned = strict.epoch(&CONFIG, 2, &many(&[vec![&dark, &dark]]), &none).news;
        assert!(turned.iter().any(|text| text.contains("brightness")), "{turned:?}");
        // A handful of pictures tells nothing.
        let mut few = Radar::default();
        few.epoch(&CONFIG, 1, &[vec![&bright, &bright]], &none);
        assert_eq!(few.epoch(&CONFIG, 2, &[vec![&dark, &dark]], &none), Sighting::default());
    }

    #[test]
    fn limits_hold_for_the_record() {
        let config = RadarConfig { kl: Some(0.5), ..*CONFIG };
        let gray = RgbImage::from_pixel(16, 16, image::Rgb([100; 3]));
        let (mut radar, groups) = (Radar::default(), many(&[vec![&gray, &gray]]));
        let mut see = |kl: f64| radar.epoch(&config, 7, &groups, &Map::from_iter([("kl_loss".into(), kl.into())])).news;
        assert!(see(0.4).is_empty());
        assert!(see(0.6)[0].contains("kl_loss"));
        assert!(see(0.7).is_empty() && see(0.1).is_empty() && see(0.6).len() == 1);
    }

    #[test]
    fn what_it_remembers_reads_back() {
        let mut radar = Radar::default();
        radar.evaluation(&CONFIG, 0, &measured(level, noise), "proxy");
        radar.evaluation(&CONFIG, 5, &measured(noise, level), "proxy");
        let text = serde_json::to_string(&radar).expect("JSON");
        assert_eq!(serde_json::from_str::<Radar>(&text).expect("reads"), radar);
    }
}
