//! How far a long recovery or check is, on a terminal: one line below the log, as long as it lasts.
//!
//! Must not know: what is read. It hears of it from the log, like everybody else, or only that it goes on.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How often the time in it moves on. A thread of its own draws it, so that a terminal that stands still holds nobody up.
const DRAWN_EVERY: Duration = Duration::from_millis(200);

/// The first event comes so long after the beginning.
const SAID_FIRST_AFTER: Duration = Duration::from_secs(1);

const TEMPLATE: &str = "reading the journal [{bar:40}] {percent}% {elapsed}";
const WAITING_TEMPLATE: &str = "reading the journal {spinner} {elapsed}";

/// A bar that is there from the first event until the last.
#[derive(Clone, Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// One that is not drawn yet.
    pub(crate) fn new() -> Self {
        let look = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar(ProgressBar::hidden().with_style(look.progress_chars("=> ")))
    }
}

impl<S: Subscriber> Layer<S> for Bar {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut progress = Progress::default();
        event.record(&mut progress);
        let Progress { read, all } = progress;
        if read >= all {
            self.0.finish_and_clear();
            return;
        }
        if self.0.length() != Some(all) {
            self.0.set_length(all);
            // What came before it counts.
            self.0.set_elapsed(SAID_FIRST_AFTER);
            self.0.set_draw_target(ProgressDrawTarget::stderr());
            self.0.enable_steady_tick(DRAWN_EVERY);
        }
        self.0.set_position(read);
    }
}

/// A line that says how long something has taken of which nobody knows how long it takes: until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiting(ProgressBar);

impl Waiting {
    /// It is there at once, if standard error is a terminal.
    pub(crate) fn begin() -> Self {
        let look = ProgressStyle::with_template(WAITING_TEMPLATE);
        let spinner =
            ProgressBar::new_spinner().with_style(look.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        spinner.enable_steady_tick(DRAWN_EVERY);
        Waiting(spinner)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The fields of [`leveret_server::PROGRESS`].
#[derive(Default)]
struct Progress {
    read: u64,
    all: u64,
}

impl Visit for Progress {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "read" => self.read = value,
            "all" => self.all = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// Standard error, where lines of a log go above the bar.
pub(crate) struct Above(pub(crate) Option<Bar>);

impl Write for Above {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(Bar(bar)) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_line_that_says_how_long_it_takes_goes_with_what_it_waits_for() {
        let waiting = Waiting::begin();
        let spinner = waiting.0.clone();
        assert!(!spinner.is_finished());
        drop(waiting);
        assert!(spinner.is_finished());
    }

    #[test]
    fn the_bar_is_there_from_the_first_event_to_the_last() {
        let bar = Bar::new();
        assert_eq!((bar.0.position(), bar.0.length()), (0, None));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(bar.clone()), || {
            tracing::trace!(read = 100_u64, all = 1000_u64);
            assert_eq!((bar.0.position(), bar.0.length(), bar.0.is_finished()), (100, Some(1000), false));
            tracing::trace!(read = 900_u64, all = 1000_u64);
            assert_eq!((bar.0.position(), bar.0.is_finished()), (900, false));
            tracing::trace!(read = 1000_u64, all = 1000_u64);
            assert!(bar.0.is_finished());
        });
    }
}
