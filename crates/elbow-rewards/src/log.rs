//! What rewards say while they work: a worker's printed lines, a server that does not answer.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// Lines of rewards, on their way to a file. Clones are one log. Until it has a file it keeps what is said.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Target>>);

#[derive(Debug, Default)]
struct Target {
    path: Option<PathBuf>,
    waiting: Vec<String>,
}

impl Log {
    /// Adds a line of the named reward.
    pub fn say(&self, reward: &str, line: &str) {
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        target.waiting.push(format!("{reward}: {line}\n"));
        target.write();
    }

    /// Appends what was said and all that will be to a file, which is there once there is something to say.
    pub fn write_to(&self, path: &Path) {
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        target.path = Some(path.to_owned());
        target.write();
    }

    /// What was said and not written to a file, taken out.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting)
    }
}

impl Target {
    /// A log that cannot be written is no reason to stop: its lines wait.
    fn write(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| !self.waiting.is_empty()) else { return };
        let Ok(mut file) = File::options().create(true).append(true).open(path) else { return };
        if file.write_all(self.waiting.concat().as_bytes()).is_ok() {
            self.waiting.clear();
        }
    }
}
