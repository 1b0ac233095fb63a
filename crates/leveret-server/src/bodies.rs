//! Bodies that are not in memory: the thread that reads them back from the journal and from scratch files.
//!
//! Must not know: why a body is wanted.
//!
//! What cannot be read because the process has used up its files or memory is tried again; only what the journal has lost is
//! given up. Of what a scratch file has lost, nothing is left.

use std::collections::BTreeMap;
use std::io;
use std::sync::Weak;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use leveret_broker::scratch::Place;
use leveret_broker::vhost::effects::{Fetch, Fetched};
use leveret_broker::{Change, Message};
use leveret_journal::{ReadError, Reader, ScratchReader, errno};
use rustix::io::Errno;

use crate::hub::Hub;
use crate::limits::READ_RETRY_EVERY;

/// Bodies that one virtual host wants.
struct Request {
    hub: Weak<Hub>,
    stream: u32,
    fetches: Vec<Fetch>,
}

/// Where a virtual host asks for bodies.
#[derive(Clone, Debug)]
pub(crate) struct Bodies(Sender<Request>);

impl Bodies {
    /// Asks for bodies. They come by [`Hub::take_in`], in some order, soon.
    pub(crate) fn ask(&self, hub: &Weak<Hub>, stream: u32, fetches: Vec<Fetch>) {
        // The thread ends when the last hub has; then nobody wants them.
        let _ = self.0.send(Request { hub: Weak::clone(hub), stream, fetches });
    }
}

/// Starts the thread. It ends when nobody can ask any more.
pub(crate) fn start(journal: Reader, scratch: ScratchReader) -> io::Result<Bodies> {
    let (asking, asked) = channel();
    let readers = Readers { journal, scratch, lost: BTreeMap::new() };
    std::thread::Builder::new().name("bodies".into()).spawn(move || read(readers, &asked))?;
    Ok(Bodies(asking))
}

/// Where bodies are.
struct Readers {
    journal: Reader,
    scratch: ScratchReader,
    /// By stream.
    lost: BTreeMap<u32, FailedReads>,
}

/// How often journaled messages could not be read back; one that stays in its queue is tried again.
#[derive(Default)]
struct FailedReads {
    count: u64,
    /// How many they were when the log got a line.
    said: u64,
}

impl FailedReads {
    /// There are some more. Whether the log is to get a line: it has no use for one of each.
    fn add(&mut self, count: u64) -> bool {
        self.count += count;
        let is_worth_a_line = self.count >= 2 * self.said;
        if is_worth_a_line {
            self.said = self.count;
        }
        is_worth_a_line
    }
}

