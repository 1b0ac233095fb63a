//! Bodies that are not in memory: the thread that reads them back from the journal.
//!
//! Must not know: why a body is wanted.

use std::sync::Weak;
use std::sync::mpsc::{Receiver, Sender, channel};

use leveret_broker::vhost::effects::{Fetch, Fetched};
use leveret_broker::{Change, Message};
use leveret_journal::Reader;

use crate::hub::Hub;

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
pub(crate) fn start(reader: Reader) -> std::io::Result<Bodies> {
    let (asking, asked) = channel();
    std::thread::Builder::new().name("bodies".into()).spawn(move || read(reader, &asked))?;
    Ok(Bodies(asking))
}

fn read(mut reader: Reader, asked: &Receiver<Request>) {
    while let Ok(request) = asked.recv() {
        let mut next = Some(request);
        while let Some(Request { hub, stream, mut fetches }) = next {
            // In the order of the journal, which a queue that was requeued to need not have.
            fetches.sort_by_key(|fetch| fetch.id);
            let fetched =
                fetches.into_iter().map(|fetch| Fetched { fetch, message: message(&mut reader, stream, fetch) });
            let mut fetched = fetched.collect();
            let Some(hub) = hub.upgrade() else { break };
            Hub::take_in(&hub, &mut fetched);
            next = asked.try_recv().ok();
        }
        reader.rest();
    }
}

/// Reads one message back; nothing, and an error in the log, if that cannot be.
fn message(reader: &mut Reader, stream: u32, fetch: Fetch) -> Option<Message> {
    let position = fetch.id.position()?;
    let fault = match reader.read(stream, position.0) {
        Ok(payload) => match Change::decode(payload) {
            Ok(Change::MessageEnqueued { message, .. }) => return Some(message),
            Ok(_) => "it is no message".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::error!("message {} of stream {stream} cannot be read back and stays where it is: {fault}", position.0);
    None
}
