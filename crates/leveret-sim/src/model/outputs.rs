//! What the broker says: whether it may, and what the model comes to by it.
//!
//! Owns: which message may be handed out next, and what each client is told in which order.

use std::collections::{BTreeMap, VecDeque};

use leveret_broker::Output;
use leveret_broker::vhost::command::Farewell;
use leveret_broker::vhost::effects::Answer;

use super::{
    Consumer, Entry, Expected, Flag, Held, MESSAGES_SHOWN, Model, Place, Queue, Snapshot, TRAIL_MOST, Told,
    Violation, body, id_of, source_slot,
};
use crate::plan::Mode;

impl Model {
    /// A message is handed out that must be the next one of its queue. False if it is not, yet.
    fn is_next(&self, slot: u8, id: u64, source: Option<u8>) -> Option<usize> {
        let entries = &self.queues.get(&slot)?.entries;
        // Dead letters come one after the other, and others in between, if their bodies have to be read back.
        let has_ranks = !Self::is_dead(slot);
        let is_first = |(at, entry): &(usize, &Entry)| {
            let overtaken = |(before, other): (usize, &Entry)| {
                other.place == Place::Ready
                    && ((has_ranks && other.rank > entry.rank)
                        || (other.rank == entry.rank
                            && other.lane == entry.lane
                            && !(entry.is_loose && other.is_loose)
                            && before < *at))
            };
            !entries.iter().enumerate().any(overtaken)
        };
        let is_from = |lane: u16| lane == 0 || source.is_none_or(|source| source_slot(lane) == Some(source));
        let is_it = |entry: &Entry| entry.place == Place::Ready && entry.message.id == id && is_from(entry.lane);
        let own = entries.iter().enumerate().filter(|(_, entry)| is_it(entry));
        own.clone().find(is_first).map(|(at, _)| at)
    }

    /// Takes it out, or holds it.
    fn hand_out(
        &mut self,
        now_ms: u64,
        slot: u8,
        at: usize,
        is_kept: bool,
        redelivered: bool,
    ) -> Result<(u64, u64, usize), Violation> {
        let Some(queue) = self.queue_mut(slot) else { return Err(format!("there is no q{slot}")) };
        let uid = queue.uid;
        let entry = &mut queue.entries[at];
        let (id, serial, bytes) = (entry.message.id, entry.serial, entry.message.bytes);
        if entry.deadline_ms.is_some_and(|due| due < now_ms) {
            return Err(format!(
                "message {id} of q{slot} was to expire at {} ms and is handed out at {now_ms} ms",
                entry.deadline_ms.unwrap_or_default()
            ));
        }
        match (entry.flag, redelivered) {
            (Flag::No, true) => {
                return Err(format!("message {id} of q{slot} is redelivered, and never was delivered"));
            }
            (Flag::Yes, false) => {
                return Err(format!("message {id} of q{slot} was delivered before and does not say so"));
            }
            (Flag::No, false) | (Flag::Yes, true) | (Flag::Perhaps, _) => {}
        }
        let journaled = entry.journaled;
        if is_kept {
            entry.place = Place::Held;
        } else {
            queue.entries.remove(at);
            self.is_durable |= journaled;
        }
        self.granted.insert(uid);
        Ok((uid, serial, bytes))
    }

    /// A consumer that could be given a message of a queue.
    pub(super) fn waiting_consumer(&self, slot: u8) -> Option<&Consumer> {
        let own = self.consumers.iter().filter(|consumer| consumer.slot == slot);
        let active = if self.spec(slot).single_active { 1 } else { usize::MAX };
        own.take(active).find(|own| {
            let is_open =
                || self.unacked_most().is_none_or(|most| self.delivered_count(own.client, own.mode) < most);
            own.no_ack || ((own.prefetch == 0 || own.held < own.prefetch) && is_open())
        })
    }

    /// How many deliveries the consumers of a channel may leave unacked, if that is said.
    pub(crate) fn unacked_most(&self) -> Option<u64> {
        self.config.unacked_most.map(u64::from)
    }

    /// How many they have. What a transaction has settled counts until it ends.
    fn delivered_count(&self, client: u8, mode: Mode) -> u64 {
        self.channels.get(&(client, mode)).map_or(0, |channel| {
            let settled = channel.settlements.iter().map(|(_, held, _)| held);
            channel.unacked.values().chain(settled).filter(|held| held.consumer.is_some()).count() as u64
        })
    }

