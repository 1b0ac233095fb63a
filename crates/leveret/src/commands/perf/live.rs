//! The live line of a load, on a terminal: rates, and a bar where the end is known.

use indicatif::{ProgressBar, ProgressStyle};
use leveret_perf::{Progress, grouped, per_second};

/// With a bar, and without one.
const WITH_BAR: &str = "[{bar:30}] {percent}% {msg}";
const WITHOUT_BAR: &str = "{msg}";

/// One line on standard error, if that is a terminal.
#[derive(Debug)]
pub(super) struct Live(ProgressBar);

impl Live {
    /// One that is not drawn yet.
    pub(super) fn new() -> Self {
        Live(ProgressBar::new(0).with_style(style(WITHOUT_BAR)))
    }

    /// Draws how far a run is.
    pub(super) fn show(&self, progress: &Progress) {
        if let Some((done, all)) = progress.done {
            if self.0.length() != Some(all) {
                self.0.set_length(all);
                self.0.set_style(style(WITH_BAR).progress_chars("=> "));
            }
            self.0.set_position(done);
        }
        self.0.set_message(line(progress));
        self.0.tick();
    }

    /// Leaves no trace of it.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn line(progress: &Progress) -> String {
    let mut parts = vec![format!("{:.1} s", progress.elapsed.as_secs_f64())];
    let of = [
        (progress.instead_of_published.unwrap_or("published"), progress.published, Some(progress.publish_rate)),
        ("confirmed", progress.confirmed, None),
        ("received", progress.received, Some(progress.receive_rate)),
    ];
    let counted = of.into_iter().filter(|(_, count, _)| *count > 0).map(|(what, count, rate)| {
        let rate = rate.map(|rate| format!(" ({})", per_second(rate)));
        format!("{} {what}{}", grouped(count), rate.unwrap_or_default())
    });
    parts.extend(counted);
    if !progress.held.is_zero() {
        let still = if progress.is_held { ", and still" } else { "" };
        parts.push(format!("held by the broker for {:.1} s{still}", progress.held.as_secs_f64()));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_line_has_what_there_is_and_says_when_publishes_are_held() {
        let mut progress = Progress {
            elapsed: Duration::from_millis(1500),
            published: 3000,
            publish_rate: 2000.0,
            ..Progress::default()
        };
        assert_eq!(line(&progress), "1.5 s, 3,000 published (2,000/s)");
        progress.received = 10;
        progress.held = Duration::from_secs(2);
        progress.is_held = true;
        let expected = "1.5 s, 3,000 published (2,000/s), 10 received (0.0/s), held by the broker for 2.0 s";
        assert_eq!(line(&progress), format!("{expected}, and still"));
        progress.is_held = false;
        assert_eq!(line(&progress), expected);
        let cycles = Progress { instead_of_published: Some("cycles"), published: 7, ..Progress::default() };
        assert_eq!(line(&cycles), "0.0 s, 7 cycles (0.0/s)");
    }

    #[test]
    fn the_bar_is_there_as_soon_as_the_end_is_known() {
        let live = Live::new();
        live.show(&Progress { done: Some((5, 10)), ..Progress::default() });
        assert_eq!((live.0.length(), live.0.position()), (Some(10), 5));
        live.clear();
        assert!(live.0.is_finished());
    }
}
