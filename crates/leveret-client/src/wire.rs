//! One socket: bytes in, bytes out, heartbeats, and frames found in what was read.
//!
//! Must not know: what a frame means.
//! Invariant: the input never holds more than one frame of the largest size and one read.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use leveret_amqp::RawFrame;
use leveret_amqp::frame::{HEARTBEAT, split_frame};

use crate::error::Error;
use crate::heartbeat::Heartbeat;
use crate::interrupt::{Interrupt, Interruption};
use crate::limits::{FRAME_BYTES_MAX, INTERRUPT_LOOK_UP, READ_BYTES, WRITE_STALL};

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    /// Of this buffer, `input[taken..filled]` was read and not yet taken.
    input: Vec<u8>,
    taken: usize,
    filled: usize,
    /// Of this buffer, `output[written..]` is still to be written.
    output: Vec<u8>,
    written: usize,
    frame_max: u32,
    heartbeat: Heartbeat,
    interrupt: Option<Interrupt>,
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Something,
    Nothing,
}

/// The shortest time a socket can be told to wait.
const WAIT_MIN: Duration = Duration::from_millis(1);

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Result<Self, Error> {
        stream.set_nodelay(true).map_err(Error::Io)?;
        stream.set_write_timeout(Some(WRITE_STALL)).map_err(Error::Io)?;
        Ok(Wire {
            stream,
            input: Vec::new(),
            taken: 0,
            filled: 0,
            output: Vec::new(),
            written: 0,
            frame_max: FRAME_BYTES_MAX,
            heartbeat: Heartbeat::off(Instant::now()),
            interrupt: None,
        })
    }

    /// Takes what the handshake agreed to.
    pub(crate) fn tune(&mut self, frame_max: u32, heartbeat: Option<Duration>) {
        self.frame_max = frame_max;
        self.heartbeat.start(heartbeat);
    }

    pub(crate) fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.interrupt = interrupt;
    }

    /// Whether a wait has ended early.
    pub(crate) fn check_interrupt(&self, interruption: &mut Interruption, now: Instant) -> Result<(), Error> {
        let is_due = self.interrupt.as_ref().is_some_and(|interrupt| interruption.is_due(interrupt, now));
        if is_due { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub(crate) fn frame_max(&self) -> u32 {
        self.frame_max
    }

    /// Where frames are appended; [`Wire::write_some`] brings them to the socket.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    pub(crate) fn output_bytes(&self) -> usize {
        self.output.len() - self.written
    }

    /// Takes the next whole frame, if its last byte was read.
    pub(crate) fn take_frame(&mut self) -> Result<Option<RawFrame<'_>>, Error> {
        let mut rest = &self.input[self.taken..self.filled];
        let bytes_before = rest.len();
        let frame = split_frame(&mut rest, self.frame_max)?;
        self.taken += bytes_before - rest.len();
        Ok(frame)
    }

    pub(crate) fn has_frame(&self) -> Result<bool, Error> {
        Ok(split_frame(&mut &self.input[self.taken..self.filled], self.frame_max)?.is_some())
    }

    /// What was read and not taken.
    pub(crate) fn unhandled(&self) -> &[u8] {
        &self.input[self.taken..self.filled]
    }

    /// The socket once more, without the timeouts of this wire.
    pub(crate) fn share_stream(&self) -> Result<TcpStream, Error> {
        let stream = self.stream.try_clone().map_err(Error::Io)?;
        stream.set_read_timeout(None).map_err(Error::Io)?;
        stream.set_write_timeout(None).map_err(Error::Io)?;
        Ok(stream)
    }

    /// Waits for bytes until `deadline`, and sends heartbeats meanwhile. `false` when none came.
    pub(crate) fn await_bytes(&mut self, deadline: Instant) -> Result<bool, Error> {
        let mut interruption = Interruption::default();
        loop {
            let now = Instant::now();
            self.check_interrupt(&mut interruption, now)?;
            self.send_heartbeat_if_due(now)?;
            let until = self.heartbeat.next().map_or(deadline, |next| next.min(deadline));
            let until = if self.interrupt.is_some() { until.min(now + INTERRUPT_LOOK_UP) } else { until };
            if self.read(until.saturating_duration_since(now))? {
                return Ok(true);
            }
            let now = Instant::now();
            if self.heartbeat.is_peer_dead(now) {
                let silence = self.heartbeat.interval().unwrap_or_default() * 2;
                return Err(Error::Dead { silence });
            }
            if now >= deadline {
                return Ok(false);
            }
        }
    }

    /// Keeps the connection alive while its owner is busy elsewhere.
    pub(crate) fn send_heartbeat_if_due(&mut self, now: Instant) -> Result<(), Error> {
        if self.heartbeat.is_due(now) {
            // With output waiting, the peer is about to hear from us anyway.
            if self.output_bytes() == 0 {
                self.output.extend_from_slice(&HEARTBEAT);
            }
            self.write_some()?;
            self.heartbeat.handle_sent(now);
        }
        Ok(())
    }

    /// Reads once, waiting no longer than `wait`. `false` when nothing came.
    pub(crate) fn read(&mut self, wait: Duration) -> Result<bool, Error> {
        if self.taken > 0 {
            self.input.copy_within(self.taken..self.filled, 0);
            self.filled -= self.taken;
            self.taken = 0;
        }
        if self.input.len() < self.filled + READ_BYTES {
            self.input.resize(self.filled + READ_BYTES, 0);
        }
        let space = &mut self.input[self.filled..];
        let result = if wait.is_zero() {
            self.stream.set_nonblocking(true).map_err(Error::Io)?;
            let result = self.stream.read(space);
            self.stream.set_nonblocking(false).map_err(Error::Io)?;
            result
        } else {
            self.stream.set_read_timeout(Some(wait.max(WAIT_MIN))).map_err(Error::Io)?;
            self.stream.read(space)
        };
        match result {
            Ok(0) => Err(Error::Disconnected),
            Ok(bytes) => {
                self.filled += bytes;
                self.heartbeat.handle_heard(Instant::now());
                Ok(true)
            }
            Err(error) if is_would_block(error.kind()) => Ok(false),
            Err(error) => Err(Error::Io(error)),
        }
    }

    /// Writes once, waiting for room no longer than [`WRITE_STALL`].
    pub(crate) fn write_some(&mut self) -> Result<Written, Error> {
        let result = self.stream.write(&self.output[self.written..]);
        self.handle_written(result)
    }

    /// Writes once if there is room.
    pub(crate) fn write_at_once(&mut self) -> Result<Written, Error> {
        self.stream.set_nonblocking(true).map_err(Error::Io)?;
        let result = self.stream.write(&self.output[self.written..]);
        self.stream.set_nonblocking(false).map_err(Error::Io)?;
        self.handle_written(result)
    }

    fn handle_written(&mut self, result: io::Result<usize>) -> Result<Written, Error> {
        match result {
            Ok(0) => Err(Error::Disconnected),
            Ok(bytes) => {
                self.written += bytes;
                if self.written == self.output.len() {
                    self.output.clear();
                    self.written = 0;
                }
                self.heartbeat.handle_sent(Instant::now());
                Ok(Written::Something)
            }
            Err(error) if is_would_block(error.kind()) => Ok(Written::Nothing),
            Err(error) => Err(Error::Io(error)),
        }
    }
}

