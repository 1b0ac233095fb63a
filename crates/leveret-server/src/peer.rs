//! The task of one connection: moves bytes between a socket, the connection's state machine, and its outbox.
//!
//! An idle connection holds no bytes: reading goes through one buffer of the worker thread, and what is left of an
//! incomplete frame is all that is kept. Writing likewise.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use leveret_broker::connection::Written;
use leveret_broker::connection::faults::{ChannelFault, Ended};
use leveret_broker::names::{UserName, VhostName};
use leveret_broker::node::LoginError;
use leveret_broker::vhost::Progress;
use leveret_broker::{Connection, JournalPosition, Output};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::arrivals::{self, Arrival, Arrived};
use crate::connections::{Opened, Registered};
use crate::hub::{Attached, Turn, Woken};
use crate::journal::{Appended, Awaited, Congestion};
use crate::limits::{
    ARRIVING_BYTES_SMALL, HANG_UP_LOOK_EVERY, LINGER, READ_BYTES, SPARE_BYTES_MAX, UNSENT_BYTES_MAX,
};
use crate::node::Connected;
use crate::outbox::Outbox;
use crate::server::{Shared, Stop};
use crate::turns;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the broker says when it is stopped. RabbitMQ's words.
const SHUTDOWN_REASON: &str = "broker forced connection closure with reason 'shutdown'";

/// What came of what a connection brought last.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    /// The journal has changes that nobody was told to write.
    is_unwritten: bool,
    /// Who was woken, perhaps to run on this thread.
    woken: Woken,
}

struct Peer {
    shared: Arc<Shared>,
    stream: TcpStream,
    connection: Connection,
    registered: Registered,
    outbox: Arc<Outbox>,
    arrival: Arrival,
    attached: Option<Attached>,
    /// Who the client says it is.
    checking: JoinSet<Result<UserName, LoginError>>,
    /// The beginning of a frame whose rest has not arrived, or input that has to wait.
    carry: Vec<u8>,
    unsent: Vec<u8>,
    /// How much of `unsent` the socket has taken.
    sent: usize,
    /// What the socket has taken and the virtual host was not told of.
    untold: usize,
    outputs: Vec<Output>,
    awaited: Awaited,
    /// What it ever gave the journal. If that has too much to write, the connection is not read.
    appended: Appended,
    brought: Brought,
    /// Whether the virtual host was left with something to do.
    progress: Progress,
    /// Input was left in `carry` for that reason.
    is_cut: bool,
    /// The client's end is closed or broken: nothing that is written would be read.
    is_gone: bool,
    /// Whether there was room for answers when that was looked at last.
    could_answer: bool,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    shutdown: watch::Receiver<Stop>,
) {
    let now = shared.clock.now();
    let connection = Connection::new(Arc::clone(&shared.settings), rand::random(), now);
    let outbox = Outbox::new(Arc::clone(&shared.memory));
    let arrival = Arrival::new(Arc::clone(&shared.arrivals));
    // A socket that is broken already has no address any more.
    let host = stream.local_addr().unwrap_or(address);
    let registered = shared.connections.register(address, host, now.wall, &outbox);
    let mut peer = Peer {
        shared,
        stream,
        connection,
        registered,
        outbox,
        arrival,
        attached: None,
        checking: JoinSet::new(),
        carry: Vec::new(),
        unsent: Vec::new(),
        sent: 0,
        untold: 0,
        outputs: Vec::new(),
        awaited: Awaited::default(),
        appended: Appended::Nothing,
        brought: Brought::default(),
        progress: Progress::Done,
        is_cut: false,
        is_gone: false,
        could_answer: true,
    };
    tracing::debug!(peer = %address, "connection accepted");
    let ended = peer.run(address, shutdown).await;
    // Nobody waits for what will not come.
    peer.arrival.set(Arrived::default());
    if let Some(attached) = peer.attached.take() {
        attached.leave().await;
    }
    peer.log_channel_faults();
    let (user, fault) = (peer.connection.user(), peer.connection.fault());
    let untold = peer.connection.untold_channel_faults();
    if untold > 0 {
        tracing::warn!(peer = %address, user, untold, "more channels closed or consumers cancelled");
    }
    match (user, fault, ended) {
        (Some(user), None, Ok(())) => tracing::info!(peer = %address, user, "connection closed"),
        (Some(user), Some(reason), _) => tracing::warn!(peer = %address, user, reason, "connection closed"),
        (Some(user), None, Err(error)) => {
            tracing::warn!(peer = %address, user, reason = %error, "connection closed");
        }
        (None, Some(reason), _) => tracing::warn!(peer = %address, reason, "connection refused"),
        (None, None, Err(error)) => tracing::warn!(peer = %address, reason = %error, "connection refused"),
        (None, None, Ok(())) => tracing::info!(peer = %address, "connection closed before login"),
    }
}

