//! TensorBoard event files: scalars and PNG images.
//!
//! A file is a sequence of `TFRecord`s, each framed as
//!
//! ```text
//! length: u64   masked CRC-32C of length: u32   data   masked CRC-32C of data: u32        all little-endian
//! ```
//!
//! and each holding one protocol-buffer `Event` (`tensorflow/core/util/event.proto` and `framework/summary.proto`).
//! Only the fields below are used, so they are encoded by hand:
//!
//! ```text
//! Event      1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
//! Summary    1 value: repeated Value
//! Value      1 tag: string   2 simple_value: float   4 image: Image
//! Image      1 height   2 width   3 colorspace   4 encoded_image_string
//! SessionLog 1 status (1 = START)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::RgbImage;

use crate::{RunLogError, png};

/// Field number of the `value` entries in a `Summary`.
const VALUE: u32 = 1;
/// TensorBoard's code for three channels.
const RGB: u64 = 3;

/// Writes one event file. Each call is one record and reaches the operating system before it returns.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Opens a new event file in `folder`. Files of earlier starts stay: TensorBoard reads all of them as one run.
    pub fn create(folder: &Path) -> Result<Self, RunLogError> {
        let started = now();
        let (path, file) = new_file(folder, started as u64)?;
        let mut writer = Self { path, file };
        writer.write(&Event { wall_time: started, step: 0, content: Content::Version })?;
        Ok(writer)
    }

    /// Opens a new event file for a run that goes on. TensorBoard then drops what earlier files say of `first_step` and
    /// later: of everything where a run begins again at step 0.
    pub fn resume(folder: &Path, first_step: u64) -> Result<Self, RunLogError> {
        let mut writer = Self::create(folder)?;
        writer.write(&Event { wall_time: now(), step: first_step, content: Content::Start })?;
        Ok(writer)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the scalars of one step. Values that are not finite are kept: TensorBoard marks them.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a str, f32)>,
    ) -> Result<(), RunLogError> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            message(&mut summary, VALUE, &scalar(tag, value));
        }
        self.write(&Event { wall_time: now(), step, content: Content::Summary(summary) })
    }

    /// Writes one image.
    pub fn image(&mut self, step: u64, tag: &str, image: &RgbImage) -> Result<(), RunLogError> {
        let mut summary = Vec::new();
        message(&mut summary, VALUE, &picture(tag, image.width(), image.height(), &png::encode(image)?));
        self.write(&Event { wall_time: now(), step, content: Content::Summary(summary) })
    }

    fn write(&mut self, event: &Event) -> Result<(), RunLogError> {
        self.file.write_all(&frame(&event.encode())).map_err(RunLogError::io("write", &self.path))
    }
}

struct Event {
    wall_time: f64,
    step: u64,
    content: Content,
}

enum Content {
    /// The first record of every file.
    Version,
    /// The session starts at this step.
    Start,
    Summary(Vec<u8>),
}

impl Event {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        key(&mut bytes, 1, Wire::Fixed64);
        bytes.extend(self.wall_time.to_le_bytes());
        integer(&mut bytes, 2, self.step);
        match &self.content {
            Content::Version => message(&mut bytes, 3, b"brain.Event:2"),
            Content::Summary(summary) => message(&mut bytes, 5, summary),
            Content::Start => {
                let mut log = Vec::new();
                integer(&mut log, 1, 1);
                message(&mut bytes, 7, &log);
            }
        }
        bytes
    }
}

fn scalar(tag: &str, value: f32) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, 1, tag.as_bytes());
    key(&mut bytes, 2, Wire::Fixed32);
    bytes.extend(value.to_le_bytes());
    bytes
}

