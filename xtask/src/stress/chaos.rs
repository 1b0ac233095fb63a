//! A proxy between clients and the broker through which nothing goes well.
//!
//! Owns: which connection has which trouble, and which of them came to it.
//! Must not know: what it carries.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use rand::Rng;

use crate::peer::connect_with_small_window;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Every byte by itself, in both directions.
    SingleBytes,
    /// After some bytes both ends are reset, most often in the midst of a frame.
    Reset,
    /// After some bytes nothing goes through any more, and neither end hears of it.
    HalfOpen,
    /// What the broker sends is taken slowly.
    SlowReader,
    /// Everything is late.
    Late,
}

const TROUBLES: [Trouble; 5] =
    [Trouble::SingleBytes, Trouble::Reset, Trouble::HalfOpen, Trouble::SlowReader, Trouble::Late];

/// Bytes after which a connection is cut, at most: some cuts are in the handshake, some in messages.
const CUT_AFTER_MAX: usize = 200_000;

/// Both ends together say less than this before the first message.
const HANDSHAKE_BYTES_MAX: usize = 3000;

const LATE_BY: Duration = Duration::from_millis(30);
const SLOW_BYTES: usize = 512;
const SLOW_EVERY: Duration = Duration::from_millis(5);

/// How often a thread looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The proxy, until it is stopped.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    is_over: AtomicBool,
    /// Connections that came to their trouble, by its number.
    troubled: [AtomicUsize; TROUBLES.len()],
}

/// How many connections came to which trouble.
#[derive(Clone, Copy, Debug)]
pub(super) struct Troubled([usize; TROUBLES.len()]);

impl Troubled {
    /// Whether each was there.
    pub(super) fn is_complete(self) -> bool {
        self.0.iter().all(|&count| count > 0)
    }
}

impl fmt::Display for Troubled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [single_bytes, reset, half_open, slow_reader, late] = self.0;
        write!(
            f,
            "{single_bytes} connections with single bytes, {reset} reset, {half_open} half-open, {slow_reader} slow readers, \
             {late} late"
        )
    }
}

impl Proxy {
    pub(super) fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, is_over: AtomicBool::new(false), troubled: Default::default() });
        let theirs = Arc::clone(&shared);
        let accepting = Some(thread::spawn(move || accept(&listener, &theirs)));
        Ok(Proxy { address, shared, accepting })
    }

    /// Closes everything that is left.
    pub(super) fn stop(mut self) -> Troubled {
        self.end();
        Troubled(std::array::from_fn(|nth| self.shared.troubled[nth].load(Ordering::Relaxed)))
    }

    fn end(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.accepting.take().map(JoinHandle::join);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut carrying = Vec::new();
    for nth in 0.. {
        let client = loop {
            if shared.is_over.load(Ordering::Relaxed) {
                for thread in carrying {
                    let _ = JoinHandle::<()>::join(thread);
                }
                return;
            }
            match listener.accept() {
                Ok((client, _)) => break client,
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        };
        let nth = nth % TROUBLES.len();
        let cut_after = rand::rng().random_range(1..CUT_AFTER_MAX);
        let shared = Arc::clone(shared);
        carrying.push(thread::spawn(move || {
            // A socket that cannot be set up is one that is closed.
            let has_come = carry(&client, TROUBLES[nth], cut_after, &shared);
            shared.troubled[nth].fetch_add(usize::from(has_come.unwrap_or_default()), Ordering::Relaxed);
        }));
    }
}

/// Carries bytes both ways until either end has enough. Gives whether it came to its trouble.
fn carry(client: &TcpStream, trouble: Trouble, cut_after: usize, shared: &Shared) -> Result<bool> {
    let broker = if trouble == Trouble::SlowReader {
        connect_with_small_window(shared.target)?
    } else {
        TcpStream::connect(shared.target)?
    };
    for socket in [client, &broker] {
        // An accepted socket may have inherited this from its listener.
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        socket.set_write_timeout(Some(LOOK_EVERY))?;
    }
    let line = Line {
        trouble,
        is_cut: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        carried: AtomicUsize::new(0),
        shared,
    };
    thread::scope(|scope| {
        scope.spawn(|| line.carry(client, &broker, Way::Up { cut_after }));
        scope.spawn(|| line.carry(&broker, client, Way::Down));
    });
    if trouble == Trouble::Reset {
        for socket in [client, &broker] {
            rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
        }
    }
    Ok(line.has_come_to_trouble())
}

#[derive(Clone, Copy, Debug)]
enum Way {
    /// From the client to the broker.
    Up {
        cut_after: usize,
    },
    Down,
}

struct Line<'s> {
    trouble: Trouble,
    /// Nothing goes through any more.
    is_cut: AtomicBool,
    /// Both directions end.
    is_over: AtomicBool,
    /// Bytes, up and down together.
    carried: AtomicUsize,
    shared: &'s Shared,
}

impl Line<'_> {
    /// It was cut, or has carried more than a handshake.
    fn has_come_to_trouble(&self) -> bool {
        match self.trouble {
            Trouble::Reset | Trouble::HalfOpen => self.is_cut.load(Ordering::Relaxed),
            Trouble::SingleBytes | Trouble::SlowReader | Trouble::Late => {
                self.carried.load(Ordering::Relaxed) > HANDSHAKE_BYTES_MAX
            }
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.shared.is_over.load(Ordering::Relaxed)
    }

    fn carry(&self, mut from: &TcpStream, to: &TcpStream, way: Way) {
        let mut buffer = vec![0; 16 * 1024];
        let mut left = match way {
            Way::Up { cut_after } if matches!(self.trouble, Trouble::Reset | Trouble::HalfOpen) => cut_after,
            Way::Up { .. } | Way::Down => usize::MAX,
        };
        while !self.is_over() {
            if self.is_cut.load(Ordering::Relaxed) {
                // Both ends stay open, and nobody reads what they say.
                thread::sleep(LOOK_EVERY);
                continue;
            }
            let is_slow = self.trouble == Trouble::SlowReader && matches!(way, Way::Down);
            let room = if is_slow { SLOW_BYTES } else { buffer.len() };
            let count = match from.read(&mut buffer[..room]) {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(count) => count.min(left),
                Err(error) if is_timeout(error.kind()) => continue,
                Err(_) => break,
            };
            if is_slow {
                thread::sleep(SLOW_EVERY);
            }
            if self.trouble == Trouble::Late {
                thread::sleep(LATE_BY);
            }
            let piece = if self.trouble == Trouble::SingleBytes { 1 } else { count.max(1) };
            if !buffer[..count].chunks(piece).all(|piece| self.write(to, piece)) {
                break;
            }
            self.carried.fetch_add(count, Ordering::Relaxed);
            left -= count;
            if left == 0 {
                self.is_cut.store(true, Ordering::Relaxed);
                if self.trouble == Trouble::Reset {
                    break;
                }
            }
        }
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether all of it went out.
    fn write(&self, mut to: &TcpStream, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() && !self.is_over() {
            match to.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_timeout(error.kind()) => {}
                Err(_) => return false,
            }
        }
        bytes.is_empty()
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
