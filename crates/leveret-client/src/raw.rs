//! What is left of a connection when its owner writes and reads the frames alone from there on.

use std::net::TcpStream;

/// An open connection without a client around it; [`Connection::into_raw`](crate::Connection::into_raw) makes one.
///
/// Whoever has it sends heartbeats if there are any, keeps the rules of the protocol, and says goodbye.
#[derive(Debug)]
pub struct RawConnection {
    /// The socket: blocking, `TCP_NODELAY`, without timeouts.
    pub stream: TcpStream,
    /// What was read and not handled yet. It begins with a frame, which need not be whole.
    pub input: Vec<u8>,
    /// Largest frame in bytes that both sides agreed to.
    pub frame_max: u32,
    /// Why the broker takes no messages for now: `connection.blocked`.
    pub blocked: Option<String>,
}
