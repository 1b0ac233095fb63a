//! Starting and stopping a node.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use leveret_amqp::ShortString;
use leveret_broker::change::NodeChange;
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::NodeError;
use leveret_broker::node::password::PasswordHash;
use leveret_broker::node::recovery::Folded;
use leveret_broker::{Node, Settings, VirtualHost};
use leveret_journal::disk::Disk;
use leveret_journal::limits::SEGMENT_BYTES_DEFAULT;
use leveret_journal::{Options, RealDisk, ScratchReader, Writes, remove_scratch};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admin::{self, Admin};
use crate::arrivals::Arrivals;
use crate::bodies;
use crate::checkpoints::{Checkpoints, Tools};
use crate::clock::Clock;
use crate::connections::Connections;
use crate::data_dir::{DataDir, DataDirError};
use crate::hubs::Hubs;
use crate::journal::{Stream, Writer};
use crate::limits::{
    ACCEPT_PAUSE, BACKLOG, DISK_FREE_LIMIT, MEMORY_LIMIT_MIN, MEMORY_LIMIT_PERCENT, SHUTDOWN_TIMEOUT,
};
use crate::listener::{self, BindError};
use crate::logins::Logins;
use crate::memory::{self, Keeper, Memory};
use crate::node::{ChangeError, NodeKeeper, Workshop};
use crate::peer;
use crate::recovery::{self, Recovered};
use crate::room::Rooms;
use crate::scratch::ScratchThread;
use crate::space::{self, Shortage, Space};

/// Where a node keeps what is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere; no file is touched.
    InMemory,
    /// In this folder, made if it is missing.
    Folder(PathBuf),
}

/// What a node needs to start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Addresses to listen on; none means both loopback addresses.
    pub bind: Vec<IpAddr>,
    /// Port for AMQP; 0 means one that is free on all addresses.
    pub amqp_port: u16,
    /// Connections that wait to be accepted, 1 or more. Default 1024.
    pub backlog: u32,
    /// Where durable things go.
    pub storage: Storage,
    /// Bytes of one file of the journal, 1 MiB or more. Default 64 MiB; the first one is small.
    pub segment_bytes: u64,
    /// How much memory the process may use. Bodies beyond it stay on disk; what cannot, makes publishers wait.
    pub memory_limit: MemoryLimit,
    /// Has the allocator give the system what it keeps of what was freed; called when the process takes too much. Default: nothing.
    pub give_back_memory: fn(),
    /// Bytes that must be free where the data folder is, or publishers wait; 0 for none. Default 50 MB.
    pub disk_free_limit: u64,
    /// What connections are told and held to.
    pub settings: Settings,
    /// Who can log in to a new node.
    pub first_user: FirstUser,
    /// What of it a new node begins with.
    pub beginning: Beginning,
    /// Users who may log in from this machine only. Default: `guest`.
    pub loopback_users: Vec<String>,
}

/// Who can log in to a node that has no users yet: they may do everything in one virtual host, and in management. RabbitMQ:
/// `default_user`, `default_pass`, `default_vhost`.
#[derive(Clone, PartialEq, Eq)]
pub struct FirstUser {
    /// Default `guest`.
    pub name: String,
    /// Default `guest`.
    pub password: String,
    /// Default `/`. It is made, too.
    pub vhost: String,
}

/// What a node that has no users yet begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// The first user and their virtual host.
    #[default]
    User,
    /// Their virtual host: users come from elsewhere.
    Vhost,
    /// Nothing: all of it comes from elsewhere.
    Nothing,
}

impl Default for FirstUser {
    fn default() -> Self {
        FirstUser { name: "guest".into(), password: "guest".into(), vhost: "/".into() }
    }
}

impl fmt::Debug for FirstUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.name, self.vhost)
    }
}

