//! A configuration file as assignments: `[log.console]` and `level = "debug"` below it are `log.console.level`.
//!
//! Owns: what becomes of tables and lists, and where a fault is. A library takes the text apart; no tree is made of it, which
//! would take hundreds of times its bytes.
//! Invariant: whatever is in a file, it takes no more than some times its bytes, and a constant.

use std::borrow::Cow;
use std::path::Path;

use leveret_broker::Shortened;
use toml_parser::decoder::{Encoding, ScalarKind};
use toml_parser::parser::{EventReceiver, RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{ErrorSink, Expected, ParseError, Raw, Source, Span};

use super::claims::Claim;
use super::{Assignment, ConfigurationError, Origin, SETTINGS_MAX, check_name, find, is_table};

/// Tables in braces within one another. No setting has more than two.
const DEPTH_MAX: u32 = 16;

/// All lists that there are have names in them: what is none would stand for nobody.
const LIST: &str = "a list of texts in quotes";
const VALUE: &str = "a number, true, false, or a text in quotes";

/// The assignments in the text of a file.
pub(super) fn parse(file: &Path, text: &str) -> Result<Vec<Assignment>, ConfigurationError> {
    let source = Source::new(text);
    let mut tokens = Vec::with_capacity(source.lex().count());
    tokens.extend(source.lex());
    let mut walk = Walk::new(file, text);
    let mut error = None;
    let mut receiver = ValidateWhitespace::new(&mut walk, source);
    parse_document(&tokens, &mut RecursionGuard::new(&mut receiver, DEPTH_MAX), &mut error);
    match (error, walk.fault) {
        (Some(error), _) => Err(ConfigurationError::NotToml(file.into(), fault(&error, text))),
        (None, Some(fault)) => Err(fault),
        (None, None) => Ok(walk.assignments),
    }
}

/// A list that has not ended.
struct List {
    start: usize,
    /// What is in it, divided by commas; none, if anything is no text.
    texts: Option<String>,
    count: usize,
    /// Lists and tables within it that have not ended.
    open: usize,
}

/// Takes what the library finds, from the first line to the last. After the first fault, it keeps nothing more.
struct Walk<'t> {
    file: &'t Path,
    text: &'t str,
    assignments: Vec<Assignment>,
    claims: Vec<Claim>,
    fault: Option<ConfigurationError>,
    /// The name that is being read, or was last: each part of it behind a dot.
    name: String,
    /// Where its last part stands.
    span: Span,
    /// Another part of it comes next.
    goes_on: bool,
    /// Bytes of the name of the table with a line of its own, and of those in braces that have not ended.
    tables: Vec<usize>,
    list: Option<List>,
}

impl<'t> Walk<'t> {
    fn new(file: &'t Path, text: &'t str) -> Self {
        Walk {
            file,
            text,
            assignments: Vec::new(),
            claims: Vec::new(),
            fault: None,
            name: String::new(),
            span: Span::default(),
            goes_on: false,
            tables: Vec::new(),
            list: None,
        }
    }

