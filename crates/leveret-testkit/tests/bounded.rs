//! Work under the lock of a virtual host is bounded, whatever a command names.

use leveret_broker::JournalPosition;
use leveret_broker::limits::{UNITS_PER_HOLD, WINDOW_BYTES_MAX};
use leveret_testkit::{Broker, Variation, continue_script, continue_script_of, run_script};

/// An enqueue, a delivery and a settlement are a unit each, and a unit has at most two consequences: an output, and a
/// change for the journal.
const MOST: usize = 2 * UNITS_PER_HOLD as usize;

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

fn script_in_bounded_holds(script: &str) -> Broker {
    let mut broker = Broker::new(Variation::ALL[0]);
    run(&mut broker, script);
    let longest = broker.longest_hold();
    assert!(longest <= MOST, "{longest} consequences of one hold");
    assert!(longest >= MOST / 4, "{longest}: this script asks for too little to show anything");
    broker
}

/// Twenty thousand messages in `q`, durable, and all of them with a consumer on channel 2.
fn twenty_thousand_unacked() -> String {
    let publish = "C: basic.publish routing-key='q' delivery-mode=2 body=''\n".repeat(20_000);
    let deliver = lines(1..=20_000, |tag| format!("S/2: basic.deliver 't' {tag}"));
    format!(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        {publish}
        C/2: basic.consume queue='q' consumer-tag='t'
        S/2: basic.consume-ok 't'
        {deliver}
        "
    )
}

#[test]
fn acking_everything_at_once_is_done_in_bounded_holds() {
    script_in_bounded_holds(&format!(
        "{}
        C/2: basic.ack multiple
        C/2: basic.recover requeue
        S/2: basic.recover-ok
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 1
        ",
        twenty_thousand_unacked()
    ));
}

/// What is rejected takes more units than one, as it goes on: also the last of a hold.
#[test]
fn rejecting_everything_at_once_is_done_in_bounded_holds() {
    for (routing_key, dead) in [("dead", 6000), ("nowhere", 0)] {
        let publish = "C: basic.publish routing-key='q' delivery-mode=2 body=''\n".repeat(6000);
        let deliver = lines(1..=6000, |tag| format!("S/2: basic.deliver 't' {tag}"));
        script_in_bounded_holds(&format!(
            "
            C: queue.declare queue='dead' durable
            S: queue.declare-ok 'dead' 0 0
            C: queue.declare queue='q' durable arguments={{x-dead-letter-exchange='' x-dead-letter-routing-key='{routing_key}'}}
            S: queue.declare-ok 'q' 0 0
            {publish}
            C/2: basic.consume queue='q' consumer-tag='t'
            S/2: basic.consume-ok 't'
            {deliver}
            C/2: basic.nack multiple
            C/2: basic.recover requeue
            S/2: basic.recover-ok
            C: queue.declare queue='dead' durable
            S: queue.declare-ok 'dead' {dead} 0
            C/2: basic.cancel consumer-tag='t'
            S/2: basic.cancel-ok 't'
            C: queue.delete queue='q' if-empty
            S: queue.delete-ok 0
            "
        ));
    }
}

/// All of it arrives at once, and more than fits into a hold.
#[test]
fn ten_thousand_publishes_and_acks_in_a_row_are_done_in_bounded_holds() {
    let publish = |body| format!("C+: basic.publish routing-key='q' body='{body}'\n");
    let publishes = lines(1..=9_999, publish);
    let deliveries = lines(1..=10_000, |tag| format!("S/2: basic.deliver 't' {tag} body='{tag}'"));
    let more_deliveries = lines(1..=10_000, |nth| format!("S/2: basic.deliver 't' {} body='{nth}'", nth + 10_000));
    let acks = lines(1..=9_999, |tag| format!("C+/2: basic.ack delivery-tag={tag}"));
    script_in_bounded_holds(&format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        {publishes}
        C: basic.publish routing-key='q' body='10000'
        C/2: basic.consume queue='q' consumer-tag='t'
        S/2: basic.consume-ok 't'
        {deliveries}
        {acks}
        C/2: basic.ack delivery-tag=10000
        C/2: basic.recover requeue
        S/2: basic.recover-ok
        {publishes}
        C: basic.publish routing-key='q' body='10000'
        {more_deliveries}
        "
    ));
}