/// A timeout of the socket, by whatever name the system has for it, or a signal.
fn is_would_block(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use leveret_amqp::FrameKind;

    use super::*;

    /// A wire with a heartbeat of `interval`, and the other end of its socket.
    fn pair(interval: Duration) -> (Wire, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut wire = Wire::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        wire.tune(4096, Some(interval));
        (wire, listener.accept().unwrap().0)
    }

    #[test]
    fn a_waiting_end_sends_heartbeats_and_hears_them() {
        let (mut wire, mut peer) = pair(Duration::from_millis(300));
        let answers = thread::spawn(move || {
            let mut heard = [0; HEARTBEAT.len()];
            for _ in 0..3 {
                peer.read_exact(&mut heard).unwrap();
                assert_eq!(heard, HEARTBEAT);
                peer.write_all(&HEARTBEAT).unwrap();
            }
            peer.write_all(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 51, 0xCE]).unwrap();
        });
        let far = Instant::now() + Duration::from_secs(20);
        let mut received_method = false;
        while !received_method {
            assert!(wire.await_bytes(far).unwrap());
            while let Some(frame) = wire.take_frame().unwrap() {
                received_method |= frame.kind == FrameKind::Method;
            }
        }
        answers.join().unwrap();
    }

    #[test]
    fn a_peer_that_is_silent_for_two_intervals_is_dead() {
        let (mut wire, peer) = pair(Duration::from_millis(20));
        let error = wire.await_bytes(Instant::now() + Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, Error::Dead { silence } if silence == Duration::from_millis(40)), "{error}");
        drop(peer);
    }

    #[test]
    fn an_interrupted_wait_ends_before_its_deadline() {
        let (mut wire, peer) = pair(Duration::from_mins(10));
        let raised = Arc::new(AtomicBool::new(false));
        wire.set_interrupt(Some(Interrupt::new(Arc::clone(&raised), Duration::ZERO)));
        let waiting = thread::spawn(move || wire.await_bytes(Instant::now() + Duration::from_mins(5)));
        raised.store(true, Ordering::Relaxed);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Interrupted)));
        drop(peer);
    }

    #[test]
    fn a_deadline_that_passed_still_takes_what_is_there() {
        let (mut wire, peer) = pair(Duration::from_mins(1));
        assert!(!wire.await_bytes(Instant::now()).unwrap());
        drop(peer);
        let error = wire.await_bytes(Instant::now() + Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, Error::Disconnected), "{error}");
    }
}
