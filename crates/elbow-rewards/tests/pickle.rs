//! Pickles, against what CPython writes and reads, and against what nobody should write.

#![expect(clippy::print_stdout, reason = "for whoever asks with --nocapture")]

mod common;

use elbow_rewards::pickle::{FREE_MEMORY, MAX_DEPTH, MAX_GROWTH, PickleError, Value, read, write};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("written");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|k| u8::from_str_radix(&text[k..k + 2], 16).expect("hexadecimal")).collect()
}

/// As `describe` of `fixtures/make/pickles.py`.
fn describe(value: &Value) -> Json {
    match value {
        Value::None => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(value) => json!({ "float": hex(&value.to_be_bytes()) }),
        Value::Text(value) => json!(value),
        Value::Bytes(value) => json!({ "bytes": hex(value) }),
        Value::List(items) => items.iter().map(describe).collect(),
        Value::Tuple(items) => json!({ "tuple": items.iter().map(describe).collect::<Vec<_>>() }),
        Value::Dict(pairs) => {
            json!({ "dict": pairs.iter().map(|(k, v)| [describe(k), describe(v)]).collect::<Vec<_>>() })
        }
    }
}

/// What CPython wrote: a name, the bytes, and what they hold.
fn goldens() -> Vec<(String, Vec<u8>, Json)> {
    let golden: Json = serde_json::from_str(include_str!("../../../fixtures/rewards/pickles.json")).expect("JSON");
    let entry = |entry: &Json| {
        let text = |key: &str| entry[key].as_str().expect("text").to_owned();
        (text("name"), unhex(&text("pickle")), entry["value"].clone())
    };
    golden["pickles"].as_array().expect("a list").iter().map(entry).collect()
}

fn golden(name: &str) -> Vec<u8> {
    goldens().into_iter().find(|golden| golden.0 == name).expect("of this name").1
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

#[test]
fn what_cpython_writes_is_read() {
    let goldens = goldens();
    assert!(goldens.len() > 40, "{}", goldens.len());
    for (name, bytes, expected) in goldens {
        let value = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(describe(&value), expected, "{name}");
    }
}

#[test]
fn an_answer_of_genevals_server_is_taken_apart() {
    let answer = read(&golden("GenEval, 64 images, protocol 4")).expect("read");
    let scores: Vec<f64> =
        answer.get("scores").and_then(Value::as_list).expect("scores").iter().filter_map(Value::as_f64).collect();
    assert_eq!(scores.len(), 64);
    // The fourth is an int in the pickle.
    assert_eq!(scores[..6], [0.0, 1.0 - 4.0 / 3.0, 0.5, 0.0, 1.0, 1.0 - 20.0 / 3.0]);
    let groups = answer.get("group_strict_rewards").expect("groups");
    let tagged = groups.get("two_object").and_then(Value::as_list).expect("a tag");
    assert_eq!(tagged[..3], [Value::Float(-10.0), Value::Float(0.0), Value::Float(-10.0)]);
    assert_eq!(answer.get("outputs"), None);
    assert_eq!(answer.as_list(), None);
    assert_eq!(groups.as_str(), None);
}

#[test]
fn of_a_key_given_twice_the_last_value_counts() {
    let twice = Value::Dict(vec![(text("a"), Value::Int(1)), (text("b"), Value::Int(2)), (text("a"), Value::Int(3))]);
    assert_eq!(twice.get("a"), Some(&Value::Int(3)));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-70_000i64..70_000).prop_map(Value::Int),
        // NaN differs from itself.
        any::<f64>().prop_filter("a number", |x| !x.is_nan()).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..400).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::List),
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Tuple),
            prop::collection::vec((inner.clone(), inner), 0..5).prop_map(Value::Dict),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_is_written_is_read(value in values()) {
        prop_assert_eq!(read(&write(&value)), Ok(value));
    }
}

