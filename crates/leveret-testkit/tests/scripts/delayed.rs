//! Exchanges of type `x-delayed-message`, which keep messages for a while before they route them.

use leveret_testkit::script;

/// Queues `a` and `b`, and an exchange `x` that delays messages and routes them as one of the given type.
fn with_delayed(kind: &str, rest: &str) {
    script(&format!(
        "
        C: queue.declare queue='a' durable
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b' durable
        S: queue.declare-ok 'b' 0 0
        C: exchange.declare exchange='x' type='x-delayed-message' durable arguments={{x-delayed-type='{kind}'}}
        S: exchange.declare-ok
        {rest}
        "
    ));
}

#[test]
fn a_message_is_routed_when_its_delay_is_over_and_says_so() {
    with_delayed(
        "direct",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='x' routing-key='k' headers={x-delay=1800000 other='o'} delivery-mode=2 body='late'
        S: basic.ack 1
        wait 1799999ms
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 0 headers={other='o' x-delay=-1800000} delivery-mode=2 body='late'
        ",
    );
}

#[test]
fn what_has_no_delay_is_routed_at_once_as_it_is() {
    for headers in [
        "other=1",
        "x-delay=0",
        "x-delay=-1000",
        "x-delay=4294967296",
        "x-delay='soon'",
        "x-delay=true",
        "x-delay={ms=5}",
        "x-delay=0.5",
    ] {
        with_delayed(
            "fanout",
            &format!(
                "
                C: queue.bind queue='a' exchange='x'
                S: queue.bind-ok
                C: basic.publish exchange='x' headers={{{headers}}} body='at once'
                C: basic.get queue='a' no-ack
                S: basic.get-ok 1 'x' '' 0 headers={{{headers}}} body='at once'
                C: basic.publish exchange='x' body='without headers'
                C: basic.get queue='a' no-ack
                S: basic.get-ok 2 'x' '' 0 body='without headers'
                C: basic.publish exchange='x' headers={{x-delay=1000}} body='waits all the same'
                C: basic.get queue='a' no-ack
                S: basic.get-empty
                "
            ),
        );
    }
}

#[test]
fn the_longest_delay_is_seven_weeks_and_a_number_of_any_type_counts() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={x-delay=4294967295} body='long'
        C: basic.publish exchange='x' headers={x-delay='2000'} body='digits'
        C: basic.publish exchange='x' headers={x-delay=1000.9} body='real'
        wait 999ms
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 0 headers={x-delay=-1000} body='real'
        wait 1s
        C: basic.get queue='a' no-ack
        S: basic.get-ok 2 'x' '' 0 headers={x-delay=-2000} body='digits'
        wait 4294965294ms
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 3 'x' '' 0 headers={x-delay=-4294967295} body='long'
        ",
    );
}

#[test]
fn messages_come_when_they_are_due_and_those_due_at_once_as_they_were_published() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={x-delay=3000} delivery-mode=2 body='3s, first'
        C: basic.publish exchange='x' headers={x-delay=1000} body='1s'
        C: basic.publish exchange='x' headers={x-delay=5000} delivery-mode=2 body='5s'
        C: basic.publish exchange='x' headers={x-delay=3000} body='3s, second'
        wait 1500ms
        C: basic.publish exchange='x' headers={x-delay=1500} delivery-mode=2 body='3s, third'
        wait 1490ms
        C: basic.publish exchange='x' headers={x-delay=10} delivery-mode=2 body='3s, fourth'
        C: basic.publish exchange='x' headers={x-delay=9} delivery-mode=2 body='2.999s'
        wait 5s
        C: basic.consume queue='a' consumer-tag='t' no-ack
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1s'
        S: basic.deliver 't' 2 body='2.999s'
        S: basic.deliver 't' 3 body='3s, first'
        S: basic.deliver 't' 4 body='3s, second'
        S: basic.deliver 't' 5 body='3s, third'
        S: basic.deliver 't' 6 body='3s, fourth'
        S: basic.deliver 't' 7 body='5s'
        ",
    );
}

