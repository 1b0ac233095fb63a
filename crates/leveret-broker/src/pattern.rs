//! Patterns of names, as permissions and policies give them: regular expressions that are searched in linear time.

use std::fmt;

use regex::{Regex, RegexBuilder};
use regex_syntax::ast;

use crate::limits::{PATTERN_BYTES_MAX, PATTERN_PROGRAM_BYTES_MAX};

/// A pattern. It matches a name that it is found in, anywhere unless it says `^` or `$`.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    found: Found,
}

/// What the pattern is found in.
#[derive(Clone)]
enum Found {
    Everything,
    Some(Regex),
}

/// A pattern that is none, or that takes too much.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// It says something that cannot be searched in linear time.
    #[error("{what} is not supported in pattern '{pattern}': patterns are searched in linear time")]
    NotLinear {
        /// Which construct it is.
        what: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// It is no regular expression.
    #[error("pattern '{pattern}' is no regular expression: {fault}, at character {at}")]
    Malformed {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        fault: String,
        /// Where, from 1 on.
        at: usize,
    },
    /// It is too long, or repeats too much.
    #[error("a pattern takes too much: {0}")]
    TooLarge(String),
}

impl Pattern {
    /// Reads a pattern in the syntax of the crate `regex`.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        if text.len() > PATTERN_BYTES_MAX {
            let fault = format!("{} bytes are more than {PATTERN_BYTES_MAX}", text.len());
            return Err(InvalidPattern::TooLarge(fault));
        }
        let found = if matches!(text, ".*" | "^.*" | ".*$") {
            Found::Everything
        } else {
            ast::parse::Parser::new().parse(text).map_err(|error| refused(text, &error))?;
            let regex = RegexBuilder::new(text).size_limit(PATTERN_PROGRAM_BYTES_MAX).build();
            Found::Some(regex.map_err(|error| InvalidPattern::TooLarge(format!("'{text}': {error}")))?)
        };
        Ok(Pattern { text: text.into(), found })
    }

    /// Whether it matches a name.
    pub fn matches(&self, name: &str) -> bool {
        match &self.found {
            Found::Everything => true,
            Found::Some(regex) => regex.is_match(name),
        }
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn refused(text: &str, error: &ast::Error) -> InvalidPattern {
    let pattern = text.to_owned();
    match error.kind() {
        ast::ErrorKind::UnsupportedLookAround => InvalidPattern::NotLinear { what: "look-around", pattern },
        ast::ErrorKind::UnsupportedBackreference => InvalidPattern::NotLinear { what: "a backreference", pattern },
        kind => {
            let at = text[..error.span().start.offset].chars().count() + 1;
            InvalidPattern::Malformed { pattern, fault: kind.to_string(), at }
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_anywhere_unless_it_is_anchored() {
        for (pattern, name, matches) in [
            (".*", "", true),
            ("", "anything", true),
            ("^$", "", true),
            ("^$", "q", false),
            ("ord", "my-orders", true),
            ("^ord", "my-orders", false),
            ("^(orders|stock)\\.", "stock.eu", true),
            (".*", "a\nb", true),
            ("^.*$", "a\nb", false),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(name), matches, "{pattern} in {name}");
        }
    }

    #[test]
    fn what_linear_time_does_not_allow_is_refused_by_name() {
        let refused = |pattern| Pattern::new(pattern).unwrap_err().to_string();
        assert_eq!(
            refused("^(?!amq\\.).*"),
            "look-around is not supported in pattern '^(?!amq\\.).*': patterns are searched in linear time"
        );
        assert!(refused("(a)\\1").starts_with("a backreference is not supported"));
        assert_eq!(refused("q("), "pattern 'q(' is no regular expression: unclosed group, at character 2");
        assert!(refused("(((a{100}){100}){100}){100}").starts_with("a pattern takes too much"));
        assert!(refused(&"x".repeat(PATTERN_BYTES_MAX + 1)).starts_with("a pattern takes too much"));
    }
}