/// Nobody sees the queue half returned: the next command finds all of it, and in its order.
#[test]
fn a_closed_channel_returns_everything_at_one_instant_in_bounded_holds() {
    script_in_bounded_holds(&format!(
        "{}
        C/2: channel.close
        C: queue.declare queue='q' durable
        S/2: channel.close-ok
        S: queue.declare-ok 'q' 20000 0
        C: basic.get queue='q'
        S: basic.get-ok 1 redelivered '' 'q' 19999
        C: queue.purge queue='q'
        S: queue.purge-ok 19999
        ",
        twenty_thousand_unacked()
    ));
}

/// A crash finds all of it, or nothing.
#[test]
fn a_large_transaction_is_committed_in_bounded_holds_and_journaled_as_one() {
    let publish = "C: basic.publish routing-key='q' delivery-mode=2 body=''\n".repeat(20_000);
    let broker = script_in_bounded_holds(&format!(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: tx.select
        S: tx.select-ok
        {publish}
        C: tx.commit
        S: tx.commit-ok
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 20000 0
        "
    ));
    assert_eq!(broker.whole_positions(), [1, 20_001].map(JournalPosition));
}

#[test]
fn ten_thousand_consumers_of_a_deleted_queue_are_told_in_bounded_holds() {
    let consume = lines(1..=10_000, |tag| format!("C/2: basic.consume queue='q' consumer-tag='t{tag}' nowait"));
    let cancel = lines(1..=10_000, |tag| format!("S/2: basic.cancel 't{tag}' nowait"));
    let mut broker = Broker::new(Variation::ALL[0]);
    let script = format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        {consume}
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        {cancel}
        "
    );
    // Connection `a` has both channels, so what it hears on channel 2 follows what it hears on channel 1.
    run(&mut broker, &script);
    assert!((MOST / 4..=MOST).contains(&broker.longest_hold()), "{}", broker.longest_hold());
}

/// Messages and consumers, each with one, that are late all at once.
#[test]
fn ten_thousand_late_consumers_are_cancelled_in_bounded_holds() {
    let consume = lines(1..=10_000, |tag| format!("C/2: basic.consume queue='q' consumer-tag='t{tag}' nowait"));
    let publish = "C: basic.publish routing-key='q' body=''\n".repeat(10_000);
    let deliver = lines(1..=10_000, |tag| format!("S/2: basic.deliver 't{tag}' {tag}"));
    let cancel = lines(1..=10_000, |tag| format!("S/2: basic.cancel 't{tag}' nowait"));
    let mut broker = Broker::new(Variation::ALL[0]);
    let script = format!(
        "
        C: queue.declare queue='q' arguments={{x-consumer-timeout=10000}}
        S: queue.declare-ok 'q' 0 0
        C/2: basic.qos prefetch-count=1
        S/2: basic.qos-ok
        {consume}
        {publish}
        {deliver}
        wait 10s
        {cancel}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 10000 0
        "
    );
    run(&mut broker, &script);
    assert!((MOST / 4..=MOST).contains(&broker.longest_hold()), "{}", broker.longest_hold());
}

/// Queues that all lead to each other, and to `all`, through the exchange `x`.
fn queues_that_lead_to_each_other(count: u32, arguments: &str) -> String {
    let queues = lines(1..=count, |nth| {
        format!(
            "
            C: queue.declare queue='{nth}' arguments={{x-dead-letter-exchange='x' {arguments}}}
            S: queue.declare-ok '{nth}' 0 0
            C: queue.bind queue='{nth}' exchange='x'
            S: queue.bind-ok
            "
        )
    });
    format!(
        "
        C: exchange.declare exchange='x' type='fanout'
        S: exchange.declare-ok
        {queues}
        C: queue.declare queue='all'
        S: queue.declare-ok 'all' 0 0
        C: queue.bind queue='all' exchange='x'
        S: queue.bind-ok
        "
    )
}