#[test]
fn bindings_count_as_they_are_when_the_message_is_due() {
    with_delayed(
        "topic",
        "
        C: queue.bind queue='a' exchange='x' routing-key='#'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='k.l' headers={x-delay=1000} body='1'
        C: queue.unbind queue='a' exchange='x' routing-key='#'
        S: queue.unbind-ok
        C: queue.bind queue='b' exchange='x' routing-key='*.l'
        S: queue.bind-ok
        wait 1s
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        C: basic.get queue='b' no-ack
        S: basic.get-ok 1 'x' 'k.l' 0 body='1'
        ",
    );
}

#[test]
fn a_delayed_exchange_routes_by_headers_and_checks_bindings_as_its_inner_type_does() {
    with_delayed(
        "headers",
        "
        C: queue.bind queue='a' exchange='x' arguments={x-match='all' colour='red'}
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' arguments={x-match='all' colour='green'}
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={colour='red' x-delay=10} body='red'
        wait 10ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 0 headers={colour='red' x-delay=-10} body='red'
        C: basic.get queue='b' no-ack
        S: basic.get-empty
        C: queue.bind queue='a' exchange='x' arguments={x-match='none'}
        S: channel.close 406
        ",
    );
}

#[test]
fn what_waits_is_not_unroutable_and_what_does_not_may_be() {
    with_delayed(
        "direct",
        "
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='x' routing-key='nowhere' headers={x-delay=1000} mandatory body='waits'
        S: basic.ack 1
        C: basic.publish exchange='x' routing-key='nowhere' mandatory body='does not'
        S: basic.return 312 'NO_ROUTE' 'x' 'nowhere' body='does not'
        S: basic.ack 2
        wait 1s
        S: nothing
        ",
    );
}

#[test]
fn an_alternate_exchange_takes_what_matches_nothing_when_it_is_due() {
    script(
        "
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: exchange.declare exchange='alternate' type='fanout'
        S: exchange.declare-ok
        C: queue.bind queue='other' exchange='alternate'
        S: queue.bind-ok
        C: exchange.declare exchange='x' type='x-delayed-message' arguments={x-delayed-type='direct' alternate-exchange='alternate'}
        S: exchange.declare-ok
        C: basic.publish exchange='x' routing-key='nowhere' headers={x-delay=1000} body='1'
        wait 999ms
        C: basic.get queue='other' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='other' no-ack
        S: basic.get-ok 1 'x' 'nowhere' 0 headers={x-delay=-1000} body='1'
        ",
    );
}

#[test]
fn a_message_waits_once_wherever_delayed_exchanges_are_bound() {
    with_delayed(
        "fanout",
        "
        C: exchange.declare exchange='first' type='fanout'
        S: exchange.declare-ok
        C: exchange.declare exchange='next' type='x-delayed-message' arguments={x-delayed-type='fanout'}
        S: exchange.declare-ok
        C: exchange.bind destination='x' source='first'
        S: exchange.bind-ok
        C: exchange.bind destination='next' source='x'
        S: exchange.bind-ok
        C: queue.bind queue='a' exchange='first'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='next'
        S: queue.bind-ok
        C: basic.publish exchange='first' headers={x-delay=1000} body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'first' '' 0 headers={x-delay=1000} body='1'
        wait 999ms
        C: basic.get queue='b' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 'first' '' 0 headers={x-delay=-1000} body='1'
        ",
    );
}

#[test]
fn all_routing_keys_of_a_message_count_when_it_is_due() {
    with_delayed(
        "direct",
        "
        C: queue.declare queue='c'
        S: queue.declare-ok 'c' 0 0
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' routing-key='cc'
        S: queue.bind-ok
        C: queue.bind queue='c' exchange='x' routing-key='bcc'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='k' headers={CC=['cc'] BCC=['bcc'] x-delay=10} body='1'
        wait 10ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 0 headers={CC=['cc'] x-delay=-10}
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 'x' 'k' 0 headers={CC=['cc'] x-delay=-10}
        C: basic.get queue='c' no-ack
        S: basic.get-ok 3 'x' 'k' 0 headers={CC=['cc'] x-delay=-10}
        ",
    );
}

