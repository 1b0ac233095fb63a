//! What must not be in any file of the repository, and what must.

use super::Looked;
use crate::files::{Files, TextFile};

/// Put together here, so that this file does not contain them.
const MARKERS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
const OPEN_ENDS: [&str; 3] = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("#[", "ignore")];
const MACHINE_PATHS: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

const SOURCE_EXTENSIONS: [&str; 4] = ["rs", "py", "js", "sh"];

/// Markers of unfinished work in source files.
pub(super) fn open_ends(files: &Files) -> Looked {
    let is_source = |file: &&TextFile| {
        SOURCE_EXTENSIONS.iter().any(|extension| file.has_extension(extension)) || file.text.starts_with("#!")
    };
    Looked::at_each("source files", files.iter().filter(is_source), |file| {
        lines_with(file, |line| {
            MARKERS.iter().chain(&OPEN_ENDS).copied().find(|&marker| has_word(line, marker, is_word))
        })
    })
}

/// Folders that only one machine has.
pub(super) fn machine_paths(files: &Files) -> Looked {
    let is_part_of_a_path = |c: char| is_word(c) || matches!(c, '.' | '-' | '~' | '}' | ')' | '*');
    Looked::at_each("text files", files.iter(), |file| {
        lines_with(file, |line| MACHINE_PATHS.iter().copied().find(|&path| has_word(line, path, is_part_of_a_path)))
    })
}

/// Crates of the workspace whose manifest does not take the lints of the workspace.
pub(super) fn crates_without_lints(files: &Files) -> Looked {
    let is_manifest = |path: &str| match path.split('/').collect::<Vec<_>>()[..] {
        ["xtask", file] | ["crates", _, file] => file == "Cargo.toml",
        _ => false,
    };
    let takes_lints = |text: &str| {
        let manifest: toml::Table = text.parse().ok()?;
        manifest.get("lints")?.get("workspace")?.as_bool()
    };
    Looked::at_each("manifests", files.iter().filter(|file| is_manifest(&file.path)), |file| {
        let is_missing = takes_lints(&file.text) != Some(true);
        is_missing.then(|| format!("{}: lints.workspace = true is missing", file.path)).into_iter().collect()
    })
}

/// A complaint for each line in which `find` finds something.
fn lines_with(file: &TextFile, find: impl Fn(&str) -> Option<&'static str>) -> Vec<String> {
    let found = |(number, line)| Some(format!("{}:{}: {}", file.path, number + 1, find(line)?));
    file.text.lines().enumerate().filter_map(found).collect()
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `line` contains `word`, and not as the end or the beginning of something longer.
fn has_word(line: &str, word: &str, continues: impl Fn(char) -> bool) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let is_open = word.ends_with(|c| !is_word(c));
        !before.is_some_and(&continues) && (is_open || !after.is_some_and(&continues))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_work_is_found_in_source_files_only() {
        let [todo, _, xxx] = MARKERS;
        let [call, _, ignore] = OPEN_ENDS;
        let text = format!("one\n// {todo}: two\n{call})\nmktemp {xxx}X\n// {xxx}\n    {ignore} = \"slow\"]\n");
        let files = Files::of(&[("a.rs", &text), ("docs/a.md", &text)]);
        let expected = [(2, todo), (3, call), (5, xxx), (6, ignore)];
        assert_eq!(open_ends(&files).faults, expected.map(|(line, what)| format!("a.rs:{line}: {what}")));
        let script = format!("#!/bin/bash\n# {todo}\n");
        assert_eq!(open_ends(&Files::of(&[(".ci/run", &script)])).faults.len(), 1);
    }

    #[test]
    fn a_folder_of_one_machine_is_found_in_any_file() {
        let [home, ..] = MACHINE_PATHS;
        let text = format!("cd {home}me\nhttps://example.org{home}page\n\"{home}me\"\n~{home}\n");
        let files = Files::of(&[("docs/a.md", &text)]);
        assert_eq!(machine_paths(&files).faults, [1, 3].map(|line| format!("docs/a.md:{line}: {home}")));
    }

    #[test]
    fn a_crate_without_the_lints_of_the_workspace_is_named() {
        let files = Files::of(&[
            ("crates/a/Cargo.toml", "[lints]\nworkspace = true\n"),
            ("crates/b/Cargo.toml", "lints.workspace = true\n"),
            ("crates/c/Cargo.toml", "[package]\nname = \"c\"\n"),
            ("xtask/Cargo.toml", "[lints]\nworkspace = false\n"),
            ("clients/lapin/Cargo.toml", ""),
        ]);
        let Looked { count, faults, .. } = crates_without_lints(&files);
        assert_eq!(count, 4);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("crates/c/") && faults[1].starts_with("xtask/"), "{faults:?}");
    }
}
