//! Exchanges of RabbitMQ's other types: those that pick one of many by a hash or by chance, and the one that remembers.

use leveret_testkit::script;

/// Durable queues `a`, `b` and `c`, and a durable exchange `x` of the given type, with a consumer of each queue on channel 2
/// once `CONSUME` stands there.
fn with_exchange(declare: &str, rest: &str) {
    let queue = |name| format!("C: queue.declare queue='{name}' durable\nS: queue.declare-ok '{name}' 0 0\n");
    let consumer = |name| {
        format!(
            "C/2: basic.consume queue='{name}' consumer-tag='of-{name}' no-ack\nS/2: basic.consume-ok 'of-{name}'\n"
        )
    };
    let queues: String = ["a", "b", "c"].map(queue).concat();
    let rest = rest.replace("CONSUME", &["a", "b", "c"].map(consumer).concat());
    script(&format!("{queues}C: exchange.declare exchange='x' {declare} durable\nS: exchange.declare-ok\n{rest}"));
}

fn bind(queue: &str, key: &str) -> String {
    format!("C: queue.bind queue='{queue}' exchange='x' routing-key='{key}'\nS: queue.bind-ok\n")
}

/// All three queues with these keys.
fn bind_all(keys: [&str; 3]) -> String {
    std::iter::zip(["a", "b", "c"], keys).map(|(queue, key)| bind(queue, key)).collect()
}

fn purge_all(counts: [usize; 3]) -> String {
    let purge = |(queue, count)| format!("C: queue.purge queue='{queue}'\nS: queue.purge-ok {count}\n");
    std::iter::zip(["a", "b", "c"], counts).map(purge).collect()
}

/// Each of the queues has something in it.
fn none_is_empty() -> String {
    let delete = |(channel, queue)| {
        format!("C/{channel}: queue.delete queue='{queue}' if-empty\nS/{channel}: channel.close 406\n")
    };
    [(3, "a"), (4, "b"), (5, "c")].map(delete).concat()
}

/// Two messages with this key, one after the other, to one queue, which `name` stands for.
fn twice_to_one(arguments: &str, name: &str) -> String {
    let once = format!("C: basic.publish exchange='x' {arguments} body='1'\nS/2: basic.deliver ${name}\n");
    once.repeat(2) + "S/2: nothing\n"
}

/// A part of a script for each of these numbers.
fn each(numbers: impl Iterator<Item = usize>, part: impl Fn(usize) -> String) -> String {
    numbers.map(part).collect::<Vec<_>>().concat()
}

/// So many messages, with keys `0`, `1`, and so on.
fn publish_keys(count: usize) -> String {
    each(0..count, |n| format!("C: basic.publish exchange='x' routing-key='{n}' mandatory body=''\n"))
}

// x-consistent-hash

#[test]
fn a_consistent_hash_sends_each_key_to_one_queue_and_to_the_same_one_after_a_restart() {
    let keys = each(0..10, |n| twice_to_one(&format!("routing-key='key-{n}'"), &format!("who-{n}")));
    let binding = bind_all(["1", "2", "1"]);
    with_exchange(
        "type='x-consistent-hash'",
        &format!("{binding}CONSUME{keys}restart\nCONSUME{keys}checkpoint\ncrash\nCONSUME{keys}"),
    );
}

/// Where Leveret sends which key. If this changes, every message goes elsewhere after an upgrade.
#[test]
fn a_consistent_hash_gives_each_queue_as_many_keys_as_its_weight_says() {
    let (keys, binding) = (publish_keys(400), bind_all(["10", "10", "20"]));
    let counts = purge_all([117, 105, 178]);
    with_exchange("type='x-consistent-hash'", &format!("{binding}{keys}{counts}restart\n{keys}{counts}"));
}

