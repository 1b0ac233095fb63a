//! What a virtual host holds for clients is bounded for all of them together, and given back when they are gone.

use leveret_broker::vhost::ledger::Ceilings;
use leveret_testkit::{Broker, Variation, continue_script, run_script};

fn run(broker: &mut Broker, script: &str) {
    run_script(broker, script).unwrap_or_else(|failure| panic!("{failure}"));
}

/// Goes on with connections that an earlier script opened, and does not look at what nobody asked for.
fn run_more(broker: &mut Broker, script: &str) {
    continue_script(broker, script).unwrap_or_else(|failure| panic!("{failure}"));
}

/// The same line for every number of a range.
fn lines(numbers: std::ops::RangeInclusive<u32>, line: impl Fn(u32) -> String) -> String {
    numbers.map(line).collect::<Vec<_>>().join("\n")
}

const MEBIBYTE: usize = 1024 * 1024;

const NO_ROOM: &str =
    "PRECONDITION_FAILED - open transactions take too much memory; commit earlier, or raise memory_limit";

const DECLARED_TOO_MUCH: &str =
    "PRECONDITION_FAILED - queues, exchanges and bindings take too much memory; delete some, or raise memory_limit";

const TOO_MANY_CONSUMERS: &str =
    "PRECONDITION_FAILED - consumers take too much memory; cancel some, or raise memory_limit";

/// A broker in which transactions, consumers and what is declared may take a mebibyte each, and the consumers of a channel leave so
/// many unacked.
fn narrow() -> Broker {
    let mut broker = Broker::new(Variation::ALL[0]);
    let (transactions, consumers, declared) = (MEBIBYTE, MEBIBYTE, MEBIBYTE);
    broker.set_ceilings(Ceilings { transactions, consumers, declared, unacked: 1000, ..Ceilings::default() });
    broker
}

#[test]
fn open_transactions_have_a_bound_together_and_who_holds_most_comes_to_it() {
    let body = "x".repeat(100_000);
    let publish = |who: &str, count| format!("C{who}: basic.publish routing-key='q' body='{body}'\n").repeat(count);
    let select = |who: &str| format!("C{who}: tx.select\nS{who}: tx.select-ok\n");
    let commit = |who: &str| format!("C{who}: tx.commit\nS{who}: tx.commit-ok\n");
    let count = |count| format!("Cd: queue.declare queue='q' passive\nSd: queue.declare-ok 'q' {count} 0\n");
    let script = [
        "C: queue.declare queue='q'\nS: queue.declare-ok 'q' 0 0\n".into(),
        [select(""), select("b"), select("c")].concat(),
        // As much as is left for all.
        [publish("", 5), publish("b", 2)].concat(),
        format!("{}S: channel.close 406 '{NO_ROOM}' 60 40\nC: channel.close-ok\n", publish("", 1)),
        // Nothing of it is left, and there is room for others.
        count(0),
        [publish("c", 4), commit("c"), publish("b", 1), commit("b")].concat(),
        count(7),
    ];
    run(&mut narrow(), &script.concat());
}

#[test]
fn a_small_transaction_has_room_whatever_others_hold() {
    let large = "x".repeat(2_000_000);
    let script = format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: tx.select
        S: tx.select-ok
        C: basic.publish routing-key='q' body='{large}'
        Cb: tx.select
        Sb: tx.select-ok
        Cb: basic.publish routing-key='q' body='small'
        Cb: tx.commit
        Sb: tx.commit-ok
        C: tx.commit
        S: tx.commit-ok
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        "
    );
    run(&mut narrow(), &script);
}

#[test]
fn one_large_message_on_each_of_many_channels_is_too_much() {
    let body = "x".repeat(200_000);
    let publish = |channel| {
        format!(
            "C/{channel}: tx.select\nS/{channel}: tx.select-ok\n\
             C/{channel}: basic.publish routing-key='q' body='{body}'\n"
        )
    };
    let script = format!("{}S/5: channel.close 406 '{NO_ROOM}' 60 40\n", lines(2..=5, publish));
    run(&mut narrow(), &script);
}