    fn between(&self, start: usize, end: usize) -> &'t str {
        self.text.get(start..end).unwrap_or_default()
    }

    fn raw(&self, span: Span, encoding: Option<Encoding>) -> Raw<'t> {
        Raw::new_unchecked(self.between(span.start(), span.end()), encoding, span)
    }

    fn assigned(&self, text: String) -> Assignment {
        Assignment::new(Origin::File(self.file.into()), self.name.get(1..).unwrap_or_default(), text)
    }

    fn refuse(&mut self, takes: &'static str, value: &str) {
        if self.fault.is_none() {
            self.fault = Some(self.assigned(String::new()).is_not(takes, value));
        }
    }

    fn begin_table(&mut self, name_bytes: usize) {
        self.tables.clear();
        self.tables.push(name_bytes);
    }

    /// Bytes of the name of the table that is being filled.
    fn table_bytes(&self) -> usize {
        self.tables.last().copied().unwrap_or_default()
    }

    fn value(&self) -> Claim {
        Claim::Value(self.name.clone(), self.table_bytes())
    }

    /// Whether a table may have this name: if not, nothing could be set in it.
    fn check_table(&mut self) -> bool {
        if self.fault.is_none() && !is_table(self.name.get(1..).unwrap_or_default()) {
            let assignment = self.assigned(String::new());
            self.fault = Some(match find(&assignment) {
                Ok(key) => assignment.is_not(key.takes, "{ }"),
                Err(error) => error,
            });
        }
        self.fault.is_none()
    }

    /// Whether there may be this beside all that there is.
    fn check(&mut self, claim: &Claim, error: &mut dyn ErrorSink) -> bool {
        if self.claims.len() >= SETTINGS_MAX {
            self.fault = Some(ConfigurationError::TooMany);
        }
        let is_excluded = self.claims.iter().any(|other| claim.excludes(other));
        if is_excluded {
            error.report_error(ParseError::new("duplicate key").with_unexpected(self.span));
        }
        !is_excluded && self.fault.is_none()
    }

    fn claim(&mut self, claim: Claim, error: &mut dyn ErrorSink) -> bool {
        let is_granted = self.check(&claim, error);
        if is_granted {
            self.claims.push(claim);
        }
        is_granted
    }

    fn assign(&mut self, text: String, error: &mut dyn ErrorSink) {
        if self.fault.is_some() {
            return;
        }
        let assignment = self.assigned(text);
        self.fault = check_name(&assignment).err();
        if self.fault.is_none() && self.claim(self.value(), error) {
            self.assignments.push(assignment);
        }
    }

    /// Whether a list or a table begins within a list.
    fn begins_in_list(&mut self) -> bool {
        let Some(list) = &mut self.list else { return false };
        (list.texts, list.open) = (None, list.open + 1);
        true
    }
}

impl EventReceiver for Walk<'_> {
    fn std_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.begin_table(0);
    }

    fn std_table_close(&mut self, _: Span, error: &mut dyn ErrorSink) {
        self.begin_table(self.name.len());
        if self.check_table() {
            self.claim(Claim::Table(self.name.clone()), error);
        }
    }

    fn array_table_open(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.begin_table(0);
    }

    fn array_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.begin_table(self.name.len());
        self.refuse(LIST, "[[ ]]");
    }

    fn simple_key(&mut self, span: Span, encoding: Option<Encoding>, error: &mut dyn ErrorSink) {
        if !self.goes_on {
            self.name.truncate(self.table_bytes());
        }
        let mut part = Cow::Borrowed("");
        self.raw(span, encoding).decode_key(&mut part, error);
        self.name.push('.');
        self.name.push_str(&part);
        (self.span, self.goes_on) = (span, false);
    }

    fn key_sep(&mut self, _: Span, _: &mut dyn ErrorSink) {
        self.goes_on = true;
    }

    fn inline_table_open(&mut self, _: Span, error: &mut dyn ErrorSink) -> bool {
        if self.begins_in_list() {
            return false;
        }
        if self.check_table() {
            self.check(&self.value(), error);
        }
        self.tables.push(self.name.len());
        true
    }

    fn inline_table_close(&mut self, _: Span, _: &mut dyn ErrorSink) {
        if let Some(list) = &mut self.list {
            list.open = list.open.saturating_sub(1);
            return;
        }
        self.name.truncate(self.table_bytes());
        self.tables.pop();
        // Nothing is added to it any more.
        if self.fault.is_none() {
            self.claims.push(self.value());
        }
    }

    fn array_open(&mut self, span: Span, _: &mut dyn ErrorSink) -> bool {
        if self.begins_in_list() {
            return false;
        }
        self.list = Some(List { start: span.start(), texts: Some(String::new()), count: 0, open: 0 });
        true
    }

    fn array_close(&mut self, span: Span, error: &mut dyn ErrorSink) {
        match self.list.take() {
            Some(list) if list.open > 0 => self.list = Some(List { open: list.open - 1, ..list }),
            Some(List { texts: Some(texts), .. }) => self.assign(texts, error),
            Some(List { start, texts: None, .. }) => self.refuse(LIST, self.between(start, span.end())),
            None => {}
        }
    }

    fn scalar(&mut self, span: Span, encoding: Option<Encoding>, error: &mut dyn ErrorSink) {
        let mut decoded = Cow::Borrowed("");
        let kind = self.raw(span, encoding).decode_scalar(&mut decoded, error);
        if let Some(list) = &mut self.list {
            list.texts = list.texts.take().filter(|_| kind == ScalarKind::String).map(|mut texts| {
                texts.extend((list.count > 0).then_some(","));
                texts.push_str(&decoded);
                texts
            });
            list.count += 1;
            return;
        }
        let text = match kind {
            ScalarKind::String => decoded.into_owned(),
            ScalarKind::Boolean(value) => value.to_string(),
            // What has no place in a number is no value of any key, which says what it takes.
            ScalarKind::Integer(radix) => i64::from_str_radix(&decoded, radix.value())
                .map_or_else(|_| decoded.into_owned(), |number| number.to_string()),
            ScalarKind::Float => {
                decoded.parse::<f64>().map_or_else(|_| decoded.into_owned(), |number| format!("{number:?}"))
            }
            ScalarKind::DateTime => return self.refuse(VALUE, &decoded),
        };
        self.assign(text, error);
    }
}