fn read(mut readers: Readers, asked: &Receiver<Request>) {
    // What could not be read for a moment.
    let mut refused: Vec<Request> = Vec::new();
    loop {
        let request = if refused.is_empty() {
            asked.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            asked.recv_timeout(READ_RETRY_EVERY)
        };
        let mut next = match request {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if next.is_none() {
            for request in std::mem::take(&mut refused) {
                refused.extend(answer(&mut readers, request, Try::Again));
            }
        }
        while let Some(request) = next {
            refused.extend(answer(&mut readers, request, Try::First));
            next = asked.try_recv().ok();
        }
        readers.journal.rest();
        readers.scratch.rest();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
}

/// Why a body was not read.
enum Fault {
    /// The process has not got what it takes to read; a moment later it may have.
    Momentary(String),
    /// It stays so.
    Lasting(String),
}

/// Reads what was asked for. Returns what must be tried again; of all that is wrong, the log gets a line or two.
fn answer(readers: &mut Readers, request: Request, which: Try) -> Option<Request> {
    let Request { hub, stream, mut fetches } = request;
    let owner = hub.upgrade()?;
    // In the order of the journal, which a queue that was requeued to need not have.
    fetches.sort_by_key(|fetch| fetch.id);
    let (mut fetched, mut again, mut lost, mut gone) = (Vec::new(), Vec::new(), 0_u64, 0_u64);
    let (mut first_again, mut first_lost, mut first_gone) = (None, None, None);
    for fetch in fetches {
        match message(readers, stream, fetch) {
            Ok(message) => fetched.push(Fetched { fetch, message: Some(message) }),
            Err(Fault::Momentary(fault)) => {
                first_again.get_or_insert(fault);
                again.push(fetch);
            }
            Err(Fault::Lasting(fault)) => {
                match fetch.id.place() {
                    None => {
                        lost += 1;
                        first_lost.get_or_insert(fault);
                    }
                    Some(place) if owner.has_segment(place.segment) => {
                        gone += 1;
                        first_gone.get_or_insert(fault);
                    }
                    // It was purged, or deleted with its queue, and its file was removed.
                    Some(_) => {}
                }
                fetched.push(Fetched { fetch, message: None });
            }
        }
    }
    let vhost = || owner.look(|vhost| vhost.name().clone());
    if let Some(fault) = first_lost {
        let known = readers.lost.entry(stream).or_default();
        if known.add(lost) {
            tracing::error!(
                "virtual host '{}': messages that cannot be read back stay where they are: {fault} (tries so far: {}); \
                 leveret check tells of which queues, and deleting these drops them",
                vhost(),
                known.count,
            );
        }
    }
    if let Some(fault) = first_gone {
        tracing::error!(
            "virtual host '{}': transient messages cannot be read back and are lost: {gone}, first {fault}",
            vhost()
        );
    }
    if let Some(fault) = first_again.filter(|_| which == Try::First) {
        let count = again.len();
        tracing::warn!(
            "virtual host '{}': messages that cannot be read back for a moment: {count}, first {fault}",
            vhost()
        );
    }
    if !fetched.is_empty() {
        Hub::take_in(&owner, &mut fetched);
    }
    (!again.is_empty()).then_some(Request { hub, stream, fetches: again })
}

/// Reads one message back.
fn message(readers: &mut Readers, stream: u32, fetch: Fetch) -> Result<Message, Fault> {
    let read = match (fetch.id.position(), fetch.id.place()) {
        (Some(position), _) => readers.journal.read(stream, position.0),
        (None, Some(Place { segment, offset })) => readers.scratch.read(stream, segment, offset),
        (None, None) => return Err(Fault::Lasting("one that is not on disk".into())),
    };
    let name = || match fetch.id.place() {
        Some(Place { segment, offset }) => format!("{segment}:{offset}"),
        None => fetch.id.position().unwrap_or_default().0.to_string(),
    };
    let fault = match read {
        Ok(payload) => match Change::decode(payload) {
            Ok(Change::MessageEnqueued { message, .. }) => return Ok(message),
            Ok(_) => "it is no message".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(ReadError::Disk { file, error }) if is_momentary(&error) => {
            return Err(Fault::Momentary(format!("{}: {file} cannot be read: {error}", name())));
        }
        Err(error) => error.to_string(),
    };
    Err(Fault::Lasting(format!("{}: {fault}", name())))
}

/// Whether it is the process that lacks something, files or memory, and not the disk.
fn is_momentary(error: &io::Error) -> bool {
    let lacking = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR];
    errno(error).is_some_and(|errno| lacking.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_fail_one_by_one_get_few_lines() {
        let mut lost = FailedReads::default();
        let said: Vec<_> = (1..=1000).filter(|_| lost.add(1)).collect();
        assert_eq!(said, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert!(lost.add(100) && !lost.add(1), "with those it is worth one");
    }

    #[test]
    fn what_the_process_lacks_is_tried_again_and_what_the_disk_has_lost_is_not() {
        for (errno, expected) in
            [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::IO, false), (Errno::NOENT, false)]
        {
            assert_eq!(is_momentary(&errno.into()), expected, "{errno}");
        }
    }
}