#[test]
fn a_transaction_of_empty_messages_is_counted_as_it_arrives() {
    let mut broker = narrow();
    run(&mut broker, "C: tx.select\nS: tx.select-ok");
    let publish = "C: basic.publish routing-key='q' body=''\n";
    run_more(&mut broker, &publish.repeat(1000));
    let refused = format!("S: channel.close 406 '{NO_ROOM}' 60 40\nC: channel.close-ok");
    run_more(&mut broker, &format!("{}{refused}", publish.repeat(2000)));
}

/// As if that were its prefetch.
#[test]
fn a_channel_leaves_only_so_many_unacked_and_its_consumers_go_on_when_it_acks() {
    let publish = "Cb: basic.publish routing-key='q' body=''\n".repeat(2000);
    let deliver = |tags: std::ops::RangeInclusive<u32>| lines(tags, |tag| format!("S: basic.deliver 't' {tag}"));
    let script = format!(
        "
        Cb: queue.declare queue='q'
        Sb: queue.declare-ok 'q' 0 0
        {publish}
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        {}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1000 1
        C: basic.ack delivery-tag=100 multiple
        {}
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 900 1
        ",
        deliver(1..=1000),
        deliver(1001..=1100)
    );
    run(&mut narrow(), &script);
}

/// A channel of which the consumers may leave two unacked, all together.
fn two_unacked() -> Broker {
    let mut broker = Broker::new(Variation::ALL[0]);
    broker.set_ceilings(Ceilings { unacked: 2, ..Ceilings::default() });
    broker
}

#[test]
fn consumers_of_a_channel_share_what_it_may_leave_unacked_and_those_of_others_do_not() {
    let script = "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: basic.qos prefetch-count=5 global
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.consume queue='other' consumer-tag='u'
        S: basic.consume-ok 'u'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 2
        C: basic.publish routing-key='q' body='3'
        C: basic.publish routing-key='other' body='4'
        S: nothing
        C/2: basic.consume queue='other' consumer-tag='v'
        S/2: basic.consume-ok 'v'
        S/2: basic.deliver 'v' 1 body='4'
        C: basic.consume queue='q' consumer-tag='w' no-ack
        S: basic.consume-ok 'w'
        S: basic.deliver 'w' 3 body='3'
        C: basic.cancel consumer-tag='w'
        S: basic.cancel-ok 'w'
        C: basic.publish routing-key='q' body='5'
        C/2: basic.reject delivery-tag=1 requeue
        S/2: basic.deliver 'v' 2 body='4' redelivered
        C/2: basic.cancel consumer-tag='v'
        S/2: basic.cancel-ok 'v'
        C/2: basic.reject delivery-tag=2 requeue
        S: nothing
        C: basic.ack delivery-tag=2 multiple
        S: basic.deliver 't' 4 body='5'
        S: basic.deliver 'u' 5 body='4' redelivered
        C: basic.get queue='q'
        S: basic.get-empty
        ";
    run(&mut two_unacked(), script);
}

#[test]
fn what_a_transaction_has_settled_counts_as_unacked_until_it_ends() {
    let script = "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        Cb: basic.publish routing-key='q' body='1'
        Cb: basic.publish routing-key='q' body='2'
        Cb: basic.publish routing-key='q' body='3'
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 3 0
        C: tx.select
        S: tx.select-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1'
        S: basic.deliver 't' 2 body='2'
        C: basic.ack delivery-tag=1
        C: tx.rollback
        S: tx.rollback-ok
        S: nothing
        C: basic.ack delivery-tag=1
        S: nothing
        C: tx.commit
        S: tx.commit-ok
        S: basic.deliver 't' 3 body='3'
        ";
    run(&mut two_unacked(), script);
}