#[test]
fn a_consistent_hash_looks_at_a_header_or_a_property_if_it_says_so() {
    for (argument, value) in [
        ("hash-header='tenant'", "headers={tenant='V'}"),
        ("hash-property='message_id'", "message-id='V'"),
        ("hash-property='correlation_id'", "correlation-id='V'"),
        ("hash-property='timestamp'", "timestamp=V"),
    ] {
        let declare = format!("type='x-consistent-hash' arguments={{{argument}}}");
        // The same value under other keys, and other values under the same key: neither is decided by the key.
        let same = each(0..5, |n| {
            let value = value.replace('V', "7");
            format!("C: basic.publish exchange='x' routing-key='{n}' {value} body=''\nS/2: basic.deliver $who\n")
        });
        let others = each(0..40, |n| {
            let value = value.replace('V', &n.to_string());
            format!("C: basic.publish exchange='x' routing-key='k' {value} body=''\n")
        });
        let binding = bind_all(["1", "1", "1"]);
        let spread = none_is_empty();
        with_exchange(&declare, &format!("{binding}{others}{spread}"));
        // What has none of it goes to one queue, too.
        let without = twice_to_one("routing-key='1'", "without") + &twice_to_one("routing-key='2'", "without");
        with_exchange(&declare, &format!("{binding}CONSUME{same}{without}"));
    }
}

#[test]
fn numbers_in_a_hashed_header_are_equal_whatever_their_width() {
    let to_one = each(0..10, |n| {
        let who = format!("who-{n}");
        twice_to_one(&format!("headers={{n={n}}}"), &who) + &twice_to_one(&format!("headers={{n=i64:{n}}}"), &who)
    });
    let binding = bind_all(["1", "1", "1"]);
    with_exchange("type='x-consistent-hash' arguments={hash-header='n'}", &format!("{binding}CONSUME{to_one}"));
}

#[test]
fn a_consistent_hash_looks_at_the_first_of_several_keys_and_sends_one_copy() {
    let first = twice_to_one("routing-key='k'", "who");
    let several =
        each(0..10, |n| twice_to_one(&format!("routing-key='k' headers={{CC=['{n}'] BCC=['b{n}']}}"), "who"));
    let binding = bind_all(["1", "1", "1"]);
    with_exchange("type='x-consistent-hash'", &format!("{binding}CONSUME{first}{several}"));
}

/// The only queue that is left gets everything; none at all is no route.
#[test]
fn a_consistent_hash_goes_on_with_the_queues_that_are_left() {
    let (keys, binding) = (publish_keys(10), bind_all(["1", "5", "7"]));
    let counts = purge_all([10, 0, 0]).replace("C: queue.purge queue='c'\nS: queue.purge-ok 0\n", "");
    with_exchange(
        "type='x-consistent-hash'",
        &format!(
            "
            {binding}
            C: queue.unbind queue='b' exchange='x' routing-key='5'
            S: queue.unbind-ok
            C: queue.delete queue='c'
            S: queue.delete-ok 0
            {keys}
            {counts}
            C: queue.unbind queue='a' exchange='x' routing-key='1'
            S: queue.unbind-ok
            C: basic.publish exchange='x' routing-key='1' mandatory body=''
            S: basic.return 312
            "
        ),
    );
}

#[test]
fn weights_of_bindings_of_a_consistent_hash_are_numbers_from_1_on() {
    for (key, text) in [
        ("", "The binding key must be an integer: <<>>"),
        ("not-a-number", "The binding key must be an integer: <<\\x22not-a-number\\x22>>"),
        ("1.5", "The binding key must be an integer: <<\\x221.5\\x22>>"),
        ("0", "The binding key must be greater than 0"),
        ("-1", "The binding key must be greater than 0"),
    ] {
        with_exchange(
            "type='x-consistent-hash'",
            &format!(
                "
                C: exchange.bind source='x' destination='amq.fanout' routing-key='{key}'
                S: channel.close 406 'PRECONDITION_FAILED - {text}' 40 30
                C/2: queue.unbind queue='a' exchange='x' routing-key='{key}'
                S/2: queue.unbind-ok
                "
            ),
        );
    }
}