impl Peer {
    async fn run(&mut self, address: SocketAddr, mut shutdown: watch::Receiver<Stop>) -> io::Result<()> {
        let outbox = Arc::clone(&self.outbox);
        let clock = self.shared.clock;
        let mut timer = std::pin::pin!(tokio::time::sleep(self.shared.settings.handshake_timeout));
        let mut is_stopping = false;
        loop {
            if self.progress == Progress::More {
                // Others have a turn, and this thread may have to read them first.
                tokio::task::yield_now().await;
            }
            let mut turn = None;
            if self.connection.is_gone() {
                // Others need not wait for its contents while it waits to leave.
                self.tell_arrived();
                if let Some(attached) = &self.attached {
                    turn = attached.turn_to_leave().await;
                }
            }
            self.work(address);
            if turn.is_some() {
                tokio::task::yield_now().await;
                drop(turn);
            }
            self.registered.reach(self.connection.phase());
            self.begin_check(address);
            self.tell_arrived();
            // Of a large message nobody knows yet whether the journal is to have it.
            let gives = if self.arrival.is_large() { Appended::Messages } else { self.appended };
            let journal = self.attached.as_ref().filter(|_| gives != Appended::Nothing).map(Attached::journal);
            let mut congestion = journal.and_then(|journal| journal.congestion());
            let congested =
                congestion.as_mut().map_or(Congestion::None, |congestion| *congestion.borrow_and_update());
            // What is delivered to those who need not ack is settled, too.
            if self.write(congested.holds(Appended::Changes))? {
                continue;
            }
            if self.progress == Progress::More {
                continue;
            }
            if self.connection.is_closed() {
                return self.finish().await;
            }
            if let Some(reason) = self.registered.told_to_close().filter(|_| !is_stopping) {
                is_stopping = true;
                self.connection.handle_forced_close(clock.now(), reason, &mut self.unsent);
                continue;
            }
            // Commands that are left wait for a body, or for the client to read its answers: more would only pile up.
            // So would answers that wait for the journal, and input that waits for one of them.
            let waiting = self.unsent.len() - self.sent + self.connection.held_bytes();
            let is_used = self.connection.commands().is_empty() && !self.connection.input_waits();
            let may_answer = self.outbox.may_answer(waiting) && waiting < UNSENT_BYTES_MAX;
            if std::mem::replace(&mut self.could_answer, may_answer) && !may_answer {
                // It may be a while before these lists are as long again.
                self.outputs = Vec::new();
                self.outbox.give_back();
            }
            let has_room = may_answer && is_used;
            let is_congested = congested.holds(gives);
            let is_ready = has_room && !self.is_gone && !is_congested && self.checking.is_empty();
            let may_arrive = self.arrival.may_read(is_ready);
            let may_read = is_ready && may_arrive;
            let (is_checking, checking) = (!self.checking.is_empty(), &mut self.checking);
            let relieved = async {
                match &mut congestion {
                    Some(congestion) => drop(congestion.changed().await),
                    None => std::future::pending().await,
                }
            };
            let due = self.connection.next_timeout();
            if let Some(deadline) = due {
                let now = clock.now();
                if now.has_reached(deadline) {
                    if self.unread_bytes() > 0 {
                        self.connection.handle_unread(now);
                    }
                    self.connection.handle_timeout(now, &mut self.unsent);
                    continue;
                }
                // The timer may fire too early, for a deadline that has moved on; it must not fire too late.
                let instant = clock.instant(deadline);
                if instant < timer.deadline() || timer.deadline() <= tokio::time::Instant::now() {
                    timer.as_mut().reset(instant);
                }
            }
            tokio::select! {
                biased;
                changed = shutdown.changed(), if !is_stopping => {
                    // Without a word: whoever held the broker dropped it.
                    changed.map_err(|_| io::ErrorKind::Interrupted)?;
                    is_stopping = true;
                    match *shutdown.borrow() {
                        Stop::JournalFailed => self.connection.handle_journal_failure(clock.now(), &mut self.unsent),
                        Stop::No | Stop::InGoodOrder => {
                            // What it was told first counts, though it had no time to say so.
                            let reason = self.registered.told_to_close().unwrap_or(SHUTDOWN_REASON);
                            self.connection.handle_shutdown(clock.now(), reason, &mut self.unsent);
                        }
                    }
                }
                ready = self.stream.readable(), if may_read => {
                    ready?;
                    let is_full = self.read(address);
                    if !self.writes_here() {
                        self.have_written();
                    }
                    // A client that never stops sending keeps its socket readable for ever, and who was woken on this thread waits
                    // for it. They have a turn.
                    let Brought { is_unwritten, woken } = self.brought;
                    if is_full && woken == Woken::Busy {
                        turns::go_on().await;
                    } else if is_full || (is_unwritten && woken != Woken::Nobody) {
                        tokio::task::yield_now().await;
                    } else {
                        tokio::task::coop::consume_budget().await;
                    }
                    if self.writes_here() {
                        self.write_here();
                    } else {
                        self.have_written();
                    }
                }
                Some(checked) = checking.join_next() => {
                    // If it was cut short, nothing is proved.
                    let checked = checked.unwrap_or_else(|_| Err(LoginError::WrongPassword(String::new())));
                    self.connection.handle_login(clock.now(), checked, &mut self.unsent);
                    self.take_in_carry(address);
                }
                event = self.arrival.event() => match event {
                    arrivals::Event::Change => {}
                    arrivals::Event::Excess(limit) => {
                        self.connection.handle_excess(clock.now(), limit, &mut self.unsent);
                        self.carry = Vec::new();
                    }
                    arrivals::Event::Overdue => {
                        let unread = self.unread_bytes();
                        if !self.arrival.excuse(unread, is_congested) {
                            self.connection.handle_overdue(clock.now(), &mut self.unsent);
                            self.carry = Vec::new();
                        }
                    }
                },
                () = outbox.filled() => turns::begin().await,
                () = relieved, if is_congested => {}
                // It is not read meanwhile, and one that is gone need not be checked.
                () = tokio::time::sleep(HANG_UP_LOOK_EVERY), if is_checking => {
                    if has_hung_up(&self.stream) {
                        self.checking.abort_all();
                        self.is_gone = true;
                        self.connection.handle_end();
                    }
                }
                ready = self.stream.writable(), if !self.unsent.is_empty() => ready?,
                () = &mut timer, if due.is_some() => {}
            }
        }
    }