#[test]
fn what_is_taken_back_counts_no_more_for_what_a_channel_may_leave_unacked() {
    let script = "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: basic.consume queue='q' consumer-tag='hasty' arguments={x-consumer-timeout=1000}
        S: basic.consume-ok 'hasty'
        C: basic.consume queue='other' consumer-tag='calm'
        S: basic.consume-ok 'calm'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 'hasty' 1
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 'hasty' 2
        C: basic.publish routing-key='other' body='3'
        S: nothing
        wait 1s
        S: basic.cancel 'hasty' nowait
        S: basic.deliver 'calm' 3 body='3'
        ";
    run(&mut two_unacked(), script);
}

/// What was declared when there might be more comes back, and is of use.
#[test]
fn after_a_start_there_may_be_more_than_may_be_declared() {
    let mut broker = Broker::new(Variation::ALL[0]);
    let declare = |nth| format!("C: queue.declare queue='{nth}' durable\nS: queue.declare-ok '{nth}' 0 0");
    run(&mut broker, &lines(1..=100, declare));
    broker.set_ceilings(Ceilings { declared: 20_000, ..Ceilings::default() });
    run_more(&mut broker, "restart");
    let script = format!(
        "
        C: queue.declare queue='100' durable
        S: queue.declare-ok '100' 0 0
        C: basic.consume queue='100' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='100' body='1'
        S: basic.deliver 't' 1
        C: queue.declare queue='101' durable
        S: channel.close 406 '{DECLARED_TOO_MUCH}' 50 10
        C: channel.close-ok
        "
    );
    run(&mut broker, &script);
}

#[test]
fn what_is_declared_has_a_bound_and_what_is_there_may_be_declared_again() {
    let argument = "x".repeat(62_000);
    let arguments = format!("arguments={{large='{argument}'}}");
    let declare = |queue| format!("C: queue.declare queue='{queue}' {arguments}");
    let declared = lines(1..=16, |nth| format!("{}\nS: queue.declare-ok '{nth}' 0 0", declare(nth)));
    let refused = |line: &str, method| {
        let refused = format!("S: channel.close 406 '{DECLARED_TOO_MUCH}' {method}");
        format!("{line}\n{refused}\nC: channel.close-ok\nC: channel.open\nS: channel.open-ok\n")
    };
    let script = [
        format!("{declared}\n"),
        refused(&declare(17), "50 10"),
        refused(&format!("C: exchange.declare exchange='e' type='fanout' {arguments}"), "40 10"),
        refused(&format!("C: queue.bind queue='1' exchange='amq.headers' {arguments}"), "50 20"),
        "C: basic.consume queue='2' consumer-tag='t'\nS: basic.consume-ok 't'\n".into(),
        format!("{}\nS: queue.declare-ok '1' 0 0\n", declare(1)),
        "C: queue.delete queue='1'\nS: queue.delete-ok 0\n".into(),
        format!("{}\nS: queue.declare-ok '17' 0 0\n", declare(17)),
    ];
    run(&mut narrow(), &script.concat());
}

#[test]
fn who_has_a_great_many_consumers_may_have_no_more_and_others_may() {
    let consume = lines(1..=3000, |nth| format!("C: basic.consume queue='q' consumer-tag='{nth}' nowait"));
    let script = format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        {consume}
        S: channel.close 406 '{TOO_MANY_CONSUMERS}' 60 20
        Cb: basic.consume queue='q' consumer-tag='u'
        Sb: basic.consume-ok 'u'
        C: channel.close-ok
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 0 1
        "
    );
    run(&mut narrow(), &script);
}

