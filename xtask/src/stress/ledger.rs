//! What was published, confirmed and received, message by message.
//!
//! Owns: which messages are lost, and which came twice.
//! Must not know: sockets, time.

use anyhow::{Context, Result, ensure};
use leveret_client::{Confirm, Verdict};

/// Bytes of a body that say whose message it is, and which.
pub(super) const STAMP_BYTES: usize = 16;

const CONFIRMED: u8 = 1;
const RECEIVED: u8 = 2;
/// Received without the flag that says that it was delivered before.
const FRESH: u8 = 4;

/// Which message: that of which producer, with which number, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer: usize,
    pub(super) number: usize,
}

impl Stamp {
    pub(super) fn write(self, body: &mut [u8]) {
        body[..8].copy_from_slice(&(self.producer as u64).to_le_bytes());
        body[8..STAMP_BYTES].copy_from_slice(&(self.number as u64).to_le_bytes());
    }

    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let (&producer, rest) = body.split_first_chunk()?;
        let (&number, _) = rest.split_first_chunk()?;
        let (producer, number) = (u64::from_le_bytes(producer), u64::from_le_bytes(number));
        Some(Stamp { producer: producer.try_into().ok()?, number: number.try_into().ok()? })
    }
}

/// All messages of some producers.
#[derive(Debug)]
pub(super) struct Ledger {
    messages: Vec<Vec<u8>>,
}

/// How many messages were confirmed and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) confirmed: usize,
    pub(super) received: usize,
}

impl Ledger {
    pub(super) fn new(producers: usize) -> Self {
        Ledger { messages: vec![Vec::new(); producers] }
    }

    fn mark(&mut self, stamp: Stamp, mark: u8) -> Result<u8> {
        let count = self.messages.len();
        ensure!(stamp.producer < count, "a message of producer {}, of {count}", stamp.producer);
        let messages = &mut self.messages[stamp.producer];
        // What nobody sent is not to take memory here.
        ensure!(stamp.number < 1 << 30, "message {} of producer {}", stamp.number, stamp.producer);
        if messages.len() <= stamp.number {
            messages.resize(stamp.number + 1, 0);
        }
        let before = messages[stamp.number];
        messages[stamp.number] |= mark;
        Ok(before)
    }

