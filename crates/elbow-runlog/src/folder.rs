//! The folder of one run, and the names of what lies in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::RunLogError;
use crate::lock::{self, Holder, Lock};

const CONFIG: &str = "config.toml";

/// What else a kill may leave of a run that had not begun, since its `config.toml` comes last.
const BEFORE_CONFIG: [&str; 4] = [lock::NAME, "manifest.json", ".manifest.json.tmp", ".config.toml.tmp"];

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    /// That it is this process's to write to.
    lock: Option<Arc<Lock>>,
}

impl RunFolder {
    /// Makes the folder of a new run and takes it for this process, as [`RunFolder::claim`] does. An existing folder is taken only if it
    /// is empty, or holds no more than a kill left before the run began: a run never overwrites another.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, RunLogError> {
        let run = Self { path: path.into(), lock: None };
        run.check_unused()?;
        fs::create_dir_all(&run.path).map_err(RunLogError::io("create", &run.path))?;
        let run = run.claim()?;
        // Another process may have begun a run here meanwhile, and ended.
        run.check_unused()?;
        for folder in [run.images(), run.checkpoints()] {
            fs::create_dir_all(&folder).map_err(RunLogError::io("create", &folder))?;
        }
        Ok(run)
    }

    /// Opens the folder of a run that was started before; it must hold the `config.toml` of that run.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RunLogError> {
        let run = Self { path: path.into(), lock: None };
        fs::read_dir(&run.path).map_err(RunLogError::io("open the run folder", &run.path))?;
        if !run.config().is_file() {
            return Err(RunLogError::NotARun { path: run.path, missing: CONFIG });
        }
        Ok(run)
    }

    /// Takes the folder for this process to write to, as long as a clone of the result is there; no other process, and nothing else in
    /// this one, can then take it. A second call changes nothing.
    pub fn claim(mut self) -> Result<Self, RunLogError> {
        if self.lock.is_none() {
            self.lock = Some(Arc::new(Lock::take(&self.path)?));
        }
        Ok(self)
    }

    /// The process that was killed while it had the folder, if this one has taken it over.
    pub fn left_by(&self) -> Option<&Holder> {
        self.lock.as_ref()?.left_by.as_ref()
    }

    /// Gives the folder back, for a process that ends at once and drops nothing. It must write no more.
    pub fn release(&self) {
        if let Some(lock) = &self.lock {
            lock.release();
        }
    }

    /// An error if there is more in the folder than what a kill may leave of a run that had not begun.
    fn check_unused(&self) -> Result<(), RunLogError> {
        let cannot = |source| RunLogError::io("use as a run folder", &self.path)(source);
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(cannot)?,
        };
        for entry in entries {
            let entry = entry.map_err(cannot)?;
            let empty = || fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none());
            let left = BEFORE_CONFIG.iter().any(|name| entry.file_name() == *name)
                || [self.images(), self.checkpoints()].contains(&entry.path()) && empty();
            if !left {
                return Err(RunLogError::NotEmpty { path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// The folder itself. TensorBoard event files lie directly in it, so that the run's name is the curve's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// What produced the run: version, command, device.
    pub fn manifest(&self) -> PathBuf {
        self.path.join("manifest.json")
    }

    /// One record per epoch; see [`crate::metrics`].
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder of image grids.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// The folder of the samples of every epoch.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// The folder of what rewards answered since the last checkpoint.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// What rewards said while they worked.
    pub fn reward_log(&self) -> PathBuf {
        self.path.join("rewards.log")
    }

    /// The folder of checkpoints; see [`crate::checkpoint`].
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_has_its_folders_and_opens_once_it_has_a_config() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("runs/first");
        let run = RunFolder::create(&path).unwrap();
        assert!(run.images().is_dir() && run.checkpoints().is_dir());
        let error = RunFolder::open(&path).unwrap_err();
        assert!(error.to_string().ends_with("has no config.toml"), "{error}");
        fs::write(run.config(), "").unwrap();
        assert_eq!(RunFolder::open(&path).unwrap().path(), run.path());
    }

    #[test]
    fn an_empty_folder_is_taken_and_a_used_one_refused() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::create(root.path()).unwrap();
        let error = RunFolder::create(root.path()).unwrap_err();
        assert!(matches!(error, RunLogError::Locked { .. }), "{error}");
        fs::write(run.config(), "").unwrap();
        for _ in 0..2 {
            let error = RunFolder::create(root.path()).unwrap_err();
            assert!(matches!(error, RunLogError::NotEmpty { .. }), "{error}");
            assert!(error.hint().unwrap().contains("--resume"));
            run.release();
        }
    }

    #[test]
    fn what_a_kill_left_before_a_run_began_is_no_run() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::create(root.path()).unwrap();
        fs::write(run.manifest(), "{").unwrap();
        drop(run);
        fs::write(root.path().join("lock.json"), "").unwrap();
        drop(RunFolder::create(root.path()).unwrap());
        fs::write(root.path().join("images/mine.png"), "").unwrap();
        let error = RunFolder::create(root.path()).unwrap_err();
        assert!(matches!(error, RunLogError::NotEmpty { .. }), "{error}");
    }

    #[test]
    fn whoever_only_reads_needs_no_claim_and_may_have_several() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::create(root.path()).unwrap();
        fs::write(run.config(), "").unwrap();
        let claimed = run.claim().unwrap().claim().unwrap();
        let reader = RunFolder::open(root.path()).unwrap();
        assert!(reader.clone().claim().is_err());
        drop(claimed);
        assert_eq!(reader.claim().unwrap().left_by(), None);
    }

    #[test]
    fn a_path_that_cannot_be_a_folder_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("run")] {
            let error = RunFolder::create(&path).unwrap_err();
            assert!(error.to_string().contains(&*path.to_string_lossy()), "{error}");
            assert!(error.hint().is_some());
        }
        assert!(RunFolder::open(root.path().join("absent")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_read_only_parent_is_a_clear_error() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o555)).unwrap();
        let outcome = RunFolder::create(root.path().join("run"));
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The superuser may write anywhere, so there the refusal does not happen.
        if let Err(error) = outcome {
            assert!(error.to_string().starts_with("cannot create"), "{error}");
            assert!(error.hint().unwrap().contains("--run"));
        }
    }
}