/// Each of seven full queues sends what it does not take to all the others, in every order that there is: 13,699 ways.
#[test]
fn full_queues_that_lead_to_each_other_pass_on_so_much_and_no_more() {
    let full = queues_that_lead_to_each_other(7, "x-max-length=0 x-overflow='reject-publish-dlx'");
    // The message itself, and what becomes of it where it dies for the first, second and third time.
    let count = 1 + 7 + 7 * 6 + 7 * 6 * 5;
    let script = format!(
        "
        {full}
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='x' body='1'
        S: basic.nack 1 multiple requeue
        C: queue.declare queue='all' passive
        S: queue.declare-ok 'all' {count} 0
        "
    );
    run(&mut Broker::new(Variation::ALL[0]), &script);
}

/// The same with queues that take it, and drop it at once or after a while: of nine, there would be 986,409 letters.
#[test]
fn a_message_goes_on_by_itself_so_often_and_no_more() {
    for arguments in ["x-max-length=0", "x-message-ttl=10"] {
        let queues = queues_that_lead_to_each_other(9, arguments);
        let count = 1 + 9 + 9 * 8 + 9 * 8 * 7;
        let script = format!(
            "
            {queues}
            C: confirm.select
            S: confirm.select-ok
            C: basic.publish exchange='x' body='1'
            S: basic.ack 1
            wait 10ms
            wait 10ms
            wait 10ms
            wait 10ms
            wait 10ms
            C: queue.declare queue='all' passive
            S: queue.declare-ok 'all' {count} 0
            "
        );
        run(&mut Broker::new(Variation::ALL[0]), &script);
    }
}

/// Each time it dies, its headers become longer.
#[test]
fn a_message_dies_256_times_in_a_row_and_no_more() {
    let queues = lines(0..=258, |nth| {
        let to = nth + 1;
        let route = format!("x-dead-letter-exchange='' x-dead-letter-routing-key='{to}'");
        let arguments = if nth < 257 { "x-max-length=0" } else { "x-max-length=1" };
        format!(
            "
            C: queue.declare queue='{nth}' arguments={{{arguments} {route}}}
            S: queue.declare-ok '{nth}' 0 0
            "
        )
    });
    let script = format!(
        "
        {queues}
        C: basic.publish routing-key='0' body='too far'
        C: queue.declare queue='257' passive
        S: queue.declare-ok '257' 0 0
        C: basic.publish routing-key='1' body='as far as it goes'
        C: queue.declare queue='257' passive
        S: queue.declare-ok '257' 1 0
        C: basic.get queue='257' no-ack
        S: basic.get-ok 1 '' '257' 0 body='as far as it goes'
        "
    );
    run(&mut Broker::new(Variation::ALL[0]), &script);
}

/// Rejected messages go on as often as somebody rejects them. How far one has gone since then survives a restart.
#[test]
fn how_many_were_made_of_a_message_is_known_after_a_restart_and_forgotten_once_it_is_rejected() {
    let queue = |name: &str, arguments: &str, exchange: &str| {
        format!(
            "
            C: queue.declare queue='{name}' durable arguments={{{arguments}}}
            S: queue.declare-ok '{name}' 0 0
            C: queue.bind queue='{name}' exchange='{exchange}'
            S: queue.bind-ok
            "
        )
    };
    let to_each =
        lines(1..=129, |nth| queue(&format!("b{nth}"), "x-message-ttl=1000 x-dead-letter-exchange='c'", "b"));
    let few = lines(1..=64, |nth| queue(&format!("c{nth}"), "", "c"));
    let one_more = queue("c65", "", "c");
    let publish = "
        C: basic.publish routing-key='a' delivery-mode=2 body='1'
        wait 1s
        crash
        wait 1s
        C: queue.declare queue='c1' passive";
    let script = format!(
        "
        C: exchange.declare exchange='b' type='fanout' durable
        S: exchange.declare-ok
        C: exchange.declare exchange='c' type='fanout' durable
        S: exchange.declare-ok
        C: queue.declare queue='a' durable arguments={{x-message-ttl=1000 x-dead-letter-exchange='b'}}
        S: queue.declare-ok 'a' 0 0
        {to_each}
        {few}
        {publish}
        S: queue.declare-ok 'c1' 129 0
        {one_more}
        {publish}
        S: queue.declare-ok 'c1' 129 0
        C: basic.publish routing-key='a' delivery-mode=2 body='1'
        wait 1s
        C: basic.get queue='b1'
        S: basic.get-ok 1 'b' 'a' 0 body='1'
        C: basic.reject delivery-tag=1
        wait 1s
        C: queue.declare queue='c1' passive
        S: queue.declare-ok 'c1' 130 0
        "
    );
    run(&mut Broker::new(Variation::ALL[0]), &script);
}

