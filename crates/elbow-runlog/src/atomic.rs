//! Writes that a kill or a power failure leaves whole: either what was there before, or what was to be there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::RunLogError;

/// Writes `bytes` to `path`, replacing what is there.
///
/// The bytes go to `.<name>.tmp` in the same folder and are flushed to the disk before that file takes the name; a
/// leftover of an earlier kill is overwritten. Two processes must not write the same path at once.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RunLogError> {
    let temporary = hidden(path, ".tmp");
    write_synced(&temporary, bytes)?;
    fs::rename(&temporary, path).map_err(RunLogError::io("write", path))?;
    sync_dir(parent(path))
}

/// Gives the folder `new` the name `path`, replacing a folder that has it.
///
/// An existing `path` is moved to `.<name>.old` first and removed afterwards: a folder cannot be replaced in one step.
/// A kill between the two renames leaves the old folder under that name, whole.
pub fn replace_dir(new: &Path, path: &Path) -> Result<(), RunLogError> {
    let old = hidden(path, ".old");
    if path.exists() {
        remove_dir(&old)?;
        fs::rename(path, &old).map_err(RunLogError::io("move aside", path))?;
    }
    fs::rename(new, path).map_err(RunLogError::io("rename to", path))?;
    sync_dir(parent(path))?;
    remove_dir(&old)
}

/// Writes a file and waits until the disk has it.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), RunLogError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(RunLogError::io("write", path))
}

/// Waits until the disk has the names in a folder. Only Unix can; elsewhere a rename is durable or it is not.
pub(crate) fn sync_dir(path: &Path) -> Result<(), RunLogError> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(RunLogError::io("flush", path))?;
    }
    Ok(())
}

/// Removes a folder with all it holds; an absent one is no error.
pub(crate) fn remove_dir(path: &Path) -> Result<(), RunLogError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RunLogError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// `folder/name` as `folder/.name<suffix>`.
pub(crate) fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(suffix);
    path.with_file_name(name)
}

/// The folder of a path; a bare name lies in the current one.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(folder.path().join(".config.toml.tmp"), "left by a kill, and longer than what follows").unwrap();
        write_atomic(&path, b"seed = 1").unwrap();
        write_atomic(&path, b"seed = 2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"seed = 2");
        assert_eq!(names(folder.path()), ["config.toml"]);
    }

    #[test]
    fn an_absent_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(&folder.path().join("absent/config.toml"), b"").unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn replaces_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (new, path) = (folder.path().join("new"), folder.path().join("final"));
        for (source, content) in [(&path, "old"), (&new, "new")] {
            fs::create_dir(source).unwrap();
            fs::write(source.join("file"), content).unwrap();
        }
        replace_dir(&new, &path).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "new");
        assert_eq!(names(folder.path()), ["final"]);
    }
}
