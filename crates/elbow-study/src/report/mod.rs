//! What the finished cells of a study say: one structure, from which every table is written.

mod csv;
mod markdown;
mod page;

use crate::{
    cell::{Finished, Point, Store},
    file::{Cost, StudyFile, Test, Variance},
    plan::{FORMAT, Stage, Study, Variant},
    statistics::{
        Estimate, LEVEL,
        anova::{self, TwoWay},
        bootstrap::{self, RESAMPLES},
        effect, mean, mean_interval,
        survival::{self, Arrival},
        tests,
    },
};
use elbow::noise::{Key, Purpose};
use elbow_run::{Error, Result, error::At};
use elbow_runlog::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
};

/// What of a report another program reads.
pub const RESULTS: &str = "results.json";
/// Seeds on either side before a table says that one method is better than another.
pub const ENOUGH: usize = 5;
/// A corrected p-value below this is told as a difference.
pub const ALPHA: f64 = 1.0 - LEVEL;

/// All that a study found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The study as its file has it.
    pub study: StudyFile,
    /// What trials chose.
    pub tuning: Vec<Tuning>,
    /// Methods, stage after stage.
    pub arms: Vec<Arm>,
    /// Every two of a stage, or every one with the one that others are compared with.
    pub comparisons: Vec<Comparison>,
    /// Every method after its trials with itself before, where these chose other values.
    pub gains: Vec<Comparison>,
    /// Shares of variance.
    pub variances: Vec<Split>,
}

/// What the trials of a method chose.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tuning {
    /// The method.
    pub name: String,
    /// Its candidates: the changes of each and its mean score; none where its run stopped.
    pub candidates: Vec<(Vec<String>, Option<f64>)>,
    /// Which was chosen; nothing while trials are missing.
    pub chosen: Option<usize>,
    /// Seeds of each candidate.
    pub seeds: usize,
}

/// A method in a stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// Before or after trials.
    pub stage: Stage,
    /// What it is made of.
    pub levels: BTreeMap<String, String>,
    /// Epochs of a run.
    pub epochs: u64,
    /// Seeds that are finished.
    pub seeds: Vec<u64>,
    /// Seeds whose runs ended before their last epoch.
    pub stopped: Vec<u64>,
    /// Seeds that hacked their reward.
    pub hacked: Vec<u64>,
    /// What was measured last, by seed; nothing where it had no score.
    pub values: Vec<Option<f64>>,
    /// Their mean with Student's interval.
    pub last: Option<Estimate>,
    /// The same of the measure that hacking is told by.
    pub judge: Option<Estimate>,
    /// The base, before training.
    pub base: Option<f64>,
    /// Means of what a run spent.
    pub spent: Spent,
    /// The measure along the runs, with bootstrap bands, where all seeds have it.
    pub curve: Vec<Band>,
    /// What it took to reach the threshold.
    pub arrivals: Vec<Arrivals>,
}

/// What a run spent, on average.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Images drawn and scored.
    pub images: f64,
    /// Evaluations without gradient.
    pub forward: f64,
    /// Evaluations with gradient.
    pub backward: f64,
    /// Seconds, where the study says what a pass costs.
    pub seconds: Option<f64>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Band {
    /// Epochs trained.
    pub epoch: u64,
    /// Means of what was spent until then.
    pub spent: Spent,
    /// Mean of the measure, and its percentile bootstrap interval.
    pub measure: Estimate,
}

/// On which axis something is counted until the threshold is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Images drawn and scored.
    Images,
    /// Evaluations of the network.
    Evaluations,
    /// Seconds on an idle machine.
    Seconds,
}

impl Axis {
    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Evaluations => "evaluations",
            Self::Seconds => "seconds",
        }
    }

    /// As axes of figures have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Images => "images drawn",
            Self::Evaluations => "evaluations of the network",
            Self::Seconds => "seconds on an idle machine, as counted",
        }
    }

    fn of(self, point: &Point, cost: Option<&Cost>) -> Option<f64> {
        match self {
            Self::Images => Some(point.images as f64),
            Self::Evaluations => Some(point.evaluations()),
            Self::Seconds => cost.map(|cost| point.seconds(cost)),
        }
    }
}

