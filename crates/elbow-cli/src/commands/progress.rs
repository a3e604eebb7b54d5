//! Progress in lines: one an epoch, and on a terminal a bar that shows the phase, with lines below that stay.

use crate::{
    live::waiting_line,
    numbers::{duration, short},
    output,
};
use elbow_run::Event;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use ratatui::crossterm::terminal;
use serde_json::{Map, Value};
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A bar on a terminal; plain lines elsewhere.
pub struct Bars {
    all: MultiProgress,
    bar: ProgressBar,
    /// No bar but lines, below the one that is.
    below: ProgressBar,
    start: Instant,
    phase: Mutex<Phase>,
}

/// How fast the phase under way goes.
struct Phase {
    name: &'static str,
    /// When it was first heard of, and what had passed it then.
    first: (Instant, usize),
    /// Whether its pace needs no line: there was one, or an epoch told how long the rest takes.
    told: bool,
    /// Whether an epoch is over.
    epoch_known: bool,
}

/// What a phase must have taken before a line tells how long it will, where there is no bar.
const LONG: Duration = Duration::from_secs(30);

impl Bars {
    /// Nothing to show yet.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg:<28} [{bar:32}] {pos}/{len}, {eta} left")
            .expect("invariant: a valid template");
        let lines = ProgressStyle::with_template("{msg}").expect("invariant: a valid template");
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = all.add(ProgressBar::no_length().with_style(style.progress_chars("=> ")));
        let below = all.add(ProgressBar::no_length().with_style(lines));
        let start = Instant::now();
        Self {
            all,
            bar,
            below,
            start,
            phase: Mutex::new(Phase { name: "", first: (start, 0), told: false, epoch_known: false }),
        }
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.all.suspend(|| output::line(line));
    }

    /// Prints a line beside the output, after the `^C` that a terminal may have shown.
    pub fn note(&self, line: &str) {
        // Nobody may be there to read it.
        self.all.suspend(|| drop(writeln!(stderr(), "\n{line}")));
    }

    /// The width for lines below the bar, where they are shown.
    pub fn width(&self) -> Option<usize> {
        if self.all.is_hidden() {
            return None;
        }
        // The last column is left empty: some terminals go to the next line there.
        Some(terminal::size().map_or(80, |(columns, _)| usize::from(columns)).saturating_sub(1))
    }

    /// Shows lines below the bar.
    pub fn below(&self, lines: String) {
        self.below.set_message(lines);
    }

    /// Takes all away that is not an ordinary line, for good.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
        self.below.finish_and_clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Shows how far a phase is, and prints warnings; other events are not for a bar.
    pub fn progress(&self, event: Event<'_>) {
        if let Event::Warning { text } = event {
            return self.say(&format!("warning: {text}"));
        }
        if let Event::Waiting { waiting } = event {
            return self.say(&waiting_line(&waiting));
        }
        let Event::Progress { phase, done, total } = event else { return };
        let line = self.phase.lock().unwrap_or_else(PoisonError::into_inner).passed(Instant::now(), phase, done, total);
        if !std::io::stderr().is_terminal() {
            if let Some(line) = line {
                self.say(&line);
            }
            return;
        }
        if done >= total {
            return self.bar.finish_and_clear();
        }
        if self.bar.is_finished() {
            self.bar.reset();
        }
        self.bar.set_length(total as u64);
        self.bar.set_message(phase);
        self.bar.set_position(done as u64);
    }

    /// One line for a finished epoch.
    pub fn epoch(
        &self,
        (epoch, total): (u64, u64),
        reward: &str,
        record: &Map<String, Value>,
        took: Duration,
        left: Duration,
    ) {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).epoch_known = true;
        let number = |key: &str| record.get(key).and_then(Value::as_f64);
        let mut line = format!("epoch {epoch:>4}/{total}");
        let shown = [
            (format!("reward_{reward}"), "reward"),
            ("zero_std_ratio".into(), "agree"),
            ("kl_loss".into(), "kl"),
            ("logratio_std".into(), "log-ratio"),
            ("grad_norm".into(), "grad"),
            ("eval_reward_geneval".into(), "held-out"),
            ("eval_reward_judge".into(), "judge"),
            ("eval_reward_jpeg".into(), "held-out jpeg"),
        ];
        for (key, name) in shown {
            if let Some(value) = number(&key) {
                let _ = write!(line, "  {name} {}", short(value));
            }
        }
        let done = self.start.elapsed();
        let (minutes, seconds) = (done.as_secs() / 60, done.as_secs() % 60);
        let _ = write!(line, "  {:.1}s  ({minutes}:{seconds:02} so far", took.as_secs_f64());
        if epoch < total {
            let _ = write!(line, ", about {} to go", duration(left.as_secs_f64()));
        }
        line.push(')');
        self.say(&line);
    }
}

impl Phase {
    /// Notes how far a phase has come. The line to print, once a phase of the first epoch has taken long.
    fn passed(&mut self, now: Instant, name: &'static str, done: usize, total: usize) -> Option<String> {
        if name != self.name || done < self.first.1 {
            (self.name, self.first, self.told) = (name, (now, done), false);
        }
        let (since, before) = self.first;
        let took = now - since;
        if self.told || self.epoch_known || took < LONG || done == before || done >= total {
            return None;
        }
        self.told = true;
        let left = took.as_secs_f64() / (done - before) as f64 * (total - done) as f64;
        Some(format!("{name}: {done} of {total}, about {} to go", duration(left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_phase_of_the_first_epoch_tells_once_how_long_it_takes() {
        let start = Instant::now();
        let mut phase = Phase { name: "", first: (start, 0), told: false, epoch_known: false };
        let mut at = |seconds, name, done| phase.passed(start + Duration::from_secs(seconds), name, done, 100);
        assert_eq!(at(1000, "rollout", 2), None);
        assert_eq!(at(1029, "rollout", 10), None);
        assert_eq!(at(1032, "rollout", 10).as_deref(), Some("rollout: 10 of 100, about 6 min 00 s to go"));
        assert_eq!(at(1064, "rollout", 20), None);
        assert_eq!(at(1400, "update", 4), None);
        assert_eq!(at(1500, "update", 29).as_deref(), Some("update: 29 of 100, about 4 min 44 s to go"));
        phase.epoch_known = true;
        let mut at = |seconds, done| phase.passed(start + Duration::from_secs(seconds), "rollout", done, 100);
        assert_eq!((at(2000, 2), at(2100, 50)), (None, None));
    }
}
