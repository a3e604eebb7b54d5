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

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use image::RgbImage;

use crate::{RunLogError, lock::host, png};

/// What names of event files begin and end with.
const NAME: (&str, &str) = ("events.out.tfevents.", ".elbow");
/// Bytes of a record beside its data: a length and two checksums.
const FRAME: usize = 16;
/// Field numbers of an `Event`.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
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
    /// Opens the first event file of a run.
    pub fn create(folder: &Path) -> Result<Self, RunLogError> {
        // TensorBoard's server takes the first START that it meets for the beginning of a run, whatever its step, and drops nothing for it.
        Self::start(folder, 0)
    }

    /// Opens a new event file for a run that goes on. Files of earlier starts stay, TensorBoard reads all of them as one run, but they lose what
    /// they say of `first_step` and later: everything where a run begins again at step 0. Who has read it already is told to drop it.
    pub fn resume(folder: &Path, first_step: u64) -> Result<Self, RunLogError> {
        cut(folder, first_step)?;
        Self::start(folder, first_step)
    }

    fn start(folder: &Path, first_step: u64) -> Result<Self, RunLogError> {
        let started = now();
        let (path, file) = new_file(folder, started as u64, &host())?;
        let mut writer = Self { path, file };
        writer.write(&Event { wall_time: started, step: 0, content: Content::Version })?;
        writer.write(&Event { wall_time: started, step: first_step, content: Content::Start })?;
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
        key(&mut bytes, WALL_TIME, Wire::Fixed64);
        bytes.extend(self.wall_time.to_le_bytes());
        integer(&mut bytes, STEP, self.step);
        match &self.content {
            Content::Version => message(&mut bytes, FILE_VERSION, b"brain.Event:2"),
            Content::Summary(summary) => message(&mut bytes, SUMMARY, summary),
            Content::Start => {
                let mut log = Vec::new();
                integer(&mut log, 1, 1);
                message(&mut bytes, SESSION_LOG, &log);
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
    let mut record = Vec::with_capacity(data.len() + FRAME);
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

/// A file with a name of its own. TensorBoard reads event files in the order of their names, hence the time first. The host is where its own writer
/// puts it: W&B follows only files of the host that it runs on.
fn new_file(folder: &Path, seconds: u64, host: &str) -> Result<(PathBuf, File), RunLogError> {
    let mut count = 0;
    loop {
        let path = folder.join(format!("{}{seconds:010}.{host}.{count:03}{}", NAME.0, NAME.1));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
            Err(error) => return Err(RunLogError::io("create", &path)(error)),
        }
    }
}

/// Takes from the event files of a folder what they say of `first_step` and later, and a record that a kill left half written. Of those who read START
/// late, TensorBoard's data server drops only what the same tag says again, and W&B drops nothing and waits for the rest of the half record.
fn cut(folder: &Path, first_step: u64) -> Result<(), RunLogError> {
    for entry in fs::read_dir(folder).map_err(RunLogError::io("read", folder))? {
        let path = entry.map_err(RunLogError::io("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(NAME.0) || !name.ends_with(NAME.1) {
            continue;
        }
        let bytes = fs::read(&path).map_err(RunLogError::io("read", &path))?;
        let kept = kept(&bytes, first_step);
        if kept < bytes.len() {
            let shortened = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(kept as u64));
            shortened.map_err(RunLogError::io("shorten", &path))?;
        }
    }
    Ok(())
}

/// How many bytes of a file are whole records of before `first_step`. Steps of a file only grow.
fn kept(bytes: &[u8], first_step: u64) -> usize {
    let mut kept = 0;
    while let Some(data) = first_record(&bytes[kept..]) {
        if summary_step(data).is_some_and(|step| step >= first_step) {
            break;
        }
        kept += data.len() + FRAME;
    }
    kept
}

/// The data of the record that a file goes on with, if it is there as a whole.
fn first_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let data = rest.get(4..length.checked_add(4)?)?;
    bytes.starts_with(&frame(data)).then_some(data)
}

/// The step of an event that holds a summary.
fn summary_step(event: &[u8]) -> Option<u64> {
    let after = |rest: &'_ [u8], field: u32, wire: Wire| {
        let mut expected = Vec::new();
        key(&mut expected, field, wire);
        rest.starts_with(&expected).then_some(expected.len())
    };
    let rest = &event[after(event, WALL_TIME, Wire::Fixed64)?..];
    let rest = rest.get(size_of::<f64>()..)?;
    let (step, rest) = match after(rest, STEP, Wire::Varint) {
        Some(length) => read_varint(&rest[length..])?,
        None => (0, rest),
    };
    after(rest, SUMMARY, Wire::Bytes).map(|_| step)
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (shift, (index, byte)) in (0..u64::BITS).step_by(7).zip(bytes.iter().enumerate()) {
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
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
        assert_eq!((rest.len(), records), (0, 4));
    }

    #[test]
    fn a_run_that_goes_on_leaves_nothing_of_what_it_makes_again() {
        let folder = tempfile::tempdir().unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        let mut first = EventWriter::create(folder.path()).unwrap();
        let mut sizes = vec![size(first.path())];
        for step in [0, 1, 300, 301] {
            first.scalars(step, [("loss", 0.5)]).unwrap();
            first.image(step, "samples", &RgbImage::new(3, 2)).unwrap();
            sizes.push(size(first.path()));
        }
        let path = first.path().to_owned();
        let foreign = folder.path().join("events.out.tfevents.1.other");
        for name in [&foreign, &folder.path().join("metrics.jsonl")] {
            fs::write(name, "of others").unwrap();
        }
        // A record that a kill left half written.
        fs::write(&path, [&fs::read(&path).unwrap()[..], &frame(b"half")[..18]].concat()).unwrap();
        for (first_step, left) in [(302, 4), (301, 3), (2, 2), (0, 0)] {
            let resumed = EventWriter::resume(folder.path(), first_step).unwrap();
            assert_eq!(size(&path), sizes[left], "from step {first_step}");
            assert!(size(resumed.path()) > 0);
        }
        assert_eq!(fs::read(foreign).unwrap(), b"of others");
    }

    #[test]
    fn steps_are_read_as_they_are_written() {
        for step in [0, 1, 127, 128, 300, u64::MAX] {
            let event = |content| Event { wall_time: 1.5, step, content }.encode();
            assert_eq!(summary_step(&event(summary(&[scalar("loss", 1.0)]))), Some(step));
            assert_eq!(summary_step(&event(Content::Start)), None);
            assert_eq!(summary_step(&event(Content::Version)), None);
        }
        assert_eq!(summary_step(&[]), None);
        assert_eq!(read_varint(&[0x80; 12]), None);
    }

    #[test]
    fn a_file_is_named_by_time_and_host_as_those_of_the_reference_writer() {
        let folder = tempfile::tempdir().unwrap();
        for count in ["000", "001"] {
            let (path, _) = new_file(folder.path(), 1_700_000_000, "node-3.example").unwrap();
            let name = format!("events.out.tfevents.1700000000.node-3.example.{count}.elbow");
            assert_eq!(path.file_name().unwrap().to_str(), Some(name.as_str()));
        }
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
