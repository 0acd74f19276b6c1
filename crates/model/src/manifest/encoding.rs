//! From the bytes of a file to its text: UTF-8, UTF-16 and UTF-32, told apart by a byte order mark
//! or, since a YAML or JSON stream begins with an ASCII character, by where the zeroes are (YAML
//! 1.2.2, section 5.2).

use super::ReadError;

/// How a character is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16([usize; 2]),
    Utf32([usize; 4]),
}

/// Where the bytes of a unit stand, the highest first.
const UTF16_BIG: Encoding = Encoding::Utf16([0, 1]);
const UTF16_LITTLE: Encoding = Encoding::Utf16([1, 0]);
const UTF32_BIG: Encoding = Encoding::Utf32([0, 1, 2, 3]);
const UTF32_LITTLE: Encoding = Encoding::Utf32([3, 2, 1, 0]);

/// The text, without a byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Result<String, ReadError> {
    let (encoding, mark) = detect(bytes);
    let body = bytes.get(mark..).unwrap_or_default();
    match encoding {
        Encoding::Utf8 => utf8(body, mark),
        Encoding::Utf16(order) => utf16(body, order),
        Encoding::Utf32(order) => utf32(body, order),
    }
}

/// The encoding, and the length of its mark.
fn detect(bytes: &[u8]) -> (Encoding, usize) {
    match *bytes {
        [0, 0, 0xFE, 0xFF, ..] => (UTF32_BIG, 4),
        [0, 0, 0, _, ..] => (UTF32_BIG, 0),
        [0xFF, 0xFE, 0, 0, ..] => (UTF32_LITTLE, 4),
        [_, 0, 0, 0, ..] => (UTF32_LITTLE, 0),
        [0xFE, 0xFF, ..] => (UTF16_BIG, 2),
        [0, _, ..] => (UTF16_BIG, 0),
        [0xFF, 0xFE, ..] => (UTF16_LITTLE, 2),
        [_, 0, ..] => (UTF16_LITTLE, 0),
        [0xEF, 0xBB, 0xBF, ..] => (Encoding::Utf8, 3),
        _ => (Encoding::Utf8, 0),
    }
}

fn utf8(body: &[u8], mark: usize) -> Result<String, ReadError> {
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(not_text("UTF-8", mark + error.valid_up_to())),
    }
}

fn utf16(body: &[u8], [high, low]: [usize; 2]) -> Result<String, ReadError> {
    let pairs = body.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(not_text("UTF-16", body.len()));
    }
    let units = pairs.map(|pair| u16::from_be_bytes([pair[high], pair[low]]));
    let text: Result<String, _> = char::decode_utf16(units).collect();
    text.map_err(|_| not_text("UTF-16", body.len()))
}

fn utf32(body: &[u8], order: [usize; 4]) -> Result<String, ReadError> {
    let units = body.chunks_exact(4);
    if !units.remainder().is_empty() {
        return Err(not_text("UTF-32", body.len()));
    }
    let units = units.map(|unit| char::from_u32(u32::from_be_bytes(order.map(|at| unit[at]))));
    let text: Option<String> = units.collect();
    text.ok_or_else(|| not_text("UTF-32", body.len()))
}

fn not_text(encoding: &'static str, at: usize) -> ReadError {
    ReadError::NotText { encoding, at }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "kind: Service # 出口 🚪\r\n";

    #[test]
    fn every_encoding_of_yaml_is_read_with_and_without_a_mark() {
        let big16: Vec<u8> = TEXT.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let little16: Vec<u8> = TEXT.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big32: Vec<u8> = TEXT.chars().flat_map(|c| u32::from(c).to_be_bytes()).collect();
        let little32: Vec<u8> = TEXT.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        for (mark, bytes) in [
            (&[0xEF, 0xBB, 0xBF][..], TEXT.as_bytes()),
            (&[0xFE, 0xFF], &big16),
            (&[0xFF, 0xFE], &little16),
            (&[0, 0, 0xFE, 0xFF], &big32),
            (&[0xFF, 0xFE, 0, 0], &little32),
        ] {
            assert_eq!(decode(bytes).as_deref(), Ok(TEXT), "{mark:?}");
            assert_eq!(decode(&[mark, bytes].concat()).as_deref(), Ok(TEXT), "{mark:?}");
        }
        assert_eq!(decode(b"").as_deref(), Ok(""));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_by_their_place() {
        assert_eq!(decode(b"name: caf\xE9"), Err(not_text("UTF-8", 9)));
        assert_eq!(decode(b"\xFF\xFEa"), Err(not_text("UTF-16", 1)));
        assert_eq!(decode(b"\xFF\xFE\x00\xD8"), Err(not_text("UTF-16", 2)));
        assert_eq!(decode(b"\xFF\xFE\x00\x00\x00\x00\x11\x00"), Err(not_text("UTF-32", 4)));
    }
}
