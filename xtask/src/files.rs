//! The text files of the repository.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::tally::too_few;
use crate::workspace::{root, tool};

/// How many files a listing has at least that git has made of this repository.
const FILES_LEAST: u64 = 240;

/// The text files of the repository, also those that git does not know yet but would take.
#[derive(Debug, Default)]
pub(crate) struct Files(Vec<TextFile>);

#[derive(Debug)]
pub(crate) struct TextFile {
    /// From the root of the repository, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Files {
    pub(crate) fn read() -> Result<Files> {
        let listed = tool("git")
            // The files may belong to somebody else, as in a container.
            .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("cannot run git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        let paths = String::from_utf8(listed.stdout).context("a file name that is not UTF-8")?;
        // What is deleted and not yet committed cannot be read, what is not UTF-8 is no text.
        let read =
            |path: &str| Some(TextFile { path: path.into(), text: fs::read_to_string(root().join(path)).ok()? });
        let files: Vec<_> = paths.split_terminator('\0').filter_map(read).collect();
        match too_few("text files", files.len() as u64, FILES_LEAST) {
            Some(complaint) => bail!(complaint),
            None => Ok(Files(files)),
        }
    }

    /// A repository for a test.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Files {
        Files(files.iter().map(|&(path, text)| TextFile { path: path.into(), text: text.into() }).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &TextFile> {
        self.0.iter()
    }

    pub(crate) fn get(&self, path: &str) -> Option<&TextFile> {
        self.iter().find(|file| file.path == path)
    }
}

impl TextFile {
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }
}
