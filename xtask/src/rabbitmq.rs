//! RabbitMQ as it is installed on this machine, to measure beside it: `rabbitmq-server` in a folder of its own, with ports of its own.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};

use crate::peer::Peer;
use crate::process::check_interrupted;

const READY_DEADLINE: Duration = Duration::from_mins(2);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A node that runs until this is dropped.
pub(crate) struct RabbitMq {
    child: Child,
    folder: PathBuf,
    port: u16,
    /// For example `3.10.8`.
    pub(crate) version: String,
}

impl RabbitMq {
    /// Starts one, and waits until it lets `guest` in.
    pub(crate) fn start(folder: &Path) -> Result<Self> {
        let version = Command::new("rabbitmqctl").arg("version").output();
        let version = version.context("there is no RabbitMQ here: install the package rabbitmq-server")?;
        ensure!(version.status.success(), "rabbitmqctl version: {}", String::from_utf8_lossy(&version.stderr));
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        // Of an earlier run.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        // The package runs it as a user of its own.
        fs::set_permissions(folder, Permissions::from_mode(0o777))?;
        let plugins = folder.join("enabled_plugins");
        fs::write(&plugins, "[].\n")?;
        let (port, distribution_port) = (free_port()?, free_port()?);
        let log = File::create(folder.join("output.log"))?;
        let child = Command::new("rabbitmq-server")
            .env("RABBITMQ_NODENAME", format!("bench-{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins)
            // Of the machine's there is nothing to be taken.
            .env("RABBITMQ_CONFIG_FILE", folder.join("none"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none"))
            .env("HOME", folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("cannot run rabbitmq-server")?;
        let mut node = RabbitMq { child, folder: folder.to_owned(), port, version };
        let deadline = Instant::now() + READY_DEADLINE;
        while Peer::connect(&format!("127.0.0.1:{port}")).is_err() {
            check_interrupted()?;
            let is_over = node.child.try_wait()?.is_some() || Instant::now() > deadline;
            if is_over {
                let said = fs::read_to_string(folder.join("output.log")).unwrap_or_default();
                bail!("RabbitMQ does not start: {said}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(node)
    }

    /// The URL with user, password and virtual host.
    pub(crate) fn client_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2F", self.port)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // The script that was run has others run for it, some of them in a session of their own.
        let pid = fs::read_to_string(self.folder.join("pid")).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(node) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(node, Signal::KILL);
            let deadline = Instant::now() + STOP_DEADLINE;
            while test_kill_process(node).is_ok() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