    /// What a broker says of the messages of a channel, of which `first` is the number of the first. It has no reason to refuse
    /// any. Gives how many are confirmed.
    pub(super) fn confirmed(&mut self, producer: usize, first: usize, confirms: &[Confirm]) -> Result<usize> {
        let mut count = 0;
        for confirm in confirms {
            ensure!(confirm.verdict == Verdict::Acked, "producer {producer} is told {confirm:?}");
            // Confirms are counted from 1.
            for number in confirm.first - 1..confirm.last {
                self.mark(Stamp { producer, number: first + usize::try_from(number)? }, CONFIRMED)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Notes down a message as it came.
    pub(super) fn delivered(&mut self, body: &[u8], redelivered: bool) -> Result<()> {
        self.received(Stamp::read(body).context("a message without a stamp")?, redelivered)
    }

    /// A message comes without the flag `redelivered` once, whoever notes it down first.
    fn received(&mut self, stamp: Stamp, redelivered: bool) -> Result<()> {
        let before = self.mark(stamp, if redelivered { RECEIVED } else { RECEIVED | FRESH })?;
        ensure!(before & FRESH == 0 || redelivered, "{stamp:?} came twice as if for the first time");
        Ok(())
    }

    fn of_each(&self, wanted: u8) -> impl Iterator<Item = usize> {
        self.messages.iter().map(move |messages| messages.iter().filter(|&mark| mark & wanted != 0).count())
    }

    /// How many messages of each producer were confirmed.
    pub(super) fn confirmed_of_each(&self) -> impl Iterator<Item = usize> {
        self.of_each(CONFIRMED)
    }

    /// How many of each came.
    pub(super) fn received_of_each(&self) -> impl Iterator<Item = usize> {
        self.of_each(RECEIVED)
    }

    /// What somebody else has noted down. Nobody received what the other did.
    pub(super) fn add(&mut self, more: Ledger) {
        for (messages, more) in self.messages.iter_mut().zip(more.messages) {
            messages.resize(messages.len().max(more.len()), 0);
            messages.iter_mut().zip(more).for_each(|(mark, more)| *mark |= more);
        }
    }

    /// Of each producer the first messages were received, up to one of them.
    pub(super) fn check_without_gaps(&self) -> Result<()> {
        for (producer, messages) in self.messages.iter().enumerate() {
            let gap = messages.iter().position(|&mark| mark & RECEIVED == 0);
            ensure!(gap.is_none(), "message {gap:?} of producer {producer} is missing, of {}", messages.len());
        }
        Ok(())
    }

    /// Everything that was confirmed was received.
    pub(super) fn check(&self) -> Result<Sums> {
        let mut sums = Sums::default();
        let (mut lost, mut first_lost) = (0, None);
        for (producer, messages) in self.messages.iter().enumerate() {
            for (number, &marks) in messages.iter().enumerate() {
                sums.confirmed += usize::from(marks & CONFIRMED != 0);
                sums.received += usize::from(marks & RECEIVED != 0);
                if marks & (CONFIRMED | RECEIVED) == CONFIRMED {
                    lost += 1;
                    first_lost.get_or_insert(Stamp { producer, number });
                }
            }
        }
        ensure!(
            lost == 0,
            "{lost} of {} confirmed messages are lost, the first of them {first_lost:?}",
            sums.confirmed
        );
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn acked(first: u64, last: u64) -> Confirm {
        Confirm { first, last, verdict: Verdict::Acked }
    }

    const fn stamp(producer: usize, number: usize) -> Stamp {
        Stamp { producer, number }
    }

    #[test]
    fn what_was_confirmed_and_never_came_is_lost_and_what_was_not_is_not() {
        let mut ledger = Ledger::new(2);
        assert_eq!(ledger.confirmed(1, 0, &[acked(1, 4)]).unwrap(), 4);
        assert_eq!(ledger.confirmed(1, 4, &[acked(1, 1), acked(2, 6)]).unwrap(), 6);
        for number in 0..10 {
            if number != 7 {
                ledger.received(stamp(1, number), false).unwrap();
            }
        }
        ledger.received(stamp(0, 3), true).unwrap();
        let lost = ledger.check().unwrap_err().to_string();
        assert_eq!(
            lost,
            "1 of 10 confirmed messages are lost, the first of them Some(Stamp { producer: 1, number: 7 })"
        );
        ledger.received(stamp(1, 7), false).unwrap();
        assert_eq!(ledger.check().unwrap(), Sums { confirmed: 10, received: 11 });
    }

    #[test]
    fn a_message_that_is_refused_is_a_fault() {
        let refused = Confirm { verdict: Verdict::Nacked, ..acked(2, 2) };
        assert!(Ledger::new(1).confirmed(0, 0, &[acked(1, 1), refused]).is_err());
    }

    #[test]
    fn a_gap_is_found_wherever_it_is() {
        let mut ledger = Ledger::new(2);
        for number in [0, 1, 2, 4] {
            ledger.received(stamp(1, number), false).unwrap();
        }
        assert!(ledger.check_without_gaps().is_err());
        ledger.received(stamp(1, 3), false).unwrap();
        ledger.check_without_gaps().unwrap();
        assert_eq!(ledger.received_of_each().collect::<Vec<_>>(), [0, 5]);
    }

    #[test]
    fn a_message_may_come_again_only_with_the_flag() {
        let mut ledger = Ledger::new(1);
        ledger.received(stamp(0, 0), false).unwrap();
        ledger.received(stamp(0, 0), true).unwrap();
        assert!(ledger.received(stamp(0, 0), false).is_err());
        assert!(ledger.received(stamp(1, 0), false).is_err());
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        let mut body = [7; 20];
        stamp(3, 1 << 33).write(&mut body);
        assert_eq!(Stamp::read(&body), Some(stamp(3, 1 << 33)));
        assert_eq!(Stamp::read(&body[..15]), None);
    }
}