    /// Says what it has brought of contents.
    fn tell_arrived(&mut self) {
        let carried = if self.connection.is_gone() { 0 } else { self.carry.len() };
        let unfinished = self.connection.unfinished_bytes() + carried;
        let is_transacted = unfinished > ARRIVING_BYTES_SMALL && self.connection.goes_on_with_transactions();
        let (waiting, completed) = (self.connection.published_bytes(), self.connection.large_contents());
        self.arrival.set(Arrived { unfinished, waiting, completed, is_transacted });
    }

    /// Bytes that the client has sent and that were not read.
    fn unread_bytes(&self) -> usize {
        rustix::io::ioctl_fionread(&self.stream).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Has somebody find out whether the client is who it says it is.
    fn begin_check(&mut self, address: SocketAddr) {
        if !self.checking.is_empty() {
            return;
        }
        let Some(credentials) = self.connection.login_request().cloned() else { return };
        let shared = Arc::clone(&self.shared);
        self.checking.spawn(async move {
            let (user, node) = (credentials.user.clone(), Arc::clone(&shared));
            let log_in = move |origin| node.node.current().log_in(&credentials.user, &credentials.password, origin);
            shared.logins.check(address.ip(), user, log_in).await
        });
    }

    /// Writes what is left and closes our end, then waits a little for the client to close its own: closing a
    /// socket with unread input would take back what was just written.
    async fn finish(&mut self) -> io::Result<()> {
        if self.is_gone {
            return Ok(());
        }
        let farewell = async {
            while !self.unsent.is_empty() {
                self.stream.writable().await?;
                self.write(false)?;
            }
            if rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write).is_err() {
                // The client was quicker.
                return Ok(());
            }
            loop {
                self.stream.readable().await?;
                let end = READ_BUFFER.with_borrow_mut(|buffer| {
                    buffer.resize(buffer.len().max(READ_BYTES), 0);
                    match self.stream.try_read(buffer) {
                        Ok(count) => count == 0,
                        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
                    }
                });
                if end {
                    return Ok(());
                }
            }
        };
        // A client that does not close in time is not waited for.
        tokio::time::timeout(LINGER, farewell).await.unwrap_or(Ok(()))
    }