/// Where and why, on one line.
fn fault(error: &ParseError, text: &str) -> String {
    let start = error.unexpected().map(|span| span.start());
    let place = start.and_then(|start| text.get(..start)).map_or_else(String::new, |before| {
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("at line {line}, column {column}")
    });
    let wanted = error.expected().unwrap_or_default().iter().map(|expected| match expected {
        Expected::Literal("\n") => "newline".to_owned(),
        Expected::Literal(text) => format!("`{text}`"),
        Expected::Description(text) => (*text).to_owned(),
        _ => "something else".to_owned(),
    });
    let wanted = wanted.collect::<Vec<_>>().join(", ");
    let expected = match error.expected() {
        None => String::new(),
        Some([]) => ", expected nothing".to_owned(),
        Some(_) => format!(", expected {wanted}"),
    };
    let advice = start.and_then(|start| unquoted(start, text)).unwrap_or_default();
    format!("{place}: {fault}{expected}{advice}", fault = error.description())
}

/// What to do if a value is a text without quotes, as in `rabbitmq.conf`.
fn unquoted(start: usize, text: &str) -> Option<String> {
    let start = text.get(..start)?.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(start..)?.lines().next()?;
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.split('#').next()?.trim());
    let is_bare = !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']);
    let is_word = is_bare && !value.contains(['"', '\'', '\\']) && !is_scalar(value);
    is_word.then(|| format!("; a text stands in quotes: {} = \"{}\"", Shortened(key), Shortened(value)))
}

