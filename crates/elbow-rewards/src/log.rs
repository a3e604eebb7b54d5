//! What rewards say while they work: a worker's printed lines, a server that does not answer.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Lines of rewards, on their way to a file. Clones are one log. Until it has a file it keeps what is said.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Target>>);

#[derive(Debug, Default)]
struct Target {
    file: Option<File>,
    waiting: Vec<String>,
}

impl Log {
    /// Adds a line of the named reward.
    pub fn say(&self, reward: &str, line: &str) {
        let line = format!("{reward}: {line}\n");
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is no reason to stop.
        let written = target.file.as_mut().is_some_and(|file| file.write_all(line.as_bytes()).is_ok());
        if !written {
            target.waiting.push(line);
        }
    }

    /// Appends what was said and all that will be to a file.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(path)?;
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in target.waiting.drain(..) {
            file.write_all(line.as_bytes())?;
        }
        target.file = Some(file);
        Ok(())
    }

    /// What was said and not written to a file, taken out.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting)
    }
}