    /// Follows what the broker has said after an event, and tells what clients will hear of it. What there was in between is
    /// added to the trail.
    pub(crate) fn observe(
        &mut self,
        now_ms: u64,
        outputs: &mut BTreeMap<u8, VecDeque<Output>>,
        mut trail: Option<&mut Vec<Snapshot>>,
    ) -> Result<Vec<(u8, Mode, Told)>, Violation> {
        let mut told = Vec::new();
        self.expire_queues(now_ms);
        loop {
            let mut is_moving = false;
            for (&client, outputs) in outputs.iter_mut() {
                while let Some(output) = outputs.front() {
                    if !self.accept(now_ms, client, output, &mut told)? {
                        break;
                    }
                    outputs.pop_front();
                    is_moving = true;
                    if let Some(trail) = trail.as_mut().filter(|trail| trail.len() < TRAIL_MOST) {
                        trail.push(self.snapshot());
                    }
                }
            }
            if is_moving {
                continue;
            }
            if !self.happen(now_ms) {
                break;
            }
            if let Some(trail) = trail.as_mut().filter(|trail| trail.len() < TRAIL_MOST) {
                trail.push(self.snapshot());
            }
        }
        if let Some((client, output)) = outputs.iter().find_map(|(client, all)| Some((client, all.front()?))) {
            return Err(self.unexpected(*client, output));
        }
        if let Some((client, expected)) = self.expected.iter().find(|(_, expected)| !expected.is_empty()) {
            return Err(format!("client {client} was to be told {:?}", expected.front()));
        }
        if let Some((client, _)) = self.cancelled.first() {
            return Err(format!("client {client} was to be told that its queue is gone"));
        }
        if let Some((client, _)) = self.timed_out.first() {
            return Err(format!("client {client} was to be told that its consumer is too late"));
        }
        for &slot in self.queues.keys() {
            if self.ready_count(slot) > 0
                && let Some(consumer) = self.waiting_consumer(slot)
            {
                return Err(format!(
                    "q{slot} has {} ready messages, and consumer c{} of client {} could take one",
                    self.ready_count(slot),
                    consumer.tag,
                    consumer.client
                ));
            }
        }
        Ok(told)
    }

    fn unexpected(&self, client: u8, output: &Output) -> Violation {
        let what = match output {
            Output::Deliver { consumer, tag, message, .. } => {
                let own = self.consumers.iter().find(|own| own.client == client && own.id == Some(*consumer));
                format!(
                    "delivery {} of message {:?} of q{:?}",
                    tag.number(),
                    id_of(message.body()),
                    own.map(|own| own.slot)
                )
            }
            Output::GetOk { tag, message, .. } => {
                format!("got {} message {:?}", tag.number(), id_of(message.body()))
            }
            other => format!("{other:?}"),
        };
        let expected = self.expected.get(&client).and_then(VecDeque::front);
        let first = |queue: &Queue| {
            let ready = queue.ready().map(|entry| (entry.message.id, entry.rank, entry.lane));
            ready.take(MESSAGES_SHOWN).collect::<Vec<_>>()
        };
        let queues: Vec<_> = self.queues.iter().map(|(slot, queue)| (slot, first(queue))).collect();
        format!("client {client}: {what}; expected {expected:?}; ready are (message, rank, lane) {queues:?}")
    }

    fn mode(channel: u16) -> Option<Mode> {
        Mode::ALL.get(usize::from(channel).checked_sub(1)?).copied()
    }

    fn pop_expected(&mut self, client: u8, wanted: &Expected) -> bool {
        let queue = self.expected.entry(client).or_default();
        queue.pop_front_if(|(_, expected)| expected == wanted).is_some()
    }

    fn promise(&mut self, client: u8, mode: Mode) -> u64 {
        let topology = self.topology_event;
        self.channel(client, mode).settled.max(topology)
    }

    fn next_tag(&mut self, client: u8, mode: Mode, tag: u64) -> Result<(), Violation> {
        let channel = self.channel(client, mode);
        channel.last_tag += 1;
        if channel.last_tag == tag {
            Ok(())
        } else {
            Err(format!("client {client}, {mode:?}: delivery tag {tag} comes after {}", channel.last_tag - 1))
        }
    }

