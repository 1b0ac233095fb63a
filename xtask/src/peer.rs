//! A client that writes methods as bytes, for what a client of callers that wait for each answer cannot do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use leveret_amqp::frame::{split_frame, write_method};
use leveret_amqp::{FieldTable, Method, PROTOCOL_HEADER, ShortStr};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};

/// In which a client hears an answer, if nothing else is said.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const FRAME_BYTES_MAX: u32 = 131_072;

/// Room that the operating system is asked to have for what a client does not read, in bytes.
const SMALL_WINDOW_BYTES: usize = 4096;

/// A connection with channel 1 open.
pub(crate) struct Peer {
    stream: TcpStream,
    input: Vec<u8>,
    /// How many bytes of the input were taken.
    taken: usize,
}

/// A socket for which the operating system keeps little that is not read. It is told before it connects: one whose window shrinks later
/// is not heard any more by Linux 6.17 and newer, as what acknowledges what it sends then comes from beyond that window.
pub(crate) fn connect_with_small_window(address: SocketAddr) -> Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, SMALL_WINDOW_BYTES)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

/// Whether something is there that was not read.
pub(crate) fn has_input(stream: &TcpStream) -> bool {
    let peeked = rustix::net::recv(stream, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    peeked.is_ok_and(|(count, _)| count > 0)
}

impl Peer {
    /// Logs in as guest, without heartbeats.
    pub(crate) fn connect(address: &str) -> Result<Self> {
        Self::connect_with(address, 0, ANSWER_DEADLINE)
    }

    /// The same with a heartbeat, in seconds, which whoever has this sends, and that long for each answer.
    pub(crate) fn connect_with(address: &str, heartbeat: u16, answer_within: Duration) -> Result<Self> {
        Self::over(TcpStream::connect(address)?, heartbeat, answer_within)
    }

    /// One for which the operating system keeps little that is not read: that is not the broker's.
    pub(crate) fn connect_with_small_window(address: &str, answer_within: Duration) -> Result<Self> {
        Self::over(connect_with_small_window(address.parse()?)?, 0, answer_within)
    }

    fn over(stream: TcpStream, heartbeat: u16, answer_within: Duration) -> Result<Self> {
        let mut peer = Peer { stream, input: Vec::new(), taken: 0 };
        peer.stream.set_nodelay(true)?;
        peer.stream.set_read_timeout(Some(answer_within))?;
        peer.write(&PROTOCOL_HEADER)?;
        peer.expect("connection.start")?;
        let properties = FieldTable::build(|_| {});
        peer.send(
            0,
            &Method::ConnectionStartOk {
                client_properties: properties.as_table(),
                mechanism: ShortStr::truncated("PLAIN"),
                response: b"\0guest\0guest",
                locale: ShortStr::truncated("en_US"),
            },
        )?;
        peer.expect("connection.tune")?;
        peer.send(0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: FRAME_BYTES_MAX, heartbeat })?;
        let (virtual_host, capabilities) = (ShortStr::truncated("/"), ShortStr::truncated(""));
        peer.send(0, &Method::ConnectionOpen { virtual_host, capabilities, insist: false })?;
        peer.expect("connection.open-ok")?;
        peer.send(1, &Method::ChannelOpen { out_of_band: ShortStr::truncated("") })?;
        peer.expect("channel.open-ok")?;
        Ok(peer)
    }

    /// Its socket.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the broker has said something that was not taken.
    pub(crate) fn has_input(&self) -> bool {
        self.taken < self.input.len() || has_input(&self.stream)
    }

    /// The bare connection.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Writes frames.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Writes a method.
    pub(crate) fn send(&mut self, channel: u16, method: &Method<'_>) -> Result<()> {
        let mut output = Vec::new();
        write_method(&mut output, channel, method);
        self.write(&output)
    }

    /// Takes the next frame, which holds this method.
    pub(crate) fn expect(&mut self, name: &str) -> Result<()> {
        loop {
            let mut rest = &self.input[self.taken..];
            if let Some(frame) = split_frame(&mut rest, FRAME_BYTES_MAX)? {
                let method = Method::decode(frame.payload)?;
                ensure!(method.name() == name, "expected {name}, not {method:?}");
                self.taken = self.input.len() - rest.len();
                return Ok(());
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes)? {
                0 => bail!("the broker closed the connection instead of {name}"),
                count => self.input.extend_from_slice(&bytes[..count]),
            }
        }
    }
}