/// What it took the seeds of a method to reach the threshold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Arrivals {
    /// Counted in.
    pub axis: Axis,
    /// By seed.
    pub times: Vec<Arrival>,
    /// How many arrived.
    pub arrived: usize,
    /// Kaplan and Meier's median.
    pub median: Estimate,
    /// The mean, of which no seed counts more than `until`.
    pub restricted_mean: Estimate,
    /// The least that all seeds spent.
    pub until: f64,
}

/// Two methods of a stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// Before or after trials, of the first.
    pub stage: Stage,
    /// The first.
    pub one: String,
    /// The second.
    pub other: String,
    /// Seeds of each.
    pub seeds: [usize; 2],
    /// The first's mean minus the second's, with Welch's interval.
    pub difference: Option<Estimate>,
    /// Hedges' g of it.
    pub effect: Option<Estimate>,
    /// Of the study's test.
    pub p: Option<f64>,
    /// The same, corrected for all of the stage (Holm).
    pub corrected: Option<f64>,
    /// In a word, of the first.
    pub verdict: String,
    /// The way to the threshold.
    pub ways: Vec<Way>,
}

/// Two methods on their way to the threshold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Way {
    /// Counted in.
    pub axis: Axis,
    /// How many times as much the second takes: the ratio of restricted means, with its percentile bootstrap interval.
    pub ratio: Estimate,
    /// Neither counts beyond this.
    pub until: f64,
    /// Seeds of each that did not arrive by then.
    pub censored: [usize; 2],
    /// Of the log-rank test.
    pub p: Option<f64>,
    /// The same, corrected for all of the stage on this axis (Holm).
    pub corrected: Option<f64>,
    /// In a word, of the first.
    pub verdict: String,
}

/// How the variance of a balanced grid splits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Split {
    /// Before or after trials.
    pub stage: Stage,
    /// What was asked.
    pub asked: Variance,
    /// Levels of the first and of the second factor.
    pub levels: [Vec<String>; 2],
    /// Seeds in each cell.
    pub seeds: usize,
    /// The parts.
    pub parts: Option<TwoWay>,
    /// η² of the first factor, the second and both together, with percentile bootstrap intervals.
    pub eta: Option<[Estimate; 3]>,
    /// Why there are no parts.
    pub refused: Option<String>,
}

/// A method in a stage, with its finished cells.
struct Group<'a> {
    stage: Stage,
    variant: &'a Variant,
    candidate: Option<usize>,
    cells: Vec<Finished>,
}

impl Report {
    /// What the cells that are there say.
    pub fn make(study: &Study, store: &Store) -> Result<Self> {
        let file = &study.file;
        let mut tuning = Vec::new();
        if let Some(tune) = &file.tune {
            for variant in &study.variants {
                let choice = study.chosen(variant, store)?;
                let score = |i: usize| choice.as_ref().map(|choice| choice.scores[i]).filter(|score| score.is_finite());
                let candidates = variant.candidates.iter().cloned().enumerate();
                tuning.push(Tuning {
                    name: variant.name.clone(),
                    candidates: candidates.map(|(i, changes)| (changes, score(i))).collect(),
                    chosen: choice.as_ref().map(|choice| choice.candidate),
                    seeds: tune.seeds.len(),
                });
            }
        }
        let (mut arms, mut comparisons, mut variances) = (Vec::new(), Vec::new(), Vec::new());
        let mut stages = Vec::new();
        for stage in study.stages() {
            let mut groups = Vec::new();
            for variant in &study.variants {
                let candidate = match stage {
                    Stage::Published => Some(0),
                    Stage::Tuned => study.chosen(variant, store)?.map(|choice| choice.candidate),
                };
                let mut cells = Vec::new();
                for &seed in candidate.iter().flat_map(|_| &file.seeds) {
                    let cell = study.cell(variant, candidate.unwrap_or(0), seed)?;
                    cells.extend(store.read(&cell.key)?);
                }
                let epochs = study.cell(variant, candidate.unwrap_or(0), file.seeds[0])?.recipe.method.epochs;
                arms.push(arm(file, stage, variant, epochs, &cells));
                groups.push(Group { stage, variant, candidate, cells });
            }
            comparisons.extend(compare(file, &pairs(file, &groups)));
            variances.extend(file.variances.iter().map(|asked| split(file, asked, &groups)));
            stages.push(groups);
        }
        let gains = if let [published, tuned] = &stages[..] { gains(file, published, tuned) } else { Vec::new() };
        Ok(Self { format: FORMAT, study: file.clone(), tuning, arms, comparisons, gains, variances })
    }

