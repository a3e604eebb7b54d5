//! What is known of the run under way: its curves, its phase, its latest messages. Both views show it.

use crate::numbers::short;
use elbow::{eval::Measured, observer::Waiting};
use elbow_run::Event;
use serde_json::{Map, Value};
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Messages that are kept for the screen.
const MESSAGES: usize = 50;

/// Levels of a sparkline, from the smallest value to the largest.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A number of the record, epoch by epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its key in `metrics.jsonl`.
    pub name: String,
    /// Epochs that have the key, and what it says there; `None` where that is not finite.
    pub points: Vec<(u64, Option<f64>)>,
    /// Whether it counts something.
    pub whole: bool,
}

impl Series {
    /// The values alone.
    pub fn values(&self) -> Vec<Option<f64>> {
        self.points.iter().map(|(_, value)| *value).collect()
    }

    /// What the last epoch that has the key says.
    pub fn latest(&self) -> String {
        match self.points.last().and_then(|(_, value)| *value) {
            None => "–".to_owned(),
            Some(value) if self.whole => format!("{value:.0}"),
            // Zero has no sign here.
            Some(value) => short(value + 0.0),
        }
    }
}

/// What a run is, once it is ready to train.
pub struct Start<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// Epochs trained.
    pub epoch: u64,
    /// Epochs to train.
    pub epochs: u64,
    /// The name of its reward.
    pub reward: &'a str,
    /// What held-out prompts are scored with.
    pub measures: &'a [String],
    /// What the folder says of earlier epochs.
    pub records: &'a [Map<String, Value>],
    /// The newest pictures of an epoch in the folder.
    pub pictures: Option<PathBuf>,
}

/// What is known of a run.
pub struct Board {
    /// The recipe.
    pub recipe: String,
    /// The run folder, once it is known.
    pub folder: String,
    /// Epochs trained.
    pub epoch: u64,
    /// Epochs to train; 0 while the run is loaded.
    pub epochs: u64,
    /// The name of the reward.
    pub reward: String,
    /// The phase under way, and how many of how many have passed it.
    pub phase: Option<(&'static str, usize, usize)>,
    /// The newest pictures of an epoch.
    pub pictures: Option<String>,
    /// The latest messages, oldest first.
    pub messages: VecDeque<String>,
    /// What is to be read after the full screen too.
    pub kept: Vec<String>,
    /// When it was begun.
    pub start: Instant,
    /// When the last epoch ended, and what the others should take from then on.
    left: Option<(Instant, Duration)>,
    /// Names of the main curves.
    main: Vec<String>,
    /// All curves, in the order of the record.
    series: Vec<Series>,
}

impl Board {
    /// Nothing is known but a name.
    pub fn new(recipe: &str) -> Self {
        Self {
            recipe: plain(recipe),
            folder: String::new(),
            epoch: 0,
            epochs: 0,
            reward: String::new(),
            phase: None,
            pictures: None,
            messages: VecDeque::new(),
            kept: Vec::new(),
            start: Instant::now(),
            left: None,
            main: Vec::new(),
            series: Vec::new(),
        }
    }

    /// Takes over what a run is, with its earlier records.
    pub fn begin(&mut self, start: &Start<'_>) {
        let Start { folder, epoch, epochs, reward, measures, records, pictures } = start;
        (self.folder, self.epoch, self.epochs) = (plain(&folder.display().to_string()), *epoch, *epochs);
        self.reward = plain(reward);
        self.pictures = pictures.as_deref().map(shown);
        self.main = vec![training(&self.reward)];
        self.main.extend(measures.iter().map(|measure| held_out(&plain(measure))));
        self.main.extend(["kl_loss", "zero_std_ratio"].map(str::to_owned));
        for record in *records {
            self.record(record);
        }
    }

    /// Takes over what happened.
    pub fn event(&mut self, event: Event<'_>) {
        match event {
            // Threads report side by side, so a number may be overtaken by a larger one. What has ended begins anew.
            Event::Progress { phase, done, total } => {
                let before = self.phase.filter(|(name, before, _)| *name == phase && *before < total);
                let done = before.map_or(done, |(_, before, _)| done.max(before));
                self.phase = Some((phase, done, total));
            }
            Event::Warning { text } => {
                let line = plain(&format!("warning: {text}"));
                self.kept.push(line.clone());
                self.tell(&line);
            }
            Event::Waiting { waiting } => self.tell(&waiting_line(&waiting)),
            Event::Evaluation { epoch, measured } => self.evaluation(epoch, measured),
            Event::Epoch { epoch, record, left, .. } => {
                self.epoch = epoch;
                self.left = Some((Instant::now(), left));
                self.record(record);
            }
            Event::Pictures { path, .. } => self.pictures = Some(shown(path)),
            _ => {}
        }
    }

    /// Adds a message.
    pub fn tell(&mut self, line: &str) {
        if self.messages.len() == MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(plain(line));
    }

