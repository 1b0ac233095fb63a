//! `docs/compatibility.md`: what it calls done must have a test.
//!
//! In a table with a column `Status`, each row whose status begins with `done` names at least one test in backticks:
//! in a column whose title begins with `Test`, or anywhere in the row if there is none. A test is a function of a
//! Rust file with the attribute `test`, or a step of the client scenarios; a path before it, as in `queue::index::name`, is not looked at.

use super::Looked;
use super::tidy::is_word;
use crate::files::Files;

const PAGE: &str = "docs/compatibility.md";

/// The rows that are done, and what is wrong with them.
pub(super) fn rows(files: &Files) -> Looked {
    let mut faults = Vec::new();
    let mut columns = None;
    let mut done_count = 0;
    let lines = files.get(PAGE).map(|page| page.text.lines()).into_iter().flatten();
    for (number, line) in lines.enumerate() {
        let Some(cells) = cells(line) else {
            columns = None;
            continue;
        };
        // The first line of a table is its header.
        let Some(columns) = &columns else {
            columns = Some(Columns::of(&cells));
            continue;
        };
        let Some(tests) = columns.tests_of_done_row(&cells) else { continue };
        done_count += 1;
        if tests.is_empty() {
            faults.push(format!("{PAGE}:{}: done, but no test is named", number + 1));
        }
        let missing = tests.iter().filter(|test| !exists(files, test));
        faults.extend(missing.map(|test| format!("{PAGE}:{}: there is no test `{test}`", number + 1)));
    }
    Looked { at: "rows of docs/compatibility.md that are done", count: done_count, faults }
}

/// Where a table has what.
#[derive(Debug)]
struct Columns {
    status: Option<usize>,
    tests: Option<usize>,
}

impl Columns {
    fn of(header: &[&str]) -> Columns {
        let find = |title: &str| header.iter().position(|cell| cell.to_lowercase().starts_with(title));
        Columns { status: find("status"), tests: find("test") }
    }

    /// The tests that a row names; `None` unless it is done.
    fn tests_of_done_row<'p>(&self, cells: &[&'p str]) -> Option<Vec<&'p str>> {
        let status = cells.get(self.status?)?;
        if !status.to_lowercase().starts_with("done") {
            return None;
        }
        Some(match self.tests {
            Some(tests) => cells.get(tests).map(|cell| names(cell).collect()).unwrap_or_default(),
            None => cells.iter().flat_map(|cell| names(cell)).filter(|name| name.contains('_')).collect(),
        })
    }
}

/// The cells of a line of a table. A `\|` does not end one.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.trim_end_matches('|');
    let mut cells = Vec::new();
    let mut start = 0;
    for (at, _) in inner.match_indices('|') {
        if !inner[..at].ends_with('\\') {
            cells.push(inner[start..at].trim());
            start = at + 1;
        }
    }
    cells.push(inner[start..].trim());
    Some(cells)
}

/// What is in backticks, each without the path before it.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2).map(|name| name.rsplit("::").next().unwrap_or(name).trim_end_matches("()"))
}

fn exists(files: &Files, test: &str) -> bool {
    if test.is_empty() || !test.chars().all(is_word) {
        return false;
    }
    let steps = [format!("fn {test}("), format!("def {test}("), format!("'{test}'")];
    files.iter().any(|file| {
        if file.path.starts_with("clients/") {
            steps.iter().any(|step| file.text.contains(step))
        } else {
            file.has_extension("rs") && has_test(&file.text, test)
        }
    })
}

/// Whether a Rust file has a function of this name with the attribute `test`.
fn has_test(text: &str, name: &str) -> bool {
    let begins = format!("fn {name}(");
    if !text.contains(&begins) {
        return false;
    }
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let functions = lines.iter().enumerate().filter(|(_, line)| line.starts_with(&begins));
    functions.map(|(at, _)| lines[..at].iter().rev()).any(|mut before| {
        let mut above = before.by_ref().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        above.any(|line| *line == "#[test]")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(page: &str) -> Vec<String> {
        let rows = rows(&Files::of(&[
            (PAGE, page),
            (
                "crates/a/src/lib.rs",
                "/// A script.\n#[test]\n// It is short.\nfn returned_then_confirmed() {}\n\nfn no_test() {}",
            ),
            ("clients/python/pika_steps.py", "def confirms():\n"),
            ("clients/node/steps.js", "['prefetch', prefetch],"),
        ]));
        rows.faults(1)
    }

    #[test]
    fn each_done_row_names_tests_that_exist() {
        let page = "\
# Compatibility

| Method | Status | Tests |
| --- | --- | --- |
| `basic.publish` | done | `a::returned_then_confirmed`, `confirms` |
| `basic.qos` | done, since 0.1 | `prefetch` |
| `basic.ack` | done | `no_such_test` |
| `basic.get` | done | `no_test` |
| `basic.nack` | Done | see above |
| `basic.recover` | differs \\| absent | `no_such_test` |

| Argument | Default |
| --- | --- |
| `done` | done |
";
        assert_eq!(
            faults_of(page),
            [
                "docs/compatibility.md:7: there is no test `no_such_test`",
                "docs/compatibility.md:8: there is no test `no_test`",
                "docs/compatibility.md:9: done, but no test is named"
            ]
        );
    }

    #[test]
    fn without_a_column_for_tests_they_may_stand_anywhere_in_the_row() {
        let page = "|Method|Status|\n|-|-|\n|`tx.select`|done: `returned_then_confirmed`|\n|`tx.commit`|done|\n";
        assert_eq!(faults_of(page), ["docs/compatibility.md:4: done, but no test is named"]);
    }

    #[test]
    fn a_page_that_is_missing_or_claims_nothing_is_a_fault() {
        let nothing = ["rows of docs/compatibility.md that are done: 0, of 1 at least"];
        assert_eq!(rows(&Files::default()).faults(1), nothing);
        assert_eq!(faults_of("# Compatibility\n"), nothing);
    }
}