    /// Reads what [`write`](Self::write) left in a folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(RESULTS);
        let text = fs::read_to_string(&path).at(|| format!("cannot read {}", path.display()))?;
        let hint = "run `elbow study` with the study file again: it repeats no finished run";
        let format = |json: &Value| json["format"].as_u64();
        match serde_json::from_str::<Value>(&text) {
            Ok(json) if format(&json).is_some_and(|format| format != u64::from(FORMAT)) => {
                Err(Error::new(format!("{} is of another version of the program", path.display()), hint))
            }
            json => json
                .and_then(serde_json::from_value)
                .map_err(|error| Error::new(format!("{} holds no report of a study: {error}", path.display()), hint)),
        }
    }

    /// Writes `results.json`, `seeds.csv`, `curves.csv`, `report.md` and `report.html` into a folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).at(|| format!("cannot create {}", folder.display()))?;
        // Processes that share a study may end at the same moment: one writes after the other, where the system has locks of folders.
        let turn = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [
            (RESULTS, json),
            ("seeds.csv", self.seeds_csv()),
            ("curves.csv", self.curves_csv()),
            ("report.md", self.markdown()),
            ("report.html", self.html()),
        ] {
            write_atomic(&folder.join(name), text.as_bytes())?;
        }
        drop(turn);
        Ok(())
    }
}

impl Report {
    fn stages(&self) -> Vec<Stage> {
        let mut stages: Vec<Stage> = self.arms.iter().map(|arm| arm.stage).collect();
        stages.dedup();
        stages
    }
}

/// The key of what is resampled for a purpose of its own.
fn key(purpose: u64) -> Key {
    Key::new(0, Purpose::Resampling, purpose)
}

/// What is counted: seconds only where the study says what a pass costs.
fn axes(file: &StudyFile) -> Vec<Axis> {
    let all = [Axis::Images, Axis::Evaluations, Axis::Seconds];
    all.into_iter().filter(|axis| *axis != Axis::Seconds || file.cost.is_some()).collect()
}

fn arm(file: &StudyFile, stage: Stage, variant: &Variant, epochs: u64, cells: &[Finished]) -> Arm {
    let of = |measure: &str| cells.iter().filter_map(|cell| cell.last(measure)).collect::<Vec<f64>>();
    let seeds =
        |test: &dyn Fn(&Finished) -> bool| cells.iter().filter(|cell| test(cell)).map(|cell| cell.seed).collect();
    let lasts: Vec<&Point> = cells.iter().filter_map(|cell| cell.points.last()).collect();
    let base = cells.first().and_then(|cell| cell.points.first()).and_then(|p| p.held_out.get(&file.measure).copied());
    let arrivals = |axis: Axis| {
        let times = times(file, axis, cells);
        let until = times.iter().map(|(_, end)| *end).fold(f64::INFINITY, f64::min);
        let times: Vec<Arrival> = times.into_iter().map(|(time, _)| time).collect();
        Arrivals {
            axis,
            arrived: times.iter().filter(|time| time.arrived).count(),
            median: survival::median(&times, LEVEL),
            restricted_mean: survival::restricted_mean(&cut(&times, until), until, LEVEL),
            times,
            until,
        }
    };
    Arm {
        name: variant.name.clone(),
        stage,
        levels: variant.levels.clone(),
        epochs,
        seeds: seeds(&|_| true),
        stopped: seeds(&|cell| cell.stopped.is_some()),
        hacked: seeds(&|cell| hacks(file, cell)),
        last: mean_interval(&of(&file.measure), LEVEL),
        judge: mean_interval(&of(&file.hacking.measure), LEVEL),
        base,
        spent: spent(file, &lasts),
        curve: curve(file, cells),
        arrivals: match (file.threshold, cells) {
            (None, _) | (_, []) => Vec::new(),
            _ => axes(file).into_iter().map(arrivals).collect(),
        },
        values: cells.iter().map(|cell| cell.last(&file.measure)).collect(),
    }
}

