//! What `elbow train` shows while it trains.
//!
//! ```text
//! curves.rs     what is known of the run: curves, phase, messages; sparklines
//! screen.rs     that on a whole screen, and what keys do to it
//! terminal.rs   the terminal in that mode, and out of it on every way
//! ```
//!
//! [`Bars`] are the other view: lines, and on a terminal a bar and sparklines below them.

mod curves;
mod screen;
mod terminal;

pub use curves::{Start, waiting_line};
pub use terminal::restore;

use crate::{commands::progress::Bars, output};
use anyhow::Result;
use curves::Board;
use elbow_run::Event;
use elbow_runlog::{RunFolder, metrics};
use std::{
    fs,
    io::{Write, stderr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use terminal::FullScreen;

/// What is shown of a run, from before it is loaded until it ends.
pub struct View {
    board: Arc<Mutex<Board>>,
    shown: Shown,
}

enum Shown {
    Lines(Bars),
    Screen(FullScreen),
}

impl View {
    /// Lines.
    pub fn lines(recipe: &str) -> Self {
        Self { board: Arc::new(Mutex::new(Board::new(recipe))), shown: Shown::Lines(Bars::new()) }
    }

    /// The full screen. [`View::leave`] it.
    pub fn screen(recipe: &str) -> Result<Self> {
        let board = Arc::new(Mutex::new(Board::new(recipe)));
        let screen = FullScreen::enter(Arc::clone(&board))?;
        Ok(Self { board, shown: Shown::Screen(screen) })
    }

    /// Takes over what a run is, once it is ready to train.
    pub fn begin(&self, start: &Start<'_>) {
        self.board().begin(start);
        match &self.shown {
            Shown::Lines(bars) => self.draw_below(bars),
            Shown::Screen(screen) => screen.draw_anew(),
        }
    }

    /// Shows what happened.
    pub fn event(&self, event: Event<'_>) {
        self.board().event(event);
        match &self.shown {
            Shown::Lines(bars) => {
                if let Event::Epoch { epoch, record, took, left, .. } = event {
                    let (epochs, reward) = {
                        let board = self.board();
                        (board.epochs, board.reward.clone())
                    };
                    bars.epoch((epoch, epochs), &reward, record, took, left);
                } else {
                    bars.progress(event);
                }
                if let Event::Epoch { .. } | Event::Evaluation { .. } | Event::Pictures { .. } = event {
                    self.draw_below(bars);
                }
            }
            // It draws by itself.
            Shown::Screen(_) => {}
        }
    }

    /// Prints a line of the output. On the full screen it is a message, and printed after it.
    pub fn say(&self, line: &str) {
        match &self.shown {
            Shown::Lines(bars) => bars.say(line),
            Shown::Screen(_) => {
                let mut board = self.board();
                board.tell(line);
                board.kept.push(curves::plain(line));
            }
        }
    }

    /// Tells of something in passing, beside the output.
    pub fn note(&self, line: &str) {
        match &self.shown {
            Shown::Lines(bars) => bars.note(line),
            Shown::Screen(_) if terminal::is_left() => {
                // Nobody may be there to read it.
                let _ = writeln!(stderr(), "{line}");
            }
            Shown::Screen(_) => self.board().tell(line),
        }
    }

    /// Ends the view: what follows is printed as any output is.
    pub fn leave(&self) {
        match &self.shown {
            Shown::Lines(bars) => bars.clear(),
            Shown::Screen(screen) => {
                screen.leave();
                let kept = std::mem::take(&mut self.board().kept);
                for line in kept {
                    output::line(&line);
                }
            }
        }
    }

    fn draw_below(&self, bars: &Bars) {
        if let Some(width) = bars.width() {
            let lines = self.board().lines(width);
            bars.below(lines);
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a folder has of earlier epochs: its records, and its newest pictures.
pub fn earlier(folder: &RunFolder) -> Result<(Vec<metrics::Record>, Option<PathBuf>)> {
    let records = if folder.metrics().exists() { metrics::read(&folder.metrics())? } else { Vec::new() };
    let pictures = fs::read_dir(folder.images()).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_epoch = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("epoch-"));
    Ok((records, pictures.filter(of_epoch).max()))
}