    /// Reads once, and takes in what came; true if there may be more.
    fn read(&mut self, address: SocketAddr) -> bool {
        self.brought.woken = Woken::Nobody;
        READ_BUFFER.with_borrow_mut(|buffer| {
            // What is kept of a small frame goes before what is read. That of a large one stays where it is and grows:
            // copied for every read, it would cost the square of its length.
            let is_large = self.carry.len() > READ_BYTES;
            let kept = if is_large { 0 } else { self.carry.len() };
            if buffer.len() < kept + READ_BYTES {
                buffer.resize(kept + READ_BYTES, 0);
            }
            buffer[..kept].copy_from_slice(&self.carry[..kept]);
            // Where there is little room, no more than needs no turn.
            let room = if self.arrival.is_to_bring_little() { ARRIVING_BYTES_SMALL } else { buffer.len() - kept };
            let read = try_read(&self.stream, &mut buffer[kept..kept + room]);
            self.registered.received(*read.as_ref().unwrap_or(&0));
            match read {
                Ok(count) if count > 0 && is_large => {
                    self.carry.extend_from_slice(&buffer[..count]);
                    self.take_in_carry(address);
                }
                Ok(count) if count > 0 => {
                    let input = &buffer[..kept + count];
                    let used = self.take_in(input, address);
                    self.carry = input[used..].to_vec();
                }
                Err(ref error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => {
                    self.is_gone = true;
                    self.connection.handle_end();
                }
            }
            read.is_ok_and(|count| count == room)
        })
    }

    /// Takes in what was kept, and goes on keeping what is left.
    fn take_in_carry(&mut self, address: SocketAddr) {
        let carry = std::mem::take(&mut self.carry);
        let used = self.take_in(&carry, address);
        self.carry = if used == 0 { carry } else { carry[used..].to_vec() };
    }

    /// Feeds input to the connection and its commands to the virtual host, until both want more, or others are to have a
    /// turn. Returns how many bytes were used.
    fn take_in(&mut self, input: &[u8], address: SocketAddr) -> usize {
        self.borrow_spare();
        let mut all_used = 0;
        loop {
            let used = self.connection.handle_input(self.shared.clock.now(), &input[all_used..], &mut self.unsent);
            all_used += used;
            self.attach(address);
            self.execute();
            self.is_cut = self.progress == Progress::More;
            if used == 0 || all_used == input.len() || self.is_cut {
                return all_used;
            }
        }
    }

    /// Everything that is to be done without new input.
    fn work(&mut self, address: SocketAddr) {
        self.execute();
        self.catch_up();
        // What could be told only now may have ended a channel.
        self.execute();
        if self.progress == Progress::Done && (self.connection.input_waits() || self.is_cut) {
            self.take_in_carry(address);
            self.catch_up();
        }
        self.have_written();
    }

    /// Lets the journal's thread write what this connection has brought.
    fn have_written(&mut self) {
        if std::mem::take(&mut self.brought.is_unwritten)
            && let Some(attached) = &self.attached
        {
            attached.journal().have_written();
        }
    }

    /// Writes it on this thread.
    fn write_here(&mut self) {
        if std::mem::take(&mut self.brought.is_unwritten)
            && let Some(attached) = &self.attached
        {
            attached.journal().write_here();
        }
    }

    /// Whether this connection waits for what it has just brought, and for nothing else, and to write that takes no longer than
    /// to wake another thread.
    fn writes_here(&mut self) -> bool {
        let may = self.brought.is_unwritten && self.shared.writes_here && self.unsent.is_empty();
        if !may || self.progress == Progress::More {
            return false;
        }
        let Some(attached) = &self.attached else { return false };
        let (journal, durable) = (attached.journal(), attached.journal().durable());
        self.awaited.is_over(durable)
            && journal.is_quick()
            && self.connection.awaits().is_some_and(|position| position > durable)
    }

    /// One hold of the virtual host or, while there are answers that lead to more commands, several.
    fn execute(&mut self) {
        loop {
            if let Some(attached) = &self.attached
                && (self.progress == Progress::More || !self.connection.commands().is_empty())
            {
                let Turn { appended, woken, progress } = attached.execute(self.connection.commands());
                self.appended = self.appended.max(appended);
                self.brought.is_unwritten |= appended != Appended::Nothing;
                self.brought.woken = self.brought.woken.max(woken);
                self.progress = progress;
            }
            self.outbox.take(&mut self.outputs);
            if self.outputs.is_empty() {
                return;
            }
            self.borrow_spare();
            let now = self.shared.clock.now();
            let durable =
                self.attached.as_ref().map_or(JournalPosition::default(), |attached| attached.journal().durable());
            self.connection.handle_outputs(now, self.outputs.drain(..), durable, &mut self.unsent);
            self.log_channel_faults();
            if self.progress == Progress::More {
                return;
            }
        }
    }

    /// Says what has ended channels and consumers. RabbitMQ: a channel error.
    fn log_channel_faults(&mut self) {
        for fault in self.connection.take_channel_faults() {
            let ChannelFault { ended, channel, operation, reason, untold } = fault;
            let (peer, channel, untold) =
                (self.registered.peer(), channel.number(), (untold > 0).then_some(untold));
            let (user, name) = (self.connection.user(), self.connection.client_name());
            let vhost = self.registered.vhost().map(VhostName::as_str);
            match ended {
                Ended::Channel => {
                    tracing::warn!(%peer, user, vhost, name, channel, operation, reason, untold, "channel closed");
                }
                Ended::Consumer => {
                    tracing::warn!(%peer, user, vhost, name, channel, reason, untold, "consumer cancelled");
                }
            }
        }
    }

    /// Tells what waited for the journal and need not any more, and asks to be woken for the rest.
    fn catch_up(&mut self) {
        let Some(attached) = &self.attached else { return };
        let journal = Arc::clone(attached.journal());
        while let Some(position) = self.connection.awaits() {
            let durable = journal.durable();
            if position > durable {
                return self.awaited.wait(position, durable, &journal, &self.outbox);
            }
            self.borrow_spare();
            self.connection.handle_durable(self.shared.clock.now(), durable, &mut self.unsent);
        }
    }

    /// Connects to the virtual host that the client asked for.
    fn attach(&mut self, address: SocketAddr) {
        let Some((vhost, user)) = self.connection.open_request() else { return };
        let (now, user) = (self.shared.clock.now(), user.clone());
        let Connected { seen, vhost, attached, present } =
            match self.shared.node.connect(vhost, &user, &self.outbox) {
                Ok(connected) => connected,
                Err(error) => return self.connection.handle_opened(now, Err(error), &mut self.unsent),
            };
        self.connection.handle_opened(now, Ok(present), &mut self.unsent);
        let name = self.connection.client_name().unwrap_or_default();
        // As texts they are shown in quotes, whatever is in them.
        tracing::info!(peer = %address, user = user.as_str(), vhost = vhost.as_str(), name, "connection opened");
        let (hub, id) = attached.describe(self.registered.details());
        if let Some(negotiated) = self.connection.take_negotiated() {
            self.registered.opened(Opened { vhost: vhost.clone(), hub, id, negotiated });
        }
        // Whoever changed the node meanwhile may not have found it.
        if let Some(reason) = self.shared.node.catch_up(&seen, &vhost, &user, &attached) {
            self.registered.tell_to_close(&reason);
        }
        self.attached = Some(attached);
    }

    fn borrow_spare(&mut self) {
        if self.unsent.capacity() == 0 {
            self.unsent = SPARE.take();
        }
    }

    /// Writes as much as the socket takes; true if that gave the virtual host something to do. While that is held, it is not
    /// told.
    fn write(&mut self, is_held: bool) -> io::Result<bool> {
        while self.sent < self.unsent.len() {
            match self.stream.try_write(&self.unsent[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    (self.sent, self.untold) = (self.sent + count, self.untold + count);
                    self.registered.sent(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let written = if self.sent < self.unsent.len() {
            // A client that reads slowly and without a pause never empties the buffer.
            if self.sent >= self.unsent.len() / 2 {
                self.unsent.drain(..self.sent);
                self.sent = 0;
            }
            // One that does not read at all keeps no more room than what it does not read needs.
            if self.unsent.capacity() / 4 > self.unsent.len() {
                let unsent = self.unsent.as_slice().into();
                keep_spare(std::mem::replace(&mut self.unsent, unsent));
            }
            Written::Some(self.untold)
        } else {
            if self.unsent.capacity() > 0 {
                self.sent = 0;
                keep_spare(std::mem::take(&mut self.unsent));
            }
            Written::All
        };
        if is_held || std::mem::take(&mut self.untold) == 0 {
            return Ok(false);
        }
        let (bytes, is_due) = self.connection.handle_written(self.shared.clock.now(), written);
        self.outbox.written(bytes);
        Ok(is_due)
    }
}

/// Keeps a buffer for whoever writes next on this thread.
fn keep_spare(mut buffer: Vec<u8>) {
    buffer.clear();
    if buffer.capacity() <= SPARE_BYTES_MAX {
        SPARE.set(buffer);
    }
}

/// Whether the client has closed its end, whatever it has sent before that was not read.
fn has_hung_up(stream: &TcpStream) -> bool {
    #[cfg(target_os = "linux")]
    const CLOSED: PollFlags = PollFlags::RDHUP;
    #[cfg(not(target_os = "linux"))]
    const CLOSED: PollFlags = PollFlags::HUP;
    let mut polled = [PollFd::new(stream, CLOSED)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok() && !polled[0].revents().is_empty()
}

/// Reads what there is, as much as has room. A socket that has given less has no more, and is not asked for it before it says so.
fn try_read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let (room, mut read) = (buffer.len(), None);
    let tried = stream.try_io(Interest::READABLE, || {
        let count = rustix::io::read(stream, &mut *buffer)?;
        read = Some(count);
        if (1..room).contains(&count) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    });
    read.map_or(tried, Ok)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use leveret_amqp::frame::{write_content, write_method};
    use leveret_amqp::{BasicProperties, ContentHeader, Method, PROTOCOL_HEADER, ShortStr, Table};
    use leveret_broker::Settings;

    use super::*;
    use crate::server::{Server, ServerConfig};

    const FRAME_MAX: u32 = 8 * 1024 * 1024;

    #[tokio::test]
    async fn a_client_that_is_gone_is_known_to_be_before_all_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let accepted = TcpStream::from_std(accepted).unwrap();
        client.write_all(b"something").unwrap();
        accepted.readable().await.unwrap();
        assert!(!has_hung_up(&accepted));
        drop(client);
        let is_known = async {
            while !has_hung_up(&accepted) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), is_known).await.unwrap();
    }

    /// Publishes a body in one frame, gets it back, and gives all that the broker has said.
    fn publish_and_get(address: SocketAddr, body: &[u8]) -> Vec<u8> {
        let text = ShortStr::truncated;
        let mut bytes = PROTOCOL_HEADER.to_vec();
        let start_ok = Method::ConnectionStartOk {
            client_properties: Table::EMPTY,
            mechanism: text("PLAIN"),
            response: b"\0guest\0guest",
            locale: text("en_US"),
        };
        write_method(&mut bytes, 0, &start_ok);
        write_method(
            &mut bytes,
            0,
            &Method::ConnectionTuneOk { channel_max: 0, frame_max: FRAME_MAX, heartbeat: 0 },
        );
        let open = Method::ConnectionOpen { virtual_host: text("/"), capabilities: text(""), insist: false };
        write_method(&mut bytes, 0, &open);
        write_method(&mut bytes, 1, &Method::ChannelOpen { out_of_band: text("") });
        let declare = Method::QueueDeclare {
            ticket: 0,
            queue: text("q"),
            passive: false,
            durable: false,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments: Table::EMPTY,
        };
        write_method(&mut bytes, 1, &declare);
        let publish = Method::BasicPublish {
            ticket: 0,
            exchange: text(""),
            routing_key: text("q"),
            mandatory: false,
            immediate: false,
        };
        write_method(&mut bytes, 1, &publish);
        let mut header = Vec::new();
        let properties = BasicProperties::default();
        ContentHeader { body_bytes: body.len() as u64, properties }.encode(&mut header);
        write_content(&mut bytes, 1, &header, body, FRAME_MAX);
        write_method(&mut bytes, 1, &Method::BasicGet { ticket: 0, queue: text("q"), no_ack: true });
        let close =
            Method::ConnectionClose { reply_code: 200, reply_text: text("Goodbye"), class_id: 0, method_id: 0 };
        write_method(&mut bytes, 0, &close);
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    }

    /// What is copied for each read is no more than the buffer holds, whatever the length of the frame.
    #[test]
    fn a_large_frame_is_not_copied_again_for_every_read() {
        // One thread, so that its buffer is the one that was read through.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = Settings { frame_max: FRAME_MAX, ..Settings::default() };
        let server = runtime.block_on(Server::start(ServerConfig { settings, ..ServerConfig::default() })).unwrap();
        let address = server.addresses()[0];
        let body: Vec<u8> = (0..FRAME_MAX - 8).map(|at| (at % 251) as u8).collect();
        let sent = body.clone();
        let heard = runtime.block_on(runtime.spawn_blocking(move || publish_and_get(address, &sent))).unwrap();
        assert!(heard.windows(body.len()).any(|window| window == body), "it arrives as it was sent");
        READ_BUFFER.with_borrow(|buffer| assert!(buffer.len() <= 2 * READ_BYTES, "{} bytes", buffer.len()));
    }
}