/// A message of 100,000 bytes, and how many of them are asked for.
const BODY: usize = 100_000;
const MANY: u32 = 200;

/// A consumer that does not read holds up its own deliveries, at the window, and gets all of them once it reads.
#[test]
fn a_consumer_that_does_not_read_is_given_a_window_of_messages() {
    let mut broker = Broker::new(Variation::ALL[0]);
    run(&mut broker, "Cb: queue.declare queue='q'\nSb: queue.declare-ok 'q' 0 0\nC: basic.qos\nS: basic.qos-ok");
    broker.set_reading("a", false);
    let publish = lines(1..=MANY, |_| format!("Cb/2: basic.publish routing-key='q' body={BODY}*x"));
    run_more(&mut broker, "C: basic.consume queue='q' consumer-tag='t' no-ack");
    run_more(&mut broker, &publish);
    let waiting = broker.unheard_bytes("a");
    assert!((WINDOW_BYTES_MAX..WINDOW_BYTES_MAX + 2 * BODY).contains(&waiting), "{waiting}");
    broker.set_reading("a", true);
    let deliver = lines(1..=MANY, |tag| format!("S: basic.deliver 't' {tag} body={BODY}*x"));
    run_more(&mut broker, &format!("S: basic.consume-ok 't'\n{deliver}"));
}

/// Those who do not read have no more, all together, than may be on its way; somebody who reads has what is left.
#[test]
fn clients_that_do_not_read_leave_room_for_those_who_do() {
    const WINDOW_BYTES: usize = 20 * BODY;
    let idle: Vec<_> = (0..10).map(|n| format!("idle{n}")).collect();
    let mut broker = Broker::new(Variation::ALL[0]);
    broker.set_window_bytes(WINDOW_BYTES);
    run(&mut broker, "Cb: queue.declare queue='q'\nSb: queue.declare-ok 'q' 0 0\nC: basic.qos\nS: basic.qos-ok");
    let more = |broker: &mut Broker, name: &str, script: &str| {
        continue_script_of(broker, &["b", name], &script.replace("NAME", name)).unwrap();
    };
    let publish = lines(1..=MANY, |_| format!("Cb: basic.publish routing-key='q-NAME' body={BODY}*x"));
    for name in &idle {
        let declare = "CNAME: queue.declare queue='q-NAME'\nSNAME: queue.declare-ok 'q-NAME' 0 0";
        continue_script_of(&mut broker, &["b"], &declare.replace("NAME", name)).unwrap();
        broker.set_reading(name, false);
        more(&mut broker, name, "CNAME: basic.consume queue='q-NAME' consumer-tag='t' no-ack");
    }
    for name in &idle {
        more(&mut broker, name, &publish);
    }
    let waiting: Vec<_> = idle.iter().map(|name| broker.unheard_bytes(name)).collect();
    assert!(waiting.iter().all(|&bytes| bytes > BODY), "each has a message: {waiting:?}");
    assert!(waiting.iter().sum::<usize>() < WINDOW_BYTES + idle.len() * 2 * BODY, "{waiting:?}");
    run_more(&mut broker, &publish.replace("q-NAME", "q"));
    run_more(&mut broker, "C: basic.consume queue='q' consumer-tag='t' no-ack\nS: basic.consume-ok 't'");
    run_more(&mut broker, &lines(1..=MANY, |tag| format!("S: basic.deliver 't' {tag} body={BODY}*x")));
    let deliver = lines(1..=MANY, |tag| format!("SNAME: basic.deliver 't' {tag} body={BODY}*x"));
    for name in &idle {
        broker.set_reading(name, true);
        more(&mut broker, name, &format!("SNAME: basic.consume-ok 't'\n{deliver}"));
    }
}