    /// Takes in one thing that the broker says; false if it may not say that, or not yet.
    fn accept(
        &mut self,
        now_ms: u64,
        client: u8,
        output: &Output,
        told: &mut Vec<(u8, Mode, Told)>,
    ) -> Result<bool, Violation> {
        match output {
            Output::Deliver { channel, consumer, tag, redelivered, message, .. } => {
                let own = self.consumers.iter().position(|own| own.client == client && own.id == Some(*consumer));
                let (Some(own), Some(mode), Some(id)) = (own, Self::mode(channel.number()), id_of(message.body()))
                else {
                    return Ok(false);
                };
                let Consumer { slot, no_ack, tag: consumer, .. } = self.consumers[own];
                let Some(at) = self.is_next(slot, id, source_of(message)) else { return Ok(false) };
                if self.spec(slot).single_active
                    && self.consumers.iter().position(|other| other.slot == slot) != Some(own)
                {
                    return Err(format!("client {client} is not the active consumer of q{slot}"));
                }
                let (uid, serial, bytes) = self.hand_out(now_ms, slot, at, !no_ack, *redelivered)?;
                check_body(message.body(), id, bytes)?;
                self.next_tag(client, mode, tag.number())?;
                let tag = tag.number();
                if !no_ack {
                    let own = &mut self.consumers[own];
                    own.held += 1;
                    if own.prefetch > 0 && own.held > own.prefetch {
                        return Err(format!("consumer c{consumer} of client {client} has more than it may"));
                    }
                    let held = Held { slot, uid, serial, consumer: Some(consumer), since_ms: now_ms };
                    self.channel(client, mode).unacked.insert(tag, held);
                    let most = self.unacked_most();
                    if most.is_some_and(|most| self.delivered_count(client, mode) > most) {
                        return Err(format!("client {client} has more on one channel than may be unacked"));
                    }
                }
                let (redelivered, event) = (*redelivered, self.events);
                told.push((
                    client,
                    mode,
                    Told::Message { tag, redelivered, id, bytes, slot, uid, serial, event, no_ack },
                ));
                Ok(true)
            }
            Output::GetOk { channel, tag, redelivered, message, message_count, .. } => {
                let expected = self.expected.get(&client).and_then(VecDeque::front).cloned();
                let (Some((mode, Expected::Get { slot, no_ack })), Some(id)) = (expected, id_of(message.body()))
                else {
                    return Ok(false);
                };
                let Some(at) = self
                    .is_next(slot, id, source_of(message))
                    .filter(|_| Self::mode(channel.number()) == Some(mode))
                else {
                    return Ok(false);
                };
                let (uid, serial, bytes) = self.hand_out(now_ms, slot, at, !no_ack, *redelivered)?;
                check_body(message.body(), id, bytes)?;
                self.next_tag(client, mode, tag.number())?;
                self.expected.entry(client).or_default().pop_front();
                let tag = tag.number();
                if !no_ack {
                    let held = Held { slot, uid, serial, consumer: None, since_ms: now_ms };
                    self.channel(client, mode).unacked.insert(tag, held);
                }
                let left = self.ready_count(slot);
                if left != *message_count as usize {
                    return Err(format!("q{slot} has {left} ready messages left, and says {message_count}"));
                }
                let (redelivered, event) = (*redelivered, self.events);
                told.push((
                    client,
                    mode,
                    Told::Message { tag, redelivered, id, bytes, slot, uid, serial, event, no_ack },
                ));
                Ok(true)
            }
            Output::Return { channel, message, .. } => {
                let Some(id) = id_of(message.body()) else { return Ok(false) };
                let Some(mode) = Self::mode(channel.number()) else { return Ok(false) };
                let is_expected = self.pop_expected(client, &Expected::Return(id));
                told.extend(is_expected.then_some((client, mode, Told::Return(id))));
                Ok(is_expected)
            }
            Output::Confirm { number, .. } => {
                Ok(self.pop_expected(client, &Expected::Confirm { number: number.get() }))
            }
            Output::Refuse { number, .. } => {
                Ok(self.pop_expected(client, &Expected::Refuse { number: number.get() }))
            }
            Output::CloseChannel(channel, _) => {
                let Some(mode) = Self::mode(channel.number()) else { return Ok(false) };
                let is_expected = self.pop_expected(client, &Expected::Closed);
                told.extend(is_expected.then_some((client, mode, Told::Closed)));
                Ok(is_expected)
            }
            Output::Answer(channel, answer, _) => {
                let Some(mode) = Self::mode(channel.number()) else { return Ok(false) };
                let is_expected = self.accept_answer(client, mode, answer);
                if is_expected {
                    let promise = match answer {
                        Answer::BasicGetEmpty => self.topology_event,
                        _ => self.promise(client, mode),
                    };
                    let settles = *answer != Answer::BasicGetEmpty;
                    told.push((client, mode, Told::Answer { promise, settles }));
                }
                Ok(is_expected)
            }
            Output::Farewell(Farewell::CloseOk | Farewell::Silent, _) => Ok(true),
            // Of a row, it hears singly.
            Output::DeliverRow { .. } | Output::Farewell(Farewell::Close(_), _) => Ok(false),
            Output::Blocked(_) | Output::Unblocked | Output::TellWritten => Ok(true),
        }
    }

