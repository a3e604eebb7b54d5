//! Who writes to a run folder: one process at a time.
//!
//! `lock.json` names the process, its host and since when. The process holds the operating system's lock on the file, which ends with the
//! process however that ends: a file that nobody of this host locks is of one that was killed, and is taken over. Other hosts may not see
//! locks of this one, so that a file of another host counts whether it is locked or not. Where the file system has no locks, the number of
//! the process has to do.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use crate::RunLogError;

/// Its name in a run folder.
pub(crate) const NAME: &str = "lock.json";

/// How long a process may take to write its name into a file that it has locked.
const TO_WRITE: Duration = Duration::from_secs(1);

/// A process that writes to a run folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// The host that it runs on.
    pub host: String,
    /// When it took the folder: a time by RFC 3339.
    pub since: String,
}

impl Holder {
    /// This process, from now on.
    fn own() -> Self {
        let since = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { process: std::process::id(), host: host(), since }
    }

    /// What a lock file says; nothing of one that a kill left unwritten.
    fn read(mut file: &File) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        let Ok(value) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let process = value["process"].as_u64().and_then(|process| u32::try_from(process).ok());
        Ok(process.zip(text("host")).zip(text("since")).map(|((process, host), since)| Self { process, host, since }))
    }

    /// Says so in a lock file.
    fn write(&self, mut file: &File) -> io::Result<()> {
        let Self { process, host, since } = self;
        let text = json!({ "process": process, "host": host, "since": since }).to_string() + "\n";
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}

/// A folder that is this process's to write to, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// Holds the operating system's lock.
    file: File,
    /// The process that was killed while it had the folder.
    pub(crate) left_by: Option<Holder>,
}

impl Lock {
    /// Takes a folder, which must exist.
    pub(crate) fn take(folder: &Path) -> Result<Self, RunLogError> {
        let path = folder.join(NAME);
        let cannot = |source| RunLogError::io("lock", &path)(source);
        let refused = |holder| RunLogError::Locked { folder: folder.to_owned(), holder };
        let unknown = |holder| RunLogError::LockedElsewhere { folder: folder.to_owned(), holder };
        let end = Instant::now() + TO_WRITE;
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(cannot)?;
            let locks = match file.try_lock() {
                // Whoever had it may have removed it after it was opened here, and another may have made the next.
                Ok(()) if !is_at(&file, &path) => continue,
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => match Holder::read(&file).map_err(cannot)? {
                    Some(holder) => return Err(refused(holder)),
                    // It is about to write its name.
                    None if Instant::now() < end => {
                        thread::sleep(Duration::from_millis(10));
                        continue;
                    }
                    None => return Err(cannot(io::ErrorKind::WouldBlock.into())),
                },
                // A file system without locks.
                Err(TryLockError::Error(_)) => false,
            };
            let left_by = Holder::read(&file).map_err(cannot)?;
            if let Some(holder) = &left_by {
                if holder.host != host() {
                    return Err(unknown(holder.clone()));
                }
                if !locks && is_alive(holder.process) {
                    return Err(refused(holder.clone()));
                }
            }
            Holder::own().write(&file).map_err(cannot)?;
            return Ok(Self { path, file, left_by });
        }
    }

    /// Gives the folder back. For a process that ends without dropping anything.
    pub(crate) fn release(&self) {
        // Given back before, it may be another process's by now. What cannot be removed is stale once this process is gone.
        if is_at(&self.file, &self.path) {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}

/// Whether a path still names an open file.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(place).ok().is_some_and(|open| fs::metadata(path).map(place).ok() == Some(open))
}

/// Whether a path still names an open file: elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// Whether another process of this number runs on this host.
fn is_alive(process: u32) -> bool {
    let other = (process != std::process::id()).then(|| Pid::from_raw(process as i32)).flatten();
    // One of another user may not be asked.
    other.is_some_and(|process| test_kill_process(process) != Err(rustix::io::Errno::SRCH))
}

/// What this host is called.
pub(crate) fn host() -> String {
    let asked =
        || Ok::<_, io::Error>(String::from_utf8_lossy(&Command::new("uname").arg("-n").output()?.stdout).into());
    let name = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| asked()).unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(folder: &Path, holder: &Holder) {
        holder.write(&File::create(folder.join(NAME)).unwrap()).unwrap();
    }

    #[test]
    fn one_at_a_time_and_the_file_goes_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        assert_eq!(first.left_by, None);
        let Err(RunLogError::Locked { holder, .. }) = Lock::take(folder.path()) else { panic!("two have it") };
        assert_eq!((holder.process, holder.host), (std::process::id(), host()));
        drop(first);
        assert!(!folder.path().join(NAME).exists());
        Lock::take(folder.path()).unwrap();
    }

    #[test]
    fn of_many_that_come_together_one_has_it() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let (most, now) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        use std::sync::atomic::Ordering::SeqCst;
                        let Ok(lock) = Lock::take(folder.path()) else { return };
                        most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                        thread::yield_now();
                        now.fetch_sub(1, SeqCst);
                        drop(lock);
                    });
                }
            });
            assert_eq!(most.into_inner(), 1);
        }
    }

    #[test]
    fn what_a_killed_process_of_this_host_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let gone = Holder { process: 1, host: host(), since: "2026-11-29T07:33:00Z".into() };
        says(folder.path(), &gone);
        assert_eq!(Lock::take(folder.path()).unwrap().left_by, Some(gone));
        // Killed before it had written its name.
        for torn in ["", "{\"process\": 1"] {
            fs::write(folder.path().join(NAME), torn).unwrap();
            assert_eq!(Lock::take(folder.path()).unwrap().left_by, None);
        }
    }

    #[test]
    fn another_host_is_refused_with_what_to_remove() {
        let folder = tempfile::tempdir().unwrap();
        says(folder.path(), &Holder { process: 7, host: "node-3".into(), since: "2026-11-29T07:33:00Z".into() });
        let before = fs::read(folder.path().join(NAME)).unwrap();
        let error = Lock::take(folder.path()).unwrap_err();
        for part in ["process 7", "host node-3", "2026-11-29T07:33:00Z", &*folder.path().to_string_lossy()] {
            assert!(error.to_string().contains(part), "{part} is not in {error}");
        }
        assert!(error.hint().unwrap().contains("remove its lock.json"));
        assert_eq!(fs::read(folder.path().join(NAME)).unwrap(), before);
    }

    #[test]
    fn a_process_that_runs_is_alive_and_one_that_ended_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(is_alive(child.id()) && is_alive(1) && !is_alive(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(child.id()));
    }
}
