//! One connection with one channel on its hot path: bytes out, events in, no wait longer than a look-up.
//!
//! Must not know: what a load is.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leveret_amqp::frame::write_method;
use leveret_amqp::{Method, ShortStr, Table};
use leveret_client::{Channel, Connection, Error, RawConnection, Url};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::board::{Board, Counters, START_LOOK_UP};
use crate::limits::LOOK_UP;
use crate::scan::{Event, Scanner};

/// A connection that its thread reads and writes without a client in between.
#[derive(Debug)]
pub(crate) struct Lane<'b> {
    stream: TcpStream,
    scanner: Scanner,
    pub(crate) channel: u16,
    pub(crate) frame_max: u32,
    pub(crate) board: &'b Board,
    pub(crate) counters: Arc<Counters>,
    /// The broker takes no messages for now.
    is_blocked: bool,
    /// What goes out when there is room: acks, and what starts a consumer.
    pub(crate) output: Vec<u8>,
}

impl<'b> Lane<'b> {
    /// Connects, opens a channel and lets `prepare` use it first.
    pub(crate) fn open(
        url: &Url,
        board: &'b Board,
        counters: Arc<Counters>,
        prepare: impl FnOnce(&mut Channel<'_>) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let mut connection = Connection::open_unless(url, board.interrupt())?;
        let mut channel = connection.open_channel()?;
        prepare(&mut channel)?;
        let number = channel.id().get();
        connection.set_interrupt(None);
        Lane::over(connection.into_raw()?, number, board, counters)
    }

    /// Takes a connection that has this channel open.
    pub(crate) fn over(
        raw: RawConnection,
        channel: u16,
        board: &'b Board,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        raw.stream.set_read_timeout(Some(LOOK_UP)).map_err(Error::Io)?;
        raw.stream.set_write_timeout(Some(LOOK_UP)).map_err(Error::Io)?;
        if raw.blocked.is_some() {
            counters.handle_blocked(board.now_ns());
        }
        Ok(Lane {
            stream: raw.stream,
            scanner: Scanner::new(raw.input, raw.frame_max),
            channel,
            frame_max: raw.frame_max,
            board,
            counters,
            is_blocked: raw.blocked.is_some(),
            output: Vec::new(),
        })
    }

    pub(crate) fn scanner(&mut self) -> &mut Scanner {
        &mut self.scanner
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Has a consumer started whose tag is a number.
    pub(crate) fn send_consume(&mut self, queue: &str, consumer: u32, no_ack: bool) -> Result<(), Error> {
        let tag = consumer.to_string();
        let method = Method::BasicConsume {
            ticket: 0,
            queue: ShortStr::new(queue)?,
            consumer_tag: ShortStr::new(&tag)?,
            no_local: false,
            no_ack,
            exclusive: false,
            nowait: false,
            arguments: Table::EMPTY,
        };
        self.send(&method);
        Ok(())
    }

    /// Has a consumer end.
    pub(crate) fn send_cancel(&mut self, consumer: u32) -> Result<(), Error> {
        let tag = consumer.to_string();
        self.send(&Method::BasicCancel { consumer_tag: ShortStr::new(&tag)?, nowait: false });
        Ok(())
    }

    /// Appends a method to the output.
    pub(crate) fn send(&mut self, method: &Method<'_>) {
        write_method(&mut self.output, self.channel, method);
    }

    /// Writes once, waiting for room no longer than a look-up, and says how many bytes went.
    pub(crate) fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        match self.stream.write(bytes) {
            Ok(0) => Err(self.reason_instead_of(Error::Disconnected)),
            Ok(count) => {
                self.counters.add_moved(count);
                Ok(count)
            }
            Err(error) if is_would_block(error.kind()) => Ok(0),
            Err(error) => Err(self.reason_instead_of(Error::Io(error))),
        }
    }

    /// Writes what it can of the output.
    pub(crate) fn flush_some(&mut self) -> Result<(), Error> {
        if !self.output.is_empty() {
            let output = std::mem::take(&mut self.output);
            let count = self.write_some(&output)?;
            self.output = output;
            self.output.drain(..count);
        }
        Ok(())
    }

    /// Reads once, waiting no longer than a look-up. `false` when nothing came.
    pub(crate) fn read(&mut self) -> Result<bool, Error> {
        match self.stream.read(self.scanner.space()) {
            Ok(0) => Err(Error::Disconnected),
            Ok(count) => {
                self.counters.add_moved(count);
                self.scanner.handle_read(count);
                Ok(true)
            }
            Err(error) if is_would_block(error.kind()) => Ok(false),
            Err(error) => Err(Error::Io(error)),
        }
    }

    /// Reads once if something comes within `wait`, which need not be a look-up: it may be shorter by far.
    pub(crate) fn read_within(&mut self, wait: Duration) -> Result<bool, Error> {
        let mut asked = [PollFd::new(&self.stream, PollFlags::IN)];
        let wait = Timespec::try_from(wait.min(LOOK_UP)).unwrap_or_default();
        match poll(&mut asked, Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => self.read(),
            Err(error) => Err(Error::Io(error.into())),
        }
    }

    /// The next event that is not about the connection itself, of what was read.
    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.scanner.poll_event()? {
                Some(Event::Blocked) => {
                    self.is_blocked = true;
                    self.counters.handle_blocked(self.board.now_ns());
                }
                Some(Event::Unblocked) => {
                    self.is_blocked = false;
                    self.counters.handle_unblocked(self.board.now_ns());
                }
                Some(Event::Cancelled) => {
                    let what = "the end of a consumer, most likely because its queue was deleted";
                    return Err(Error::Unexpected(what.to_owned()));
                }
                other => return Ok(other),
            }
        }
    }

    /// Waits for a start, and says when it was; `None` when the run was given up. A broker that hangs up meanwhile is an error.
    pub(crate) fn await_start(&mut self, start_ns: impl Fn(&Board) -> Option<u64>) -> Result<Option<u64>, Error> {
        while !self.board.is_given_up() {
            if let Some(start_ns) = start_ns(self.board) {
                return Ok(Some(start_ns));
            }
            self.read_within(START_LOOK_UP)?;
            if let Some(event) = self.poll_event()? {
                return Err(Error::Unexpected(format!("{event:?} before the start")));
            }
        }
        Ok(None)
    }

    /// Waits until the answer that `is_answer` knows has come. Other events are dropped. `false` when the run was given up.
    pub(crate) fn await_answer(&mut self, is_answer: impl Fn(&Event) -> bool) -> Result<bool, Error> {
        while !self.board.is_given_up() {
            self.flush_some()?;
            while let Some(event) = self.poll_event()? {
                if is_answer(&event) {
                    return Ok(true);
                }
            }
            self.read()?;
        }
        Ok(false)
    }

    /// Closes the connection: everything sent before is handled by the broker when this returns.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        let reply_text = ShortStr::truncated("Goodbye");
        let goodbye = Method::ConnectionClose { reply_code: 200, reply_text, class_id: 0, method_id: 0 };
        write_method(&mut self.output, 0, &goodbye);
        match self.await_answer(|event| *event == Event::CloseOk) {
            // Some brokers hang up without an answer.
            Ok(_) | Err(Error::Disconnected) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// After a failed write: the broker's last words, if it had any, are more useful than "broken pipe".
    fn reason_instead_of(&mut self, error: Error) -> Error {
        let deadline = Instant::now() + 10 * LOOK_UP;
        while Instant::now() < deadline {
            match self.poll_event() {
                Ok(Some(_)) => {}
                Ok(None) if self.read().is_err() => return error,
                Ok(None) => {}
                Err(reason @ Error::Closed { .. }) => return reason,
                Err(_) => return error,
            }
        }
        error
    }
}