fn picture(tag: &str, width: u32, height: u32, encoded: &[u8]) -> Vec<u8> {
    let mut inner = Vec::with_capacity(encoded.len() + 32);
    integer(&mut inner, 1, u64::from(height));
    integer(&mut inner, 2, u64::from(width));
    integer(&mut inner, 3, RGB);
    message(&mut inner, 4, encoded);
    let mut bytes = Vec::with_capacity(inner.len() + tag.len() + 16);
    message(&mut bytes, 1, tag.as_bytes());
    message(&mut bytes, 4, &inner);
    bytes
}

/// The wire types of protocol buffers in use here.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn key(out: &mut Vec<u8>, field: u32, wire: Wire) {
    varint(out, u64::from(field << 3 | wire as u32));
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// An integer field; zero is the default and is left out, as the reference encoder does.
fn integer(out: &mut Vec<u8>, field: u32, value: u64) {
    if value != 0 {
        key(out, field, Wire::Varint);
        varint(out, value);
    }
}

fn message(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    key(out, field, Wire::Bytes);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// The checksum rotated and shifted, so that a checksum stored inside checksummed data does no harm.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A file with a name of its own. TensorBoard reads event files in the order of their names, hence the time first.
fn new_file(folder: &Path, seconds: u64) -> Result<(PathBuf, File), RunLogError> {
    let mut count = 0;
    loop {
        let path = folder.join(format!("events.out.tfevents.{seconds:010}.{count:03}.elbow"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
            Err(error) => return Err(RunLogError::io("create", &path)(error)),
        }
    }
}

/// Seconds since 1970; a clock before that reads as 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(wall_time: f64, step: u64, content: Content) -> String {
        let bytes = frame(&Event { wall_time, step, content }.encode());
        bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    fn summary(values: &[Vec<u8>]) -> Content {
        let mut bytes = Vec::new();
        for value in values {
            message(&mut bytes, VALUE, value);
        }
        Content::Summary(bytes)
    }

    /// The right-hand sides were written by `RecordWriter` of the Python package `tensorboard` 2.21.0 from the same
    /// events.
    #[test]
    fn equals_the_reference_writer_byte_for_byte() {
        let pairs = [
            (
                record(1_700_000_000.25, 0, Content::Version),
                "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9",
            ),
            (
                record(1_700_000_000.5, 300, Content::Start),
                "100000000000000095fbfe180900002040fc54d94110ac023a020801b94512a3",
            ),
            (record(1_700_000_000.5, 0, Content::Start), "0d000000000000003c37b8340900002040fc54d9413a020801a870fdd5"),
            (
                record(1_700_000_001.0, 300, summary(&[scalar("loss", -0.125), scalar("reward_jpeg", 3.5)])),
                "2f000000000000006d5d1d500900004040fc54d94110ac022a210a0b0a046c6f737315000000be\
                 0a120a0b7265776172645f6a7065671500006040d7d64e81",
            ),
            (
                record(1_700_000_002.0, 1, summary(&[picture("samples", 300, 2, b"png")])),
                "2600000000000000734fe3000900008040fc54d94110012a190a170a0773616d706c6573220c08\
                 0210ac0218032203706e6754ad9403",
            ),
        ];
        for (found, expected) in pairs {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_file_is_records_end_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalars(1, [("loss", 0.5), ("reward_jpeg", f32::NAN)]).unwrap();
        writer.image(1, "samples", &RgbImage::new(3, 2)).unwrap();
        let bytes = std::fs::read(writer.path()).unwrap();
        let (mut rest, mut records) = (&bytes[..], 0);
        while let Some((head, tail)) = rest.split_first_chunk::<12>() {
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(frame(&tail[..length]), rest[..length + 16]);
            (rest, records) = (&tail[length + 4..], records + 1);
        }
        assert_eq!((rest.len(), records), (0, 3));
    }

    #[test]
    fn every_start_has_its_own_file_and_they_sort_by_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::create(folder.path()).unwrap();
        let second = EventWriter::resume(folder.path(), 4).unwrap();
        assert!(first.path() < second.path(), "{} {}", first.path().display(), second.path().display());
        assert!(EventWriter::create(&folder.path().join("absent")).is_err());
    }
}