    fn accept_answer(&mut self, client: u8, mode: Mode, answer: &Answer) -> bool {
        match answer {
            Answer::QueueDeclareOk { message_count, consumer_count, .. } => {
                let (ready, consumers) = (*message_count as usize, *consumer_count as usize);
                self.pop_expected(client, &Expected::Declared { ready, consumers })
            }
            Answer::QueuePurgeOk { message_count } | Answer::QueueDeleteOk { message_count } => {
                self.pop_expected(client, &Expected::Count(*message_count as usize))
            }
            Answer::BasicGetEmpty => match self.expected.get(&client).and_then(VecDeque::front) {
                Some((_, Expected::Get { slot, .. })) if self.ready_count(*slot) == 0 => {
                    self.expected.entry(client).or_default().pop_front();
                    true
                }
                _ => false,
            },
            Answer::BasicConsumeOk { consumer } => {
                let unnamed = |own: &&mut Consumer| own.client == client && own.mode == mode && own.id.is_none();
                let Some(own) = self.consumers.iter_mut().find(unnamed) else { return false };
                own.id = Some(*consumer);
                self.pop_expected(client, &Expected::Answer)
            }
            Answer::BasicCancel { consumer } => {
                let its = self.cancelled.iter().position(|its| *its == (client, Some(*consumer)));
                its.map(|at| self.cancelled.remove(at)).is_some()
            }
            Answer::TxCommitOk => self.pop_expected(client, &Expected::CommitOk),
            // A channel is opened, and put into its mode, before anything else happens on it.
            Answer::ChannelOpenOk | Answer::ConfirmSelectOk | Answer::TxSelectOk => true,
            Answer::ConsumerTimedOut { consumer, .. } => {
                let its = self.timed_out.iter().position(|its| *its == (client, Some(*consumer)));
                its.map(|at| self.timed_out.remove(at)).is_some()
            }
            Answer::ChannelCloseOk
            | Answer::ChannelFlowOk { .. }
            | Answer::AccessRequestOk
            | Answer::ExchangeDeclareOk
            | Answer::ExchangeDeleteOk
            | Answer::ExchangeBindOk
            | Answer::ExchangeUnbindOk
            | Answer::QueueBindOk
            | Answer::QueueUnbindOk
            | Answer::BasicQosOk
            | Answer::BasicCancelOk { .. }
            | Answer::BasicRecoverOk
            | Answer::TxRollbackOk => self.pop_expected(client, &Expected::Answer),
        }
    }
}

/// The queue that a dead letter comes from.
fn source_of(message: &leveret_broker::Message) -> Option<u8> {
    let headers = message.decode_header().ok()?.properties.headers?;
    headers.get("x-last-death-queue")?.as_str()?.strip_prefix('q')?.parse().ok()
}

fn check_body(found: &[u8], id: u64, bytes: usize) -> Result<(), Violation> {
    if found == body(id, bytes) { Ok(()) } else { Err(format!("the body of message {id} is another one")) }
}
