//! The way of the log to standard error: a thread of its own writes it, so that nobody who logs has to wait for whoever reads it.
//!
//! Owns: the lines that wait for that thread.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Log lines that wait to be written; room for them is taken at the start. A log that nobody reads must not stop the broker:
/// lines that find no room are dropped.
const LINES_MAX: usize = 4096;

/// How long [`Log::wait`] waits: a log that nobody reads is never written.
const PATIENCE: Duration = Duration::from_secs(1);

/// What stands in the queue behind the lines that are waited for. No line is like that: each has an end.
const MARK: &[u8] = b"written up to here";

/// A log whose lines are written in their order.
pub(crate) struct Log {
    /// Where to put them.
    pub(crate) lines: NonBlocking,
    marks: Receiver<()>,
    /// Writes what is left when it is dropped.
    _thread: WorkerGuard,
}

impl Log {
    /// One that ends in `output`.
    pub(crate) fn new(output: impl Write + Send + 'static) -> Self {
        let (reached, marks) = channel();
        let lines = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX);
        let (lines, thread) = lines.finish(Marked { output, reached });
        Log { lines, marks, _thread: thread }
    }

    /// Waits until everything that was logged before is written, but not for ever.
    pub(crate) fn wait(&self) {
        // What was not waited for the last time.
        while self.marks.try_recv().is_ok() {}
        if self.lines.clone().write_all(MARK).is_ok() {
            let _ = self.marks.recv_timeout(PATIENCE);
        }
    }
}

/// Tells of marks, and lets everything else through.
struct Marked<W> {
    output: W,
    reached: Sender<()>,
}

impl<W: Write> Write for Marked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes != MARK {
            return self.output.write(bytes);
        }
        let _ = self.reached.send(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // As little at a time as an output may take.
            let Some(first) = bytes.first() else { return Ok(0) };
            self.0.lock().unwrap().push(*first);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_that_was_logged_before_is_written_and_nothing_else() {
        let output = Output::default();
        let log = Log::new(output.clone());
        let mut expected = String::new();
        for line in 0..2000 {
            let line = format!("line {line}\n");
            log.lines.clone().write_all(line.as_bytes()).unwrap();
            expected.push_str(&line);
        }
        log.wait();
        assert_eq!(String::from_utf8(output.0.lock().unwrap().clone()).unwrap(), expected);
    }
}