#[test]
fn arguments_of_a_consistent_hash_are_checked() {
    for (arguments, text) in [
        ("hash-header='h' hash-property='message_id'", "hash-header and hash-property are mutually exclusive"),
        ("hash-property='app_id'", "Unsupported property: app_id"),
        ("hash-header=5", "invalid type 'signedint' for arg 'hash-header' in exchange 'x' in vhost '/'"),
    ] {
        script(&format!(
            "
            C: exchange.declare exchange='x' type='x-consistent-hash' arguments={{{arguments}}}
            S: channel.close 406 \"PRECONDITION_FAILED - {text}\" 40 10
            "
        ));
    }
}

// x-modulus-hash

#[test]
fn a_modulus_hash_sends_each_key_to_one_queue_and_to_the_same_one_after_a_restart() {
    let keys = each(0..10, |n| twice_to_one(&format!("routing-key='key-{n}'"), &format!("who-{n}")));
    let binding = bind_all(["anything", "", "1"]);
    with_exchange(
        "type='x-modulus-hash'",
        &format!("{binding}CONSUME{keys}restart\nCONSUME{keys}checkpoint\ncrash\nCONSUME{keys}"),
    );
}

/// Where Leveret sends which key, with `c` bound twice. It is the hash of all keys together.
#[test]
fn a_modulus_hash_gives_each_binding_as_many_keys_as_any_other() {
    let (keys, binding) = (publish_keys(400), bind_all(["", "", ""]) + &bind("c", "again"));
    let counts = purge_all([85, 107, 208]);
    let more =
        each(0..40, |n| format!("C: basic.publish exchange='x' routing-key='k' headers={{CC=['{n}']}} body=''\n"));
    let more_counts = purge_all([13, 9, 18]);
    with_exchange("type='x-modulus-hash'", &format!("{binding}{keys}{counts}{more}{more_counts}"));
}

// x-random, x-local-random

#[test]
fn a_random_exchange_sends_each_message_to_one_queue_and_not_all_to_the_same() {
    for kind in ["x-random", "x-local-random"] {
        let binding = bind_all(["", "", ""]);
        let publishes = "C: basic.publish exchange='x' routing-key='k' mandatory body=''\n".repeat(60);
        let spread = none_is_empty();
        with_exchange(&format!("type='{kind}'"), &format!("{binding}{publishes}{spread}"));
        let once = "C: basic.publish exchange='x' routing-key='k' headers={CC=['l']} body=''\nS/2: basic.deliver\nS/2: nothing\n";
        with_exchange(&format!("type='{kind}'"), &format!("{binding}CONSUME{}", once.repeat(5)));
    }
}

#[test]
fn a_random_exchange_without_a_queue_leads_nowhere_or_to_its_alternate() {
    for kind in ["x-random", "x-local-random", "x-modulus-hash", "x-consistent-hash"] {
        with_exchange(
            &format!("type='{kind}' arguments={{alternate-exchange='amq.fanout'}}"),
            "
            C: basic.publish exchange='x' routing-key='k' mandatory body='1'
            S: basic.return 312 'NO_ROUTE' 'x' 'k' body='1'
            C: queue.bind queue='a' exchange='amq.fanout'
            S: queue.bind-ok
            C: basic.publish exchange='x' routing-key='k' mandatory body='2'
            C: basic.get queue='a' no-ack
            S: basic.get-ok 1 'x' 'k' 0 body='2'
            ",
        );
    }
}

/// RabbitMQ: any key, and exchanges, too.
#[test]
fn a_queue_that_is_unbound_is_picked_no_longer() {
    for kind in ["x-random", "x-local-random", "x-modulus-hash"] {
        let (binding, keys) = (bind_all(["", "", ""]), publish_keys(20));
        let unbind = |queue| format!("C: queue.unbind queue='{queue}' exchange='x'\nS: queue.unbind-ok\n");
        let (one, two) = (unbind("b"), unbind("a") + &unbind("c"));
        let counts = purge_all([0, 0, 20]).replace("purge-ok 0", "purge-ok $count");
        let counts =
            counts.replacen("$count", "$in-a", 1).replacen("$count", "0", 1).replace("-ok 20", "-ok $in-c");
        with_exchange(
            &format!("type='{kind}'"),
            &format!(
                "
                {binding}
                {one}
                {keys}
                {counts}
                {two}
                C: basic.publish exchange='x' routing-key='1' mandatory body=''
                S: basic.return 312
                "
            ),
        );
    }
}

