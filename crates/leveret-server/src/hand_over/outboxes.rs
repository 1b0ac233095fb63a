//! Between who has something for a connection, and the connection's task.

use std::num::NonZeroU64;
use std::sync::Arc;

use leveret_broker::names::ChannelId;
use leveret_broker::{JournalPosition, Output};
use shuttle::future::block_on;
use shuttle::thread;

use super::schedules::{explore, explore_all};
use crate::memory::Memory;
use crate::outbox::Outbox;

/// Bytes that each output counts.
const BYTES: usize = 10;

/// The output with which a sender comes, from 1 on.
fn output(sender: u16, at: u64) -> Output {
    let channel = ChannelId::new(sender).expect("they are counted from 1");
    let number = NonZeroU64::new(at).expect("they are counted from 1");
    Output::Confirm { channel, number, after: JournalPosition(0) }
}

fn send(outbox: &Outbox, sender: u16, at: u64) {
    if outbox.append(&mut vec![output(sender, at)], BYTES) {
        outbox.wake();
    }
}

/// So many senders come with so many outputs each, and the owner takes them.
fn hand_over(senders: u16, outputs: u64) {
    let memory = Memory::new(1 << 20);
    let all = memory.window_room();
    let most = usize::from(senders) * usize::try_from(outputs).expect("they are few") * BYTES;
    let outbox = Outbox::new(Arc::clone(&memory));
    for sender in 1..=senders {
        let outbox = Arc::clone(&outbox);
        thread::spawn(move || (1..=outputs).for_each(|at| send(&outbox, sender, at)));
    }
    let mut last = vec![0; senders.into()];
    let mut taken = Vec::new();
    loop {
        outbox.take(&mut taken);
        outbox.written(taken.len() * BYTES);
        for output in taken.drain(..) {
            let Output::Confirm { channel, number, .. } = output else { panic!("nobody sends {output:?}") };
            let last = &mut last[usize::from(channel.number()) - 1];
            assert_eq!(number.get(), *last + 1, "of sender {}", channel.number());
            *last = number.get();
        }
        assert!(memory.window_room() >= all - most, "more counts than there is");
        if last.iter().all(|&last| last == outputs) {
            break;
        }
        block_on(outbox.filled());
    }
    assert_eq!(memory.window_room(), all, "nothing is on its way any more");
}

#[test]
fn the_owner_gets_every_output_in_order_and_is_never_left_asleep() {
    explore_all(|| hand_over(1, 2));
    explore(|| hand_over(3, 3));
}

#[test]
fn what_a_connection_that_goes_has_not_written_does_not_count_any_more() {
    explore(|| {
        let memory = Memory::new(1 << 20);
        let all = memory.window_room();
        let outbox = Outbox::new(Arc::clone(&memory));
        let senders = [1, 2].map(|sender| {
            let outbox = Arc::clone(&outbox);
            thread::spawn(move || (1..=2).for_each(|at| send(&outbox, sender, at)))
        });
        block_on(outbox.filled());
        let mut taken = Vec::new();
        outbox.take(&mut taken);
        // The socket takes half of it, and breaks.
        outbox.written(taken.len().div_ceil(2) * BYTES);
        drop(outbox);
        for sender in senders {
            sender.join().expect("it has ended by itself");
        }
        assert_eq!(memory.window_room(), all);
    });
}
