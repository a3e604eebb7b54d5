//! A study as its file says it: which methods, with which seeds, at what they are matched, how they are tuned and what is compared.

use elbow_run::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use toml::{Table, Value};

/// Everything that a study is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyFile {
    /// Names the folders of its runs and its results.
    pub name: String,
    /// What it asks, for the head of its report.
    #[serde(default)]
    pub about: String,
    /// What it cannot decide, for the same.
    #[serde(default)]
    pub limits: String,
    /// The recipe of methods that name none: a file, or one that comes with the program.
    #[serde(default = "default_recipe")]
    pub recipe: String,
    /// One run of every method each.
    pub seeds: Vec<u64>,
    /// At what methods are matched.
    pub budget: Budget,
    /// Measurements on the held-out prompts along a run, beside that of the base.
    #[serde(default = "default_points")]
    pub points: u64,
    /// What is compared: a name of `eval_reward_<name>` in the metrics of a run.
    #[serde(default = "default_measure")]
    pub measure: String,
    /// A value of the measure; what it takes until it is reached is compared too.
    #[serde(default)]
    pub threshold: Option<f64>,
    /// How a p-value of two means is found.
    #[serde(default)]
    pub test: Test,
    /// The method that others are compared with; without one, every two are compared.
    #[serde(default)]
    pub against: Option<String>,
    /// When a run counts as one that hacks its reward.
    #[serde(default)]
    pub hacking: Hacking,
    /// Fields of all recipes.
    #[serde(default)]
    pub set: Table,
    /// Fields with several values each: every method is run with every combination.
    #[serde(default)]
    pub grid: BTreeMap<String, Vec<Value>>,
    /// The methods.
    #[serde(rename = "method")]
    pub methods: Vec<Method>,
    /// Trials before the comparison, as many for every method.
    #[serde(default)]
    pub tune: Option<Tune>,
    /// Balanced grids whose variance is split.
    #[serde(default, rename = "variance")]
    pub variances: Vec<Variance>,
    /// What a pass costs on an idle machine; without it no seconds are reported.
    #[serde(default)]
    pub cost: Option<Cost>,
}

/// What every run may spend.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// Images drawn and scored, those of a prefilter included: as many epochs as fit.
    Samples(u64),
    /// Evaluations of the network by rollouts and updates, with and without gradient: as many epochs as fit.
    Evaluations(u64),
    /// Epochs, whatever they cost.
    Epochs(u64),
}

/// How a p-value of two means is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// Welch's t test.
    #[default]
    Welch,
    /// The permutation test of the difference of means.
    Permutation,
}

/// A run hacks its reward if, after its best measurement of `measure`, the training reward rises while `measure` falls by more than `fall`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hacking {
    /// What the reward should serve and does not see.
    pub measure: String,
    /// How far it falls.
    pub fall: f64,
}

impl Default for Hacking {
    fn default() -> Self {
        Self { measure: "judge".into(), fall: 0.05 }
    }
}

/// A method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in tables.
    pub name: String,
    /// Its recipe, in place of the study's.
    #[serde(default)]
    pub recipe: Option<String>,
    /// Fields over those of the study.
    #[serde(default)]
    pub set: Table,
    /// What it is made of, for `[[variance]]`: names of factors and of their levels.
    #[serde(default)]
    pub factors: BTreeMap<String, String>,
    /// Fields that are tuned, in place of the study's.
    #[serde(default)]
    pub tune: Option<Fields>,
}

/// Fields that are tuned, each with the values that are tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// By field.
    pub fields: BTreeMap<String, Vec<Value>>,
}