impl Default for ServerConfig {
    /// In memory, on a free port of the loopback addresses: what a test wants.
    fn default() -> Self {
        ServerConfig {
            bind: Vec::new(),
            amqp_port: 0,
            backlog: BACKLOG,
            storage: Storage::InMemory,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            memory_limit: MemoryLimit::default(),
            give_back_memory: || {},
            disk_free_limit: DISK_FREE_LIMIT,
            settings: Settings::default(),
            first_user: FirstUser::default(),
            beginning: Beginning::default(),
            loopback_users: vec!["guest".into()],
        }
    }
}

/// A limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the machine's memory or, if that is less, of what its control group may use.
    Percent(u64),
}

impl Default for MemoryLimit {
    /// 40 hundredths.
    fn default() -> Self {
        MemoryLimit::Percent(MEMORY_LIMIT_PERCENT)
    }
}

impl MemoryLimit {
    /// In bytes; not less than 32 MiB, with which a node can still work.
    pub fn bytes(self) -> u64 {
        let bytes = match self {
            MemoryLimit::Bytes(bytes) => bytes,
            // Where nothing says how much there is, nothing is known to be too much.
            MemoryLimit::Percent(percent) => {
                memory::available().map_or(u64::MAX, |all| all / 100 * percent.min(100))
            }
        };
        bytes.max(MEMORY_LIMIT_MIN)
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
    /// A name that a user or virtual host cannot have.
    #[error("{option} cannot be called '{name}': a name has 1 to 255 bytes")]
    Name {
        /// Whose name it is.
        option: &'static str,
        /// The name.
        name: String,
    },
    /// The first user cannot be made.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// No thread is to be had for the journal.
    #[error("cannot start a thread of the journal: {0}")]
    Thread(std::io::Error),
}

/// What connections are told when the broker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It goes on.
    No,
    /// 320.
    InGoodOrder,
    /// 541: what of their last messages is kept, nobody knows.
    JournalFailed,
}

/// What all connections of a node share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) settings: Arc<Settings>,
    pub(crate) node: Arc<NodeKeeper>,
    pub(crate) logins: Logins,
    pub(crate) connections: Arc<Connections>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) arrivals: Arc<Arrivals>,
    /// A connection may write the journal itself: there are other threads to serve the others meanwhile.
    pub(crate) writes_here: bool,
}

/// What a node begins with.
#[derive(Clone)]
struct First {
    vhost: VhostName,
    user: UserName,
    password: PasswordHash,
    beginning: Beginning,
    loopback_users: Vec<UserName>,
}

impl First {
    fn new(config: &ServerConfig) -> Result<Self, StartError> {
        let name = |text: &str, option| {
            let name = ShortString::new(text).ok().filter(|name| !name.as_str().is_empty());
            name.ok_or_else(|| StartError::Name { option, name: text.into() })
        };
        let FirstUser { name: user, password, vhost } = &config.first_user;
        let loopback_users = config.loopback_users.iter();
        Ok(First {
            vhost: name(vhost, "the first virtual host")?.into(),
            user: name(user, "the first user")?.into(),
            password: PasswordHash::new(password.as_bytes(), rand::random()),
            beginning: config.beginning,
            loopback_users: loopback_users
                .map(|user| name(user, "a loopback user").map(UserName::from))
                .collect::<Result<_, _>>()?,
        })
    }

    fn changes(&self, node: &Node) -> Vec<NodeChange> {
        let mut changes = node.beginning(&self.vhost, &self.user, self.password.clone());
        match self.beginning {
            Beginning::User => {}
            Beginning::Vhost => changes.retain(|change| matches!(change, NodeChange::VhostAdded { .. })),
            Beginning::Nothing => changes.clear(),
        }
        changes
    }
}

/// A broker, as a constructor.
#[derive(Debug)]
pub struct Server;

/// A running broker. Dropping it stops the broker without a word to its clients; [`Self::shutdown`] is kinder.
pub struct ServerHandle {
    addresses: Vec<SocketAddr>,
    shutdown: watch::Sender<Stop>,
    background: Vec<JoinHandle<()>>,
    /// Closed when the last connection has ended.
    connections_ended: mpsc::Receiver<()>,
    hubs: Arc<Hubs>,
    admin: Admin,
    rooms: Arc<Rooms>,
    /// Both are dropped before what they give orders to.
    checkpoints: Option<Checkpoints>,
    space: Option<Space>,
    /// It removes its files.
    scratch: Option<ScratchThread>,
    /// It writes what is left.
    writer: Option<Writer>,
    /// Dropped last, when no thread is left that changes it.
    data_dir: Option<DataDir>,
}

