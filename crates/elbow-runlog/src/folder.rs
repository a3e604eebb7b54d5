//! The folder of one run, and the names of what lies in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::RunLogError;

const CONFIG: &str = "config.toml";

/// The folder of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes the folder of a new run. An existing folder is taken only if it is empty: a run never overwrites another.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, RunLogError> {
        let path = path.into();
        match fs::read_dir(&path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(RunLogError::NotEmpty { path });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(RunLogError::io("use as a run folder", &path)(error)),
        }
        let run = Self { path };
        for folder in [run.images(), run.checkpoints()] {
            fs::create_dir_all(&folder).map_err(RunLogError::io("create", &folder))?;
        }
        Ok(run)
    }

    /// Opens the folder of a run that was started before; it must hold the `config.toml` of that run.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RunLogError> {
        let run = Self { path: path.into() };
        fs::read_dir(&run.path).map_err(RunLogError::io("open the run folder", &run.path))?;
        if !run.config().is_file() {
            return Err(RunLogError::NotARun { path: run.path, missing: CONFIG });
        }
        Ok(run)
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
        assert_eq!(RunFolder::open(&path).unwrap(), run);
    }

    #[test]
    fn an_empty_folder_is_taken_and_a_used_one_refused() {
        let root = tempfile::tempdir().unwrap();
        RunFolder::create(root.path()).unwrap();
        let error = RunFolder::create(root.path()).unwrap_err();
        assert!(matches!(error, RunLogError::NotEmpty { .. }), "{error}");
        assert!(error.hint().unwrap().contains("--resume"));
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
