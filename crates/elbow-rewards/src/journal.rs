//! What rewards answered, written down as it arrives: a run that is resumed asks nobody twice, and stays bit for bit.
//!
//! An answer belongs to a picture and its prompt, or to all those of a group where a reward needs groups whole. Failures are answers too.
//! Only what says that nobody could be reached is asked again, once it has been told as often as it was written down: a resumed run goes
//! through the same waits and gaps as the run that was not stopped.

use crate::Log;
use elbow::{
    Prompt, Request, Reward, RewardError, RgbImage, Score,
    reward::{self, Needs, Part},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The answers of a run. Clones are one journal. Until it is [opened](Self::open) it keeps nothing.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    folder: Option<PathBuf>,
    epoch: u64,
    file: Option<File>,
    /// By epoch.
    answers: BTreeMap<u64, Answers>,
}

/// By reward and by key.
#[derive(Debug, Default)]
struct Answers {
    /// Scores, and failures that stay.
    last: BTreeMap<(String, String), Result<Score, RewardError>>,
    /// How often nobody could be reached, and why; read from a file and not told yet.
    unavailable: BTreeMap<(String, String), Vec<RewardError>>,
}

/// A line of a journal or a cache.
#[derive(Serialize, Deserialize)]
struct Line {
    reward: String,
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Score { value: Number, parts: Vec<(String, Number, Number)> },
    Prompt { prompt: String, reason: String },
    Failed(String),
    Unavailable(String),
}

/// A number for readers, and its bits for us.
#[derive(Serialize, Deserialize)]
struct Number(Option<f64>, String);

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self(Some(value), format!("{:016x}", value.to_bits()))
    }
}

impl Number {
    fn get(&self) -> f64 {
        u64::from_str_radix(&self.1, 16).map_or(f64::NAN, f64::from_bits)
    }
}

impl From<&Result<Score, RewardError>> for Answer {
    fn from(answer: &Result<Score, RewardError>) -> Self {
        match answer {
            Ok(score) => Self::Score {
                value: score.value.into(),
                parts: score.parts.iter().map(|p| (p.name.to_string(), p.weight.into(), p.value.into())).collect(),
            },
            Err(RewardError::Prompt { prompt, reason }) => {
                Self::Prompt { prompt: prompt.clone(), reason: reason.clone() }
            }
            Err(RewardError::Failed(text)) => Self::Failed(text.clone()),
            Err(RewardError::Unavailable(text)) => Self::Unavailable(text.clone()),
        }
    }
}

impl From<Answer> for Result<Score, RewardError> {
    fn from(answer: Answer) -> Self {
        let part = |(name, weight, value): &(String, Number, Number)| Part {
            name: name.as_str().into(),
            weight: weight.get(),
            value: value.get(),
        };
        match answer {
            Answer::Score { value, parts } => Ok(Score { value: value.get(), parts: parts.iter().map(part).collect() }),
            Answer::Prompt { prompt, reason } => Err(RewardError::Prompt { prompt, reason }),
            Answer::Failed(text) => Err(RewardError::Failed(text)),
            Answer::Unavailable(text) => Err(RewardError::Unavailable(text)),
        }
    }
}

impl Answers {
    /// Adds the lines of a file. One that was cut off by a kill ends it.
    fn read(&mut self, path: &Path) -> io::Result<()> {
        for line in BufReader::new(File::open(path)?).lines() {
            let Ok(Line { reward, key, answer }) = serde_json::from_str(&line?) else { break };
            match Result::from(answer) {
                Err(error @ RewardError::Unavailable(_)) => {
                    self.unavailable.entry((reward, key)).or_default().push(error);
                }
                answer => drop(self.last.entry((reward, key)).or_insert(answer)),
            }
        }
        Ok(())
    }
}

impl Journal {
    /// Keeps answers in `folder`, one file an epoch, and recalls those of the base (epoch 0) and from `epoch` on.
    pub fn open(&self, folder: &Path, epoch: u64) -> io::Result<()> {
        let mut state = self.state();
        *state = State { folder: Some(folder.to_owned()), epoch, ..State::default() };
        for (number, path) in files(folder)? {
            if number == 0 || number >= epoch {
                mend(&path)?;
                state.answers.entry(number).or_default().read(&path)?;
            }
        }
        Ok(())
    }

    /// Goes on to the answers of another epoch.
    pub fn turn(&self, epoch: u64) {
        let mut state = self.state();
        if state.epoch != epoch {
            (state.epoch, state.file) = (epoch, None);
        }
    }

