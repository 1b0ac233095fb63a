//! Starting and stopping a node.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use leveret_broker::{Node, Settings, VirtualHost};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::data_dir::{DataDir, DataDirError};
use crate::hub::Hub;
use crate::journal::Forgetful;
use crate::limits::{ACCEPT_PAUSE, SHUTDOWN_TIMEOUT};
use crate::listener::{self, BindError};
use crate::peer;

/// Where a node keeps what is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere; no file is touched.
    InMemory,
    /// In this folder, made if it is missing. Durable messages are not kept across a restart yet.
    Folder(PathBuf),
}

/// What a node needs to start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on; none means both loopback addresses.
    pub bind: Vec<IpAddr>,
    /// Port for AMQP; 0 means one that is free on all addresses.
    pub amqp_port: u16,
    /// Where durable things go.
    pub storage: Storage,
    /// What connections are told and held to.
    pub settings: Settings,
}

impl Default for ServerConfig {
    /// In memory, on a free port of the loopback addresses: what a test wants.
    fn default() -> Self {
        ServerConfig { bind: Vec::new(), amqp_port: 0, storage: Storage::InMemory, settings: Settings::default() }
    }
}

/// A node that did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The data folder is not to be had.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

/// What all connections of a node share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) settings: Arc<Settings>,
    pub(crate) node: Arc<Node>,
    /// By name of the virtual host.
    pub(crate) hubs: BTreeMap<String, Arc<Hub>>,
}

/// A broker, as a constructor.
#[derive(Debug)]
pub struct Server;

/// A running broker. Dropping it stops the broker without a word to its clients; [`Self::shutdown`] is kinder.
#[derive(Debug)]
pub struct ServerHandle {
    addresses: Vec<SocketAddr>,
    shutdown: watch::Sender<bool>,
    background: Vec<JoinHandle<()>>,
    /// Closed when the last connection has ended.
    connections_ended: mpsc::Receiver<()>,
    _data_dir: Option<DataDir>,
}

impl Server {
    /// Starts a broker on the current tokio runtime. It accepts connections when this returns.
    #[expect(clippy::unused_async, reason = "that it is async says that it needs a tokio runtime")]
    pub async fn start(config: ServerConfig) -> Result<ServerHandle, StartError> {
        let data_dir = match &config.storage {
            Storage::InMemory => None,
            Storage::Folder(folder) => Some(DataDir::lock(folder)?),
        };
        let listeners = listener::bind(&config.bind, config.amqp_port)?;
        let addresses = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let clock = Clock::start();
        let node = Arc::new(Node::default());
        let vhosts = node.vhosts().iter().map(|name| {
            let vhost = VirtualHost::new(name.clone(), rand::random());
            (name.to_string(), Arc::new(Hub::new(vhost, Box::new(Forgetful::default()), clock)))
        });
        let hubs: BTreeMap<_, _> = vhosts.collect();
        let mut background: Vec<_> = hubs.values().map(|hub| tokio::spawn(Arc::clone(hub).run_timers())).collect();
        let shared = Arc::new(Shared { clock, settings: Arc::new(config.settings), node, hubs });
        let (shutdown, _) = watch::channel(false);
        let (running, connections_ended) = mpsc::channel(1);
        for listener in listeners {
            let accepting = accept(Arc::clone(&shared), listener, shutdown.clone(), running.clone());
            background.push(tokio::spawn(accepting));
        }
        Ok(ServerHandle { addresses, shutdown, background, connections_ended, _data_dir: data_dir })
    }
}

impl ServerHandle {
    /// Where it listens: the same port of each address.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The AMQP URL under which clients on this machine reach it.
    pub fn url(&self) -> String {
        let address = self.addresses.first().copied().unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        match address.ip() {
            ip if ip.is_unspecified() => format!("amqp://127.0.0.1:{}", address.port()),
            _ => format!("amqp://{address}"),
        }
    }

    /// Closes all connections (clients see 320 `CONNECTION_FORCED`) and stops. Clients that do not answer are
    /// not waited for longer than five seconds.
    pub async fn shutdown(mut self) {
        for task in &self.background {
            task.abort();
        }
        for task in std::mem::take(&mut self.background) {
            // Ends as "cancelled"; what it held, it has let go of.
            let _ = task.await;
        }
        self.shutdown.send_replace(true);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.connections_ended.recv()).await.is_err() {
            tracing::warn!("some clients did not answer connection.close in time");
        }
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        for task in &self.background {
            task.abort();
        }
    }
}

/// Accepts connections until it is aborted. Each task holds a clone of `running` while it lives.
async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    shutdown: watch::Sender<bool>,
    running: mpsc::Sender<()>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Answers leave when they are written, not when the next one comes.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(peer = %address, %error, "TCP_NODELAY");
                }
                let (shared, shutdown, running) = (Arc::clone(&shared), shutdown.subscribe(), running.clone());
                tokio::spawn(async move {
                    peer::serve(shared, stream, address, shutdown).await;
                    drop(running);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection; raise the limit of open files (ulimit -n)?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
