//! Keys and values as text, so that nothing binary is ever lost on the way to a terminal, a file or a script.
//!
//! Two forms. *Escaped* text, for tab-separated files, tables and `--escaped` arguments: `\\`, `\t`, `\n`, `\r`, and
//! `\xNN` for any other control character and for bytes that are not UTF-8. And [`Text`], for JSON: a string where the
//! bytes are UTF-8, else an object `{"base64": "…"}`.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A backslash that does not begin an escape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an escape: \\\\, \\t, \\n, \\r and \\xNN are")]
pub struct InvalidEscape(String);

/// Escaped text: one line, no tab, and [`unescape`] reads it back.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    let mut utf8 = [0; 4];
                    c.encode_utf8(&mut utf8).bytes().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
                }
                c => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
    }
    text
}

/// The bytes that an escaped text stands for. Bytes outside escapes are taken as they are.
///
/// # Errors
/// If a backslash does not begin an escape.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, InvalidEscape> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| *b == b'\\') {
        bytes.extend_from_slice(&rest[..at]);
        let escape = &rest[at..];
        let invalid = || InvalidEscape(String::from_utf8_lossy(&escape[..escape.len().min(4)]).into_owned());
        let (byte, len) = match escape.get(1) {
            Some(b'\\') => (b'\\', 2),
            Some(b't') => (b'\t', 2),
            Some(b'n') => (b'\n', 2),
            Some(b'r') => (b'\r', 2),
            Some(b'x') => {
                let digits = escape.get(2..4).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(invalid)?;
                if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(invalid());
                }
                (u8::from_str_radix(digits, 16).map_err(|_| invalid())?, 4)
            }
            _ => return Err(invalid()),
        };
        bytes.push(byte);
        rest = &escape[len..];
    }
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Escaped text of at most `width` characters, the end replaced by `…` where it is longer: for tables.
#[must_use]
pub fn shorten(bytes: &[u8], width: usize) -> String {
    // A character takes at most four bytes, so this much is enough to fill the width.
    let text = escape(&bytes[..bytes.len().min(width * 4)]);
    if text.chars().count() <= width && bytes.len() <= width * 4 {
        return text;
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Bytes as JSON: a string where they are UTF-8, else `{"base64": "…"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text(pub Bytes);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.serialize(serializer),
            Err(_) => Base64 { base64: STANDARD.encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Plain(text) => Ok(Text(text.into())),
            Form::Binary(Base64 { base64 }) => {
                let bytes = STANDARD.decode(base64).map_err(|e| D::Error::custom(format!("base64: {e}")))?;
                Ok(Text(bytes.into()))
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string or {\"base64\": \"…\"}")]
enum Form {
    Plain(String),
    Binary(Base64),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64 {
    base64: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn escaped_text_reads_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = escape(&bytes);
            prop_assert!(!text.contains(['\t', '\n', '\r']));
            prop_assert_eq!(unescape(text.as_bytes()).unwrap(), bytes);
        }

        #[test]
        fn json_reads_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let text = Text(bytes.into());
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text);
        }

        #[test]
        fn no_text_panics(bytes in prop::collection::vec(prop_oneof![Just(b'\\'), Just(b'x'), any::<u8>()], 0..12)) {
            let _ = unescape(&bytes);
            prop_assert!(shorten(&bytes, 5).chars().count() <= 5);
        }
    }

    #[test]
    fn what_is_not_an_escape_is_refused() {
        for bad in ["\\", "\\q", "\\x", "\\x1", "\\xgg", "\\x+1"] {
            assert!(unescape(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn binary_is_readable() {
        assert_eq!(escape(b"a\tb\\\x00\xffz\xc3\xa9"), "a\\tb\\\\\\x00\\xffz\u{e9}");
        assert_eq!(serde_json::to_string(&Text(Bytes::from_static(b"\xff"))).unwrap(), r#"{"base64":"/w=="}"#);
    }
}
