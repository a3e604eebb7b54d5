//! Which runs a study is made of.

use crate::{
    file::{Budget, Method, StudyFile, Tune, flat},
    passes::{self, Passes},
};
use elbow::noise::{Key, Purpose};
use elbow_run::{
    Error, Recipe, Result, data, error::At, judges, machine::sha256, radar::Action, recipe, recipe::PromptsConfig,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use toml::{Table, Value};

/// Version of what a cell holds. Cells of another are not found, so that numbers of different meaning do not meet in a table.
pub const FORMAT: u32 = 1;

/// A study whose recipes are all known to be valid.
pub struct Study {
    /// What its file says.
    pub file: StudyFile,
    /// Every method with every combination of the grid.
    pub variants: Vec<Variant>,
    counted: Mutex<BTreeMap<String, Passes>>,
}

/// A method at one point of the grid.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The method's name, and the grid's fields where there are some.
    pub name: String,
    /// The method's name.
    pub method: String,
    /// The level of every factor; fields of the grid are factors.
    pub levels: BTreeMap<String, String>,
    /// What is tried when it is tuned, the recipe's own values first; each as `key=value` changes.
    pub candidates: Vec<Vec<String>>,
    recipe: PathBuf,
    changes: Vec<String>,
}

/// One run of a study.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Names its files: a hash of the recipe without places, and of [`FORMAT`].
    pub key: String,
    /// What is run.
    pub recipe: Recipe,
    /// Whether it is a trial: trained and measured on a split of the training prompts.
    pub trial: bool,
    /// What an epoch evaluates.
    pub passes: Passes,
}

/// What a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Methods as their recipes have them.
    Published,
    /// Methods after their trials.
    Tuned,
}

impl Stage {
    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Published => "as in the recipe",
            Self::Tuned => "tuned",
        }
    }

    /// As headings have it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Published => "As in the recipe",
            Self::Tuned => "Tuned",
        }
    }
}

impl Study {
    /// Reads a study file; recipe files that it names lie beside it or come with the program.
    pub fn read(path: &Path) -> Result<Self> {
        let file = StudyFile::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::new(file, folder).at(|| format!("study {}", path.display()))
    }

    /// A study whose recipes lie in `folder` or come with the program. All of them are read now.
    pub fn new(file: StudyFile, folder: &Path) -> Result<Self> {
        let mut variants = Vec::new();
        for method in &file.methods {
            let place = || format!("method `{}`", method.name);
            for point in grid(&file.grid) {
                variants.push(Variant::new(&file, method, &point, folder).at(place)?);
            }
        }
        let study = Self { file, variants, counted: Mutex::default() };
        for variant in &study.variants {
            study.check_measures(variant).at(|| format!("method `{}`", variant.name))?;
            // Every run that may come: a trial is shorter, and needs an epoch too.
            for candidate in 0..variant.candidates.len() {
                study.trials(variant, candidate)?;
                study.cell(variant, candidate, study.file.seeds[0])?;
            }
        }
        study.check_keys()?;
        Ok(study)
    }

    /// What is compared, one after the other.
    pub fn stages(&self) -> Vec<Stage> {
        match &self.file.tune {
            None => vec![Stage::Published],
            Some(Tune { before: true, .. }) => vec![Stage::Published, Stage::Tuned],
            Some(_) => vec![Stage::Tuned],
        }
    }

    /// The run of a variant in the comparison.
    pub fn cell(&self, variant: &Variant, candidate: usize, seed: u64) -> Result<Cell> {
        self.make(variant, candidate, seed, None)
    }

    /// Its trials of one candidate, one a seed.
    pub fn trials(&self, variant: &Variant, candidate: usize) -> Result<Vec<Cell>> {
        let Some(tune) = &self.file.tune else { return Ok(Vec::new()) };
        tune.seeds.iter().map(|&seed| self.make(variant, candidate, seed, Some(tune.share))).collect()
    }