/// Whether the training reward rises after the best measurement of what it should serve, while that falls.
fn hacks(file: &StudyFile, cell: &Finished) -> bool {
    let of = |point: &Point| point.held_out.get(&file.hacking.measure).copied();
    let Some(best) = cell.points.iter().filter_map(of).reduce(f64::max) else { return false };
    let since: Vec<&Point> =
        cell.points.iter().skip_while(|point| of(point).is_none_or(|value| value < best)).collect();
    let rewards: Vec<f64> = since.iter().filter_map(|point| point.reward).collect();
    let (Some(last), [first, .., end]) = (since.last().and_then(|point| of(point)), &rewards[..]) else { return false };
    end > first && last < best - file.hacking.fall
}

/// Means of what was spent at points.
fn spent(file: &StudyFile, points: &[&Point]) -> Spent {
    if points.is_empty() {
        return Spent::default();
    }
    let mean_of = |of: &dyn Fn(&Point) -> f64| mean(&points.iter().map(|point| of(point)).collect::<Vec<_>>());
    Spent {
        images: mean_of(&|point| point.images as f64),
        forward: mean_of(&|point| point.forward as f64),
        backward: mean_of(&|point| point.backward as f64),
        seconds: file.cost.as_ref().map(|cost| mean_of(&|point| point.seconds(cost))),
    }
}

/// The mean of the measure wherever all seeds have it.
fn curve(file: &StudyFile, cells: &[Finished]) -> Vec<Band> {
    let Some(first) = cells.first() else { return Vec::new() };
    let mut curve = Vec::new();
    let resamples = bootstrap::indices(key(0), cells.len(), RESAMPLES);
    for &Point { epoch, .. } in &first.points {
        let at = |cell: &'_ Finished| cell.points.iter().position(|point| point.epoch == epoch);
        let points: Vec<&Point> = cells.iter().filter_map(|cell| at(cell).map(|i| &cell.points[i])).collect();
        let values: Vec<f64> = points.iter().filter_map(|point| point.held_out.get(&file.measure).copied()).collect();
        if values.len() == cells.len() {
            let measure = bootstrap::percentile(&values, mean, &resamples, LEVEL);
            curve.push(Band { epoch, spent: spent(file, &points), measure });
        }
    }
    curve
}

/// When each cell reached the threshold, and how far it was looked at. A run that stopped before it did never will, and counts as one that was looked
/// at as long as any other of its method.
fn times(file: &StudyFile, axis: Axis, cells: &[Finished]) -> Vec<(Arrival, f64)> {
    let Some(threshold) = file.threshold else { return Vec::new() };
    let cost = file.cost.as_ref();
    let last = |cell: &Finished| cell.points.last().and_then(|point| axis.of(point, cost));
    let longest = cells.iter().filter_map(last).fold(0.0, f64::max);
    let time = |cell: &Finished| {
        let end = if cell.stopped.is_some() { longest } else { last(cell)? };
        let reached = cell.reaches(&file.measure, threshold).and_then(|point| axis.of(point, cost));
        Some((Arrival { time: reached.unwrap_or(end), arrived: reached.is_some() }, end))
    };
    cells.iter().filter_map(time).collect()
}