fn is_scalar(text: &str) -> bool {
    let mut error: Option<ParseError> = None;
    let raw = Raw::new_unchecked(text, None, Span::new_unchecked(0, text.len()));
    let _ = raw.decode_scalar(&mut (), &mut error);
    error.is_none()
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::configuration::is_configuration;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        let assignments = parse(Path::new("f"), text).map_err(|error| error.to_string())?;
        Ok(assignments.iter().map(|set| format!("{}={}", set.key, set.value.display())).collect())
    }

    #[test]
    fn tables_of_every_kind_are_names_with_dots() {
        for (text, expected) in [
            ("", &[][..]),
            ("\u{feff}# nothing\r\n\r\n", &[]),
            ("heartbeat = 1 # one\n'channel_max' = 2", &["heartbeat=1", "channel_max=2"]),
            ("log . console . level = 'info'", &["log.console.level=info"]),
            ("[ log . \"console\" ]\nlevel = 'info'", &["log.console.level=info"]),
            ("[log]\nconsole = { level = 'info' }", &["log.console.level=info"]),
            (
                "[log]\n[log.console]\nlevel = 'info'\n[product]\nname = 'p'",
                &["log.console.level=info", "product.name=p"],
            ),
            ("[listeners.tcp]\na = 1\n[listeners]\n", &["listeners.tcp.a=1"]),
            ("listeners = { tcp.a = 1, tcp.b = '::1:2' }", &["listeners.tcp.a=1", "listeners.tcp.b=::1:2"]),
            ("'log.console.level' = 'info'", &["log.console.level=info"]),
            ("log = {}\n[product]\n", &[]),
        ] {
            assert_eq!(parsed(text), Ok(expected.iter().map(|&set| set.to_owned()).collect()), "{text}");
        }
    }

    #[test]
    fn values_are_what_they_mean_and_not_how_they_are_written() {
        for (value, text) in [
            ("0x1F", "31"),
            ("1_000", "1000"),
            ("+5", "5"),
            ("99999999999999999999", "99999999999999999999"),
            ("0.40", "0.4"),
            ("1.0", "1.0"),
            ("true", "true"),
            (r#""a\tb\u00e9""#, "a\tb\u{e9}"),
            ("'''\na\nb'''", "a\nb"),
            ("['a', \"b\",\n 'c' # end\n,]", "a,b,c"),
            ("['', 'a', '']", ",a,"),
            ("[]", ""),
        ] {
            assert_eq!(parsed(&format!("product = {value}")), Ok(vec![format!("product={text}")]), "{value}");
        }
    }

    #[test]
    fn a_name_is_defined_once() {
        for text in [
            "heartbeat = 1\nheartbeat = 2",
            "product = 'a'\nproduct.name = 'b'",
            "product.name = 'b'\nproduct = 'a'",
            "product = 'a'\n[product]",
            "[product]\nname = 'a'\n[product]\nversion = 'b'",
            "product.name = 'a'\n[product]\nversion = 'b'",
            "[log.console]\n[log]\nconsole.level = 'info'",
            "product = { name = 'a' }\nproduct.version = 'b'",
            "product = { name = 'a' }\n[product]",
            "product = {}\nproduct = {}",
            "product = { name = 'a', name = 'b' }",
            "[log.console]\n[log]\nconsole = {}",
            "'product.name' = 'a'\nproduct.name = 'b'",
        ] {
            let error = parsed(text).unwrap_err();
            assert!(
                error.starts_with("f is not valid TOML at line ") && error.ends_with(": duplicate key"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn what_no_setting_can_be_is_refused_with_its_place_or_its_name() {
        let takes = |what: &str, takes: &str, value: &str| {
            format!("setting '{what}' in f takes {takes}; '{value}' is not that")
        };
        for (text, error) in [
            ("bind = ['a', 1]", takes("bind", LIST, "['a', 1]")),
            ("bind = [['a'], {b = 'c'}]", takes("bind", LIST, "[['a'], {b = 'c'}]")),
            ("[[log]]\nlevel = 1", takes("log", LIST, "[[ ]]")),
            ("version = 2026-01-01", takes("version", VALUE, "2026-01-01")),
            ("[log.consol]", "unknown setting 'log.consol' in f; the nearest is 'log.console.level'".into()),
            ("foo = {}", "unknown setting 'foo' in f; there are ".into()),
            ("[heartbeat]", takes("heartbeat", "a number of seconds from 0 (none) to 65535", "{ }")),
            ("foo.bar = 1", "unknown setting 'foo.bar' in f".into()),
            ("listeners.tcp.a.b = 1", "unknown setting 'listeners.tcp.a.b' in f".into()),
            ("listeners.tcp.'' = 1", "unknown setting 'listeners.tcp.' in f".into()),
            // What is no TOML is said before what is no setting.
            ("foo = 1\nheartbeat = ", "f is not valid TOML at line 2, column 13: ".into()),
            ("[log\nlevel = 1", "f is not valid TOML at line 1, column 5: unclosed table, expected `]`".into()),
        ] {
            let refused = parsed(text).unwrap_err();
            assert!(refused.starts_with(&error), "{text}: {refused}");
        }
    }

    #[test]
    fn what_is_long_or_deep_or_much_is_refused_in_a_few_words() {
        let long = "x".repeat(100_000);
        for text in [
            format!("{long} = 1"),
            format!("heartbeat = {long}"),
            format!("heartbeat = '{long}'"),
            format!("[{long}]\na = 1"),
            format!("[[{long}]]"),
            format!("a = [{long}]"),
            format!("{long} = ['a', 1]"),
            format!("a = {}", "[".repeat(100_000)),
            format!("a = {}", "{a = ".repeat(100_000)),
            format!("a{} = 1", ".a".repeat(100_000)),
        ] {
            let error = is_configuration(&text, iter::empty()).unwrap_err();
            assert!(error.len() < 1000, "{} bytes: {}", error.len(), Shortened(&error));
        }
        let listeners =
            |count: usize| (0..count).map(|nth| format!("listeners.tcp.{nth} = 1\n")).collect::<Vec<_>>().concat();
        assert_eq!(parsed(&listeners(SETTINGS_MAX)).unwrap().len(), SETTINGS_MAX);
        let error = parsed(&listeners(SETTINGS_MAX + 1)).unwrap_err();
        assert!(error.starts_with("there are more than 128 settings; "), "{error}");
    }
}
