//! Short strings: at most 255 bytes of UTF-8, borrowed from a frame or owned.
//!
//! Invariant: the length fits the one octet it has on the wire, so encoding cannot fail.

use std::fmt;
use std::sync::Arc;

use crate::limits::SHORT_STRING_BYTES_MAX;
use crate::wire::DecodeError;

/// A string was longer than a short string may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are too long for a short string, which holds at most {SHORT_STRING_BYTES_MAX}")]
pub struct TooLong(pub usize);

/// A short string borrowed from somewhere. AMQP 0-9-1 §4.2.5.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortStr<'a>(&'a str);

impl<'a> ShortStr<'a> {
    /// The string of no characters.
    pub const EMPTY: ShortStr<'static> = ShortStr("");

    /// The reply text of a close without a fault.
    pub const GOODBYE: ShortStr<'static> = ShortStr("Goodbye");

    /// Takes a string of at most 255 bytes.
    pub fn new(text: &'a str) -> Result<Self, TooLong> {
        if text.len() <= SHORT_STRING_BYTES_MAX { Ok(ShortStr(text)) } else { Err(TooLong(text.len())) }
    }

    /// Takes the longest prefix that fits.
    pub fn truncated(text: &'a str) -> Self {
        ShortStr(&text[..text.floor_char_boundary(SHORT_STRING_BYTES_MAX)])
    }

    pub(crate) fn from_wire(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        debug_assert!(bytes.len() <= SHORT_STRING_BYTES_MAX);
        std::str::from_utf8(bytes).map(ShortStr).map_err(|_| DecodeError::NotUtf8)
    }

    /// The characters.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether there are no characters.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The length as it stands on the wire.
    #[expect(clippy::cast_possible_truncation, reason = "every constructor checked the length")]
    pub fn length_octet(self) -> u8 {
        self.0.len() as u8
    }
}

impl fmt::Display for ShortStr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A short string of our own, cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortString(Arc<str>);

impl ShortString {
    /// Takes a string of at most 255 bytes.
    pub fn new(text: &str) -> Result<Self, TooLong> {
        ShortStr::new(text).map(Self::from)
    }

    /// Borrows it.
    pub fn as_short_str(&self) -> ShortStr<'_> {
        ShortStr(&self.0)
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there are no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::borrow::Borrow<str> for ShortString {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl From<ShortStr<'_>> for ShortString {
    fn from(text: ShortStr<'_>) -> Self {
        ShortString(text.0.into())
    }
}

impl Default for ShortString {
    fn default() -> Self {
        ShortString::from(ShortStr::EMPTY)
    }
}

impl fmt::Display for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShortString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_string_holds_255_bytes_and_not_one_more() {
        assert_eq!(ShortStr::new(&"a".repeat(255)).map(ShortStr::length_octet), Ok(255));
        assert_eq!(ShortString::new(&"a".repeat(256)), Err(TooLong(256)));
    }

    #[test]
    fn a_short_string_is_the_text_that_it_was_made_of() {
        for text in ["", "queue", "큐"] {
            let (borrowed, own) = (ShortStr::new(text).unwrap(), ShortString::new(text).unwrap());
            assert_eq!(own, ShortString::from(borrowed));
            assert_eq!(own.as_short_str(), borrowed);
            assert_eq!((own.as_str(), std::borrow::Borrow::<str>::borrow(&own)), (text, text));
            assert_eq!((own.is_empty(), borrowed.is_empty()), (text.is_empty(), text.is_empty()));
            assert_eq!((borrowed.to_string(), own.to_string()), (text.to_owned(), text.to_owned()));
            assert_eq!(format!("{own:?}"), format!("{text:?}"));
        }
    }

    #[test]
    fn truncation_never_cuts_a_character_in_two() {
        let text = "토".repeat(90);
        assert_eq!(ShortStr::truncated(&text).as_str().len(), 255);
        let shifted = format!("a{text}");
        assert_eq!(ShortStr::truncated(&shifted).as_str().len(), 253);
    }
}
