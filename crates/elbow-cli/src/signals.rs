//! What Ctrl-C, a cluster's SIGTERM and a closed terminal's SIGHUP ask for.
//!
//! The first signal saves what of a run is finished at once and lets the epoch under way end, as long as it takes after Ctrl-C, and for
//! `keep.grace_seconds` after the others: whoever sends those kills soon. The second ends the program as soon as what is finished is
//! saved, the third at once.

use crate::{
    live::{self, View},
    output,
};
use anyhow::{Context, Result};
use elbow_run::Finished;
use elbow_runlog::RunFolder;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
    low_level::{exit, signal_name},
};
use std::{
    io::{Write, stderr},
    mem::MaybeUninit,
    ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// One event may send several signals: of a closed terminal tell both the system and the shell. Within this time they count as one.
const TOGETHER: Duration = Duration::from_secs(1);

/// Listens for signals until it is dropped, and what is held for them with it.
pub struct Stop(Arc<State>);

/// What signals act on. Nobody may be there to read what it says: it does not mind.
struct State {
    /// What shows the run, and is left before the program ends.
    view: Arc<View>,
    /// Set by the first: stop before the next epoch.
    flag: Arc<AtomicBool>,
    held: Mutex<Held>,
}

#[derive(Clone, Default)]
enum Held {
    #[default]
    Nothing,
    /// A folder that is to be given back.
    Folder(RunFolder),
    /// What is to be saved before that.
    Finished(Finished),
}

impl Stop {
    /// Listens for signals from now on.
    pub fn listen(grace: Duration, view: Arc<View>) -> Result<Self> {
        let stop = Self(Arc::new(State { view, flag: Arc::default(), held: Mutex::default() }));
        let mut signals = Signals::new(heeded()).context("cannot listen for signals")?;
        let listening = Arc::clone(&stop.0);
        thread::spawn(move || {
            let mut first: Option<Instant> = None;
            let mut leaving = false;
            for signal in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        listening.first(signal, grace);
                    }
                    Some(time) if signal != SIGINT && time.elapsed() < TOGETHER => {}
                    Some(_) if leaving => {
                        live::restore();
                        exit(128 + signal)
                    }
                    Some(_) => {
                        leaving = true;
                        let stop = Arc::clone(&listening);
                        thread::spawn(move || stop.leave(signal, "stopped at once"));
                    }
                }
            }
        });
        Ok(stop)
    }

    /// The flag that the first signal sets.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.flag)
    }

    /// Names the folder of a run that is being loaded.
    pub fn gives_back(&self, folder: &RunFolder) {
        self.0.hold(Held::Folder(folder.clone()));
    }

    /// Names what is to be saved.
    pub fn saves(&self, finished: Finished) {
        self.0.hold(Held::Finished(finished));
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.hold(Held::Nothing);
    }
}

impl State {
    fn hold(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn held(&self) -> Held {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Saves what is finished, and after most signals ends the program in time.
    fn first(self: &Arc<Self>, signal: i32, grace: Duration) {
        self.flag.store(true, Ordering::SeqCst);
        let stopping = Arc::clone(self);
        thread::spawn(move || {
            if let Held::Finished(finished) = stopping.held() {
                // The same is tried again before the end, and what is wrong is told then.
                drop(finished.save());
            }
            if signal != SIGINT {
                thread::sleep(grace);
                let name = signal_name(signal).unwrap_or("a signal");
                let text =
                    format!("this epoch did not end within {} s of {name} (keep.grace_seconds)", grace.as_secs());
                stopping.leave(signal, &text);
            }
        });
        let ending = match signal {
            SIGINT => "finishing this epoch".to_owned(),
            _ => format!("finishing this epoch, if it ends within {} s", grace.as_secs()),
        };
        self.view.note(&format!("{ending}, then saving (a second Ctrl-C or signal stops at once)"));
    }

    /// Saves what is finished and ends the program with the status that a shell gives to a process that the signal killed.
    fn leave(&self, signal: i32, why: &str) -> ! {
        self.view.leave();
        let finished = match self.held() {
            Held::Finished(finished) => finished,
            held => {
                if let Held::Folder(folder) = held {
                    folder.release();
                }
                output::line(&format!("{why}, before the run began"));
                exit(128 + signal)
            }
        };
        let folder = finished.folder();
        let go_on = format!("go on with: elbow train --resume {}", folder.path().display());
        match finished.leave() {
            Ok(0) => output::line(&format!("{why}; no epoch was finished; {go_on}")),
            Ok(epoch) => output::line(&format!("{why}; stopped after epoch {epoch}; {go_on}")),
            Err(error) => {
                let _ = writeln!(stderr(), "error: {why}; what is finished cannot be saved: {}", error.chain());
            }
        }
        exit(128 + signal)
    }
}

/// A flag that the signals set, for work that looks at it.
pub fn flag() -> Result<Arc<AtomicBool>> {
    let set = Arc::new(AtomicBool::new(false));
    for signal in heeded() {
        flag::register(signal, Arc::clone(&set)).context("cannot listen for signals")?;
    }
    Ok(set)
}

/// The signals to listen for: not those that whoever started the program told it to ignore, as `nohup` does with SIGHUP.
fn heeded() -> impl Iterator<Item = i32> {
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !is_ignored(*signal))
}

#[expect(unsafe_code, reason = "asks the system, and changes nothing")]
fn is_ignored(signal: i32) -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, `sigaction` only fills in the one there is; all zeros is one too.
    unsafe {
        libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) == 0 && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