    fn make(&self, variant: &Variant, candidate: usize, seed: u64, share: Option<f64>) -> Result<Cell> {
        let mut recipe = variant.recipe(candidate)?;
        let passes = self.passes(&recipe)?;
        recipe.method.seed = seed;
        recipe.method.epochs =
            epochs(self.file.budget, share.unwrap_or(1.0), &passes).at(|| format!("method `{}`", variant.name))?;
        recipe.setting.eval.measure.every = recipe.method.epochs.div_ceil(self.file.points);
        Ok(Cell { key: key(&recipe, share.is_some())?, recipe, trial: share.is_some(), passes })
    }

    /// What an epoch of a recipe evaluates; counted once for all that differ by seed, length or optimizer alone.
    pub fn passes(&self, recipe: &Recipe) -> Result<Passes> {
        let mut like = recipe.clone();
        (like.method.seed, like.method.epochs) = (0, 3);
        like.method.optimizer = elbow::optimizer::OptimizerConfig::default();
        let name = like.to_toml()?;
        let known = |counted: &BTreeMap<String, Passes>| counted.get(&name).copied();
        if let Some(passes) = known(&self.counted.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(passes);
        }
        let passes = passes::count(&like.method, recipe.setting.model.schedule())?;
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).insert(name, passes);
        Ok(passes)
    }

    /// What is compared is measured.
    fn check_measures(&self, variant: &Variant) -> Result<()> {
        let recipe = variant.recipe(0)?;
        let names = judges::names(&recipe, &data::held_out(&recipe)?.0);
        if names.contains(&self.file.measure) {
            return Ok(());
        }
        Err(Error::new(
            format!("measure = {:?}: its held-out images are measured by {}", self.file.measure, names.join(", ")),
            "choose one of these, or add a reward that only watches by eval.rewards in [set]",
        ))
    }

    /// Two variants may share runs only if they are one and the same: a key knows no places.
    fn check_keys(&self) -> Result<()> {
        let seed = self.file.seeds[0];
        let mut seen: BTreeMap<String, (Recipe, &str)> = BTreeMap::new();
        for variant in &self.variants {
            let cell = self.cell(variant, 0, seed)?;
            if let Some((other, name)) = seen.get(&cell.key) {
                let differences = other.differences(&cell.recipe)?;
                if differences.iter().any(|difference| !difference.starts_with("keep.")) {
                    let message = format!(
                        "`{name}` and `{}` differ by places alone, which name no runs:\n  - {}",
                        variant.name,
                        differences.join("\n  - ")
                    );
                    return Err(Error::new(message, "make one study for each place"));
                }
            }
            seen.insert(cell.key, (cell.recipe, &variant.name));
        }
        Ok(())
    }
}

impl Variant {
    fn new(file: &StudyFile, method: &Method, point: &[(String, Value)], folder: &Path) -> Result<Self> {
        let name = method.recipe.as_ref().unwrap_or(&file.recipe);
        let beside = [folder.join(name), folder.join(format!("{name}.toml"))];
        let recipe = beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| name.into());
        let mut changes: Vec<String> = flat(&file.set).into_iter().chain(flat(&method.set)).map(change).collect();
        changes.extend(point.iter().cloned().map(change));
        let mut levels = method.factors.clone();
        let mut title = method.name.clone();
        for (field, value) in point {
            let value = plain(value);
            let _ = write!(title, ", {}={value}", field.rsplit('.').next().unwrap_or(field));
            levels.insert(field.clone(), value);
        }
        let mut variant =
            Self { name: title, method: method.name.clone(), levels, candidates: vec![Vec::new()], recipe, changes };
        variant.recipe(0)?;
        if let Some(tune) = &file.tune {
            let fields = method.tune.as_ref().map_or(&tune.fields, |own| &own.fields);
            variant.add_candidates(fields, tune)?;
        }
        Ok(variant)
    }

    /// The candidates beside the recipe's own values: of all combinations, as many as the budget has trials for. Which ones, a key decides.
    fn add_candidates(&mut self, fields: &BTreeMap<String, Vec<Value>>, tune: &Tune) -> Result<()> {
        let wanted = (tune.budget / tune.seeds.len() as u64) as usize;
        let own = self.recipe(0)?;
        let mut others = Vec::new();
        for point in grid(fields) {
            let changes: Vec<String> = point.into_iter().map(change).collect();
            self.candidates.truncate(1);
            self.candidates.push(changes.clone());
            if self.recipe(1)? != own {
                others.push(changes);
            }
        }
        self.candidates.truncate(1);
        if others.len() + 1 < wanted {
            let message = format!(
                "tune: the fields have {} different candidates, the recipe's own values included, and the budget is {wanted} for each trial seed",
                others.len() + 1
            );
            return Err(Error::new(message, "give the fields more values, or every method a smaller tune.budget"));
        }
        let mut taken = Key::new(0, Purpose::Resampling, 0).permutation(others.len());
        taken.truncate(wanted - 1);
        taken.sort_unstable();
        self.candidates.extend(taken.into_iter().map(|i| others[i].clone()));
        Ok(())
    }

    /// The recipe with the changes of a candidate.
    pub fn recipe(&self, candidate: usize) -> Result<Recipe> {
        let changes = [&*self.changes, &self.candidates[candidate]].concat();
        let (_, mut recipe) = recipe::load(Some(&self.recipe), &changes)?;
        recipe.setting.model.pin()?;
        Ok(recipe)
    }
}