impl Server {
    /// Starts a broker on the current tokio runtime. It accepts connections when this returns.
    pub async fn start(config: ServerConfig) -> Result<ServerHandle, StartError> {
        Self::prepare(config).await.map(Prepared::open)
    }

    /// Starts one that does not accept connections yet; those that come wait.
    pub async fn prepare(config: ServerConfig) -> Result<Prepared, StartError> {
        let clock = Clock::start();
        let first = First::new(&config)?;
        let folder = match &config.storage {
            Storage::InMemory => None,
            Storage::Folder(folder) => Some(folder.clone()),
        };
        // A folder in use says more than its port does. One that is not there yet is made only by a node that can start.
        let lock = |folder: &PathBuf| DataDir::lock(folder);
        let locked = folder.as_ref().filter(|folder| folder.exists()).map(lock).transpose()?;
        let listeners = listener::bind(&config.bind, config.amqp_port, config.backlog)?;
        let locked = if locked.is_some() { locked } else { folder.as_ref().map(lock).transpose()? };
        let addresses: Vec<_> = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let memory = Memory::new(usize::try_from(config.memory_limit.bytes()).unwrap_or(usize::MAX));
        let (mut keeping, mut spacing, mut scratch, mut data_dir) = (None, None, None, None);
        let (writer, bodies, mut node, vhosts, gone) = match folder.zip(locked) {
            None => {
                let mut node = Node::default();
                for change in first.changes(&node) {
                    node.apply(change)?;
                }
                let vhosts = node.vhosts().iter().map(|(name, vhost)| {
                    (VirtualHost::new(name.clone(), rand::random()), Stream::forgetful(vhost.stream))
                });
                let vhosts: Vec<_> = vhosts.collect();
                (None, None, node, vhosts, Vec::new())
            }
            Some((folder, locked)) => {
                data_dir = Some(locked);
                let now = clock.now();
                let bytes = memory.budget();
                let options = Options { segment_bytes: config.segment_bytes, salt: rand::random() };
                let unusable = |error| DataDirError::Unusable { folder: folder.clone(), error };
                let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&folder, Writes::Cached).map_err(unusable)?);
                remove_scratch(&*disk).map_err(unusable)?;
                let reading = {
                    let (folder, first) = (folder.clone(), first.clone());
                    move || {
                        recovery::recover(&folder, options, bytes, now, &first.vhost, &|node| first.changes(node))
                    }
                };
                let Recovered { log, bytes, folded } = match tokio::task::spawn_blocking(reading).await {
                    Ok(recovered) => recovered?,
                    Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                };
                let Folded { node, node_sequence, stated_from, vhosts, gone } = folded;
                let positions: Vec<_> = vhosts.iter().map(|(stream, vhost)| (*stream, vhost.position())).collect();
                let bodies = bodies::start(log.reader(), ScratchReader::new(Arc::clone(&disk)))
                    .map_err(StartError::Thread)?;
                let limit = config.disk_free_limit;
                scratch = Some(ScratchThread::start(disk, limit).map_err(StartError::Thread)?);
                keeping = Some((log.keeper(), bytes, stated_from));
                spacing = Some((log.spares(), log.reader()));
                let bytes_max = memory.pending_bytes_max();
                let (writer, streams) =
                    Writer::start(log, bytes_max, node_sequence, &positions).map_err(StartError::Thread)?;
                let vhosts: Vec<_> = vhosts.into_iter().map(|(_, vhost)| vhost).zip(streams).collect();
                (Some(writer), Some(bodies), node, vhosts, gone)
            }
        };
        node.set_loopback_users(first.loopback_users);
        let connections = Arc::<Connections>::default();
        let runtime = tokio::runtime::Handle::current();
        let workshop = Workshop {
            clock,
            memory: Arc::clone(&memory),
            bodies,
            consumer_timeout: config.settings.consumer_timeout,
            runtime: runtime.clone(),
            journal: writer.as_ref().map(|writer| (writer.orders(), writer.streams())),
        };
        let hubs = Hubs::new(gone);
        for (vhost, stream) in vhosts {
            let name = vhost.name().clone();
            let hub = workshop.hub(vhost, stream);
            node.vhosts().get(&name).into_iter().for_each(|vhost| hub.follow(vhost));
            hubs.add(name, hub, &runtime);
        }
        let largest = usize::try_from(config.settings.max_message_size).unwrap_or(usize::MAX);
        let arrivals = Arrivals::new(memory.limit(), largest);
        let rooms = Rooms::new(Arc::clone(&hubs), Arc::clone(&arrivals));
        let node = NodeKeeper::new(node, Arc::clone(&connections), Arc::clone(&hubs), Arc::clone(&rooms), workshop);
        let spilling = scratch.as_ref().map(ScratchThread::spilling);
        let keeper = Keeper::new(
            Arc::clone(&memory),
            Arc::clone(&hubs),
            Arc::clone(&rooms),
            spilling,
            config.give_back_memory,
        );
        let background = vec![tokio::spawn(keeper.run())];
        let (shortage, segment_bytes) = (Arc::new(Shortage::default()), config.segment_bytes);
        let space = match (&writer, spacing) {
            (Some(writer), Some((spares, reader))) => {
                let (orders, rooms, shortage) = (writer.orders(), Arc::clone(&rooms), Arc::clone(&shortage));
                let (hubs, limit) = (Arc::clone(&hubs), config.disk_free_limit);
                let tools = space::Tools { spares, reader, orders, hubs, rooms, shortage, segment_bytes, limit };
                Some(Space::start(tools).map_err(StartError::Thread)?)
            }
            _ => None,
        };
        let checkpoints = match (&writer, keeping) {
            (Some(writer), Some((keeper, recovered_bytes, stated_from))) => {
                let (orders, growth) = (writer.orders(), writer.growth());
                let (hubs, node) = (Arc::clone(&hubs), Arc::clone(&node));
                let tools =
                    Tools { hubs, node, orders, growth, segment_bytes, recovered_bytes, stated_from, shortage };
                Some(Checkpoints::start(tools, keeper))
            }
            _ => None,
        };
        let checkpoints = checkpoints.transpose().map_err(StartError::Thread)?;
        let writes_here = runtime.metrics().num_workers() > 1;
        let settings = Arc::new(config.settings);
        let admin = Admin::new(admin::Inside {
            clock,
            settings: Arc::clone(&settings),
            addresses: Vec::clone(&addresses),
            hubs: Arc::clone(&hubs),
            node: Arc::clone(&node),
            connections: Arc::clone(&connections),
            memory: Arc::clone(&memory),
        });
        let shared = Arc::new(Shared {
            clock,
            settings,
            node: Arc::clone(&node),
            logins: Logins::default(),
            connections,
            memory,
            arrivals,
            writes_here,
        });
        let (shutdown, _) = watch::channel(Stop::No);
        let (running, connections_ended) = mpsc::channel(1);
        let handle = ServerHandle {
            addresses,
            shutdown,
            background,
            connections_ended,
            hubs,
            admin,
            rooms,
            checkpoints,
            space,
            scratch,
            writer,
            data_dir,
        };
        Ok(Prepared { handle, listeners, shared, running })
    }
}