/// Trials: short runs on seeds and prompts that are not those of the comparison. The recipe's own values are always one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tune {
    /// By field.
    pub fields: BTreeMap<String, Vec<Value>>,
    /// Runs that every method gets: candidates × seeds.
    pub budget: u64,
    /// Their seeds.
    #[serde(default = "default_trial_seeds")]
    pub seeds: Vec<u64>,
    /// Their length, as a share of a run's budget.
    #[serde(default = "default_share")]
    pub share: f64,
    /// Whether methods are compared as their recipes have them too.
    #[serde(default = "yes")]
    pub before: bool,
}

/// A balanced grid of methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variance {
    /// Two factors of `method.factors`, or fields of `[grid]`.
    pub factors: [String; 2],
    /// Levels of further factors: methods of others are left out.
    #[serde(default, rename = "where")]
    pub only: BTreeMap<String, String>,
}

/// What passes cost, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// One evaluation of the network for one image.
    pub forward: f64,
    /// The same with its gradient.
    pub backward: f64,
    /// An image, beside its passes: decoded and scored.
    #[serde(default)]
    pub image: f64,
    /// Where and how that was measured.
    pub from: String,
}

impl Cost {
    /// Seconds of so many images, evaluations without and with gradient.
    pub fn seconds(&self, images: f64, forward: f64, backward: f64) -> f64 {
        self.image * images + self.forward * forward + self.backward * backward
    }
}

fn default_recipe() -> String {
    "nano-geneval".into()
}

fn default_points() -> u64 {
    10
}

fn default_measure() -> String {
    "geneval".into()
}

fn default_trial_seeds() -> Vec<u64> {
    vec![1000]
}

fn default_share() -> f64 {
    0.5
}

fn yes() -> bool {
    true
}

const HINT: &str = "`elbow study --help` has an example, and studies/ in the repository more";