#[test]
fn a_dead_letter_waits_in_a_delayed_exchange() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: queue.declare queue='x' durable arguments={x-dead-letter-exchange='x'}
        S: queue.declare-ok 'x' 0 0
        C: basic.publish routing-key='x' headers={x-delay=5000} delivery-mode=2 expiration='1000' body='1'
        wait 1s
        C: queue.declare queue='x' passive
        S: queue.declare-ok 'x' 0 0
        wait 4999ms
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        crash
        wait 1ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'x' 0 body='1'
        ",
    );
}

#[test]
fn a_delay_counts_from_the_commit_of_a_transaction() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        Ct: tx.select
        St: tx.select-ok
        Ct: basic.publish exchange='x' headers={x-delay=1000} delivery-mode=2 body='rolled back'
        Ct: tx.rollback
        St: tx.rollback-ok
        Ct: basic.publish exchange='x' headers={x-delay=1000} delivery-mode=2 body='committed'
        wait 600ms
        Ct: tx.commit
        St: tx.commit-ok
        wait 999ms
        C: basic.get queue='a' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 0 body='committed'
        ",
    );
}

#[test]
fn a_time_to_live_counts_from_when_the_message_reaches_a_queue() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={x-delay=60000} expiration='500' body='1'
        wait 60s
        C: queue.declare queue='a' passive
        S: queue.declare-ok 'a' 1 0
        wait 499ms
        C: queue.declare queue='a' passive
        S: queue.declare-ok 'a' 1 0
        wait 1ms
        C: queue.declare queue='a' passive
        S: queue.declare-ok 'a' 0 0
        ",
    );
}

#[test]
fn a_queue_that_is_full_when_the_message_is_due_does_what_it_does_otherwise() {
    with_delayed(
        "fanout",
        "
        C: queue.declare queue='drops' arguments={x-max-length=1}
        S: queue.declare-ok 'drops' 0 0
        C: queue.declare queue='refuses' arguments={x-max-length=1 x-overflow='reject-publish'}
        S: queue.declare-ok 'refuses' 0 0
        C: queue.declare queue='sends-on' arguments={x-max-length=1 x-overflow='reject-publish-dlx' x-dead-letter-exchange='' x-dead-letter-routing-key='a'}
        S: queue.declare-ok 'sends-on' 0 0
        C: queue.bind queue='drops' exchange='x'
        S: queue.bind-ok
        C: queue.bind queue='refuses' exchange='x'
        S: queue.bind-ok
        C: queue.bind queue='sends-on' exchange='x'
        S: queue.bind-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='x' headers={x-delay=10} body='1'
        S: basic.ack 1
        C: basic.publish exchange='x' headers={x-delay=20} body='2'
        S: basic.ack 2
        wait 20ms
        C: basic.get queue='drops' no-ack
        S: basic.get-ok 1 'x' '' 0 body='2'
        C: basic.get queue='refuses' no-ack
        S: basic.get-ok 2 'x' '' 0 body='1'
        C: basic.get queue='sends-on' no-ack
        S: basic.get-ok 3 'x' '' 0 body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 4 '' 'a' 0 body='2'
        ",
    );
}

#[test]
fn what_is_persistent_waits_on_after_a_crash_and_the_rest_is_gone() {
    for checkpoint in ["", "checkpoint"] {
        with_delayed(
            "fanout",
            &format!(
                "
                C: queue.declare queue='quorum' durable arguments={{x-queue-type='quorum'}}
                S: queue.declare-ok 'quorum' 0 0
                C: queue.bind queue='quorum' exchange='x'
                S: queue.bind-ok
                C: queue.bind queue='a' exchange='x'
                S: queue.bind-ok
                C: confirm.select
                S: confirm.select-ok
                C: basic.publish exchange='x' headers={{x-delay=3000}} body='transient'
                S: basic.ack 1
                C: basic.publish exchange='x' headers={{x-delay=2000}} delivery-mode=2 body='2s'
                S: basic.ack 2
                C: basic.publish exchange='x' headers={{x-delay=1000}} delivery-mode=2 body='1s'
                S: basic.ack 3
                {checkpoint}
                wait 1s
                {checkpoint}
                crash
                wait 999ms
                C: basic.get queue='a'
                S: basic.get-ok 1 'x' '' 0 body='1s'
                C: basic.get queue='a'
                S: basic.get-empty
                crash
                wait 1ms
                C: basic.consume queue='a' consumer-tag='t'
                S: basic.consume-ok 't'
                S: basic.deliver 't' 1 redelivered body='1s'
                S: basic.deliver 't' 2 body='2s'
                wait 5s
                S: nothing
                C: basic.get queue='quorum' no-ack
                S: basic.get-ok 3 'x' '' 1 body='1s'
                restart
                C: basic.get queue='quorum' no-ack
                S: basic.get-ok 1 'x' '' 0 body='2s'
                "
            ),
        );
    }
}