#[test]
fn python_reads_what_is_written() {
    let Some(python) = common::python() else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/make/pickles.py");
    let mut written: Vec<Value> = goldens().iter().map(|(_, bytes, _)| read(bytes).expect("read")).collect();
    written.push(Value::List([i64::MIN, i64::MAX, -1, -129, 255, 256, 1 << 31, -1 << 31].map(Value::Int).into()));
    written.push(Value::Bytes((0..70_000).map(|k| (k % 251) as u8).collect()));
    let mut child = Command::new(python)
        .args([script, "describe"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let lines: String = written.iter().fold(String::new(), |lines, value| lines + &hex(&write(value)) + "\n");
    let mut stdin = child.stdin.take().expect("a pipe");
    let feed = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().expect("Python answers");
    feed.join().expect("no panic").expect("written");
    assert!(output.status.success());
    let answers = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(answers.lines().count(), written.len());
    for (value, answer) in written.iter().zip(answers.lines()) {
        assert_eq!(serde_json::from_str::<Json>(answer).expect("JSON"), describe(value));
    }
}

#[test]
fn every_opcode_beyond_plain_data_is_refused_by_its_name() {
    // What each needs on the stack or behind it, so that only the refusal can be the reason.
    let refused: [(&[u8], &str); 28] = [
        (b"cos\nsystem\n.", "GLOBAL"),
        (b"\x8c\x02os\x8c\x06system\x93.", "STACK_GLOBAL"),
        (b"N)R.", "REDUCE"),
        (b"N}b.", "BUILD"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(No.", "OBJ"),
        (b"N)\x81.", "NEWOBJ"),
        (b"N)}\x92.", "NEWOBJ_EX"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pid\n.", "PERSID"),
        (b"NQ.", "BINPERSID"),
        (b"N2.", "DUP"),
        (b"I1\n.", "INT"),
        (b"L1L\n.", "LONG"),
        (b"\x8b\x01\x00\x00\x00\x01.", "LONG4"),
        (b"F1.0\n.", "FLOAT"),
        (b"S'a'\n.", "STRING"),
        (b"T\x01\x00\x00\x00a.", "BINSTRING"),
        (b"U\x01a.", "SHORT_BINSTRING"),
        (b"Va\n.", "UNICODE"),
        (b"\x8f.", "EMPTY_SET"),
        (b"\x8f(\x90.", "EMPTY_SET"),
        (b"](\x90.", "ADDITEMS"),
        (b"(\x91.", "FROZENSET"),
        (b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8"),
        (b"\x97.", "NEXT_BUFFER"),
    ];
    for (bytes, name) in refused {
        match read(bytes) {
            Err(PickleError::Refused { opcode, .. }) => assert_eq!(opcode, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(read(b"N\x98."), Err(PickleError::Refused { opcode: "READONLY_BUFFER", at: 1 }));
    let classic = read(b"cos\nsystem\n(S'echo pwned'\ntR.").expect_err("refused");
    assert_eq!(classic, PickleError::Refused { opcode: "GLOBAL", at: 0 });
    assert!(classic.to_string().contains("GLOBAL is refused"), "{classic}");
}

#[test]
fn every_byte_is_an_opcode_known_or_refused_or_no_opcode_at_all() {
    // Pickle has 68 opcodes: 40 of them are read here.
    let (mut refused, mut unknown) = (0, 0);
    for opcode in 0..=255 {
        match read(&[opcode]) {
            Err(PickleError::Refused { .. }) => refused += 1,
            Err(PickleError::Malformed { what: "no opcode", .. }) => unknown += 1,
            Err(_) | Ok(_) => {}
        }
    }
    assert_eq!((refused, unknown), (28, 256 - 68));
}

#[test]
fn every_prefix_of_a_pickle_is_an_error() {
    for (name, bytes, _) in goldens() {
        // Of the long ones the first and the last thousand bytes.
        for len in (0..bytes.len()).filter(|len| *len < 1000 || *len + 1000 > bytes.len()) {
            assert!(read(&bytes[..len]).is_err(), "{name}: {len} bytes");
        }
    }
}

#[test]
fn what_follows_the_end_or_is_left_on_the_stack_is_an_error() {
    assert_eq!(read(b"N."), Ok(Value::None));
    for bytes in [&b"N.N"[..], b"NN.", b"(N.", b"N(."] {
        assert!(matches!(read(bytes), Err(PickleError::Malformed { .. })), "{bytes:?}");
    }
}

#[test]
fn damaged_pickles_say_where_and_what() {
    let malformed = |bytes: &[u8]| match read(bytes) {
        Err(PickleError::Malformed { at, what }) => (at, what),
        other => panic!("{bytes:?}: {other:?}"),
    };
    assert_eq!(malformed(b"\x80\x06N."), (0, "a protocol later than 5"));
    assert_eq!(malformed(b"h\x00."), (0, "a reference to nothing"));
    assert_eq!(malformed(b"gx\n."), (0, "a line that is no number"));
    assert_eq!(malformed(b"\x8c\x01\xff."), (0, "text that is not UTF-8"));
    assert_eq!(malformed(b"NNa."), (2, "items for what is no list"));
    assert_eq!(malformed(b"NNNs."), (3, "keys for what is no dict"));
    assert_eq!(malformed(b"}(Nu."), (3, "a key without a value"));
    assert_eq!(malformed(b"Nt."), (1, "no MARK on the stack"));
    // An opcode does not reach below a MARK.
    assert_eq!(malformed(b"N(\x85."), (2, "too few values on the stack"));
    assert_eq!(read(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00."), Err(PickleError::Beyond64Bits { at: 0 }));
    assert_eq!(read(b"\x8a\x00."), Ok(Value::Int(0)));
    assert_eq!(read(b"\x8a\x01\xff."), Ok(Value::Int(-1)));
}

#[test]
fn a_length_beyond_the_input_is_refused_at_once() {
    let lengths: [&[u8]; 5] = [b"\x8d", b"\x8e", b"\x95", b"X", b"B"];
    for opcode in lengths {
        let bytes = [opcode, &[0xff; 8], b"."].concat();
        assert_eq!(read(&bytes), Err(PickleError::Truncated { at: 0 }), "{opcode:?}");
    }
}

/// A list in lists, as deep as asked.
fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = vec![b']'; depth];
    bytes.extend(vec![b'a'; depth - 1]);
    bytes.push(b'.');
    bytes
}

#[test]
fn depth_is_bounded_and_a_value_within_itself_is_refused() {
    assert_eq!(read(&write(&read(&nested(MAX_DEPTH)).expect("read"))), read(&nested(MAX_DEPTH)));
    assert_eq!(read(&nested(MAX_DEPTH + 1)), Err(PickleError::Deep));
    assert_eq!(read(&nested(3_000_000)), Err(PickleError::Deep));
    // x = []; x.append(x), and the same by way of a tuple in a dict.
    assert_eq!(read(b"]\x94h\x00a."), Err(PickleError::Deep));
    assert_eq!(read(b"}\x94Nh\x00\x85s."), Err(PickleError::Deep));
}

#[test]
fn values_that_double_again_and_again_are_refused() {
    // x = [0]; x = [x, x]; … fifty times: 2⁵⁰ numbers in 300 bytes.
    let mut bytes = b"]K\x00a".to_vec();
    for k in 0..50 {
        bytes.extend([b'q', k, b'0', b']', b'h', k, b'a', b'h', k, b'a']);
    }
    bytes.push(b'.');
    assert_eq!(read(&bytes), Err(PickleError::Large));
    // One long text, referred to a hundred thousand times.
    let mut bytes = [b"X\x00\x00\x01\x00".as_slice(), &vec![b'a'; 65_536], b"\x940]("].concat();
    for _ in 0..100_000 {
        bytes.extend(b"h\x00");
    }
    bytes.extend(b"e.");
    assert_eq!(read(&bytes), Err(PickleError::Large));
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.roll() as u8
    }

    /// Opcodes in any order, some with a small number behind them.
    fn opcodes(&mut self) -> Vec<u8> {
        const OPCODES: &[u8] =
            b"\x80\x95..N\x88\x89JKM\x8aGX\x8c\x8dCB\x8e]]])}}((((ltd\x85\x86\x87aesu01\x94\x94pqrghhhj";
        let mut bytes = Vec::new();
        for _ in 0..self.below(200) {
            bytes.push(OPCODES[self.below(OPCODES.len())]);
            if self.below(2) == 0 {
                bytes.push(self.below(4) as u8);
            }
        }
        bytes
    }

    /// A value as CPython might write it, with references to any container before it or around it.
    fn value(&mut self, depth: usize, names: &mut u8, out: &mut Vec<u8>) {
        let count = self.below(5);
        let mut container = |open: u8, close: u8, values: usize, dice: &mut Self| {
            out.extend([open, b'q', *names, b'(']);
            *names = names.saturating_add(1);
            (0..values).for_each(|_| dice.value(depth - 1, names, out));
            out.push(close);
        };
        match self.below(if depth == 0 { 6 } else { 11 }) {
            6..9 => container(b']', b'e', count, self),
            9.. => container(b'}', b'u', 2 * count, self),
            5 if *names > 0 => out.extend([b'h', self.below(usize::from(*names)) as u8]),
            4 => out.extend(b"\x8c\x03abc"),
            3 => out.extend([b'G', 0x3f, self.byte(), 0, 0, 0, 0, 0, 0]),
            2 => out.extend([b'K', self.byte(), 0x85]),
            1 => out.extend([b'M', self.byte(), self.byte()]),
            _ => out.push(b'N'),
        }
    }

    fn pickle(&mut self) -> Vec<u8> {
        let mut bytes = vec![0x80, 2];
        self.value(6, &mut 0, &mut bytes);
        bytes.push(b'.');
        bytes
    }

    /// The bytes with one to eight flips, insertions, deletions and splices.
    fn mutate(&mut self, mut bytes: Vec<u8>, seeds: &[Vec<u8>]) -> Vec<u8> {
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                1 if at < bytes.len() => bytes[at] = self.byte(),
                2 => bytes.insert(at, self.byte()),
                3 => {
                    let end = bytes.len().min(at + self.below(16));
                    bytes.drain(at..end);
                }
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    let len = self.below(64).min(other.len() - from);
                    bytes.splice(at..at, other[from..from + len].iter().copied());
                }
            }
        }
        bytes
    }
}

/// Bytes that a value takes beside itself.
fn memory(value: &Value) -> usize {
    match value {
        Value::Text(text) => text.capacity(),
        Value::Bytes(bytes) => bytes.capacity(),
        Value::List(items) | Value::Tuple(items) => {
            items.capacity() * size_of::<Value>() + items.iter().map(memory).sum::<usize>()
        }
        Value::Dict(pairs) => {
            let inner: usize = pairs.iter().map(|(key, value)| memory(key) + memory(value)).sum();
            pairs.capacity() * size_of::<(Value, Value)>() + inner
        }
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
    }
}

/// A million inputs, in six seconds on one busy core.
#[test]
fn no_input_makes_it_panic_or_take_memory_or_time_without_bound() {
    let count = 1_000_000;
    let mut seeds: Vec<Vec<u8>> =
        goldens().into_iter().map(|golden| golden.1).filter(|bytes| bytes.len() < 2000).collect();
    seeds.push(nested(90));
    let (mut dice, mut pickles, mut slowest, start) = (Dice(1), 0, Duration::ZERO, Instant::now());
    for k in 0..count {
        let bytes = match k % 5 {
            0 => (0..dice.below(64)).map(|_| dice.byte()).collect(),
            1 => dice.opcodes(),
            2 => dice.pickle(),
            3 => {
                let pickle = dice.pickle();
                dice.mutate(pickle, &seeds)
            }
            _ => {
                let seed = seeds[dice.below(seeds.len())].clone();
                dice.mutate(seed, &seeds)
            }
        };
        let begin = Instant::now();
        if let Ok(value) = read(&bytes) {
            pickles += 1;
            assert!(memory(&value) <= FREE_MEMORY + MAX_GROWTH * bytes.len(), "{}", hex(&bytes));
            // What was read can be written, and is then read again; NaN differs from itself.
            assert_eq!(read(&write(&value)).map(|value| describe(&value)), Ok(describe(&value)), "{}", hex(&bytes));
        }
        slowest = slowest.max(begin.elapsed());
    }
    println!("{count} inputs in {:.1?}, {pickles} of them pickles, the slowest took {slowest:.1?}", start.elapsed());
    // Far above what a few kilobytes take, far below what an endless one would.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(pickles * 10 > count, "{pickles} of {count}");
}