#[test]
fn a_random_exchange_ignores_keys_and_leads_to_exchanges() {
    with_exchange(
        "type='x-random'",
        "
        C: exchange.bind source='x' destination='amq.topic' routing-key='anything'
        S: exchange.bind-ok
        C: queue.bind queue='a' exchange='amq.topic' routing-key='a.#'
        S: queue.bind-ok
        C: exchange.bind source='amq.direct' destination='x' routing-key='a.b'
        S: exchange.bind-ok
        C: basic.publish exchange='amq.direct' routing-key='a.b' mandatory body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'amq.direct' 'a.b' 0 body='1'
        C: basic.publish exchange='x' routing-key='b' mandatory body='2'
        S: basic.return 312
        ",
    );
}

#[test]
fn a_local_random_exchange_takes_classic_queues_without_a_key() {
    for (method, text) in [
        ("queue.bind queue='a' exchange='x' routing-key='k'", "Non empty binding 'k' key not permitted"),
        (
            "queue.bind queue='quorum' exchange='x'",
            "Queue type rabbit_quorum_queue not valid for this exchange type",
        ),
        ("exchange.bind source='x' destination='amq.fanout'", "Destination not found"),
    ] {
        with_exchange(
            "type='x-local-random'",
            &format!(
                "
                C: queue.declare queue='quorum' durable arguments={{x-queue-type='quorum'}}
                S: queue.declare-ok 'quorum' 0 0
                C: {method}
                S: channel.close 406 \"PRECONDITION_FAILED - {text}\"
                "
            ),
        );
    }
}

#[test]
fn dead_letters_and_what_other_exchanges_pass_on_are_hashed_by_their_keys() {
    let key = twice_to_one("routing-key='k'", "who");
    let several = twice_to_one("routing-key='k' headers={CC=['l' 'm']}", "who-of-several");
    let binding = bind_all(["1", "1", "1"]);
    for kind in ["x-consistent-hash", "x-modulus-hash"] {
        with_exchange(
            &format!("type='{kind}'"),
            &format!(
                "
                {binding}
                CONSUME
                {key}
                C: exchange.bind source='amq.fanout' destination='x' routing-key='1'
                S: exchange.bind-ok
                C: basic.publish exchange='amq.fanout' routing-key='k' body='1'
                S/2: basic.deliver $who
                C: queue.declare queue='dying' arguments={{x-dead-letter-exchange='x' x-max-length=0}}
                S: queue.declare-ok 'dying' 0 0
                C: queue.bind queue='dying' exchange='amq.direct' routing-key='k'
                S: queue.bind-ok
                C: basic.publish exchange='amq.direct' routing-key='k' body='1'
                S/2: basic.deliver $who
                {several}
                C: basic.publish exchange='amq.direct' routing-key='k' headers={{CC=['l' 'm']}} body='1'
                S/2: basic.deliver $who-of-several
                S/2: nothing
                "
            ),
        );
    }
}

// x-recent-history

fn publish(bodies: std::ops::RangeInclusive<usize>) -> String {
    each(bodies, |n| format!("C: basic.publish exchange='x' routing-key='k' body='{n}'\n"))
}

fn get(queue: &str, bodies: std::ops::RangeInclusive<usize>) -> String {
    let get =
        |n| format!("C: basic.get queue='{queue}' no-ack\nS: basic.get-ok $tag-{queue}-{n} 'x' 'k' body='{n}'\n");
    bodies.map(get).collect::<String>() + &format!("C: basic.get queue='{queue}'\nS: basic.get-empty\n")
}

