//! Progress: one bar that shows the phase, and a line an epoch.

use crate::output;
use elbow::observer::Waiting;
use elbow_run::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};
use std::{
    fmt::Write,
    io::IsTerminal,
    time::{Duration, Instant},
};

/// A bar on a terminal; plain lines elsewhere.
pub struct Bars {
    bar: ProgressBar,
    start: Instant,
}

impl Bars {
    /// Nothing to show yet.
    pub fn new() -> Self {
        let style =
            ProgressStyle::with_template("{msg:<28} [{bar:32}] {pos}/{len}").expect("invariant: a valid template");
        let bar =
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style.progress_chars("=> "));
        Self { bar, start: Instant::now() }
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
        if !std::io::stderr().is_terminal() {
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
    pub fn epoch(&self, epoch: u64, total: u64, reward: &str, record: &Map<String, Value>, took: Duration) {
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
        let _ = write!(line, "  {:.1}s  ({minutes}:{seconds:02} so far)", took.as_secs_f64());
        self.say(&line);
    }
}
