//! The terminal while a run is shown on the whole of it.
//!
//! A thread of its own draws and listens for keys. The terminal is made what it was before by [`FullScreen::leave`], by the panic hook, and by
//! whoever ends the program at once.

use super::{
    curves::Board,
    screen::{self, Choice, Press},
};
use anyhow::{Context, Result};
use ratatui::{
    Terminal,
    backend::{Backend, CrosstermBackend},
    crossterm::{
        cursor::{Hide, Show},
        event::{self, Event},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use signal_hook::{consts::SIGINT, low_level::raise};
use std::{
    io::{Stdout, stdout},
    panic,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Whether the terminal is to be restored.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// How long a key is waited for before the screen is drawn again.
const TICK: Duration = Duration::from_millis(200);

/// The terminal, as long as it shows a run.
pub struct FullScreen {
    /// Held while something is drawn: nothing is drawn on a terminal that was left.
    drawing: Arc<Mutex<()>>,
    /// Whether something else may have written on the screen.
    anew: Arc<AtomicBool>,
}

impl FullScreen {
    /// Takes the terminal over.
    pub fn enter(board: Arc<Mutex<Board>>) -> Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        ENTERED.store(true, Ordering::SeqCst);
        let entered = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, Hide))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        let terminal = entered.inspect_err(|_| restore()).context("cannot use the terminal")?;
        let screen = Self { drawing: Arc::default(), anew: Arc::default() };
        let (drawing, anew) = (Arc::clone(&screen.drawing), Arc::clone(&screen.anew));
        thread::spawn(move || show(terminal, &board, &drawing, &anew));
        Ok(screen)
    }

    /// Draws all of it again.
    pub fn draw_anew(&self) {
        self.anew.store(true, Ordering::SeqCst);
    }

    /// Makes the terminal what it was before.
    pub fn leave(&self) {
        let _drawing = self.drawing.lock().unwrap_or_else(PoisonError::into_inner);
        restore();
    }
}

/// Draws and hears keys until the terminal is left.
fn show(
    mut terminal: Terminal<CrosstermBackend<Stdout>>,
    board: &Mutex<Board>,
    drawing: &Mutex<()>,
    anew: &AtomicBool,
) {
    let lock = || board.lock().unwrap_or_else(PoisonError::into_inner);
    let mut choice = Choice::default();
    loop {
        {
            let _drawing = drawing.lock().unwrap_or_else(PoisonError::into_inner);
            if is_left() {
                return;
            }
            // A terminal that cannot be written to is none of the run's business.
            if anew.swap(false, Ordering::SeqCst) {
                let _ = terminal.backend_mut().clear();
                // Nothing of the screen before is taken to be there.
                terminal.swap_buffers();
            }
            let board = lock();
            let _ = terminal.draw(|frame| screen::draw(frame, &board, &choice, Instant::now()));
        }
        let heard = match event::poll(TICK) {
            Ok(true) => event::read().ok(),
            Ok(false) => None,
            Err(_) => {
                thread::sleep(TICK);
                None
            }
        };
        match heard.and_then(|event| if let Event::Key(key) = event { screen::press(key) } else { None }) {
            // What listens for signals does what Ctrl-C asks for, wherever it comes from.
            Some(Press::Stop) => drop(raise(SIGINT)),
            Some(Press::Next) => choice.turn(&lock(), true),
            Some(Press::Previous) => choice.turn(&lock(), false),
            None => {}
        }
    }
}

/// Whether the terminal is as it was before.
pub fn is_left() -> bool {
    !ENTERED.load(Ordering::SeqCst)
}

/// Makes the terminal what it was before, if it is not. Anybody may call it at any time.
pub fn restore() {
    if ENTERED.swap(false, Ordering::SeqCst) {
        // The terminal may be gone.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}
