//! Progress: one bar that shows the phase, and a line an epoch.

use crate::{numbers::duration, output};
use elbow::observer::Waiting;
use elbow_run::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};
use std::{
    fmt::Write,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A bar on a terminal; plain lines elsewhere.
pub struct Bars {
    bar: ProgressBar,
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
        let bar =
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style.progress_chars("=> "));
        let start = Instant::now();
        Self { bar, start, phase: Mutex::new(Phase { name: "", first: (start, 0), told: false, epoch_known: false }) }
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| output::line(line));
    }

    /// Shows how far a phase is, and prints warnings; other events are not for a bar.
    pub fn progress(&self, event: Event<'_>) {
        if let Event::Warning { text } = event {
            return self.say(&format!("warning: {text}"));
        }
        if let Event::Waiting { waiting } = event {
            let Waiting { reward, missing, total, first, .. } = waiting;
            let seconds = waiting.pause().as_secs_f64();
            return self.say(&format!(
                "waiting: {missing} of {total} scores of reward `{reward}` are missing ({first}); asking again in {seconds} s"
            ));
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
                let text =
                    if value != 0.0 && value.abs() < 1e-3 { format!("{value:.1e}") } else { format!("{value:.3}") };
                let _ = write!(line, "  {name} {text}");
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
