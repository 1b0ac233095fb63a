//! What the client suites need before they can run, below `target/clients/`.
//!
//! Each environment has a stamp: what it was made from. It is made again when that has changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::{find_tool, prepare};
use crate::workspace::{cargo, root, target, tool};

const INSTALL_DEADLINE: Duration = Duration::from_mins(5);
const BUILD_DEADLINE: Duration = Duration::from_mins(10);

/// Why a suite cannot run.
#[derive(Debug)]
pub(super) enum NotSetUp {
    /// The machine lacks a tool.
    Missing(String),
    /// It has the tools, and yet.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for NotSetUp {
    fn from(error: E) -> Self {
        NotSetUp::Failed(error.into())
    }
}

/// The Python of a virtual environment with the packages of `clients/python/requirements.txt`.
pub(super) fn python() -> Result<PathBuf, NotSetUp> {
    find_tool("python3")?;
    let folder = target().join("clients/venv");
    let python = folder.join("bin/python");
    let requirements = root().join("clients/python/requirements.txt");
    stamped(&folder, &[&requirements], || {
        let mut make = tool("python3");
        make.args(["-m", "venv"]).arg(&folder);
        prepare("a virtual environment of Python", make, INSTALL_DEADLINE)?;
        let mut install = tool(&python);
        install.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
        install.arg("--requirement").arg(&requirements);
        prepare("the Python packages", install, INSTALL_DEADLINE)
    })?;
    Ok(python)
}

/// A folder with the packages of `clients/node/`, and the program there: Node looks for packages beside it.
pub(super) fn node() -> Result<(PathBuf, PathBuf), NotSetUp> {
    find_tool("node")?;
    find_tool("npm")?;
    let (source, folder) = (root().join("clients/node"), target().join("clients/node"));
    let package_files = ["package.json", "package-lock.json", ".npmrc"];
    stamped(&folder, &package_files.map(|file| source.join(file)), || {
        for file in package_files {
            copy(&source.join(file), &folder.join(file))?;
        }
        let mut install = tool("npm");
        install.current_dir(&folder).arg("ci");
        prepare("the Node packages", install, INSTALL_DEADLINE)
    })?;
    let program = folder.join("amqplib_steps.js");
    copy(&source.join("amqplib_steps.js"), &program)?;
    Ok((folder, program))
}

/// The program of `clients/lapin/`. It is not part of the workspace, so that its dependencies are not ours.
pub(super) fn lapin() -> Result<PathBuf, NotSetUp> {
    let folder = target().join("clients/lapin");
    let mut build = cargo(["build", "--quiet", "--locked"]);
    build.arg("--manifest-path").arg(root().join("clients/lapin/Cargo.toml")).arg("--target-dir").arg(&folder);
    prepare("the program with lapin", build, BUILD_DEADLINE)?;
    Ok(folder.join("debug/lapin-steps"))
}

/// Makes a folder anew unless its stamp says that it was made from what these files hold now.
fn stamped(
    folder: &Path,
    sources: &[impl AsRef<Path>],
    make: impl FnOnce() -> Result<(), NotSetUp>,
) -> Result<(), NotSetUp> {
    let mut wanted = String::new();
    for source in sources {
        let source = source.as_ref();
        wanted += &fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    }
    let stamp = folder.join("made-from");
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == wanted) {
        return Ok(());
    }
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder)?;
    make()?;
    fs::write(&stamp, wanted)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), NotSetUp> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
