//! Texts of others in what is said to people.

use std::fmt;

/// As much of a text as an error has room for: a long one's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Shortened<'t>(pub &'t str);

/// Characters of a text that is shown whole.
const CHARACTERS_MAX: usize = 40;

/// Characters of the beginning of a longer one.
const BEGINNING: usize = 36;

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortened(text) = *self;
        let mut ends = text.char_indices().map(|(at, _)| at);
        match (ends.nth(BEGINNING), ends.nth(CHARACTERS_MAX - BEGINNING - 1)) {
            (Some(end), Some(_)) => write!(f, "{}...", &text[..end]),
            _ => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_its_beginning() {
        let shown = |text: &str| Shortened(text).to_string();
        assert_eq!(shown(""), "");
        assert_eq!(shown(&"x".repeat(40)), "x".repeat(40));
        assert_eq!(shown(&"x".repeat(41)), format!("{}...", "x".repeat(36)));
        assert_eq!(shown(&"큐".repeat(40)), "큐".repeat(40));
        assert_eq!(shown(&"큐".repeat(1000)), format!("{}...", "큐".repeat(36)));
    }
}