#[test]
fn who_is_bound_to_a_recent_history_gets_the_last_twenty_messages_in_their_order() {
    let (bind_a, bind_b, again) = (bind("a", ""), bind("b", "any"), bind("b", "other"));
    let (first, more) = (publish(1..=25), publish(26..=30));
    let (live, replayed, replayed_again) = (get("a", 1..=30), get("b", 11..=30), get("b", 11..=30));
    // The same binding once more is none, and another one to the same queue is.
    with_exchange(
        "type='x-recent-history'",
        &format!(
            "{bind_a}{first}{more}{live}{bind_b}{replayed}{bind_b}C: basic.get queue='b'\nS: basic.get-empty\n{}{}",
            again,
            replayed_again.replace("tag-b", "again-b")
        ),
    );
}

#[test]
fn a_recent_history_is_as_long_as_it_says_and_leaves_out_what_is_not_to_be_stored() {
    let (publishes, replayed, bind_a) = (publish(1..=9), get("a", 8..=9), bind("a", ""));
    with_exchange(
        "type='x-recent-history' arguments={x-recent-history-length=3}",
        &format!(
            "
            {publishes}
            C: basic.publish exchange='x' routing-key='k' headers={{x-recent-history-no-store=true}} body='secret'
            C: basic.publish exchange='x' routing-key='other' headers={{x-recent-history-no-store='true'}} body='no'
            {bind_a}
            {}
            C: basic.get queue='a'
            S: basic.get-empty
            ",
            replayed.replace(
                "C: basic.get queue='a'\nS: basic.get-empty\n",
                "C: basic.get queue='a' no-ack\nS: basic.get-ok $last 'x' 'other' body='no'"
            )
        ),
    );
    for (value, shown) in [("0", "0"), ("-1", "-1"), ("'5'", "<<\\x225\\x22>>"), ("true", "true"), ("u8:5", "5")] {
        script(&format!(
            "
            C: exchange.declare exchange='x' type='x-recent-history' arguments={{x-recent-history-length={value}}}
            S: channel.close 406 \"PRECONDITION_FAILED - Invalid argument {shown}, 'x-recent-history-length' must be a positive integer\" 40 10
            "
        ));
    }
}

#[test]
fn a_recent_history_goes_through_an_exchange_that_is_bound_to_it() {
    with_exchange(
        "type='x-recent-history'",
        "
        C: queue.bind queue='a' exchange='amq.topic' routing-key='a.*'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='amq.topic' routing-key='b.*'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='a.1' body='1'
        C: basic.publish exchange='x' routing-key='none' headers={CC=['a.2'] BCC=['b.2']} body='2'
        C: basic.publish exchange='x' routing-key='none' body='3'
        C: exchange.bind source='x' destination='amq.topic'
        S: exchange.bind-ok
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'a.1' 1 body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 2 'x' 'none' 0 headers={CC=['a.2']} body='2'
        C: basic.get queue='b' no-ack
        S: basic.get-ok 3 'x' 'none' 0 body='2'
        ",
    );
}

#[test]
fn a_recent_history_keeps_what_reached_no_queue_and_what_came_from_elsewhere() {
    with_exchange(
        "type='x-recent-history'",
        "
        C: basic.publish exchange='x' routing-key='k' mandatory body='1'
        S: basic.return 312 'NO_ROUTE' 'x' 'k' body='1'
        C: exchange.bind source='amq.fanout' destination='x'
        S: exchange.bind-ok
        C: basic.publish exchange='amq.fanout' routing-key='l' body='2'
        C: queue.declare queue='dying' arguments={x-dead-letter-exchange='x' x-max-length=0}
        S: queue.declare-ok 'dying' 0 0
        C: basic.publish routing-key='dying' body='3'
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 2 body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 2 'amq.fanout' 'l' 1 body='2'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 3 'x' 'dying' 0 body='3'
        ",
    );
}

