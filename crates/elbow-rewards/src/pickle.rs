//! Python pickles of plain data, as reward servers of the field speak them over HTTP.
//!
//! A pickle is a program for a small stack machine (the opcodes are those of CPython's `Lib/pickletools.py`), and Python's own reader
//! runs whatever it names. The reader here knows the opcodes of plain data alone: it makes None, numbers, text, bytes, lists, tuples
//! and dicts of protocols 2 to 5, and refuses every other opcode by name, so that nothing is ever imported or called.
//!
//! Its memory stays proportional to the input: no length is believed before that many bytes are there, and values that a pickle
//! refers to again and again count each time.

use std::collections::HashMap;

/// How deep values may be nested.
pub const MAX_DEPTH: usize = 100;

/// How much memory values may take, in bytes for each byte of input, beyond [`FREE_MEMORY`].
pub const MAX_GROWTH: usize = 256;

/// How much memory the values of any input may take, in bytes.
pub const FREE_MEMORY: usize = 65_536;

/// What a pickle holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Python's `None`.
    None,
    /// `bool`.
    Bool(bool),
    /// `int` within 64 bits.
    Int(i64),
    /// `float`.
    Float(f64),
    /// `str`.
    Text(String),
    /// `bytes`.
    Bytes(Vec<u8>),
    /// `list`.
    List(Vec<Value>),
    /// `tuple`.
    Tuple(Vec<Value>),
    /// `dict`, in the order in which it was filled. Of a key that is there twice the last value counts.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    /// The value of a text key of a dict.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(pairs) = self else { return None };
        pairs.iter().rev().find(|(name, _)| name.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// The number of a float or an int; of an int beyond 2⁵³ the nearest.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// The text of a `str`.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or a tuple.
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

/// Why bytes are not a pickle of plain data. Places count bytes from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// An opcode beyond plain data: it would make an object, call a function or is of no use here.
    #[error(
        "pickle, byte {at}: {opcode} is refused: only None, numbers, text, bytes, lists, tuples and dicts are read, never objects; \
         let the sender convert its values to these, for example a number of numpy by float(…)"
    )]
    Refused {
        /// Its name in `pickletools`.
        opcode: &'static str,
        /// Where it stands.
        at: usize,
    },
    /// A byte that is no opcode, or a sequence that CPython does not write.
    #[error("pickle, byte {at}: {what}: these bytes are no pickle or are damaged")]
    Malformed {
        /// Where it stands.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Bytes are missing.
    #[error("pickle, byte {at}: the bytes end too early: ask for the answer again")]
    Truncated {
        /// The opcode whose bytes are missing, or the end.
        at: usize,
    },
    /// An int that needs more than 64 bits.
    #[error("pickle, byte {at}: an int beyond 64 bits: let the sender convert it to a float")]
    Beyond64Bits {
        /// Where it stands.
        at: usize,
    },
    /// Values nested too deep, as those are that contain themselves.
    #[error("pickle: values are nested deeper than {MAX_DEPTH}, or contain themselves: let the sender flatten them")]
    Deep,
    /// Values repeat so often that they would take too much memory.
    #[error("pickle: its values would take more than {MAX_GROWTH} times its own length: let the sender repeat less")]
    Large,
}

/// Reads one pickle, which the bytes have to be from the first to the last.
pub fn read(bytes: &[u8]) -> Result<Value, PickleError> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    let mut memory = bytes.len().saturating_mul(MAX_GROWTH).saturating_add(FREE_MEMORY);
    value(&machine.nodes, root, MAX_DEPTH, &mut memory)
}

/// A value while it is read. Containers hold places in [`Machine::nodes`], so that a list that is referred to twice before it is filled
/// is filled in both places.
enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
}

