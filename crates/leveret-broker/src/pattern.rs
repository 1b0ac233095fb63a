//! Regular expressions that users write to name queues, exchanges and the like. RabbitMQ: PCRE, as `re:run` of Erlang has it.
//!
//! A pattern is searched for anywhere in a name, byte by byte, in time that grows with the name and not with what the
//! pattern could try. So what needs to go back and try again is refused, and named: nothing else of PCRE means something
//! different here without being refused.

use std::fmt;

use regex_automata::meta::{Config, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    AssertionKind, Ast, ClassSetBinaryOp, ClassSetItem, ErrorKind, Flag, FlagsItemKind, RepetitionKind, Visitor,
    visit,
};
use regex_syntax::hir::translate::TranslatorBuilder;

use crate::Shortened;
use crate::limits::{PATTERN_BYTES_MAX, PATTERN_TEXT_BYTES_MAX};

/// A pattern, ready to be searched for.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    /// None: it is found in every name.
    regex: Option<Regex>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", Shortened(&self.text))
    }
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It needs what takes more than linear time.
    #[error("{0} not supported, as matching takes linear time")]
    Unsupported(Unsupported),
    /// It is no regular expression.
    #[error("{0}")]
    Malformed(String),
    /// It has so many bytes, more than [`PATTERN_TEXT_BYTES_MAX`].
    #[error("it has {0} bytes, and a pattern has at most {PATTERN_TEXT_BYTES_MAX}")]
    TooLong(usize),
    /// Compiled, it would take more than [`PATTERN_BYTES_MAX`].
    #[error("compiled, it takes too much memory; repeat less in it")]
    TooLarge,
}

/// What PCRE has and a [`Pattern`] has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// `(?=...)`, `(?!...)`, `(?<=...)`, `(?<!...)`
    LookAround,
    /// `\1`
    Backreference,
    /// `a++`
    Possessive,
    /// `(?R)`
    Recursion,
    /// `[` in a class, `[a&&b]`: they would mean something that they do not mean in PCRE.
    NestedClass,
    /// `\<`, `\>`, `\b{start}` and the like: a text in PCRE.
    WordEdge,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unsupported::LookAround => "look-ahead and look-behind are",
            Unsupported::Backreference => "backreferences are",
            Unsupported::Possessive => "possessive quantifiers are",
            Unsupported::Recursion => "recursion is",
            Unsupported::NestedClass => "classes within classes are",
            Unsupported::WordEdge => "word boundaries other than \\b and \\B are",
        })
    }
}

impl Pattern {
    /// Takes it as users write it.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if matches!(text, "" | ".*" | "^.*" | ".*$") {
            return Ok(Pattern { text: text.into(), regex: None });
        }
        check_length(text)?;
        let ast = Parser::new().parse(text).map_err(|error| match error.kind() {
            ErrorKind::UnsupportedLookAround => PatternError::Unsupported(Unsupported::LookAround),
            ErrorKind::UnsupportedBackreference => PatternError::Unsupported(Unsupported::Backreference),
            kind => PatternError::Malformed(format!("{kind}, at character {}", error.span().start.offset)),
        })?;
        visit(&ast, OnlySupported).map_err(PatternError::Unsupported)?;
        let mut translator = TranslatorBuilder::new().unicode(false).utf8(false).build();
        let meaning = translator.translate(text, &ast).map_err(|error| {
            PatternError::Malformed(format!("{}, at character {}", error.kind(), error.span().start.offset))
        })?;
        let config = Config::new()
            .utf8_empty(false)
            .nfa_size_limit(Some(PATTERN_BYTES_MAX))
            .onepass_size_limit(Some(PATTERN_BYTES_MAX / 4))
            .hybrid_cache_capacity(PATTERN_BYTES_MAX / 4)
            .which_captures(WhichCaptures::None)
            // To look for letters that any name must have takes several times what all else does, and names are short.
            .auto_prefilter(false);
        let regex = Regex::builder().configure(config).build_from_hir(&meaning).map_err(|error| {
            error
                .size_limit()
                .map_or_else(|| PatternError::Malformed(error.to_string()), |_| PatternError::TooLarge)
        })?;
        Ok(Pattern { text: text.into(), regex: Some(regex) })
    }

    /// The same, but for the empty one, which is found in the empty name only. RabbitMQ: permissions.
    pub fn parse_permission(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() { Ok(Pattern { text: text.into(), ..Self::parse("^$")? }) } else { Self::parse(text) }
    }

    /// Whether it is found in a name.
    pub fn matches(&self, name: &str) -> bool {
        self.regex.as_ref().is_none_or(|regex| regex.is_match(name.as_bytes()))
    }

    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Before anything is made of a text that is to be a pattern.