    /// What the epochs that follow should take from `now` on, once that is known.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.left.map(|(since, left)| left.saturating_sub(now.saturating_duration_since(since)))
    }

    /// The main curves that have a point, the training reward first.
    pub fn main(&self) -> impl Iterator<Item = &Series> {
        self.main.iter().filter_map(|name| self.series(name))
    }

    /// All curves: the main ones, the others of training, those of held-out prompts by task.
    pub fn all(&self) -> Vec<&Series> {
        let others = self.series.iter().filter(|series| !self.main.contains(&series.name));
        let (held_out, trained): (Vec<_>, Vec<_>) = others.partition(|series| series.name.starts_with("eval_"));
        self.main().chain(trained).chain(held_out).collect()
    }

    /// The curve of a name.
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// The main curves as sparklines, each with its name and its latest number, and where the newest pictures are.
    pub fn lines(&self, width: usize) -> String {
        let mut lines = sparklines(&self.main().collect::<Vec<_>>(), width);
        lines.extend(self.pictures.as_ref().map(|path| format!("pictures  {path}")));
        lines.join("\n")
    }

    /// Numbers of a record. Only those of an epoch that follows are new: an evaluation is told, and then recorded with its epoch.
    fn record(&mut self, record: &Map<String, Value>) {
        let epoch = record.get("epoch").and_then(Value::as_u64).unwrap_or(0);
        for (name, value) in record {
            if name != "epoch" && (value.is_number() || value.is_null()) {
                self.add(name, epoch, value.as_f64(), value.is_i64() || value.is_u64());
            }
        }
    }

    fn evaluation(&mut self, epoch: u64, measured: &Measured) {
        for measure in measured.scores.keys() {
            let Some(summary) = measured.summary(measure) else { continue };
            self.add(&held_out(measure), epoch, Some(summary.mean), false);
            for (tag, mean) in summary.by_tag {
                self.add(&format!("{}_{tag}", held_out(measure)), epoch, Some(mean), false);
            }
        }
    }

    fn add(&mut self, name: &str, epoch: u64, value: Option<f64>, whole: bool) {
        let (name, value) = (plain(name), value.filter(|value| value.is_finite()));
        match self.series.iter_mut().find(|series| series.name == name) {
            Some(series) if series.points.last().is_some_and(|(last, _)| *last >= epoch) => {}
            Some(series) => series.points.push((epoch, value)),
            None => self.series.push(Series { name, points: vec![(epoch, value)], whole }),
        }
    }
}

/// The key of a reward in training.
pub fn training(reward: &str) -> String {
    format!("reward_{reward}")
}

/// The key of a reward on held-out prompts.
pub fn held_out(reward: &str) -> String {
    format!("eval_reward_{reward}")
}

/// A line that says what is waited for.
pub fn waiting_line(waiting: &Waiting<'_>) -> String {
    let Waiting { reward, missing, total, first, .. } = waiting;
    let seconds = waiting.pause().as_secs_f64();
    format!(
        "waiting: {missing} of {total} scores of reward `{reward}` are missing ({first}); asking again in {seconds} s"
    )
}

/// Text without control characters, which would steer a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Name, latest number and sparkline of each, in a width; no sparklines where there is no room.
pub fn sparklines(all: &[&Series], width: usize) -> Vec<String> {
    let numbers: Vec<String> = all.iter().map(|series| series.latest()).collect();
    let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let name = longest(&mut all.iter().map(|series| series.name.chars().count())).min(width / 2);
    let number = longest(&mut numbers.iter().map(|number| number.chars().count()));
    let room = width.saturating_sub(name + number + 2);
    let line = |(series, text): (&&Series, &String)| {
        let key: String = series.name.chars().take(name).collect();
        let line = format!("{key:<name$} {text:>number$} {}", sparkline(&series.values(), room));
        line.trim_end().chars().take(width).collect()
    };
    all.iter().zip(&numbers).map(line).collect()
}

/// A character a value, where there are more values than characters one for the mean of several; a space where there is none. The
/// smallest is the lowest bar and the largest the highest. Where all agree, all are of middle height.
pub fn sparkline(values: &[Option<f64>], width: usize) -> String {
    let count = values.len().min(width);
    let means: Vec<Option<f64>> = (0..count)
        .map(|at| {
            let part = &values[at * values.len() / count..(at + 1) * values.len() / count];
            let finite: Vec<f64> = part.iter().flatten().copied().filter(|value| value.is_finite()).collect();
            (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64)
        })
        .collect();
    let low = means.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    let high = means.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
    let top = (LEVELS.len() - 1) as f64;
    means
        .iter()
        .map(|mean| match mean {
            None => ' ',
            Some(_) if low >= high => LEVELS[3],
            Some(value) => LEVELS[((value - low) / (high - low) * top).round() as usize],
        })
        .collect()
}