/// Whatever came and went.
#[test]
fn nothing_is_held_for_clients_that_are_gone() {
    let mut broker = narrow();
    let before = broker.holdings();
    let script = "
        C: exchange.declare exchange='e' type='topic'
        S: exchange.declare-ok
        C: queue.declare queue='q' exclusive
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='e' routing-key='a.b'
        S: queue.bind-ok
        C: queue.bind queue='q' exchange='e' routing-key='a.b'
        S: queue.bind-ok
        C: exchange.bind destination='e' source='amq.topic' routing-key='a.*'
        S: exchange.bind-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C/2: basic.consume queue='q' consumer-tag='u'
        S/2: basic.consume-ok 'u'
        C/2: basic.consume queue='q' consumer-tag='u'
        S: connection.close 530
        C: connection.close-ok
        Cb: tx.select
        Sb: tx.select-ok
        Cb: basic.publish exchange='e' routing-key='a.b' body='x'
        Cb: exchange.delete exchange='e'
        Sb: exchange.delete-ok
        Cb: tx.rollback
        Sb: tx.rollback-ok
        Cb: connection.close
        Sb: connection.close-ok
        ";
    run(&mut broker, script);
    assert_eq!(broker.holdings(), before);
}

#[test]
fn nothing_is_held_for_what_ended_by_itself() {
    let mut broker = narrow();
    let before = broker.holdings();
    let script = "
        C: exchange.declare exchange='later' type='x-delayed-message' arguments={x-delayed-type='direct'}
        S: exchange.declare-ok
        C: queue.declare queue='d' arguments={x-expires=1000}
        S: queue.declare-ok 'd' 0 0
        C: queue.bind queue='d' exchange='later' routing-key='k'
        S: queue.bind-ok
        C: exchange.delete exchange='later'
        S: exchange.delete-ok
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-max-length=3 x-overflow='reject-publish' x-consumer-timeout=60000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' priority=1 body='1'
        C: basic.publish routing-key='q' priority=9 body='2'
        Cb: tx.select
        Sb: tx.select-ok
        Cb: basic.publish routing-key='q' body='3'
        Cb: tx.commit
        Sb: tx.commit-ok
        Cb: basic.publish routing-key='q' body='4'
        Cb: basic.publish routing-key='q' body='5'
        Cb: tx.commit
        Sb: channel.close 406
        Cb: channel.close-ok
        Cb: connection.close
        Sb: connection.close-ok
        Ca: queue.declare queue='auto' auto-delete
        Sa: queue.declare-ok 'auto' 0 0
        Ca: basic.consume queue='auto' consumer-tag='t'
        Sa: basic.consume-ok 't'
        Ca: basic.cancel consumer-tag='t'
        Sa: basic.cancel-ok 't'
        Cc: basic.consume queue='q' consumer-tag='t'
        Sc: basic.consume-ok 't'
        Sc: basic.deliver 't' 1 body='2'
        Sc: basic.deliver 't' 2 body='3'
        Sc: basic.deliver 't' 3 body='1'
        wait 1min
        Sc: basic.cancel 't' nowait
        Cc: basic.consume queue='q' consumer-tag='u'
        Sc: basic.consume-ok 'u'
        Sc: basic.deliver 'u' 4 body='2' redelivered
        Sc: basic.deliver 'u' 5 body='3' redelivered
        Sc: basic.deliver 'u' 6 body='1' redelivered
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        Sc: basic.cancel 'u' nowait
        ";
    run(&mut broker, script);
    assert_eq!(broker.holdings(), before);
}

#[test]
fn after_a_start_as_much_counts_as_before() {
    let mut broker = narrow();
    let script = "
        C: exchange.declare exchange='e' type='topic' durable
        S: exchange.declare-ok
        C: exchange.declare exchange='later' type='x-delayed-message' durable arguments={x-delayed-type='direct'}
        S: exchange.declare-ok
        C: queue.declare queue='p' durable arguments={x-max-priority=5}
        S: queue.declare-ok 'p' 0 0
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='e' routing-key='a.b.#'
        S: queue.bind-ok
        C: queue.bind queue='p' exchange='amq.headers' arguments={a=1 b='x'}
        S: queue.bind-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' priority=9 delivery-mode=2 body='1'
        S: basic.ack 1
        ";
    run(&mut broker, script);
    let before = broker.holdings();
    for stop in ["restart", "crash"] {
        run(&mut broker, stop);
        assert_eq!(broker.holdings(), before, "{stop}");
    }
}
