//! The parts of a SentencePiece model file that a tokenizer needs.
//!
//! The file is a protocol buffer, `ModelProto` of `sentencepiece_model.proto`: pieces in field 1 (text 1, score 2, kind
//! 3), the trainer's settings in field 2 (model type 3, unknown id 40), the normalizer's in field 3 (compiled character
//! map 2). Every other field is skipped.

/// A vocabulary with log-probabilities, and how text is normalized before.
#[derive(Debug, Default)]
pub(super) struct SentencePieces {
    pub(super) pieces: Vec<Piece>,
    pub(super) charsmap: Vec<u8>,
    /// Which piece stands for what no other piece covers.
    pub(super) unknown: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Control,
    UserDefined,
    Other,
}

const UNIGRAM: u64 = 1;

impl SentencePieces {
    pub(super) fn read(file: &[u8]) -> Result<Self, String> {
        let mut model = Self::default();
        for field in fields(file) {
            match field? {
                (1, Value::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
                (2, Value::Bytes(bytes)) => {
                    for field in fields(bytes) {
                        match field? {
                            (3, Value::Number(UNIGRAM)) => {}
                            (3, Value::Number(kind)) => {
                                return Err(format!("`trainer_spec.model_type` is {kind}: 1 (unigram) is implemented"));
                            }
                            (40, Value::Number(id)) => model.unknown = id as usize,
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(bytes)) => {
                    for field in fields(bytes) {
                        if let (2, Value::Bytes(map)) = field? {
                            model.charsmap = map.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() { Err("there is no piece in it".into()) } else { Ok(model) }
    }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Other };
    for field in fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is not UTF-8")?;
            }
            (2, Value::Bits(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(3)) => piece.kind = Kind::Control,
            (3, Value::Number(4)) => piece.kind = Kind::UserDefined,
            _ => {}
        }
    }
    Ok(piece)
}

/// What a field holds. Eight-byte numbers do not occur and are passed over.
enum Value<'a> {
    Number(u64),
    Bits(u32),
    Bytes(&'a [u8]),
    Wide,
}

/// The fields of a message: numbers and values.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes).ok_or_else(|| "the file is cut or not a SentencePiece model".to_owned());
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Value::Wide)?,
        2 => {
            let length = varint(bytes)?;
            Value::Bytes(take(bytes, usize::try_from(length).ok()?)?)
        }
        5 => Value::Bits(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((key >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(head)
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by hand from the protocol buffer specification.
    const FILE: &[u8] = &[
        0x0a, 0x0b, 0x0a, 0x02, b'a', b'b', 0x15, 0, 0, 0xc0, 0xbf, 0x18, 0x03, // piece "ab", −1.5, control
        0x12, 0x05, 0x18, 0x01, 0xc0, 0x02, 0x07, // trainer: unigram, unknown 7
        0x1a, 0x05, 0x12, 0x03, 1, 2, 3, // normalizer: charsmap
    ];

    #[test]
    fn fields_are_where_the_schema_says() {
        let model = SentencePieces::read(FILE).expect("a model");
        assert_eq!(model.pieces, [Piece { text: "ab".into(), score: -1.5, kind: Kind::Control }]);
        assert_eq!((model.unknown, model.charsmap), (7, vec![1, 2, 3]));
    }

    #[test]
    fn a_cut_file_and_another_kind_of_model_are_errors() {
        assert!(SentencePieces::read(&FILE[..FILE.len() - 1]).expect_err("cut").contains("cut"));
        let mut bpe = FILE.to_vec();
        bpe[16] = 2;
        assert!(SentencePieces::read(&bpe).expect_err("bpe").contains("model_type"));
    }
}
