//! Outputs that wait for the journal.
//!
//! Owns: what may not be told yet, in order, channel by channel.
//! Invariant: what waits holds back everything behind it on its own channel, and nothing on others. The end of the
//! connection comes when what it rests on is durable; an answer that rests on more is not told any more.

use std::collections::{BTreeMap, VecDeque};

use leveret_planted::{Bug, planted};

use crate::change::JournalPosition;
use crate::names::ChannelId;
use crate::vhost::effects::Output;

/// What one connection may not tell its client yet.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Only channels that hold something.
    channels: BTreeMap<ChannelId, VecDeque<Output>>,
    farewell: Option<Output>,
    /// What all that takes, about.
    bytes: usize,
}

/// What one output takes while it waits.
fn bytes(output: &Output) -> usize {
    size_of::<Output>() + output.window().bytes()
}

impl Held {
    /// Whether an output has to wait, for its own sake or behind others.
    pub(super) fn must_wait(&self, output: &Output, durable: JournalPosition) -> bool {
        let is_behind = !self.channels.is_empty()
            && output.channel().is_some_and(|channel| self.channels.contains_key(&channel));
        (is_behind && !planted(Bug::AnswerOvertakes)) || output.holds_until() > durable
    }

    /// Keeps an output that has to wait.
    pub(super) fn push(&mut self, output: Output) {
        self.bytes += bytes(&output);
        match output.channel() {
            Some(channel) => self.channels.entry(channel).or_default().push_back(output),
            None => self.farewell = Some(output),
        }
    }

    /// Takes out what need not wait any longer, in order.
    pub(super) fn release(&mut self, durable: JournalPosition) -> Vec<Output> {
        let mut released = Vec::new();
        self.channels.retain(|_, waiting| {
            while let Some(output) = waiting.pop_front_if(|output| output.holds_until() <= durable) {
                self.bytes -= bytes(&output);
                released.push(output);
            }
            !waiting.is_empty()
        });
        if let Some(farewell) = self.farewell.take_if(|farewell| farewell.holds_until() <= durable) {
            self.bytes -= bytes(&farewell);
            released.push(farewell);
        }
        released
    }

    /// Forgets what channels would have been told: nobody would read it.
    pub(super) fn forget_channels(&mut self) {
        self.channels.clear();
        self.bytes = self.farewell.as_ref().map_or(0, bytes);
    }

    /// Whether the end of the connection waits.
    pub(super) fn has_farewell(&self) -> bool {
        self.farewell.is_some()
    }

    /// Bytes that wait, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The least position at which something may be told.
    pub(super) fn next(&self) -> Option<JournalPosition> {
        let fronts = self.channels.values().filter_map(VecDeque::front);
        fronts.chain(&self.farewell).map(Output::holds_until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::command::Farewell;
    use crate::vhost::effects::Answer;

    fn channel(number: u16) -> ChannelId {
        ChannelId::new(number).unwrap()
    }

    fn answer(number: u16, after: u64) -> Output {
        Output::Answer(channel(number), Answer::QueueBindOk, JournalPosition(after))
    }

    #[test]
    fn what_waits_holds_back_its_own_channel_and_no_other() {
        let mut held = Held::default();
        let durable = JournalPosition(5);
        assert!(held.must_wait(&answer(1, 6), durable));
        held.push(answer(1, 6));
        assert!(held.must_wait(&answer(1, 0), durable), "behind one that waits");
        held.push(answer(1, 0));
        assert!(!held.must_wait(&answer(2, 5), durable));
        assert_eq!(held.next(), Some(JournalPosition(6)));
        assert_eq!(held.release(JournalPosition(5)), []);
        assert_eq!(held.release(JournalPosition(6)), [answer(1, 6), answer(1, 0)]);
        assert_eq!((held.next(), held.bytes()), (None, 0));
        assert!(!held.must_wait(&answer(1, 6), JournalPosition(6)));
    }

    #[test]
    fn what_waits_counts_in_memory_until_it_is_told_or_forgotten() {
        let mut held = Held::default();
        for (number, after) in [(1, 6), (1, 7), (2, 7)] {
            held.push(answer(number, after));
        }
        assert_eq!(held.bytes(), 3 * size_of::<Output>());
        assert_eq!(held.release(JournalPosition(6)).len(), 1);
        assert_eq!((held.bytes(), held.has_farewell()), (2 * size_of::<Output>(), false));
        held.push(Output::Farewell(Farewell::CloseOk, JournalPosition(8)));
        held.forget_channels();
        assert_eq!((held.bytes(), held.has_farewell()), (size_of::<Output>(), true));
        assert_eq!(held.next(), Some(JournalPosition(8)), "only the end of the connection waits");
    }

    #[test]
    fn the_end_comes_after_what_it_rests_on() {
        let mut held = Held::default();
        let farewell = Output::Farewell(Farewell::CloseOk, JournalPosition(7));
        held.push(answer(1, 7));
        assert!(held.must_wait(&farewell, JournalPosition(6)));
        held.push(farewell.clone());
        assert_eq!(held.release(JournalPosition(7)), [answer(1, 7), farewell]);
    }
}
