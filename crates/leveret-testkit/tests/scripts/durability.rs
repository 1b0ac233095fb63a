//! What a restart and a power cut keep, and what waits for the journal.

use leveret_testkit::script;

#[test]
fn durable_queues_exchanges_and_bindings_are_there_after_a_restart() {
    script(
        "
        C: exchange.declare exchange='logs' type='topic' durable
        S: exchange.declare-ok
        C: exchange.declare exchange='passing' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='kept' durable
        S: queue.declare-ok 'kept' 0 0
        C: queue.declare queue='lost'
        S: queue.declare-ok 'lost' 0 0
        C: queue.bind queue='kept' exchange='logs' routing-key='#.error'
        S: queue.bind-ok
        C: queue.bind queue='kept' exchange='logs' routing-key='unbound'
        S: queue.bind-ok
        C: queue.unbind queue='kept' exchange='logs' routing-key='unbound'
        S: queue.unbind-ok
        restart
        C: basic.publish exchange='logs' routing-key='disk.error' body='full'
        C: basic.publish exchange='logs' routing-key='unbound' body='nowhere'
        C: basic.get queue='kept' no-ack
        S: basic.get-ok 1 'logs' 'disk.error' 0 body='full'
        C: queue.declare queue='kept' durable
        S: queue.declare-ok 'kept' 0 0
        C/2: exchange.declare exchange='passing' passive
        S/2: channel.close 404
        C/2: channel.close-ok
        C/3: queue.declare queue='lost' passive
        S/3: channel.close 404
        C/3: channel.close-ok
    ",
    );
}

#[test]
fn persistent_messages_are_back_in_their_places_and_transient_ones_are_not() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=1 body='2'
        C: basic.publish routing-key='q' delivery-mode=2 body='3'
        C: basic.publish routing-key='q' delivery-mode=2 body='4'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 3 body='1'
        restart
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='3'
        C: basic.publish routing-key='q' delivery-mode=2 body='5'
        restart
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 2 redelivered body='3'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 '' 'q' 1 body='4'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 0 body='5'
        restart
        C: basic.get queue='q'
        S: basic.get-empty
    ",
    );
}

#[test]
fn persistent_messages_that_arrive_together_are_back_like_any_other() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C+: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.publish routing-key='q' delivery-mode=2 body='3'
        C+: basic.publish routing-key='q' delivery-mode=1 body='4'
        C: basic.publish routing-key='q' delivery-mode=1 body='5'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 5 0
        restart
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 2 body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 '' 'q' 1 body='2'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 0 body='3'
    ",
    );
}

#[test]
fn after_a_crash_everything_that_may_have_been_delivered_is_flagged() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='untouched' durable
        S: queue.declare-ok 'untouched' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.publish routing-key='untouched' delivery-mode=2 body='3'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='1'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 1 redelivered body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 '' 'q' 0 redelivered body='2'
        C: basic.get queue='untouched' no-ack
        S: basic.get-ok 3 '' 'untouched' 0 body='3'
        C: basic.publish routing-key='q' delivery-mode=2 body='new'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 '' 'q' 0 body='new'
    ",
    );
}

#[test]
fn an_ack_is_durable_before_a_later_answer_on_its_channel() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='1'
        journal stops
        C: basic.ack delivery-tag=1
        C: basic.qos prefetch-count=1
        S: nothing
        C/2: basic.qos prefetch-count=1
        S/2: basic.qos-ok
        journal keeps up
        S: basic.qos-ok
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 redelivered body='2'
    ",
    );
}

/// The journal knows nothing of that message, so nobody waits for it.
#[test]
fn an_answer_behind_the_ack_of_a_transient_message_comes_at_once() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 0 body='1'
        journal stops
        C/2: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.ack delivery-tag=1
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        journal keeps up
        ",
    );
}

#[test]
fn a_durable_declaration_is_answered_when_it_is_durable_and_an_exclusive_one_at_once() {
    script(
        "
        C: channel.open
        S: channel.open-ok
        C/2: channel.open
        S/2: channel.open-ok
        journal stops
        C: queue.declare queue='mine' exclusive durable
        S: queue.declare-ok 'mine' 0 0
        C: queue.declare queue='passing'
        S: queue.declare-ok 'passing' 0 0
        C/2: queue.declare queue='kept' durable
        S/2: nothing
        C: queue.declare queue='kept' durable
        S: nothing
        journal keeps up
        S: queue.declare-ok 'kept' 0 0
        S/2: queue.declare-ok 'kept' 0 0
    ",
    );
}