pub(crate) fn check_length(text: &str) -> Result<(), PatternError> {
    if text.len() > PATTERN_TEXT_BYTES_MAX { Err(PatternError::TooLong(text.len())) } else { Ok(()) }
}

/// Looks for what would be understood otherwise than in PCRE.
struct OnlySupported;

impl Visitor for OnlySupported {
    type Output = ();
    type Err = Unsupported;

    fn finish(self) -> Result<(), Unsupported> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Unsupported> {
        match ast {
            Ast::Repetition(outer) => {
                let is_plus = matches!(outer.op.kind, RepetitionKind::OneOrMore);
                let is_possessive = is_plus && matches!(*outer.ast, Ast::Repetition(_));
                if is_possessive { Err(Unsupported::Possessive) } else { Ok(()) }
            }
            Ast::Flags(set) => {
                let is_recursion =
                    set.flags.items.iter().any(|item| matches!(item.kind, FlagsItemKind::Flag(Flag::CRLF)));
                if is_recursion { Err(Unsupported::Recursion) } else { Ok(()) }
            }
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::WordBoundaryStart
                | AssertionKind::WordBoundaryEnd
                | AssertionKind::WordBoundaryStartAngle
                | AssertionKind::WordBoundaryEndAngle
                | AssertionKind::WordBoundaryStartHalf
                | AssertionKind::WordBoundaryEndHalf => Err(Unsupported::WordEdge),
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText
                | AssertionKind::WordBoundary
                | AssertionKind::NotWordBoundary => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Unsupported> {
        if matches!(item, ClassSetItem::Bracketed(_)) { Err(Unsupported::NestedClass) } else { Ok(()) }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Unsupported> {
        Err(Unsupported::NestedClass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_searched_for_anywhere_in_a_name() {
        for (pattern, name, found) in [
            ("", "anything", true),
            (".*", "a\nb", true),
            ("^.*$", "a\nb", false),
            ("b", "abc", true),
            ("^b", "abc", false),
            (r"^amq\.", "amq.gen-x", true),
            (r"^amq\.", "amqx", false),
            ("(?i)ORDERS", "my-orders", true),
            (r"^\w+$", "na\u{ef}ve", false),
            ("주문", "큰 주문 큐", true),
            ("[[:digit:]]{2}$", "q17", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(name), found, "{pattern} in {name}");
        }
    }

    #[test]
    fn an_empty_permission_is_for_nothing() {
        let nothing = Pattern::parse_permission("").unwrap();
        assert!(nothing.matches("") && !nothing.matches("q"));
        assert_eq!(nothing.as_str(), "");
    }

    #[test]
    fn what_a_pattern_cannot_be_is_named() {
        for (pattern, error) in [
            ("^(?!amq\\.).*", Unsupported::LookAround),
            ("(?<=a)b", Unsupported::LookAround),
            (r"(a)\1", Unsupported::Backreference),
            ("a++", Unsupported::Possessive),
            ("(?R)", Unsupported::Recursion),
            ("[[a]b]", Unsupported::NestedClass),
            ("[a-z&&b]", Unsupported::NestedClass),
            (r"^\<x", Unsupported::WordEdge),
            (r"x\>$", Unsupported::WordEdge),
            (r"\b{start}x", Unsupported::WordEdge),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap_err(), PatternError::Unsupported(error), "{pattern}");
        }
        let malformed = Pattern::parse("(").unwrap_err();
        assert_eq!(malformed.to_string(), "unclosed group, at character 0");
        assert_eq!(Pattern::parse("((a{99}){99}){99}").unwrap_err(), PatternError::TooLarge);
        let no_unicode = Pattern::parse(r"a\pL").unwrap_err();
        assert_eq!(no_unicode.to_string(), "Unicode not allowed here, at character 1");
    }

    #[test]
    fn a_pattern_has_so_many_bytes_and_no_more() {
        let names = |bytes: usize| format!("^({})$", "orders.eu|".repeat(bytes / 10) + &"x".repeat(bytes % 10 - 4));
        let most = Pattern::parse(&names(4096)).unwrap();
        assert!(most.as_str().len() == 4096 && most.matches("orders.eu") && !most.matches("orders.us"));
        for too_long in [names(4097), "(".repeat(1_000_000), "a?".repeat(100_000)] {
            let error = Pattern::parse(&too_long).unwrap_err();
            assert_eq!(error, PatternError::TooLong(too_long.len()));
            assert_eq!(Pattern::parse_permission(&too_long).unwrap_err(), error);
        }
        let error = PatternError::TooLong(4097).to_string();
        assert_eq!(error, "it has 4097 bytes, and a pattern has at most 4096");
    }
}
