//! The record of a run: `metrics.jsonl`, one JSON object per line and one line per epoch, `epoch` first.
//!
//! JSON has no NaN and no infinity. `serde_json::Value::from(f64)` turns them into `null`, and `null` therefore means
//! that a number was computed and was not finite; a metric that was not computed has no key at all.
//!
//! A line is written in one call and reaches the operating system before [`MetricsWriter::append`] returns, so a kill
//! costs at most the line being written. What it leaves, a last line without its newline, is a *torn* line:
//! [`read`] passes over it, and [`MetricsWriter::open`] and [`truncate_after`] remove it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{RunLogError, write_atomic};

/// One line of the file: metric name to value.
pub type Record = Map<String, Value>;

const EPOCH: &str = "epoch";

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens the file for appending, and makes it if it is not there. A torn last line is removed.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RunLogError> {
        let path = path.into();
        if path.exists() {
            truncate_after(&path, u64::MAX)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(RunLogError::io("open", &path))?;
        Ok(Self { path, file })
    }

    /// Appends one record. It must have an integer `epoch`, which goes first on the line whatever its place was.
    pub fn append(&mut self, record: &Record) -> Result<(), RunLogError> {
        let epoch = epoch(record).ok_or(RunLogError::NoEpoch)?;
        let mut ordered = Record::new();
        ordered.insert(EPOCH.into(), epoch.into());
        ordered.extend(record.iter().filter(|(key, _)| *key != EPOCH).map(|(key, value)| (key.clone(), value.clone())));
        let mut line = Value::Object(ordered).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(RunLogError::io("write", &self.path))
    }
}

/// Reads every record of a file; an error names the line.
pub fn read(path: &Path) -> Result<Vec<Record>, RunLogError> {
    let bytes = fs::read(path).map_err(RunLogError::io("read", path))?;
    Ok(lines(path, &bytes)?.into_iter().map(|(record, _)| record).collect())
}

/// Removes the records of the epochs after `epoch`, and a torn last line: the file is then as it was when the
/// checkpoint of that epoch was written. An absent file stays absent.
pub fn truncate_after(path: &Path, epoch: u64) -> Result<(), RunLogError> {
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(RunLogError::io("read", path))?;
    let mut kept = Vec::with_capacity(bytes.len());
    for (record, line) in lines(path, &bytes)? {
        if self::epoch(&record).is_some_and(|found| found <= epoch) {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    if kept == bytes { Ok(()) } else { write_atomic(path, &kept) }
}

/// The records of a file, each with its line.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(Record, &'a [u8])>, RunLogError> {
    let mut records = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let whole = line.strip_suffix(b"\n");
        match parse(whole.unwrap_or(line)) {
            Ok(record) => records.push((record, whole.unwrap_or(line))),
            // Only the last line can lack its newline.
            Err(_) if whole.is_none() => {}
            Err(reason) => return Err(RunLogError::Line { path: path.to_path_buf(), line: index + 1, reason }),
        }
    }
    Ok(records)
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let record: Record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    epoch(&record).ok_or_else(|| RunLogError::NoEpoch.to_string())?;
    Ok(record)
}

fn epoch(record: &Record) -> Option<u64> {
    record.get(EPOCH)?.as_u64()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record(value: Value) -> Record {
        value.as_object().unwrap().clone()
    }

    fn write(path: &Path, records: &[Record]) {
        let mut writer = MetricsWriter::open(path).unwrap();
        for record in records {
            writer.append(record).unwrap();
        }
    }

    fn epochs(path: &Path) -> Vec<u64> {
        read(path).unwrap().iter().map(|record| epoch(record).unwrap()).collect()
    }

    #[test]
    fn epoch_goes_first_and_what_is_not_finite_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        write(&path, &[record(json!({"loss": f64::NAN, "reward_jpeg": 0.25, "epoch": 0, "kl_loss": f64::INFINITY}))]);
        let line = "{\"epoch\":0,\"loss\":null,\"reward_jpeg\":0.25,\"kl_loss\":null}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), line);
        assert!(read(&path).unwrap()[0]["loss"].is_null());
    }

    #[test]
    fn a_record_without_an_epoch_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::open(folder.path().join("metrics.jsonl")).unwrap();
        for value in [json!({"loss": 1}), json!({"epoch": -1}), json!({"epoch": 1.5})] {
            assert!(matches!(writer.append(&record(value)), Err(RunLogError::NoEpoch)));
        }
    }

    #[test]
    fn records_after_the_checkpoint_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        truncate_after(&path, 3).unwrap();
        assert!(!path.exists());
        write(&path, &[0, 1, 2, 3].map(|epoch| record(json!({"epoch": epoch}))));
        truncate_after(&path, 1).unwrap();
        write(&path, &[record(json!({"epoch": 2, "again": true}))]);
        assert_eq!(epochs(&path), [0, 1, 2]);
        assert_eq!(read(&path).unwrap()[2]["again"], json!(true));
    }

    #[test]
    fn a_damaged_line_is_named_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        for bad in ["{\"epoch\": 1, \"lo", "[1]", "{\"loss\":1}", ""] {
            fs::write(&path, format!("{{\"epoch\":0}}\n{bad}\n{{\"epoch\":2}}\n")).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains("metrics.jsonl, line 2: "), "{error}");
            assert!(truncate_after(&path, 0).is_err());
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<f64>().prop_map(Value::from),
            any::<f32>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            proptest::collection::vec(any::<f64>(), 0..4).prop_map(Value::from),
        ]
    }

    fn any_records() -> impl Strategy<Value = Vec<Record>> {
        let values = proptest::collection::btree_map(".*", any_value(), 0..6);
        proptest::collection::vec(values, 1..6).prop_map(|all| {
            all.into_iter()
                .enumerate()
                .map(|(epoch, values)| {
                    let mut record = record(json!({"epoch": epoch}));
                    record.extend(values.into_iter().filter(|(key, _)| key != EPOCH));
                    record
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn what_was_written_is_read(records in any_records()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            write(&path, &records);
            prop_assert_eq!(read(&path).unwrap(), records);
        }

        /// A kill at any byte costs the line it fell into and no other, and writing goes on after it.
        #[test]
        fn a_torn_line_costs_only_itself(records in any_records(), at in any::<proptest::sample::Index>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            write(&path, &records);
            let bytes = fs::read(&path).unwrap();
            let torn = &bytes[..at.index(bytes.len())];
            let whole = torn.split(|&byte| byte == b'\n').count() - 1;
            fs::write(&path, torn).unwrap();
            let found = read(&path).unwrap();
            // A line that lacks nothing but its newline is a record.
            prop_assert!(found.len() == whole || found.len() == whole + 1);
            prop_assert_eq!(&found[..], &records[..found.len()]);

            write(&path, &records[found.len()..]);
            prop_assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