#[test]
fn what_was_not_durable_at_a_crash_is_gone_without_a_trace() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' delivery-mode=2 body='kept'
        S: basic.ack 1
        journal stops
        C: basic.publish routing-key='q' delivery-mode=2 body='lost'
        S: nothing
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='kept'
        C: basic.get queue='q' no-ack
        S: basic.get-empty
    ",
    );
}

#[test]
fn a_delivery_waits_for_the_grant_that_flags_it_after_a_crash() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=1 body='2'
        journal stops
        C: basic.get queue='q'
        S: nothing
        C/2: channel.open
        S/2: channel.open-ok
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 '' 'q' 0 body='2'
        journal keeps up
        S: basic.get-ok 1 '' 'q' 1 body='1'
    ",
    );
}

/// Else it would come again after a crash, as a message that nobody was given before.
#[test]
fn a_message_that_comes_from_a_queue_waits_until_it_has_left_that_for_good() {
    for (to, ack_mode) in [("durable", ""), ("durable", "no-ack"), ("", ""), ("", "no-ack")] {
        comes_late(
            &format!(
                "
                C: queue.declare queue='to' {to}
                S: queue.declare-ok 'to' 0 0
                C: queue.declare queue='from' durable arguments={{x-dead-letter-exchange='' x-dead-letter-routing-key='to'}}
                S: queue.declare-ok 'from' 0 0
                "
            ),
            "C: basic.publish routing-key='from' delivery-mode=2 expiration='1000' body='late'",
            ack_mode,
        );
        comes_late(
            &format!(
                "
                C: queue.declare queue='to' {to}
                S: queue.declare-ok 'to' 0 0
                C: exchange.declare exchange='from' type='x-delayed-message' durable arguments={{x-delayed-type='fanout'}}
                S: exchange.declare-ok
                C: queue.bind queue='to' exchange='from'
                S: queue.bind-ok
                "
            ),
            "C: basic.publish exchange='from' delivery-mode=2 headers={x-delay=1000} body='late'",
            ack_mode,
        );
    }
}

/// What is published takes a second to come to queue `to`, and comes only when the journal has that, in a queue where the
/// grant for it is durable long before.
fn comes_late(declares: &str, publish: &str, ack_mode: &str) {
    script(&format!(
        "
        {declares}
        C: basic.publish routing-key='to' delivery-mode=2 body='first'
        C/2: channel.open
        S/2: channel.open-ok
        C/2: basic.consume queue='to' consumer-tag='t' {ack_mode}
        S/2: basic.consume-ok 't'
        S/2: basic.deliver 't' 1 body='first'
        {publish}
        journal stops
        wait 1s
        S/2: nothing
        journal keeps up
        S/2: basic.deliver 't' 2 body='late'
        "
    ));
}

/// Also where the journal does not know it on its way.
#[test]
fn a_message_that_comes_over_several_queues_waits_until_it_has_left_the_first_for_good() {
    let on = "x-message-ttl=0 x-dead-letter-exchange='' x-dead-letter-routing-key='to'";
    let first = "x-dead-letter-exchange='' x-dead-letter-routing-key='hop'";
    let publish = |mode: u8| {
        format!("C: basic.publish routing-key='from' delivery-mode={mode} expiration='1000' body='late'")
    };
    for (hop, from, mode) in [
        (format!("arguments={{{on}}}"), format!("arguments={{{first}}}"), 2),
        (format!("arguments={{x-max-length=0 {on}}}"), format!("arguments={{{first}}}"), 2),
        (format!("durable arguments={{{on}}}"), format!("arguments={{x-queue-type='quorum' {first}}}"), 1),
    ] {
        comes_late(
            &format!(
                "
                C: queue.declare queue='to' durable
                S: queue.declare-ok 'to' 0 0
                C: queue.declare queue='hop' {hop}
                S: queue.declare-ok 'hop' 0 0
                C: queue.declare queue='from' durable {from}
                S: queue.declare-ok 'from' 0 0
                "
            ),
            &publish(mode),
            "no-ack",
        );
    }
}