/// How many epochs fit into a share of the budget.
fn epochs(budget: Budget, share: f64, passes: &Passes) -> Result<u64> {
    let (most, each, what) = match budget {
        Budget::Epochs(epochs) => return Ok(((epochs as f64 * share).round() as u64).max(1)),
        Budget::Samples(samples) => (samples as f64 * share, passes.images, "samples"),
        Budget::Evaluations(evaluations) => (evaluations as f64 * share, passes.evaluations(), "evaluations"),
    };
    // Counts are whole numbers: a share of them that should fit does.
    let fit = (most / each + 1e-9).floor() as u64;
    if fit == 0 {
        return Err(Error::new(
            format!("an epoch takes {each} {what}, and a run may spend {most}"),
            "raise the budget, or draw smaller batches by [set]",
        ));
    }
    Ok(fit)
}

/// All combinations of values, the first field slowest; one without any field.
pub fn grid(fields: &BTreeMap<String, Vec<Value>>) -> Vec<Vec<(String, Value)>> {
    let mut points = vec![Vec::new()];
    for (field, values) in fields {
        let with =
            |point: &Vec<(String, Value)>, value: &Value| [&point[..], &[(field.clone(), value.clone())]].concat();
        points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
    }
    points
}

/// `key=value`, as `--set` takes it.
fn change((field, value): (String, Value)) -> String {
    format!("{field}={value}")
}

/// A value as a reader wants it: texts without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Fields that say where something is and not what.
const PLACES: [&[&str]; 9] = [
    &["keep"],
    &["model", "path"],
    &["model", "cache"],
    &["prompts", "train"],
    &["prompts", "test"],
    &["reward", "file"],
    &["reward", "python"],
    &["reward", "url"],
    &["reward", "workers"],
];

/// The key of a run: its recipe without places, what lies there, and whether it is a trial.
fn key(recipe: &Recipe, trial: bool) -> Result<String> {
    let mut table: Table = toml::from_str(&recipe.to_toml()?)?;
    for place in PLACES {
        let (field, sections) = place.split_last().expect("invariant: none is empty");
        let section = sections.iter().try_fold(&mut table, |table, name| table.get_mut(*name)?.as_table_mut());
        section.and_then(|section| section.remove(*field));
    }
    if matches!(recipe.setting.radar.action, Action::Off | Action::Warn) {
        // It changes no number of a run.
        table.remove("radar");
    }
    let mut text = format!("elbow study {FORMAT}\ntrial = {trial}\n{}", toml::to_string(&table)?);
    text += &recipe.setting.reward.sha256().unwrap_or_default();
    if let PromptsConfig::Files { train, test } = &recipe.setting.prompts {
        for path in [train, test] {
            let bytes = std::fs::read(path).at(|| format!("cannot read prompt file {}", path.display()))?;
            text += &sha256(&bytes);
        }
    }
    Ok(sha256(text.as_bytes())[..16].to_owned())
}