    /// Forgets the answers of the epochs before, but those of the base: a checkpoint holds what came of them.
    pub fn forget_before(&self, epoch: u64) -> io::Result<()> {
        let mut state = self.state();
        let Some(folder) = state.folder.clone() else { return Ok(()) };
        // As a run that is resumed here knows them no more, this one does not either.
        state.answers.retain(|number, _| *number == 0 || *number >= epoch);
        let old = files(&folder)?.into_iter().filter(|(number, _)| (1..epoch).contains(number));
        old.into_iter().try_for_each(|(_, path)| fs::remove_file(path))
    }

    /// Forgets that nobody could be reached in this epoch, which is not going to count: whoever goes on asks again.
    pub fn forget_unavailable(&self) -> io::Result<()> {
        let mut state = self.state();
        let epoch = state.epoch;
        state.answers.values_mut().for_each(|answers| answers.unavailable.clear());
        state.file = None;
        let Some(path) = state.folder.as_ref().map(|folder| folder.join(format!("{epoch:05}.jsonl"))) else {
            return Ok(());
        };
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        let says_unavailable = |line: &&str| {
            serde_json::from_str::<Line>(line).is_ok_and(|line| matches!(line.answer, Answer::Unavailable(_)))
        };
        let kept: Vec<&str> = text.lines().filter(|line| !says_unavailable(line)).collect();
        fs::write(&path, kept.iter().flat_map(|line| [line, "\n"]).collect::<String>())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What was answered. That nobody could be reached is told as often as it was written down.
    fn recall(&mut self, place: &(String, String)) -> Option<Result<Score, RewardError>> {
        if let Some(answer) = self.answers.values().find_map(|answers| answers.last.get(place)) {
            return Some(answer.clone());
        }
        let unavailable = self.answers.get_mut(&self.epoch)?.unavailable.get_mut(place)?;
        (!unavailable.is_empty()).then(|| Err(unavailable.remove(0)))
    }

    /// Writes an answer down, and says what is the answer to this picture from now on: the first that was given.
    fn add(
        &mut self,
        place: (String, String),
        answer: Result<Score, RewardError>,
        log: &Log,
    ) -> Result<Score, RewardError> {
        let Some(folder) = &self.folder else { return answer };
        if let Some(first) = self.answers.values().find_map(|answers| answers.last.get(&place)) {
            return first.clone();
        }
        if self.file.is_none() {
            let path = folder.join(format!("{:05}.jsonl", self.epoch));
            let open = || File::options().create(true).append(true).open(path);
            self.file = fs::create_dir_all(folder).and_then(|()| open()).ok();
        }
        write(self.file.as_mut(), &place, &answer, "journal", log);
        if !matches!(answer, Err(RewardError::Unavailable(_))) {
            self.answers.entry(self.epoch).or_default().last.insert(place, answer.clone());
        }
        answer
    }
}

/// Appends a line. A disk that is full costs the answer's place in the journal and not the answer.
fn write(
    file: Option<&mut File>,
    (reward, key): &(String, String),
    answer: &Result<Score, RewardError>,
    what: &str,
    log: &Log,
) {
    let line = Line { reward: reward.clone(), key: key.clone(), answer: answer.into() };
    let text = serde_json::to_string(&line).expect("invariant: a line is plain JSON") + "\n";
    if file.is_none_or(|file| file.write_all(text.as_bytes()).is_err()) {
        log.say(reward, &format!("an answer could not be written to its {what}"));
    }
}

/// The files of a journal, by epoch.
fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in if folder.is_dir() { Some(fs::read_dir(folder)?) } else { None }.into_iter().flatten() {
        let path = entry?.path();
        let number = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        files.extend(number.map(|number| (number, path)));
    }
    files.sort();
    Ok(files)
}

/// Ends a file that a kill cut off within a line after its last whole one.
fn mend(path: &Path) -> io::Result<()> {
    let bytes = fs::read(path)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    if whole < bytes.len() {
        File::options().write(true).open(path)?.set_len(whole as u64)?;
    }
    Ok(())
}

/// A reward whose answers are written down.
pub struct Journaled {
    /// The reward.
    pub inner: Box<dyn Reward>,
    /// The answers of the run.
    pub journal: Journal,
    /// Scores of earlier runs too.
    pub cache: Option<Cache>,
    /// Where trouble with files is told.
    pub log: Log,
}

/// Scores beyond a run, in a file of one reward. Failures are not kept.
#[derive(Debug)]
pub struct Cache(Mutex<(Answers, File)>);