#[test]
fn a_recent_history_keeps_what_is_committed_and_not_what_is_rolled_back() {
    with_exchange(
        "type='x-recent-history'",
        "
        C: tx.select
        S: tx.select-ok
        C: basic.publish exchange='x' routing-key='k' body='0'
        C: tx.rollback
        S: tx.rollback-ok
        C: basic.publish exchange='x' routing-key='k' body='1'
        C/2: queue.bind queue='a' exchange='x'
        S/2: queue.bind-ok
        C: tx.commit
        S: tx.commit-ok
        C/2: queue.bind queue='b' exchange='x'
        S/2: queue.bind-ok
        C/2: basic.get queue='a'
        S/2: basic.get-empty
        C/2: basic.get queue='b'
        S/2: basic.get-ok 1 'x' 'k' 0 body='1'
        ",
    );
}

#[test]
fn what_a_recent_history_replays_has_its_time_to_live_anew_and_limits_hold() {
    with_exchange(
        "type='x-recent-history'",
        "
        C: queue.declare queue='short' arguments={x-max-length=1}
        S: queue.declare-ok 'short' 0 0
        C: basic.publish exchange='x' routing-key='k' expiration='60000' body='1'
        C: basic.publish exchange='x' routing-key='k' expiration='600000' body='2'
        wait 2min
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: queue.bind queue='short' exchange='x'
        S: queue.bind-ok
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 1 expiration='60000' body='1'
        C: basic.get queue='short' no-ack
        S: basic.get-ok 2 'x' 'k' 0 body='2'
        wait 20min
        C: basic.get queue='a'
        S: basic.get-empty
        ",
    );
}

/// As in RabbitMQ's documentation. What was replayed before is as durable as any other message.
#[test]
fn a_recent_history_begins_anew_with_each_start_and_what_was_replayed_stays() {
    with_exchange(
        "type='x-recent-history'",
        "
        C: basic.publish exchange='x' routing-key='k' delivery-mode=2 body='1'
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        crash
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 0 body='1'
        C: queue.bind queue='b' exchange='x'
        S: queue.bind-ok
        C: basic.get queue='b'
        S: basic.get-empty
        ",
    );
}

#[test]
fn a_binding_is_answered_once_what_it_replays_is_durable() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: exchange.declare exchange='x' type='x-recent-history'
        S: exchange.declare-ok
        C: basic.publish exchange='x' routing-key='k' delivery-mode=2 body='1'
        journal stops
        C: queue.bind queue='q' exchange='x'
        S: nothing
        journal keeps up
        S: queue.bind-ok
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 'x' 'k' 0 body='1'
        ",
    );
}

/// What waits is kept once it is routed, and hashed by its keys then.
#[test]
fn behind_a_delay_these_types_are_what_they_are_without_one() {
    let key = "C: basic.publish exchange='x' routing-key='k' headers={x-delay=1000} body='1'\nS/2: nothing\nwait 1s\nS/2: basic.deliver $who\nS/2: nothing\n";
    let binding = bind_all(["1", "1", "1"]);
    with_exchange(
        "type='x-delayed-message' arguments={x-delayed-type='x-consistent-hash'}",
        &format!(
            "
            {binding}
            CONSUME
            {}
            C/3: queue.bind queue='a' exchange='x' routing-key='k'
            S/3: channel.close 406
            C/4: exchange.declare exchange='y' type='x-delayed-message' arguments={{x-delayed-type='x-consistent-hash' hash-property='app_id'}}
            S/4: channel.close 406
            ",
            key.repeat(3)
        ),
    );
    with_exchange(
        "type='x-delayed-message' arguments={x-delayed-type='x-recent-history'}",
        "
        C: basic.publish exchange='x' routing-key='k' headers={x-delay=1000} body='1'
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: basic.get queue='a'
        S: basic.get-empty
        wait 1s
        C: queue.bind queue='b' exchange='x'
        S: queue.bind-ok
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 0 body='1'
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 'x' 'k' 0 body='1'
        ",
    );
}
