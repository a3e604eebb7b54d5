//! The file that pictures travel in: raw RGB, written here and mapped by the child.

use elbow::RgbImage;
use serde_json::{Value, json};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use tempfile::TempPath;

/// A file without a name, which is gone with the last process that holds it open. It only grows.
pub(super) struct Shared {
    /// Where it may lie, the best first. A place without room is given up for the next; there is always one.
    places: Vec<PathBuf>,
    file: Option<File>,
    /// Its name, until the child has opened it.
    path: Option<TempPath>,
}

impl Shared {
    /// In memory where the system has `/dev/shm`, else among the temporary files.
    pub(super) fn new() -> Self {
        Self { places: vec!["/dev/shm".into(), std::env::temp_dir()], file: None, path: None }
    }

    /// Writes pictures over those of the last call, and says where each lies.
    pub(super) fn write(&mut self, images: &[&RgbImage]) -> Result<Vec<Value>, String> {
        loop {
            let place = self.places[0].clone();
            let error = match self.try_write(&place, images) {
                Ok(spans) => return Ok(spans),
                Err(error) => error,
            };
            (self.file, self.path) = (None, None);
            if self.places.len() == 1 {
                return Err(format!(
                    "cannot hand over the pictures: writing to {}: {error}: make room there, or set TMPDIR to a folder that has it",
                    place.display()
                ));
            }
            self.places.remove(0);
        }
    }

    /// The file that the child has yet to open.
    pub(super) fn new_file(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The child has opened the file: its name goes.
    pub(super) fn opened(&mut self) {
        self.path = None;
    }

    fn try_write(&mut self, place: &Path, images: &[&RgbImage]) -> io::Result<Vec<Value>> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let (file, path) = tempfile::Builder::new().prefix("elbow-").tempfile_in(place)?.into_parts();
                self.path = Some(path);
                none.insert(file)
            }
        };
        let mut at = 0;
        let mut write = |image: &&RgbImage| {
            file.write_all_at(image.as_raw(), at)?;
            let span = json!({ "at": at, "width": image.width(), "height": image.height() });
            at += image.as_raw().len() as u64;
            Ok(span)
        };
        images.iter().map(&mut write).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_cannot_be_used_is_given_up_for_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shared = Shared { places: vec![folder.path().join("absent"), folder.path().into()], ..Shared::new() };
        let (first, second) = (RgbImage::from_pixel(2, 1, image::Rgb([1, 2, 3])), RgbImage::new(3, 5));
        let spans = shared.write(&[&first, &second]).expect("written");
        assert_eq!(spans[1], json!({ "at": 6, "width": 3, "height": 5 }));

        let path = shared.new_file().expect("a new file").to_owned();
        assert_eq!(path.parent(), Some(folder.path()));
        let bytes = std::fs::read(&path).expect("readable");
        assert_eq!((&bytes[..6], bytes.len()), (&[1, 2, 3, 1, 2, 3][..], 6 + 45));

        shared.opened();
        assert!(!path.exists() && shared.new_file().is_none());
        assert!(shared.write(&[&second]).is_ok() && shared.new_file().is_none(), "the same file");
    }

    #[test]
    fn without_any_place_the_error_names_the_last() {
        let mut shared = Shared { places: vec!["/absent/a".into(), "/absent/b".into()], ..Shared::new() };
        let error = shared.write(&[&RgbImage::new(1, 1)]).expect_err("no place");
        assert!(error.contains("writing to /absent/b: No such file"), "{error}");
    }
}