/// A timeout of the socket, by whatever name the system has for it, or a signal.
fn is_would_block(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A lane of this board, and the other end of its socket.
    fn lane(board: &Board) -> (Lane<'_>, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let raw = RawConnection { stream, input: Vec::new(), frame_max: 4096, blocked: None };
        (Lane::over(raw, 1, board, board.worker(0)).unwrap(), listener.accept().unwrap().0)
    }

    #[test]
    fn who_waits_for_a_start_notices_a_broker_that_hangs_up() {
        let board = Board::new(1);
        let (mut lane, mut peer) = lane(&board);
        let reply_text = ShortStr::truncated("CONNECTION_FORCED - bye");
        let mut bytes = Vec::new();
        let close = Method::ConnectionClose { reply_code: 320, reply_text, class_id: 0, method_id: 0 };
        write_method(&mut bytes, 0, &close);
        peer.write_all(&bytes).unwrap();
        drop(peer);
        let error = lane.await_start(Board::consumers_start_ns).unwrap_err();
        assert_eq!(error.to_string(), "320 CONNECTION_FORCED - bye");
        board.start_consumers(7);
        assert_eq!(lane.await_start(Board::consumers_start_ns).unwrap(), Some(7));
        board.give_up();
        assert_eq!(lane.await_start(Board::consumers_start_ns).unwrap(), None);
    }

    #[test]
    fn part_of_a_message_is_progress_in_both_directions() {
        let board = Board::new(1);
        let (mut lane, mut peer) = lane(&board);
        assert_eq!(board.totals().steps(), 0);
        lane.write_some(b"part").unwrap();
        let written = board.totals().steps();
        assert!(written > 0);
        peer.write_all(&[1, 0]).unwrap();
        while !lane.read().unwrap() {}
        assert!(board.totals().steps() > written && lane.poll_event().unwrap().is_none());
    }
}