/// A broker that runs, and does not accept connections yet.
pub struct Prepared {
    handle: ServerHandle,
    listeners: Vec<TcpListener>,
    shared: Arc<Shared>,
    /// A clone of it lives as long as each connection.
    running: mpsc::Sender<()>,
}

impl Prepared {
    /// To change it before anybody comes.
    pub fn admin(&self) -> Admin {
        self.handle.admin()
    }

    /// Accepts connections from now on.
    pub fn open(self) -> ServerHandle {
        let Prepared { mut handle, listeners, shared, running } = self;
        for listener in listeners {
            let accepting = accept(Arc::clone(&shared), listener, handle.shutdown.clone(), running.clone());
            handle.background.push(tokio::spawn(accepting));
        }
        handle
    }

    /// Waits as [`ServerHandle::journal_failed`] does; then all that is left is [`Self::abandon`].
    pub async fn journal_failed(&self) -> String {
        self.handle.journal_failed().await
    }

    /// Stops it in good order.
    pub async fn shutdown(self) {
        self.close().shutdown().await;
    }

    /// Stops it after the journal has failed.
    pub async fn abandon(self) {
        self.close().abandon().await;
    }

    fn close(self) -> ServerHandle {
        let Prepared { handle, listeners, shared, running } = self;
        drop((listeners, shared, running));
        handle
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.handle).finish()
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
            // An address of IPv6 is for IPv6 alone.
            ip if ip.is_unspecified() && ip.is_ipv6() => format!("amqp://[::1]:{}", address.port()),
            ip if ip.is_unspecified() => format!("amqp://127.0.0.1:{}", address.port()),
            _ => format!("amqp://{address}"),
        }
    }

    /// To look at it from outside.
    pub fn admin(&self) -> Admin {
        self.admin.clone()
    }

    /// The users and virtual hosts as they are now.
    pub fn node(&self) -> Arc<Node> {
        self.admin.users_and_vhosts()
    }

    /// Changes users and virtual hosts: all that `decide` says, or nothing. When this returns, it is durable, and goes for the
    /// next operation of every connection.
    pub async fn change_node(
        &self,
        decide: impl FnOnce(&Node) -> Result<Vec<NodeChange>, NodeError> + Send + 'static,
    ) -> Result<(), ChangeError> {
        self.admin.change(decide).await
    }

    /// Closes all connections (clients see 320 `CONNECTION_FORCED`) and stops. Clients that do not answer are
    /// not waited for longer than five seconds.
    pub async fn shutdown(mut self) {
        self.close_connections(Stop::InGoodOrder).await;
        for hub in self.hubs.all() {
            hub.stop();
        }
        let (checkpoints, space, writer) = (self.checkpoints.take(), self.space.take(), self.writer.take());
        let (scratch, data_dir) = (self.scratch.take(), self.data_dir.take());
        let ending = move || {
            drop((checkpoints, space, scratch));
            // What is left takes one write and one sync.
            drop(writer);
            drop(data_dir);
        };
        let _ = tokio::task::spawn_blocking(ending).await;
    }

    /// Waits until the journal can no longer be written, and says why. From then on nothing is confirmed any more:
    /// all that is left is [`Self::abandon`]. In memory this never happens.
    pub async fn journal_failed(&self) -> String {
        let Some(writer) = &self.writer else { return std::future::pending().await };
        let mut failed = writer.failed();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // It does not end by itself.
            Err(_) => "the thread that writes the journal has panicked".into(),
        }
    }

    /// Closes all connections after the journal has failed (clients see 541 `INTERNAL_ERROR`), neither confirming nor
    /// refusing what they published last: whether it is on disk is unknown.
    pub async fn abandon(mut self) {
        self.close_connections(Stop::JournalFailed).await;
    }

    async fn close_connections(&mut self, stop: Stop) {
        for task in &self.background {
            task.abort();
        }
        for task in std::mem::take(&mut self.background) {
            // Ends as "cancelled"; what it held, it has let go of.
            let _ = task.await;
        }
        self.hubs.stop_timers().await;
        self.rooms.close();
        self.shutdown.send_replace(stop);
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.connections_ended.recv()).await.is_err() {
            tracing::warn!("some clients did not answer connection.close in time");
        }
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.hubs.abort_timers();
        for task in &self.background {
            task.abort();
        }
    }
}

/// Accepts connections until it is aborted. Each task holds a clone of `running` while it lives.
async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    shutdown: watch::Sender<Stop>,
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