/// What a node comes to; `depth` levels and `memory` bytes are left.
fn value(nodes: &[Node<'_>], place: usize, depth: usize, memory: &mut usize) -> Result<Value, PickleError> {
    // Memory is counted before it is taken.
    let mut spend = |bytes: usize| {
        *memory = memory.checked_sub(bytes).ok_or(PickleError::Large)?;
        Ok(())
    };
    let deeper = depth.checked_sub(1).ok_or(PickleError::Deep);
    match &nodes[place] {
        Node::None => Ok(Value::None),
        Node::Bool(value) => Ok(Value::Bool(*value)),
        Node::Int(value) => Ok(Value::Int(*value)),
        Node::Float(value) => Ok(Value::Float(*value)),
        Node::Text(text) => spend(text.len()).map(|()| Value::Text((*text).to_owned())),
        Node::Bytes(bytes) => spend(bytes.len()).map(|()| Value::Bytes(bytes.to_vec())),
        Node::List(places) | Node::Tuple(places) => {
            spend(places.len() * size_of::<Value>())?;
            let (depth, mut items) = (deeper?, Vec::with_capacity(places.len()));
            for &place in places {
                items.push(value(nodes, place, depth, memory)?);
            }
            Ok(if matches!(nodes[place], Node::List(_)) { Value::List(items) } else { Value::Tuple(items) })
        }
        Node::Dict(places) => {
            spend(places.len() * size_of::<(Value, Value)>())?;
            let (depth, mut pairs) = (deeper?, Vec::with_capacity(places.len()));
            for &(key, item) in places {
                pairs.push((value(nodes, key, depth, memory)?, value(nodes, item, depth, memory)?));
            }
            Ok(Value::Dict(pairs))
        }
    }
}

/// The stack machine.
struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// Every value made so far: at most one for each opcode.
    nodes: Vec<Node<'a>>,
    /// Places of nodes.
    stack: Vec<usize>,
    /// Heights of the stack at which a MARK stands.
    marks: Vec<usize>,
    /// Places of nodes by their numbers in the pickle.
    memo: HashMap<u64, usize>,
}

impl<'a> Machine<'a> {
    /// The place of the value that the pickle leaves.
    fn run(&mut self) -> Result<usize, PickleError> {
        loop {
            let at = self.at;
            let malformed = |what| PickleError::Malformed { at, what };
            match self.take(1, at)?[0] {
                // PROTO
                0x80 => {
                    if self.take(1, at)?[0] > 5 {
                        return Err(malformed("a protocol later than 5"));
                    }
                }
                // FRAME: what follows lies in one piece here anyway.
                0x95 => {
                    if self.number(8, at)? > (self.bytes.len() - self.at) as u64 {
                        return Err(PickleError::Truncated { at });
                    }
                }
                // STOP
                b'.' => {
                    let root = self.pop(at)?;
                    if !self.stack.is_empty() || !self.marks.is_empty() {
                        return Err(malformed("values are left over at the end"));
                    }
                    if self.at != self.bytes.len() {
                        return Err(malformed("more bytes follow the end"));
                    }
                    return Ok(root);
                }

                opcode => {
                    if !(self.scalar(opcode, at)? || self.container(opcode, at)? || self.reference(opcode, at)?) {
                        return Err(match refused(opcode) {
                            Some(opcode) => PickleError::Refused { opcode, at },
                            None => malformed("no opcode"),
                        });
                    }
                }
            }
        }
    }