/// Answers that carry bodies are bounded, too: the next commands wait until the client has read.
#[test]
fn a_client_that_asks_and_does_not_read_is_given_a_window_of_answers() {
    let mut broker = with_a_client_that_asks_and_does_not_read();
    let waiting = broker.unheard_bytes("a");
    assert!((WINDOW_BYTES_MAX..WINDOW_BYTES_MAX + 2 * BODY).contains(&waiting), "{waiting}");
    broker.set_reading("a", true);
    let first = format!("S: basic.get-ok 1 '' 'q' 0 body={BODY}*x");
    let rest = lines(2..=MANY, |tag| format!("S: basic.get-ok {tag} redelivered '' 'q' 0 body={BODY}*x"));
    run_more(&mut broker, &format!("{first}\n{rest}"));
}

/// Client `a` asks for more than its window of answers holds; `b` does nothing.
fn with_a_client_that_asks_and_does_not_read() -> Broker {
    let mut broker = Broker::new(Variation::ALL[0]);
    run(&mut broker, "Cb: queue.declare queue='q'\nSb: queue.declare-ok 'q' 0 0\nC: basic.qos\nS: basic.qos-ok");
    run_more(&mut broker, &format!("C: basic.publish routing-key='q' body={BODY}*x"));
    broker.set_reading("a", false);
    let ask = lines(1..=MANY, |tag| format!("C: basic.get queue='q'\nC: basic.nack delivery-tag={tag} requeue"));
    run_more(&mut broker, &ask);
    broker
}

/// A client that asked for more than it read, and is gone, leaves nothing behind.
#[test]
fn a_client_that_asks_does_not_read_and_goes_leaves_nothing_behind() {
    let mut broker = with_a_client_that_asks_and_does_not_read();
    run_more(&mut broker, "C: end");
    assert!(broker.unheard_bytes("a") < WINDOW_BYTES_MAX + 2 * BODY);
    run_more(&mut broker, "Cb: queue.declare queue='q' passive\nSb: queue.declare-ok 'q' 1 0");
}

/// Also if its commands wait for it to read their answers, and they are as if they had not been read.
#[test]
fn a_content_that_is_overdue_closes_its_connection_at_once() {
    let mut broker = with_a_client_that_asks_and_does_not_read();
    run_more(&mut broker, "C: basic.publish routing-key='q' body='late'");
    run_more(&mut broker, "C: basic.publish routing-key='q'\nC: content-header 100000\nC: content-body 50000*x");
    broker.overdue("a");
    let told = broker.unheard_bytes("a");
    assert!(told < WINDOW_BYTES_MAX + 2 * BODY, "{told}");
    broker.set_reading("a", true);
    let first = format!("S: basic.get-ok 1 '' 'q' 0 body={BODY}*x");
    let more = told / BODY - 1;
    let rest = lines(2..=u32::try_from(more).unwrap() + 1, |tag| {
        format!("S: basic.get-ok {tag} redelivered '' 'q' 0 body={BODY}*x")
    });
    let close = "S/0: connection.close 506 'RESOURCE_ERROR - the broker is low on memory, and a content took too long to \
                 arrive; publish it again' 60 40";
    run_more(&mut broker, &format!("{first}\n{rest}\n{close}\nC/0: connection.close-ok"));
    run_more(&mut broker, "Cb: queue.declare queue='q' passive\nSb: queue.declare-ok 'q' 1 0");
}

#[test]
fn a_content_is_given_up_as_soon_as_its_client_is_gone() {
    let mut broker = Broker::new(Variation::ALL[0]);
    run(&mut broker, "C: queue.declare queue='q'\nS: queue.declare-ok 'q' 0 0");
    run_more(&mut broker, "C: basic.publish routing-key='q'\nC: content-header 100000\nC: content-body 50000*x");
    assert_eq!(broker.end_within_content("a"), 0, "others wait for their turn");
}

#[test]
fn a_transaction_has_a_limit_and_is_gone_beyond_it() {
    let mut broker = Broker::new(Variation::ALL[0]);
    let body = "x".repeat(16 * 1024 * 1024);
    let publish = format!("C: basic.publish routing-key='q' body='{body}'\n");
    // 31 fit, with what each takes beside its body; there is room for 512 MiB.
    run(&mut broker, "C: tx.select\nS: tx.select-ok");
    for _ in 0..31 {
        run_more(&mut broker, &publish);
    }
    run_more(
        &mut broker,
        &format!("{publish}S: channel.close 406\nC: channel.close-ok\nC/2: channel.open\nS/2: channel.open-ok"),
    );
}
