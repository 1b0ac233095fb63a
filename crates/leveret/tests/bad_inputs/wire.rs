//! The sockets that a script speaks through: what a line says is written as it is, and what the broker says is waited for.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use leveret_amqp::frame::split_frame;
use leveret_testkit::{Extent, Heard, JournalPace, NodeChange, PolicyOrder, Room, Stop, Wire};

use crate::support::DEADLINE;

/// The shortest time a socket can be told to wait.
const MOMENT: Duration = Duration::from_millis(1);

/// The connections of one script. One whose name begins with `reset` ends with a reset, not with a FIN.
#[derive(Debug)]
pub(crate) struct SocketWire {
    address: SocketAddr,
    peers: BTreeMap<String, Peer>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Peer {
    socket: TcpStream,
    unread: Vec<u8>,
    heard: VecDeque<Heard>,
    has_ended: bool,
}

impl SocketWire {
    pub(crate) fn new(address: SocketAddr) -> Self {
        SocketWire { address, peers: BTreeMap::new() }
    }
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        Peer { socket, unread: Vec::new(), heard: VecDeque::new(), has_ended: false }
    }

    /// A broker that has closed the socket does not take them, which whoever listens will hear.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// The next thing, or nothing if that does not come in time.
    pub(crate) fn hear(&mut self, time: Duration) -> Heard {
        let deadline = Instant::now() + time;
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            if self.has_ended {
                return Heard::End;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.read(left.max(MOMENT)) && left.is_zero() {
                return Heard::Nothing;
            }
        }
    }

    /// Whether something came.
    fn read(&mut self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 1 << 14];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.has_ended = true,
            Ok(count) => {
                self.unread.extend_from_slice(&buffer[..count]);
                self.split();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.has_ended = true,
        }
        true
    }

    fn split(&mut self) {
        let mut rest = &self.unread[..];
        loop {
            if let Some((header, more)) = rest.split_first_chunk::<8>().filter(|_| rest.starts_with(b"AMQP")) {
                self.heard.push_back(Heard::ProtocolHeader(header.to_vec()));
                rest = more;
            }
            let Some(frame) = split_frame(&mut rest, u32::MAX).expect("the broker's frames are whole") else {
                break;
            };
            self.heard.push_back(Heard::Frame(frame.kind, frame.channel, frame.payload.to_vec()));
        }
        self.unread = rest.to_vec();
    }

    fn reset(self) {
        // To close a socket that would not wait for what is unsent is to reset it.
        rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)).unwrap();
    }
}

impl Wire for SocketWire {
    fn connect(&mut self, name: &str) {
        self.peers.insert(name.to_owned(), Peer::connect(self.address));
    }

    fn send(&mut self, name: &str, bytes: &[u8]) {
        // One that was reset is gone.
        if let Some(peer) = self.peers.get_mut(name) {
            peer.send(bytes);
        }
    }

    fn end(&mut self, name: &str) {
        if name.starts_with("reset") {
            self.peers.remove(name).expect("the script has connected it").reset();
        } else {
            let _ = self.peers[name].socket.shutdown(Shutdown::Write);
        }
    }

    fn hear(&mut self, name: &str) -> Heard {
        self.peers.get_mut(name).map_or(Heard::End, |peer| peer.hear(DEADLINE))
    }

    /// Scripts end with an answer, before which anything else would have been heard.
    fn overhear(&mut self, name: &str) -> Heard {
        self.peers.get_mut(name).map_or(Heard::End, |peer| peer.hear(Duration::ZERO))
    }

    fn wait(&mut self, time: Duration) {
        thread::sleep(time);
    }

    fn journal(&mut self, _: JournalPace) {
        unreachable!("no script here asks for that");
    }

    fn room(&mut self, _: Room) {
        unreachable!("no script here asks for that");
    }

    fn checkpoint(&mut self, _: Extent) {
        unreachable!("no script here asks for that");
    }

    fn node(&mut self, _: NodeChange) -> Result<(), String> {
        Err("a socket changes no users".into())
    }

    fn policy(&mut self, _: PolicyOrder) -> Result<(), String> {
        Err("a socket sets no policies".into())
    }

    fn restart(&mut self, _: Stop) {
        unreachable!("no script here asks for that");
    }
}