impl Cache {
    /// Opens the cache of the reward that `description` describes in full: another description is another reward.
    pub fn open(folder: &Path, name: &str, description: &str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}-{}.jsonl", &hex(&Sha256::digest(description.as_bytes()))[..16]));
        let mut answers = Answers::default();
        let file = File::options().create(true).append(true).open(&path)?;
        mend(&path)?;
        answers.read(&path)?;
        Ok(Self(Mutex::new((answers, file))))
    }

    fn recall(&self, place: &(String, String)) -> Option<Result<Score, RewardError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.last.get(place).cloned()
    }

    fn add(&self, place: &(String, String), answer: &Result<Score, RewardError>, log: &Log) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (answers, file) = &mut *state;
        if answer.is_ok() && !answers.last.contains_key(place) {
            write(Some(file), place, answer, "cache", log);
            answers.last.insert(place.clone(), answer.clone());
        }
    }
}

impl Journaled {
    /// What is known of a picture.
    fn recall(&self, place: &(String, String)) -> Option<Result<Score, RewardError>> {
        let mut state = self.journal.state();
        state.recall(place).or_else(|| {
            let answer = self.cache.as_ref()?.recall(place)?;
            Some(state.add(place.clone(), answer, &self.log))
        })
    }
}

impl Reward for Journaled {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn check(&self, prompts: &[Prompt]) -> Result<(), RewardError> {
        self.inner.check(prompts)
    }

    fn needs(&self) -> Needs {
        self.inner.needs()
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        let groups = self.needs().whole_groups.then_some(request.groups);
        let places: Vec<_> = keys(request, groups).into_iter().map(|key| (self.name().to_owned(), key)).collect();
        let mut answers: Vec<_> = places.iter().map(|place| self.recall(place)).collect();
        let open = open(&answers, groups);
        for (&row, answer) in open.iter().zip(ask(&*self.inner, request, &open)) {
            if let Some(cache) = &self.cache {
                cache.add(&places[row], &answer, &self.log);
            }
            answers[row] = Some(self.journal.state().add(places[row].clone(), answer, &self.log));
        }
        answers.into_iter().map(|answer| answer.expect("invariant: what was not known was asked")).collect()
    }

    fn wake(&self) {
        self.inner.wake();
    }

    fn sleep(&self) {
        self.inner.sleep();
    }
}

/// The samples without an answer, and with them the rest of their groups, if these are to be whole.
fn open(answers: &[Option<Result<Score, RewardError>>], groups: Option<&[usize]>) -> Vec<usize> {
    let open = |row: usize| answers[row].is_none();
    let mates = |row: usize| groups.is_some_and(|g| (0..answers.len()).any(|other| g[other] == g[row] && open(other)));
    (0..answers.len()).filter(|&row| open(row) || mates(row)).collect()
}

/// Asks a reward about some samples of a request.
fn ask(reward: &dyn Reward, request: &Request<'_>, rows: &[usize]) -> Vec<Result<Score, RewardError>> {
    match rows.len() {
        0 => Vec::new(),
        all if all == request.images.len() => reward::ask(reward, request),
        _ => reward::ask(reward, &request.select(rows).request()),
    }
}

/// What names each sample: picture and prompt, or those of its whole group and its place in it.
fn keys(request: &Request<'_>, groups: Option<&[usize]>) -> Vec<String> {
    let own: Vec<String> =
        request.images.iter().zip(request.prompts).map(|(image, prompt)| key(image, prompt)).collect();
    let Some(groups) = groups else { return own };
    let group = |row: usize| {
        let mut hash = Sha256::new();
        let mates = (0..own.len()).filter(|&other| groups[other] == groups[row]);
        mates.for_each(|other| hash.update(own[other].as_bytes()));
        format!("{}-{}", own[row], hex(&hash.finalize()))
    };
    (0..own.len()).map(group).collect()
}

fn key(image: &RgbImage, prompt: &Prompt) -> String {
    let mut hash = Sha256::new();
    hash.update(picture_hash(image).as_bytes());
    hash.update(serde_json::to_vec(prompt).expect("invariant: a prompt was read from JSON"));
    hex(&hash.finalize())
}

/// SHA-256 of a picture: its width and height, 32 bits each with the lowest byte first, and its pixels.
pub fn picture_hash(image: &RgbImage) -> String {
    let mut hash = Sha256::new();
    hash.update(image.width().to_le_bytes());
    hash.update(image.height().to_le_bytes());
    hash.update(image.as_raw());
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
