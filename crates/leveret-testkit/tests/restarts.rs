//! Random work with restarts and crashes in between, against a model that is a list of messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use leveret_testkit::disk::{chance, tries_everything};
use leveret_testkit::{Broker, Variation, run_script};
use rand::Rng;
use rand::rngs::SmallRng;

#[derive(Clone, Debug)]
struct Message {
    body: String,
    priority: u8,
    persistent: bool,
    redelivered: bool,
    /// The tag it was delivered with and not settled.
    held: Option<u64>,
}

/// How many queues there are: two that a fan-out reaches, the second of which knows priorities, and sends what is rejected
/// on to the first; and one that holds so many ready messages and sends older ones on.
const QUEUES: usize = 3;
const WITH_PRIORITIES: usize = 1;
const MAX_PRIORITY: u8 = 3;
const LIMITED: usize = 2;
const LIMIT: usize = 3;

#[derive(Debug, Default)]
struct Queue {
    messages: Vec<Message>,
    /// Ranks of which a journaled message was handed out since the last stop in good order: after a crash, all of them may
    /// have been.
    granted: BTreeSet<u8>,
}

/// The priority that counts for a message in a queue.
fn rank(queue: usize, message: &Message) -> u8 {
    if queue == WITH_PRIORITIES { message.priority.min(MAX_PRIORITY) } else { 0 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    Ack,
    Requeue,
    Reject,
}

/// What the broker must do, and the script that says so.
#[derive(Debug, Default)]
struct Model {
    script: String,
    queues: [Queue; QUEUES],
    last_tag: u64,
    last_message: u64,
    in_transaction: Vec<(usize, Message)>,
    now_ms: u64,
    /// Those that wait in an exchange for the first queue, each with when it is due, in the order in which they were published.
    waiting: Vec<(u64, Message)>,
    /// Whether channel 2 is in transaction mode.
    selected: bool,
    /// What a policy and an operator policy say of how many messages the limited queue holds.
    policies: [Option<usize>; 2],
}

/// As a script calls them.
const POLICY_KINDS: [&str; 2] = ["policy", "operator policy"];

impl Model {
    fn say(&mut self, line: impl AsRef<str>) {
        writeln!(self.script, "{}", line.as_ref()).unwrap();
    }

    fn message(&mut self, persistent: bool) -> Message {
        self.last_message += 1;
        let priority = u8::try_from(self.last_message * 7 % 11 % 6).unwrap();
        Message { body: format!("m{}", self.last_message), priority, persistent, redelivered: false, held: None }
    }

    fn publish(&mut self, queue: usize, persistent: bool) {
        let message = self.message(persistent);
        let mode = if persistent { 2 } else { 1 };
        let Message { body, priority, .. } = &message;
        self.say(format!(
            "C: basic.publish routing-key='q{queue}' delivery-mode={mode} priority={priority} body='{body}'"
        ));
        self.queues[queue].messages.push(message);
        self.drop_overflow();
    }

    /// The oldest ready messages of the limited queue go on to the first. True if there are any.
    fn drop_overflow(&mut self) -> bool {
        let mut dropped = false;
        loop {
            let messages = &mut self.queues[LIMITED].messages;
            let ready: Vec<_> = (0..messages.len()).filter(|&at| messages[at].held.is_none()).collect();
            if ready.len() <= self.policies.iter().flatten().copied().fold(LIMIT, usize::min) {
                return dropped;
            }
            dropped = true;
            let dead = messages.remove(ready[0]);
            self.bury(dead);
        }
    }

    /// A message goes on to the first queue, where it was not delivered yet.
    fn bury(&mut self, message: Message) {
        self.queues[0].messages.push(Message { redelivered: false, held: None, ..message });
    }

    fn fan_out(&mut self) {
        let message = self.message(true);
        let Message { body, priority, .. } = &message;
        self.say(format!("C: basic.publish exchange='fan' delivery-mode=2 priority={priority} body='{body}'"));
        self.queues[..LIMITED].iter_mut().for_each(|queue| queue.messages.push(message.clone()));
    }

    fn publish_delayed(&mut self, persistent: bool, delay_ms: u64) {
        let message = self.message(persistent);
        let mode = if persistent { 2 } else { 1 };
        let body = &message.body;
        self.say(format!(
            "C: basic.publish exchange='later' headers={{x-delay={delay_ms}}} delivery-mode={mode} body='{body}'"
        ));
        self.waiting.push((self.now_ms + delay_ms, message));
    }

    /// The disk catches up with what has happened by itself, as somebody asks something. Where nobody does, it may happen again
    /// after a crash, to messages that nobody may have got before.
    fn catch_up(&mut self) {
        self.say("C: basic.qos prefetch-count=0\nS: basic.qos-ok");
    }

    fn wait(&mut self, ms: u64) {
        self.say(format!("wait {ms}ms"));
        self.now_ms += ms;
        self.waiting.sort_by_key(|&(due, _)| due);
        let due = self.waiting.partition_point(|&(due, _)| due <= self.now_ms);
        if due > 0 {
            self.catch_up();
        }
        let due = self.waiting.drain(..due).map(|(_, message)| message);
        self.queues[0].messages.extend(due);
    }

    fn get(&mut self, queue: usize, keep: bool) {
        let no_ack = if keep { "" } else { " no-ack" };
        self.say(format!("C: basic.get queue='q{queue}'{no_ack}"));
        let state = &mut self.queues[queue];
        let ready = state.messages.iter().enumerate().filter(|(_, message)| message.held.is_none());
        let first = ready.max_by_key(|(at, message)| (rank(queue, message), Reverse(*at)));
        let Some(at) = first.map(|(at, _)| at) else {
            return self.say("S: basic.get-empty");
        };
        self.last_tag += 1;
        let message = state.messages[at].clone();
        if message.persistent {
            state.granted.insert(rank(queue, &message));
        }
        if keep {
            state.messages[at].held = Some(self.last_tag);
        } else {
            state.messages.remove(at);
        }
        let ready = state.messages.iter().filter(|message| message.held.is_none()).count();
        let flag = if message.redelivered { " redelivered" } else { "" };
        let (tag, body) = (self.last_tag, message.body);
        self.say(format!("S: basic.get-ok {tag} message-count={ready}{flag} body='{body}'"));
    }

    fn settle(&mut self, settlement: Settlement, random: &mut SmallRng) {
        let held: Vec<u64> =
            self.queues.iter().flat_map(|queue| queue.messages.iter().filter_map(|message| message.held)).collect();
        if held.is_empty() {
            return;
        }
        let tag = held[random.random_range(0..held.len())];
        self.say(match settlement {
            Settlement::Ack => format!("C: basic.ack delivery-tag={tag}"),
            Settlement::Requeue => format!("C: basic.nack delivery-tag={tag} requeue"),
            Settlement::Reject => format!("C: basic.reject delivery-tag={tag}"),
        });
        for queue in 0..QUEUES {
            let messages = &mut self.queues[queue].messages;
            let Some(at) = messages.iter().position(|message| message.held == Some(tag)) else { continue };
            if settlement == Settlement::Requeue {
                messages[at].held = None;
                messages[at].redelivered = true;
                continue;
            }
            let gone = messages.remove(at);
            if settlement == Settlement::Reject && queue > 0 {
                self.bury(gone);
            }
        }
        self.drop_overflow();
    }

    fn purge(&mut self, queue: usize) {
        let before = self.queues[queue].messages.len();
        self.queues[queue].messages.retain(|message| message.held.is_some());
        let gone = before - self.queues[queue].messages.len();
        self.say(format!("C: queue.purge queue='q{queue}'\nS: queue.purge-ok {gone}"));
    }

    /// An administrator sets a policy for the limited queue, or clears it.
    fn change_policy(&mut self, random: &mut SmallRng) {
        let kind = random.random_range(0..POLICY_KINDS.len());
        let name = POLICY_KINDS[kind];
        if self.policies[kind].take().is_some() && random.random_bool(0.5) {
            self.say(format!("clear {name} 'limit'"));
        } else {
            let most = random.random_range(0..=LIMIT + 1);
            self.say(format!("set {name} 'limit' pattern='{LIMITED}$' definition={{max-length={most}}}"));
            self.policies[kind] = Some(most);
        }
        self.drop_overflow();
    }

    fn recreate(&mut self, queue: usize) {
        // A message that is held goes with its queue, and its tag can still be settled; that is another test's.
        if self.queues[queue].messages.iter().any(|message| message.held.is_some()) {
            return;
        }
        let gone = self.queues[queue].messages.len();
        self.queues[queue] = Queue::default();
        // A transaction has routed its messages when they were published.
        self.in_transaction.retain(|(routed_to, _)| *routed_to != queue);
        self.say(format!("C: queue.delete queue='q{queue}'\nS: queue.delete-ok {gone}"));
        self.declare(queue);
    }

    fn declare_exchanges(&mut self) {
        self.say("C: exchange.declare exchange='fan' type='fanout' durable\nS: exchange.declare-ok");
        let delayed = "type='x-delayed-message' durable arguments={x-delayed-type='fanout'}";
        self.say(format!("C: exchange.declare exchange='later' {delayed}\nS: exchange.declare-ok"));
    }

    fn declare(&mut self, queue: usize) {
        let dead_letters = "x-dead-letter-exchange='' x-dead-letter-routing-key='q0'";
        let arguments = match queue {
            0 => String::new(),
            LIMITED => format!("x-max-length={LIMIT} {dead_letters}"),
            _ => format!("x-max-priority={MAX_PRIORITY} {dead_letters}"),
        };
        self.say(format!("C: queue.declare queue='q{queue}' durable arguments={{{arguments}}}"));
        self.say(format!("S: queue.declare-ok 'q{queue}' 0 0"));
        if queue == 0 {
            self.say("C: queue.bind queue='q0' exchange='later'\nS: queue.bind-ok");
        }
        if queue < LIMITED {
            self.say(format!("C: queue.bind queue='q{queue}' exchange='fan'\nS: queue.bind-ok"));
        }
    }

    fn publish_in_transaction(&mut self, queue: usize) {
        if !self.selected {
            self.selected = true;
            self.say("C/2: tx.select\nS/2: tx.select-ok");
        }
        let message = self.message(true);
        let Message { body, priority, .. } = &message;
        self.say(format!(
            "C/2: basic.publish routing-key='q{queue}' delivery-mode=2 priority={priority} body='{body}'"
        ));
        self.in_transaction.push((queue, message));
    }

    fn end_transaction(&mut self, commit: bool) {
        if !self.selected {
            return;
        }
        let published = std::mem::take(&mut self.in_transaction);
        if commit {
            self.say("C/2: tx.commit\nS/2: tx.commit-ok");
            for (queue, message) in published {
                self.queues[queue].messages.push(message);
                self.drop_overflow();
            }
        } else {
            self.say("C/2: tx.rollback\nS/2: tx.rollback-ok");
        }
    }

    fn restart(&mut self, crash: bool) {
        self.say(if crash { "crash" } else { "restart" });
        if !crash {
            // First all clients leave, and give back what they hold.
            for message in self.queues.iter_mut().flat_map(|queue| &mut queue.messages) {
                message.redelivered |= message.held.take().is_some();
            }
            self.drop_overflow();
        }
        for (at, queue) in self.queues.iter_mut().enumerate() {
            queue.messages.retain(|message| message.persistent);
            for message in &mut queue.messages {
                let may_have_been = crash && queue.granted.contains(&rank(at, message));
                message.redelivered |= message.held.take().is_some() || may_have_been;
            }
            if !crash {
                queue.granted.clear();
            }
        }
        if self.drop_overflow() {
            self.catch_up();
        }
        self.waiting.retain(|(_, message)| message.persistent);
        self.last_tag = 0;
        self.in_transaction.clear();
        self.selected = false;
    }
}

fn random_work(seed: u64) -> String {
    let mut random = chance(seed);
    let mut model = Model::default();
    model.declare_exchanges();
    (0..QUEUES).for_each(|queue| model.declare(queue));
    for _ in 0..80 {
        let queue = random.random_range(0..QUEUES);
        if random.random_bool(0.4) {
            model.say("checkpoint step");
        }
        match random.random_range(0..43) {
            0..=7 => model.publish(queue, true),
            8..=10 => model.publish(queue, false),
            11..=12 => model.fan_out(),
            13..=15 => model.get(queue, false),
            16..=18 => model.get(queue, true),
            19..=21 => model.settle(Settlement::Ack, &mut random),
            22 => model.settle(Settlement::Requeue, &mut random),
            31..=33 => model.settle(Settlement::Reject, &mut random),
            37..=40 => model.publish_delayed(random.random_bool(0.8), random.random_range(1..3000)),
            41..=42 => model.wait(random.random_range(1..1500)),
            23 => model.purge(queue),
            // Not where it may push others out: how soon those go on depends on where their bodies are.
            24..=25 => model.publish_in_transaction(queue % LIMITED),
            26 => model.end_transaction(random.random_bool(0.7)),
            27 => model.recreate(queue),
            28 => model.restart(false),
            29 => model.say("checkpoint"),
            34..=36 => model.change_policy(&mut random),
            _ => model.restart(true),
        }
    }
    model.restart(random.random_bool(0.5));
    for queue in 0..QUEUES {
        for _ in 0..=model.queues[queue].messages.len() {
            model.get(queue, false);
        }
    }
    model.script
}

/// The same in bursts, so that queues grow over many pages of their index.
fn deep_work(seed: u64) -> String {
    let mut random = chance(seed);
    let mut model = Model::default();
    model.declare_exchanges();
    (0..QUEUES).for_each(|queue| model.declare(queue));
    for _ in 0..25 {
        let queue = random.random_range(0..QUEUES);
        let burst = random.random_range(1..400);
        for _ in 0..random.random_range(0..4) {
            model.say("checkpoint step");
        }
        match random.random_range(0..26) {
            0..=5 => (0..burst).for_each(|_| model.publish(queue, true)),
            6 => (0..burst).for_each(|_| {
                let persistent = random.random_bool(0.98);
                model.publish(queue, persistent);
            }),
            7 => (0..burst / 2).for_each(|_| model.fan_out()),
            8..=9 => (0..burst).for_each(|_| model.get(queue, false)),
            10..=12 => (0..burst).for_each(|_| model.get(queue, true)),
            13..=14 => (0..burst).for_each(|_| model.settle(Settlement::Ack, &mut random)),
            15..=16 => (0..burst / 2).for_each(|_| {
                let requeue = random.random_bool(0.5);
                let settlement = if requeue { Settlement::Requeue } else { Settlement::Reject };
                model.settle(settlement, &mut random);
            }),
            17 if random.random_bool(0.3) => model.purge(queue),
            18 => model.restart(false),
            19 => model.say("checkpoint"),
            21..=22 => model.change_policy(&mut random),
            23..=24 => (0..burst).for_each(|_| model.publish_delayed(true, random.random_range(1..3000))),
            25 => model.wait(random.random_range(1..2000)),
            _ => model.restart(true),
        }
    }
    model.restart(random.random_bool(0.5));
    for queue in 0..QUEUES {
        for _ in 0..=model.queues[queue].messages.len() {
            model.get(queue, false);
        }
    }
    model.script
}

#[test]
fn long_queues_hold_what_a_list_would_wherever_their_bodies_are() {
    let seeds = if tries_everything() { 400 } else { 24 };
    for seed in 0..seeds {
        let script = deep_work(seed);
        let variation = Variation::ALL[usize::try_from(seed).unwrap() % Variation::ALL.len()];
        if let Err(failure) = run_script(&mut Broker::new(variation), &script) {
            let failure: String = failure.chars().take(500).collect();
            panic!("seed {seed}, {variation:?}: {failure}");
        }
    }
    println!("{seeds} random works on long queues");
}

#[test]
fn after_any_work_and_any_restarts_the_queues_hold_what_a_list_would() {
    // `cargo xtask proof` tries many more.
    let seeds = if tries_everything() { 20_000 } else { 600 };
    for seed in 0..seeds {
        let script = random_work(seed);
        let variation = Variation::ALL[usize::try_from(seed).unwrap() % Variation::ALL.len()];
        if let Err(failure) = run_script(&mut Broker::new(variation), &script) {
            panic!("seed {seed}, {variation:?}: {failure}");
        }
    }
    println!("{seeds} random works");
}