impl StudyFile {
    /// Reads a study; all that is wrong with it is one error.
    pub fn read(path: &Path) -> Result<Self> {
        let place = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::new(format!("cannot read study {place}: {error}"), "name a study file"))?;
        let study: Self = toml::from_str(&text).map_err(|error| {
            Error::new(
                format!("study {place}: {}", error.to_string().trim_end()),
                format!("correct the line shown; {HINT}"),
            )
        })?;
        let problems = study.problems();
        match &problems[..] {
            [] => Ok(study),
            [one] => Err(Error::new(format!("study {place}: {one}"), HINT)),
            many => {
                Err(Error::new(format!("study {place}: {} problems:\n  - {}", many.len(), many.join("\n  - ")), HINT))
            }
        }
    }

    /// What is wrong with it, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if self.name.is_empty() || !self.name.chars().all(plain) {
            problems.push(format!("name = {:?}: use letters, digits, - and _, since it names folders", self.name));
        }
        let distinct = |seeds: &[u64]| seeds.iter().collect::<BTreeSet<_>>().len() == seeds.len();
        if self.seeds.is_empty() || !distinct(&self.seeds) {
            problems.push(format!("seeds = {:?}: needs one or more, each once", self.seeds));
        }
        let (Budget::Samples(budget) | Budget::Evaluations(budget) | Budget::Epochs(budget)) = self.budget;
        if budget == 0 {
            problems.push("budget: must be at least 1".into());
        }
        if self.points == 0 {
            problems.push("points = 0: must be at least 1".into());
        }
        if self.threshold.is_some_and(|value| !value.is_finite()) {
            problems.push("threshold: must be a finite number".into());
        }
        if !(self.hacking.fall >= 0.0 && self.hacking.fall.is_finite()) {
            problems.push(format!("hacking.fall = {}: must be 0 or a positive number", self.hacking.fall));
        }
        let names: Vec<&str> = self.methods.iter().map(|method| &*method.name).collect();
        if names.is_empty() {
            problems.push("there is no [[method]]".into());
        }
        for (i, name) in names.iter().enumerate() {
            if name.is_empty() || names[..i].contains(name) {
                problems.push(format!("method name {name:?}: give each method a name of its own"));
            }
        }
        if let Some(against) = self.against.as_deref().filter(|against| !names.contains(against)) {
            problems.push(format!("against = {against:?}: there are methods {}", names.join(", ")));
        }
        problems.extend(empty("grid", &self.grid));
        for set in std::iter::once(&self.set).chain(self.methods.iter().map(|method| &method.set)) {
            problems.extend(reserved("set", flat(set).iter().map(|(field, _)| &**field)));
        }
        problems.extend(reserved("grid", self.grid.keys().map(|field| &**field)));
        self.tune_problems(&mut problems);
        for variance in &self.variances {
            let [first, second] = &variance.factors;
            let known = |factor: &String| {
                self.grid.contains_key(factor) || self.methods.iter().any(|method| method.factors.contains_key(factor))
            };
            let unknown = [first, second].into_iter().chain(variance.only.keys()).find(|factor| !known(factor));
            if let Some(factor) = unknown {
                problems.push(format!("variance: no method has a factor {factor:?}, nor does the grid"));
            } else if first == second {
                problems.push(format!("variance: {first:?} twice; two factors are compared"));
            }
        }
        if let Some(Cost { forward, backward, image, .. }) = &self.cost {
            for (name, value) in [("forward", forward), ("backward", backward), ("image", image)] {
                if !(*value >= 0.0 && value.is_finite()) {
                    problems.push(format!("cost.{name} = {value}: must be 0 or a positive number of seconds"));
                }
            }
        }
        problems
    }

    fn tune_problems(&self, problems: &mut Vec<String>) {
        let Some(tune) = &self.tune else {
            if let Some(method) = self.methods.iter().find(|method| method.tune.is_some()) {
                problems
                    .push(format!("method {:?} has [method.tune] and the study no [tune] with a budget", method.name));
            }
            return;
        };
        problems.extend(empty("tune.fields", &tune.fields));
        problems.extend(reserved("tune.fields", tune.fields.keys().map(|field| &**field)));
        for Fields { fields } in self.methods.iter().filter_map(|method| method.tune.as_ref()) {
            problems.extend(empty("method.tune.fields", fields));
            problems.extend(reserved("method.tune.fields", fields.keys().map(|field| &**field)));
        }
        let seeds = tune.seeds.len() as u64;
        if seeds == 0 || tune.seeds.iter().any(|seed| self.seeds.contains(seed)) {
            problems.push(format!(
                "tune.seeds = {:?}: needs one or more, none of which is one of the comparison",
                tune.seeds
            ));
        } else if tune.budget == 0 || !tune.budget.is_multiple_of(seeds) {
            problems.push(format!("tune.budget = {}: must be a multiple of the {seeds} trial seed(s)", tune.budget));
        }
        if !(0.0 < tune.share && tune.share <= 1.0) {
            problems.push(format!("tune.share = {}: must be above 0 and at most 1", tune.share));
        }
    }
}

/// Fields without a value.
fn empty(place: &str, fields: &BTreeMap<String, Vec<Value>>) -> Vec<String> {
    let without = fields.iter().filter(|(_, values)| values.is_empty());
    without.map(|(field, _)| format!("{place}: {field:?} has no values")).collect()
}

/// Fields that the study sets itself.
fn reserved<'a>(place: &str, fields: impl Iterator<Item = &'a str>) -> Vec<String> {
    let own = ["seed", "epochs", "eval.measure.every"];
    let taken = fields.filter(|field| own.contains(field));
    taken.map(|field| format!("{place}: {field:?} follows from `seeds`, `budget` and `points`")).collect()
}

/// The fields of a table by dotted name, those of sections one by one; a section that names its kind is a whole.
pub fn flat(table: &Table) -> Vec<(String, Value)> {
    let mut fields = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) if !inner.contains_key("kind") => {
                fields.extend(flat(inner).into_iter().map(|(rest, value)| (format!("{name}.{rest}"), value)));
            }
            value => fields.push((name.clone(), value.clone())),
        }
    }
    fields
}