#[test]
fn a_message_that_is_rejected_or_too_many_waits_until_it_has_left_its_queue_for_good() {
    let rejected = (
        "",
        "C: basic.get queue='from'
            S: basic.get-ok 1 '' 'from' 0 body='late'",
        "C: basic.reject delivery-tag=1",
    );
    let too_many = ("x-max-length=1", "", "C: basic.publish routing-key='from' delivery-mode=2 body='more'");
    for ((limit, take, leave), to) in [(rejected, "durable"), (rejected, ""), (too_many, "durable"), (too_many, "")]
    {
        script(&format!(
            "
            C: queue.declare queue='to' {to}
            S: queue.declare-ok 'to' 0 0
            C: queue.declare queue='from' durable arguments={{{limit} x-dead-letter-exchange='' x-dead-letter-routing-key='to'}}
            S: queue.declare-ok 'from' 0 0
            C: basic.publish routing-key='to' delivery-mode=2 body='first'
            C/2: channel.open
            S/2: channel.open-ok
            C/2: basic.get queue='to'
            S/2: basic.get-ok 1 '' 'to' 0 body='first'
            C: basic.publish routing-key='from' delivery-mode=2 body='late'
            {take}
            journal stops
            {leave}
            C/2: basic.get queue='to' no-ack
            S/2: nothing
            journal keeps up
            S/2: basic.get-ok 2 '' 'to' 0 body='late'
            "
        ));
    }
}

/// The departure of a message that no journal knows is not waited for.
#[test]
fn a_transient_message_that_comes_from_a_queue_comes_at_once() {
    script(
        "
        C: queue.declare queue='to' durable
        S: queue.declare-ok 'to' 0 0
        C: queue.declare queue='from' durable arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='to'}
        S: queue.declare-ok 'from' 0 0
        C: basic.consume queue='to' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='from' expiration='1000' body='late'
        journal stops
        wait 1s
        S: basic.deliver 't' 1 body='late'
        ",
    );
}

#[test]
fn a_transaction_is_there_after_a_crash_as_a_whole_once_commit_ok_was_heard() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='old'
        C: tx.select
        S: tx.select-ok
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 0 body='old'
        C: basic.publish routing-key='q' delivery-mode=2 body='new'
        C: basic.ack delivery-tag=1
        journal stops
        C: tx.commit
        S: nothing
        journal keeps up
        S: tx.commit-ok
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 redelivered body='new'
        C: basic.get queue='q' no-ack
        S: basic.get-empty
    ",
    );
}

#[test]
fn purged_and_deleted_messages_stay_away() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='1'
        C: queue.purge queue='q'
        S: queue.purge-ok 1
        C: queue.declare queue='p' durable
        S: queue.declare-ok 'p' 0 0
        C: basic.publish routing-key='p' delivery-mode=2 body='3'
        C: queue.delete queue='p'
        S: queue.delete-ok 1
        C: queue.declare queue='p' durable
        S: queue.declare-ok 'p' 0 0
        crash
        C: queue.declare queue='p' passive
        S: queue.declare-ok 'p' 0 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 redelivered body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-empty
    ",
    );
}

#[test]
fn the_time_to_live_goes_on_across_a_restart() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 expiration='60000' body='1'
        wait 40s
        crash
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        wait 19s
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        wait 2s
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
    ",
    );
}

#[test]
fn an_exchange_that_went_with_its_last_binding_stays_away() {
    script(
        "
        C: exchange.declare exchange='x' type='fanout' durable auto-delete
        S: exchange.declare-ok
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='x'
        S: queue.bind-ok
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        crash
        C: exchange.declare exchange='x' passive
        S: channel.close 404
        C: channel.close-ok
    ",
    );
}

/// Whoever closes while a disk stands hears the answer when everything it acked is durable, and may go before.
#[test]
fn a_client_that_goes_before_its_close_is_answered_is_let_go_at_once() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='1'
        Cb: basic.get queue='q'
        Sb: basic.get-ok 1 '' 'q' 0 body='2'
        journal stops
        C: basic.ack delivery-tag=1
        C/0: connection.close reply-code=200
        S/0: nothing
        C: end
        S: end
        Cb: basic.ack delivery-tag=1
        Cb/0: connection.close reply-code=200
        Sb/0: nothing
        journal keeps up
        Sb/0: connection.close-ok
        Sb: end
        ",
    );
}