    /// None, booleans, numbers, text and bytes; whether the opcode is one of them.
    fn scalar(&mut self, opcode: u8, at: usize) -> Result<bool, PickleError> {
        match opcode {
            b'N' => self.push(Node::None),
            // NEWTRUE, NEWFALSE
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            // BININT, BININT1, BININT2, LONG1
            b'J' => self.int(4, at)?,
            b'K' => {
                let int = self.number(1, at)?;
                self.push(Node::Int(int as i64));
            }
            b'M' => {
                let int = self.number(2, at)?;
                self.push(Node::Int(int as i64));
            }
            0x8a => {
                let len = self.number(1, at)?;
                self.int(len as usize, at)?;
            }
            // BINFLOAT, the only number with its highest byte first.
            b'G' => {
                let bits = self.take(8, at)?.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
                self.push(Node::Float(f64::from_bits(bits)));
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.text(1, at)?,
            b'X' => self.text(4, at)?,
            0x8d => self.text(8, at)?,
            // SHORT_BINBYTES, BINBYTES, BINBYTES8
            b'C' => self.data(1, at)?,
            b'B' => self.data(4, at)?,
            0x8e => self.data(8, at)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Lists, tuples and dicts; whether the opcode is one of them.
    fn container(&mut self, opcode: u8, at: usize) -> Result<bool, PickleError> {
        match opcode {
            // EMPTY_LIST, EMPTY_TUPLE, EMPTY_DICT
            b']' => self.push(Node::List(Vec::new())),
            b')' => self.push(Node::Tuple(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // LIST, TUPLE, DICT
            b'l' => {
                let items = self.above_mark(at)?;
                self.push(Node::List(items));
            }
            b't' => {
                let items = self.above_mark(at)?;
                self.push(Node::Tuple(items));
            }
            b'd' => {
                let items = self.above_mark(at)?;
                self.push(Node::Dict(pairs(&items, at)?));
            }
            // TUPLE1, TUPLE2, TUPLE3
            count @ 0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x84..count {
                    items.insert(0, self.pop(at)?);
                }
                self.push(Node::Tuple(items));
            }
            // APPEND, APPENDS, SETITEM, SETITEMS
            b'a' => {
                let item = self.pop(at)?;
                self.extend(&[item], at)?;
            }
            b'e' => {
                let items = self.above_mark(at)?;
                self.extend(&items, at)?;
            }
            b's' => {
                let (item, key) = (self.pop(at)?, self.pop(at)?);
                self.set(&[key, item], at)?;
            }
            b'u' => {
                let items = self.above_mark(at)?;
                self.set(&items, at)?;
            }
            // POP, POP_MARK
            b'0' => {
                self.pop(at)?;
            }
            b'1' => {
                self.above_mark(at)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What names values and refers to them; whether the opcode is one of them.
    fn reference(&mut self, opcode: u8, at: usize) -> Result<bool, PickleError> {
        match opcode {
            // MEMOIZE, PUT, BINPUT, LONG_BINPUT
            0x94 => self.put(self.memo.len() as u64, at)?,
            b'p' => {
                let name = self.line(at)?;
                self.put(name, at)?;
            }
            b'q' => {
                let name = self.number(1, at)?;
                self.put(name, at)?;
            }
            b'r' => {
                let name = self.number(4, at)?;
                self.put(name, at)?;
            }
            // GET, BINGET, LONG_BINGET
            b'g' => {
                let name = self.line(at)?;
                self.get(name, at)?;
            }
            b'h' => {
                let name = self.number(1, at)?;
                self.get(name, at)?;
            }
            b'j' => {
                let name = self.number(4, at)?;
                self.get(name, at)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The next bytes. The opcode that needs them stands at `at`.
    fn take(&mut self, count: usize, at: usize) -> Result<&'a [u8], PickleError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or(PickleError::Truncated { at })?;
        self.at += count;
        Ok(taken)
    }

    /// A number of at most 8 bytes, the lowest first, without sign.
    fn number(&mut self, bytes: usize, at: usize) -> Result<u64, PickleError> {
        Ok(self.take(bytes, at)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Pushes an int of the given length, the lowest byte first, in two's complement.
    fn int(&mut self, len: usize, at: usize) -> Result<(), PickleError> {
        let bytes = self.take(len, at)?;
        if len > 8 {
            return Err(PickleError::Beyond64Bits { at });
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
        self.push(Node::Int(bytes.iter().rev().fold(sign, |int, &byte| int << 8 | i64::from(byte))));
        Ok(())
    }

    /// Bytes after their length, which takes `width` bytes itself.
    fn counted(&mut self, width: usize, at: usize) -> Result<&'a [u8], PickleError> {
        let len = self.number(width, at)?;
        self.take(usize::try_from(len).map_err(|_| PickleError::Truncated { at })?, at)
    }

    fn text(&mut self, width: usize, at: usize) -> Result<(), PickleError> {
        let bytes = self.counted(width, at)?;
        let text = str::from_utf8(bytes).map_err(|_| PickleError::Malformed { at, what: "text that is not UTF-8" })?;
        self.push(Node::Text(text));
        Ok(())
    }

    fn data(&mut self, width: usize, at: usize) -> Result<(), PickleError> {
        let bytes = self.counted(width, at)?;
        self.push(Node::Bytes(bytes));
        Ok(())
    }

    /// A number in decimal, up to the end of its line.
    fn line(&mut self, at: usize) -> Result<u64, PickleError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleError::Truncated { at })?;
        let digits = self.take(len + 1, at)?;
        let number = str::from_utf8(&digits[..len]).ok().and_then(|digits| digits.parse().ok());
        number.ok_or(PickleError::Malformed { at, what: "a line that is no number" })
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// The last value of the stack above the last MARK.
    fn peek(&self, at: usize) -> Result<usize, PickleError> {
        let above = &self.stack[self.marks.last().copied().unwrap_or(0)..];
        above.last().copied().ok_or(PickleError::Malformed { at, what: "too few values on the stack" })
    }

    fn pop(&mut self, at: usize) -> Result<usize, PickleError> {
        let place = self.peek(at)?;
        self.stack.pop();
        Ok(place)
    }

    /// All values above the last MARK, taken off the stack with it.
    fn above_mark(&mut self, at: usize) -> Result<Vec<usize>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Malformed { at, what: "no MARK on the stack" })?;
        Ok(self.stack.drain(mark..).collect())
    }

    fn extend(&mut self, items: &[usize], at: usize) -> Result<(), PickleError> {
        let place = self.peek(at)?;
        let Node::List(list) = &mut self.nodes[place] else {
            return Err(PickleError::Malformed { at, what: "items for what is no list" });
        };
        list.extend(items);
        Ok(())
    }

    fn set(&mut self, items: &[usize], at: usize) -> Result<(), PickleError> {
        let place = self.peek(at)?;
        let Node::Dict(dict) = &mut self.nodes[place] else {
            return Err(PickleError::Malformed { at, what: "keys for what is no dict" });
        };
        dict.extend(pairs(items, at)?);
        Ok(())
    }

    fn put(&mut self, name: u64, at: usize) -> Result<(), PickleError> {
        let place = self.peek(at)?;
        self.memo.insert(name, place);
        Ok(())
    }

    fn get(&mut self, name: u64, at: usize) -> Result<(), PickleError> {
        let place = self.memo.get(&name).ok_or(PickleError::Malformed { at, what: "a reference to nothing" })?;
        self.stack.push(*place);
        Ok(())
    }
}

/// Keys and values, which alternate.
fn pairs(items: &[usize], at: usize) -> Result<Vec<(usize, usize)>, PickleError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(PickleError::Malformed { at, what: "a key without a value" });
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

/// The name of an opcode that is not read.
fn refused(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        b'c' => "GLOBAL",
        0x93 => "STACK_GLOBAL",
        b'R' => "REDUCE",
        b'b' => "BUILD",
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        b'2' => "DUP",
        b'I' => "INT",
        b'L' => "LONG",
        0x8b => "LONG4",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'V' => "UNICODE",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return None,
    })
}

/// The value as a pickle of protocol 4, which Python reads from version 3.4 on.
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = vec![0x80, 4];
    put(value, &mut out);
    out.push(b'.');
    out
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Int(int) => {
            if let Ok(int) = u8::try_from(*int) {
                out.extend([b'K', int]);
            } else if let Ok(int) = i32::try_from(*int) {
                out.push(b'J');
                out.extend(int.to_le_bytes());
            } else {
                out.extend([0x8a, 8]);
                out.extend(int.to_le_bytes());
            }
        }
        Value::Float(float) => {
            out.push(b'G');
            out.extend(float.to_be_bytes());
        }
        Value::Text(text) => counted([0x8c, b'X', 0x8d], text.as_bytes(), out),
        Value::Bytes(bytes) => counted(*b"CB\x8e", bytes, out),
        Value::List(items) => {
            out.extend(b"](");
            for item in items {
                put(item, out);
            }
            out.push(b'e');
        }
        Value::Tuple(items) => {
            out.push(b'(');
            for item in items {
                put(item, out);
            }
            out.push(b't');
        }
        Value::Dict(pairs) => {
            out.extend(b"}(");
            for (key, value) in pairs {
                put(key, out);
                put(value, out);
            }
            out.push(b'u');
        }
    }
}

/// Bytes after their length in 1, 4 or 8 bytes, for each of which there is an opcode.
fn counted(opcodes: [u8; 3], bytes: &[u8], out: &mut Vec<u8>) {
    let len = bytes.len();
    if let Ok(len) = u8::try_from(len) {
        out.extend([opcodes[0], len]);
    } else if let Ok(len) = u32::try_from(len) {
        out.push(opcodes[1]);
        out.extend(len.to_le_bytes());
    } else {
        out.push(opcodes[2]);
        out.extend((len as u64).to_le_bytes());
    }
    out.extend(bytes);
}
