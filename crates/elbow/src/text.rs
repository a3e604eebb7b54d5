//! Text files as editors of all systems write them.

/// What is wrong with the bytes of a text file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Neither UTF-8 nor marked as another encoding.
    #[error("line {line}, column {column}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")]
    Encoding {
        /// Counted from 1.
        line: usize,
        /// Characters from the start of the line, counted from 1.
        column: usize,
        /// The byte there.
        byte: u8,
    },
    /// Marked as UTF-16 and not that.
    #[error("the file begins with the mark of UTF-16 and is damaged after character {0}; save it as UTF-8")]
    Utf16(usize),
}

/// The text of a file: UTF-8, or UTF-16 if it begins with the mark of that. Marks are left out, and lines end in `\n` whether they ended in
/// `\r\n`, `\r` or that.
pub fn decode(bytes: &[u8]) -> Result<String, TextError> {
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest)?,
        bytes => utf8(bytes)?,
    };
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

fn utf8(bytes: &[u8]) -> Result<String, TextError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| {
        let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).replace("\r\n", "\n").replace('\r', "\n");
        let column = good.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        TextError::Encoding { line: good.matches('\n').count() + 1, column, byte: bytes[error.valid_up_to()] }
    })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, TextError> {
    let units = bytes.chunks(2).map(|pair| if let &[a, b] = pair { unit([a, b]) } else { 0xd800 });
    let mut text = String::new();
    for (i, c) in char::decode_utf16(units).enumerate() {
        text.push(c.map_err(|_| TextError::Utf16(i))?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_line_ends_make_no_difference() {
        let text = "ein Apfel\nüber Äpfeln 🍎\n\nz";
        let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(unit).collect()
        };
        let files = [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            text.replace('\n', "\r\n").into_bytes(),
            text.replace('\n', "\r").into_bytes(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
        ];
        for file in files {
            assert_eq!(decode(&file).as_deref(), Ok(text), "{file:?}");
        }
        assert_eq!(decode(b"").as_deref(), Ok(""));
    }

    #[test]
    fn a_byte_that_is_no_text_is_found() {
        // "é" of Windows-1252 in the third line.
        let error =
            decode("a\r\nb\r\nüc".as_bytes().iter().copied().chain([0xe9, b'!']).collect::<Vec<_>>().as_slice());
        assert_eq!(error, Err(TextError::Encoding { line: 3, column: 3, byte: 0xe9 }));
        assert!(error.expect_err("an error").to_string().contains("save the file as UTF-8"));
        // Half a pair, and a byte too few.
        assert_eq!(decode(&[0xff, 0xfe, b'a', 0, 0x00, 0xd8]), Err(TextError::Utf16(1)));
        assert_eq!(decode(&[0xff, 0xfe, b'a', 0, b'b']), Err(TextError::Utf16(1)));
    }
}