#[test]
fn a_message_that_was_confirmed_waits_or_is_in_its_queue_whenever_the_power_is_cut() {
    with_delayed(
        "fanout",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='x' headers={x-delay=1000} delivery-mode=2 body='1'
        S: basic.ack 1
        journal stops
        wait 1s
        crash
        C: basic.get queue='a'
        S: basic.get-ok 1 'x' '' 0 body='1'
        crash
        C: basic.get queue='a'
        S: basic.get-ok 1 'x' '' 0 redelivered body='1'
        C: basic.ack delivery-tag=1
        C: basic.get queue='a'
        S: basic.get-empty
        crash
        C: basic.get queue='a'
        S: basic.get-empty
        ",
    );
}

#[test]
fn an_exchange_that_is_deleted_takes_with_it_what_waits_there() {
    for in_between in ["", "restart", "crash", "checkpoint\n crash"] {
        with_delayed(
            "fanout",
            &format!(
                "
                C: basic.publish exchange='x' headers={{x-delay=1000}} delivery-mode=2 body='1'
                checkpoint step
                checkpoint step
                C: exchange.delete exchange='x'
                S: exchange.delete-ok
                {in_between}
                C: exchange.declare exchange='x' type='x-delayed-message' durable arguments={{x-delayed-type='fanout'}}
                S: exchange.declare-ok
                C: queue.bind queue='a' exchange='x'
                S: queue.bind-ok
                C: basic.publish exchange='x' headers={{x-delay=2000}} delivery-mode=2 body='2'
                checkpoint
                wait 1s
                crash
                wait 1s
                C: basic.get queue='a' no-ack
                S: basic.get-ok 1 'x' '' 0 body='2'
                "
            ),
        );
    }
}

#[test]
fn an_exchange_that_deletes_itself_takes_with_it_what_waits_there() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: exchange.declare exchange='x' type='x-delayed-message' auto-delete durable arguments={x-delayed-type='fanout'}
        S: exchange.declare-ok
        C: queue.bind queue='q' exchange='x'
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={x-delay=1000} delivery-mode=2 body='1'
        C: queue.unbind queue='q' exchange='x'
        S: queue.unbind-ok
        Cb: exchange.declare exchange='x' passive
        Sb: channel.close 404
        C: exchange.declare exchange='x' type='x-delayed-message' durable arguments={x-delayed-type='fanout'}
        S: exchange.declare-ok
        C: queue.bind queue='q' exchange='x'
        S: queue.bind-ok
        wait 1s
        C: basic.get queue='q' no-ack
        S: basic.get-empty
        ",
    );
}

#[test]
fn nobody_finds_the_messages_that_wait() {
    with_delayed(
        "fanout",
        "
        C: basic.publish exchange='x' headers={x-delay=1000} delivery-mode=2 body='waits'
        Cb: queue.declare queue='x' passive
        Sb: channel.close 404
        C: queue.declare queue='x' durable
        S: queue.declare-ok 'x' 0 0
        C: queue.bind queue='x' exchange='x'
        S: queue.bind-ok
        C: basic.publish routing-key='x' delivery-mode=2 body='in a queue of that name'
        C: queue.purge queue='x'
        S: queue.purge-ok 1
        checkpoint
        crash
        C: queue.delete queue='x'
        S: queue.delete-ok 0
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        wait 1s
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 0 body='waits'
        ",
    );
}

