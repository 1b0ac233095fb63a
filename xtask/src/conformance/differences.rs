//! The list of scripts that are known to differ on a broker, with the reason for each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What differs, line by line: `NAME: reason`. A name with `*` at its end stands for all that begin so, of which some
/// differ; `NAME: sometimes: reason` is for what depends on timing. Lines that begin with `#` are comments.
#[derive(Debug, Default)]
pub(super) struct Differences(Vec<Difference>);

#[derive(Debug)]
struct Difference {
    name: String,
    reason: String,
    is_certain: bool,
    /// Whether a script of that name has run and differed.
    is_seen: bool,
}

impl Differences {
    pub(super) fn read(file: &Path) -> Result<Differences> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Differences::parse(&text).with_context(|| file.display().to_string())
    }

    fn parse(text: &str) -> Result<Differences> {
        let mut differences: Vec<Difference> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, reason) = line.split_once(": ").with_context(|| format!("no reason in {line:?}"))?;
            ensure!(differences.iter().all(|earlier| earlier.name != name), "{name} is listed twice");
            let (reason, is_certain) = match reason.strip_prefix("sometimes: ") {
                Some(reason) => (reason, false),
                None => (reason, true),
            };
            let (name, reason) = (name.to_owned(), reason.to_owned());
            differences.push(Difference { name, reason, is_certain, is_seen: false });
        }
        Ok(Differences(differences))
    }

    /// Why this script, which differs, does so.
    pub(super) fn explain(&mut self, script: &str) -> Option<&str> {
        let difference = self.0.iter_mut().find(|difference| difference.covers(script))?;
        difference.is_seen = true;
        Some(&difference.reason)
    }

    /// The names of which no script differed, though one should have.
    pub(super) fn unseen(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|difference| difference.is_certain && !difference.is_seen).map(|it| it.name.as_str())
    }
}

impl Difference {
    fn covers(&self, script: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(beginning) => script.starts_with(beginning),
            None => script == self.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_explains_a_script_or_all_that_begin_alike() {
        let text = "# a comment\n\nqueues::a: it says: no\nqueues::b*: so\n";
        let mut differences = Differences::parse(text).unwrap();
        assert_eq!(differences.explain("queues::a"), Some("it says: no"));
        assert_eq!(differences.explain("queues::a-2"), None);
        assert_eq!(differences.explain("queues::b-2"), Some("so"));
        assert_eq!(differences.unseen().next(), None);
    }

    #[test]
    fn what_did_not_differ_is_told_unless_it_differs_only_sometimes() {
        let differences = Differences::parse("queues::a: so\nqueues::b: sometimes: so\nqueues::c*: so\n").unwrap();
        assert_eq!(differences.unseen().collect::<Vec<_>>(), ["queues::a", "queues::c*"]);
    }

    #[test]
    fn a_line_without_a_reason_and_a_name_that_comes_twice_are_refused() {
        Differences::parse("queues::a\n").unwrap_err();
        Differences::parse("queues::a: one\nqueues::a: two\n").unwrap_err();
    }
}