/// Times, of which nobody is looked at longer than `until`.
fn cut(times: &[Arrival], until: f64) -> Vec<Arrival> {
    let one = |a: &Arrival| Arrival { time: a.time.min(until), arrived: a.arrived && a.time <= until };
    times.iter().map(one).collect()
}

/// In a word, how the first of two stands to the second.
fn verdict(seeds: [usize; 2], corrected: Option<f64>, ahead: bool, words: [&'static str; 2]) -> &'static str {
    match corrected {
        _ if seeds.into_iter().any(|n| n < ENOUGH) => "fewer than five seeds",
        None => "not tested",
        Some(p) if p >= ALPHA => "not told apart",
        Some(_) if ahead => words[0],
        Some(_) => words[1],
    }
}

/// The pairs of a stage that are compared.
fn pairs<'a, 'b>(file: &StudyFile, groups: &'a [Group<'b>]) -> Vec<[&'a Group<'b>; 2]> {
    let of_interest = |group: &Group<'_>| file.against.as_ref().is_none_or(|name| *name == group.variant.method);
    let mut pairs = Vec::new();
    for (i, one) in groups.iter().enumerate() {
        let others = groups[i + 1..].iter().filter(|other| of_interest(one) || of_interest(other));
        pairs.extend(others.map(|other| [one, other]));
    }
    pairs
}

/// Methods after their trials with themselves before, where these chose other values.
fn gains(file: &StudyFile, published: &[Group<'_>], tuned: &[Group<'_>]) -> Vec<Comparison> {
    let changed = |[after, _]: &[&Group<'_>; 2]| after.candidate.is_some_and(|candidate| candidate > 0);
    let pairs: Vec<_> = tuned.iter().zip(published).map(|(after, before)| [after, before]).filter(changed).collect();
    let mut gains = compare(file, &pairs);
    for gain in &mut gains {
        gain.one = format!("{}, {}", gain.one, Stage::Tuned.name());
        gain.other = format!("{}, {}", gain.other, Stage::Published.name());
    }
    gains
}

/// Compares pairs of which both have finished cells, and corrects their p-values.
fn compare(file: &StudyFile, pairs: &[[&Group<'_>; 2]]) -> Vec<Comparison> {
    let finished = pairs.iter().filter(|pair| pair.iter().all(|group| !group.cells.is_empty()));
    let mut comparisons: Vec<Comparison> = finished.map(|[one, other]| pair(file, one, other)).collect();
    correct(
        &mut comparisons,
        |c| c.p,
        |c, p| {
            c.corrected = p;
            let ahead = c.difference.is_some_and(|d| d.value > 0.0);
            verdict(c.seeds, p, ahead, ["better", "worse"]).clone_into(&mut c.verdict);
        },
    );
    for i in 0..comparisons.first().map_or(0, |c| c.ways.len()) {
        correct(
            &mut comparisons,
            |c| c.ways[i].p,
            |c, p| {
                let seeds = c.seeds;
                let way = &mut c.ways[i];
                way.corrected = p;
                verdict(seeds, p, way.ratio.value > 1.0, ["sooner", "later"]).clone_into(&mut way.verdict);
            },
        );
    }
    comparisons
}

/// Gives each comparison its p-value corrected for all that have one.
fn correct(
    comparisons: &mut [Comparison],
    p: impl Fn(&Comparison) -> Option<f64>,
    give: impl Fn(&mut Comparison, Option<f64>),
) {
    let mut corrected = tests::holm(&comparisons.iter().filter_map(&p).collect::<Vec<_>>()).into_iter();
    for comparison in comparisons {
        let own = p(comparison).and_then(|_| corrected.next());
        give(comparison, own);
    }
}

fn pair(file: &StudyFile, one: &Group<'_>, other: &Group<'_>) -> Comparison {
    let values =
        |group: &Group<'_>| group.cells.iter().filter_map(|cell| cell.last(&file.measure)).collect::<Vec<f64>>();
    let (a, b) = (values(one), values(other));
    let welch = tests::welch(&a, &b, LEVEL);
    let way = |axis: Axis| {
        let [first, second] = [one, other].map(|group| times(file, axis, &group.cells));
        let until = first.iter().chain(&second).map(|(_, end)| *end).fold(f64::INFINITY, f64::min);
        let [first, second] =
            [first, second].map(|times| cut(&times.into_iter().map(|(time, _)| time).collect::<Vec<_>>(), until));
        let censored = [&first, &second].map(|times| times.iter().filter(|time| !time.arrived).count());
        let p = survival::log_rank(&first, &second).map(|[_, p]| p);
        Way { axis, ratio: ratio(&first, &second), until, censored, p, corrected: None, verdict: String::new() }
    };
    Comparison {
        stage: one.stage,
        one: one.variant.name.clone(),
        other: other.variant.name.clone(),
        seeds: [a.len(), b.len()],
        difference: welch.map(|welch| welch.difference),
        effect: effect::hedges(&a, &b, LEVEL),
        p: match file.test {
            Test::Welch => welch.map(|welch| welch.p),
            Test::Permutation => tests::permutation(&a, &b, key(1)),
        },
        corrected: None,
        verdict: String::new(),
        ways: file.threshold.map_or_else(Vec::new, |_| axes(file).into_iter().map(way).collect()),
    }
}

/// How many times as long the second takes: the ratio of mean times, which are cut off at one time for both, with its percentile interval.
fn ratio(first: &[Arrival], second: &[Arrival]) -> Estimate {
    let of = |times: &[Arrival]| times.iter().map(|time| time.time).collect::<Vec<f64>>();
    let (a, b) = (of(first), of(second));
    let [again_a, again_b] = [(&a, 2), (&b, 3)].map(|(times, purpose)| {
        let means = |taken: &Vec<usize>| mean(&taken.iter().map(|&i| times[i]).collect::<Vec<_>>());
        bootstrap::indices(key(purpose), times.len(), RESAMPLES).iter().map(means).collect::<Vec<f64>>()
    });
    let mut ratios: Vec<f64> = again_a.iter().zip(&again_b).map(|(a, b)| b / a).collect();
    let [low, high] = bootstrap::quantiles(&mut ratios, [0.5 - LEVEL / 2.0, 0.5 + LEVEL / 2.0]);
    Estimate { value: mean(&b) / mean(&a), low, high }
}

/// Splits the variance of the methods that a grid asks for.
fn split(file: &StudyFile, asked: &Variance, groups: &[Group<'_>]) -> Split {
    let stage = groups.first().map_or(Stage::Published, |group| group.stage);
    let [first, second] = &asked.factors;
    let fits = |group: &&Group<'_>| {
        let levels = &group.variant.levels;
        let only = asked.only.iter().all(|(factor, level)| levels.get(factor) == Some(level));
        only && levels.contains_key(first) && levels.contains_key(second)
    };
    let chosen: Vec<&Group<'_>> = groups.iter().filter(fits).collect();
    let levels = asked.factors.each_ref().map(|factor| {
        let mut levels: Vec<String> = Vec::new();
        for level in chosen.iter().map(|group| &group.variant.levels[factor]) {
            if !levels.contains(level) {
                levels.push(level.clone());
            }
        }
        levels
    });
    let cell = |a: &String, b: &String| -> Vec<f64> {
        let here = chosen.iter().filter(|g| g.variant.levels[first] == *a && g.variant.levels[second] == *b);
        here.flat_map(|group| group.cells.iter().filter_map(|cell| cell.last(&file.measure))).collect()
    };
    let grid: Vec<Vec<Vec<f64>>> = levels[0].iter().map(|a| levels[1].iter().map(|b| cell(a, b)).collect()).collect();
    let seeds = grid.iter().flatten().map(Vec::len).min().unwrap_or(0);
    let parts = anova::two_way(&grid);
    let eta = anova::eta_intervals(&grid, key(4), RESAMPLES, LEVEL).ok();
    let refused = parts.as_ref().err().map(ToString::to_string);
    Split { stage, asked: asked.clone(), levels, seeds, parts: parts.ok(), eta, refused }
}