#[test]
fn a_dead_letter_is_no_circle_because_a_queue_has_the_name_of_an_exchange() {
    script(
        "
        C: exchange.declare exchange='q' type='x-delayed-message' arguments={x-delayed-type='fanout'}
        S: exchange.declare-ok
        C: queue.declare queue='end'
        S: queue.declare-ok 'end' 0 0
        C: queue.bind queue='end' exchange='q'
        S: queue.bind-ok
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='next'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='next' arguments={x-message-ttl=5 x-dead-letter-exchange='q'}
        S: queue.declare-ok 'next' 0 0
        C: basic.publish routing-key='q' expiration='5' headers={x-delay=10} body='1'
        wait 20ms
        C: basic.get queue='end' no-ack
        S: basic.get-ok 1 'q' 'next' 0 body='1'
        ",
    );
}

#[test]
fn the_type_behind_the_delay_must_be_one() {
    for (arguments, text) in [
        ("", "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ("x-delayed-type=1", "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ("x-delayed-type=''", "unknown exchange type ''"),
        ("x-delayed-type='fan'", "unknown exchange type 'fan'"),
        (
            "x-delayed-type='x-delayed-message'",
            "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'",
        ),
    ] {
        script(&format!(
            "
            C: exchange.declare exchange='x' type='x-delayed-message' arguments={{{arguments}}}
            S: channel.close 406 \"PRECONDITION_FAILED - {text}\" 40 10
            C: channel.close-ok
            C/2: exchange.declare exchange='x' passive
            S/2: channel.close 404
            "
        ));
    }
}

#[test]
fn a_second_declaration_is_compared_but_for_the_type_behind_the_delay() {
    with_delayed(
        "direct",
        "
        C: exchange.declare exchange='x' type='x-delayed-message' durable arguments={x-delayed-type='topic'}
        S: exchange.declare-ok
        C: exchange.declare exchange='x' type='x-delayed-message' durable
        S: exchange.declare-ok
        C: exchange.declare exchange='x' passive
        S: exchange.declare-ok
        C: exchange.declare exchange='x' type='direct' durable
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'direct' but current is 'x-delayed-message'\" 40 10
        ",
    );
}

#[test]
fn hundreds_of_messages_in_no_order_come_in_that_of_their_delays() {
    let publishes: Vec<_> = (0..600)
        .map(|nth| {
            let delay = 1000 + nth * 37 % 600;
            format!("C: basic.publish exchange='x' headers={{x-delay={delay}}} delivery-mode=2 body='{delay}'")
        })
        .collect();
    let deliveries: Vec<_> =
        (1..=600).map(|tag| format!("S: basic.deliver 't' {tag} body='{}'", 999 + tag)).collect();
    let (publishes, deliveries) = (publishes.join("\n"), deliveries.join("\n"));
    with_delayed(
        "fanout",
        &format!(
            "
            C: queue.bind queue='a' exchange='x'
            S: queue.bind-ok
            {publishes}
            checkpoint
            wait 1300ms
            crash
            wait 10s
            C: basic.consume queue='a' consumer-tag='t' no-ack
            S: basic.consume-ok 't'
            {deliveries}
            "
        ),
    );
}

#[test]
fn policies_mean_the_exchange_and_not_the_messages_that_wait_in_it() {
    with_delayed(
        "direct",
        "
        C: exchange.declare exchange='alternate' type='fanout' durable
        S: exchange.declare-ok
        C: queue.bind queue='a' exchange='alternate'
        S: queue.bind-ok
        set policy 'ttl' pattern='^x$' apply-to='queues' definition={message-ttl=1 max-length=1 expires=5000}
        C: basic.publish exchange='x' headers={x-delay=10000} delivery-mode=2 body='1'
        C: basic.publish exchange='x' headers={x-delay=10000} delivery-mode=2 body='2'
        set policy 'alternate' pattern='^x$' apply-to='exchanges' definition={alternate-exchange='alternate'}
        checkpoint
        crash
        wait 10s
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 1 body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 2 'x' '' 0 body='2'
        ",
    );
}