fn shown(path: impl AsRef<Path>) -> String {
    plain(&path.as_ref().display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn some(values: &[f64]) -> Vec<Option<f64>> {
        values.iter().copied().map(Some).collect()
    }

    #[test]
    fn a_sparkline_goes_from_the_smallest_to_the_largest() {
        assert_eq!(sparkline(&some(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&some(&[-2.0, 5.0, 1.5]), 10), "▁█▅");
        assert_eq!(sparkline(&some(&[1e300, -1e300]), 10), "█▁");
    }

    #[test]
    fn what_is_missing_is_a_gap() {
        assert_eq!(sparkline(&[Some(0.0), None, Some(7.0), Some(f64::NAN), Some(f64::INFINITY)], 9), "▁ █  ");
        assert_eq!(sparkline(&[None, None], 9), "  ");
        assert_eq!(sparkline(&[], 9), "");
        assert_eq!(sparkline(&some(&[1.0, 2.0]), 0), "");
    }

    #[test]
    fn one_value_and_equal_values_are_of_middle_height() {
        assert_eq!(sparkline(&some(&[0.3]), 9), "▄");
        assert_eq!(sparkline(&some(&[0.3, 0.3, 0.3]), 9), "▄▄▄");
    }

    #[test]
    fn more_values_than_characters_are_averaged() {
        assert_eq!(sparkline(&some(&[0.0, 2.0, 3.0, 5.0, 7.0, 9.0]), 3), "▁▄█");
        assert_eq!(sparkline(&[None, None, Some(1.0), None, Some(2.0), Some(4.0)], 3), " ▁█");
    }

    fn board() -> Board {
        let mut board = Board::new("a recipe");
        let records = [
            json!({"epoch": 0, "eval_reward_judge_dog": 0.5, "eval_reward_judge": 0.25}),
            json!({"epoch": 1, "time_update": 2.0, "kl_loss": null, "reward_hps": 0.5, "radar": "text", "step": 7, "policy_loss": -0.0}),
        ];
        board.begin(&Start {
            folder: Path::new("runs/a"),
            epoch: 1,
            epochs: 9,
            reward: "hps",
            measures: &["judge".into(), "hps".into()],
            records: &records.map(|record| record.as_object().unwrap().clone()),
            pictures: None,
        });
        board
    }

    #[test]
    fn the_main_curves_come_first_and_begin_with_earlier_records() {
        let board = board();
        let names: Vec<&str> = board.all().iter().map(|series| &*series.name).collect();
        assert_eq!(
            names,
            [
                "reward_hps",
                "eval_reward_judge",
                "kl_loss",
                "time_update",
                "step",
                "policy_loss",
                "eval_reward_judge_dog"
            ]
        );
        assert_eq!(board.series("kl_loss").unwrap().points, [(1, None)]);
        assert_eq!(
            ["kl_loss", "step", "policy_loss"].map(|name| board.series(name).unwrap().latest()),
            ["–", "7", "0.000"]
        );
        let lines = board.lines(60);
        let expected = ["reward_hps        0.500 ▄", "eval_reward_judge 0.250 ▄", "kl_loss               –"];
        assert_eq!(lines, expected.join("\n"));
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let mut board = board();
        let record = json!({"epoch": 1, "reward_hps": 0.75}).as_object().unwrap().clone();
        board.event(Event::Epoch {
            epoch: 1,
            record: &record,
            samples: &[],
            took: Duration::ZERO,
            left: Duration::from_secs(8),
        });
        assert_eq!(board.series("reward_hps").unwrap().points, [(1, Some(0.5))]);
        let later = Instant::now() + Duration::from_secs(3);
        assert!(board.left(later).unwrap() <= Duration::from_secs(5));
        assert_eq!(board.left(later + Duration::from_mins(1)), Some(Duration::ZERO));
    }

    #[test]
    fn a_phase_does_not_go_back() {
        let mut board = board();
        for done in [2, 1] {
            board.event(Event::Progress { phase: "rollout", done, total: 4 });
        }
        assert_eq!(board.phase, Some(("rollout", 2, 4)));
        for done in [4, 1] {
            board.event(Event::Progress { phase: "rollout", done, total: 4 });
        }
        assert_eq!(board.phase, Some(("rollout", 1, 4)));
    }

    #[test]
    fn nothing_that_is_shown_steers_the_terminal() {
        let mut board = board();
        board.event(Event::Warning { text: "a\u{1b}[2Jb\nc\u{9b}d" });
        board.event(Event::Pictures { epoch: 1, path: Path::new("x\u{7}.png") });
        assert_eq!(board.messages.back().unwrap(), "warning: a [2Jb c d");
        assert_eq!(board.kept, ["warning: a [2Jb c d"]);
        assert!(board.lines(80).ends_with("\npictures  x .png"));
    }

    #[test]
    fn lines_fit_any_width() {
        let board = board();
        for width in 0..60 {
            assert!(board.lines(width).lines().all(|line| line.chars().count() <= width), "{width}");
        }
    }
}
