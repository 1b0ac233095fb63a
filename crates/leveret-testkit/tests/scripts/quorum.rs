//! Queues of type quorum, on one node. RabbitMQ 4.3: quorum queues.

use leveret_testkit::script;

/// Queue `q` of type quorum, in which a message may fail twice, and `dead`, where it goes then.
const QUEUES: &str = "
    C: queue.declare queue='dead' durable
    S: queue.declare-ok 'dead' 0 0
    C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-delivery-limit=2 x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
    S: queue.declare-ok 'q' 0 0
    ";

#[test]
fn every_message_is_persistent() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=1 body='1'
        crash
        C: basic.get queue='q'
        S: basic.get-ok 1 delivery-mode=1 body='1'
        ",
    );
}

#[test]
fn a_message_that_fails_too_often_goes_on_as_a_dead_letter() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1' headers={{k='v' x-delivery-count=i64:7}}
        C: basic.get queue='q'
        S: basic.get-ok 1 headers={{k='v' x-delivery-count=i64:7}}
        C: basic.reject delivery-tag=1 requeue
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered headers={{k='v' x-acquired-count=i64:1 x-delivery-count=i64:1}}
        C: basic.reject delivery-tag=2 requeue
        C: basic.get queue='q'
        S: basic.get-ok 3 redelivered headers={{k='v' x-acquired-count=i64:2 x-delivery-count=i64:2}}
        C: basic.reject delivery-tag=3 requeue
        C: basic.get queue='q'
        S: basic.get-empty
        C: basic.get queue='dead'
        S: basic.get-ok 4 '' 'dead' 0 headers={{k='v' x-death=[{{count=i64:1 reason='delivery_limit' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}}] x-delivery-count=i64:7 x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='delivery_limit' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='delivery_limit'}} body='1'
        "
    ));
}

/// RabbitMQ 4.3: a nack hands a message back; a reject says that it failed. So does a channel that goes.
#[test]
fn a_nack_is_no_failure_and_a_channel_that_goes_is_one() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.nack delivery-tag=1 requeue
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered headers={{x-acquired-count=i64:1}}
        C: basic.recover requeue
        S: basic.recover-ok
        C/2: basic.consume queue='q' consumer-tag='t'
        S/2: basic.consume-ok 't'
        S/2: basic.deliver 't' 1 redelivered headers={{x-acquired-count=i64:2}}
        C/2: channel.close
        S/2: channel.close-ok
        Cb: basic.get queue='q'
        Sb: basic.get-ok 1 redelivered headers={{x-acquired-count=i64:3 x-delivery-count=i64:1}}
        Cb: end
        C: basic.get queue='q'
        S: basic.get-ok 3 redelivered headers={{x-acquired-count=i64:4 x-delivery-count=i64:2}}
        C: basic.nack delivery-tag=3 requeue
        C: basic.get queue='q'
        S: basic.get-ok 4 redelivered headers={{x-acquired-count=i64:5 x-delivery-count=i64:2}}
        C: basic.reject delivery-tag=4 requeue
        C: basic.get queue='dead'
        S: basic.get-ok 5 body='1'
        "
    ));
}

#[test]
fn a_consumer_that_is_late_has_not_failed() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-consumer-timeout=1000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1
        wait 1s
        S: basic.cancel 't' nowait
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 redelivered headers={x-acquired-count=i64:1}
        ",
    );
    // Nor has what closes its channel.
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-consumer-timeout=1000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C/2: basic.get queue='q'
        S/2: basic.get-ok 1
        wait 1s
        S/2: channel.close 406
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 redelivered headers={x-acquired-count=i64:1}
        ",
    );
}

#[test]
fn counts_are_durable() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.reject delivery-tag=1 requeue
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered body='1'
        C: basic.reject delivery-tag=2 requeue
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        crash
        checkpoint
        crash
        C: basic.get queue='q'
        S: basic.get-ok 1 redelivered headers={{x-acquired-count=i64:2 x-delivery-count=i64:2}} body='1'
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered headers={{x-acquired-count=i64:1}} body='2'
        C: basic.reject delivery-tag=1 requeue
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 3 body='1'
        restart
        C: basic.get queue='q'
        S: basic.get-ok 1 redelivered headers={{x-acquired-count=i64:1}} body='2'
        "
    ));
}

#[test]
fn twenty_failures_are_the_limit_unless_the_queue_says() {
    let fail = |count: usize| -> String {
        let once = |tag: usize| {
            let flag = if tag > 1 { "redelivered" } else { "" };
            format!(
                "C: basic.get queue='q'\nS: basic.get-ok {tag} {flag}\nC: basic.reject delivery-tag={tag} requeue\n"
            )
        };
        (1..=count).map(once).collect()
    };
    script(&format!(
        "
        C: queue.declare queue='q' durable arguments={{x-queue-type='quorum'}}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        {}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.get queue='q'
        S: basic.get-ok 21 redelivered
        C: basic.reject delivery-tag=21 requeue
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        ",
        fail(20)
    ));
    script(&format!(
        "
        C: queue.declare queue='q' durable arguments={{x-queue-type='quorum' x-delivery-limit=-1}}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        {}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
        fail(30)
    ));
}

#[test]
fn a_dead_letter_that_must_arrive_stays_until_it_does() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-max-length=2 x-overflow='reject-publish' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='later' x-dead-letter-routing-key='k'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C+: basic.reject delivery-tag=1
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.publish routing-key='q' body='2'
        S: basic.ack 2
        C: basic.publish routing-key='q' body='it counts for the length of its queue'
        S: basic.nack 3 multiple requeue
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        crash
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: exchange.declare exchange='later' type='fanout' durable
        S: exchange.declare-ok
        wait 1s
        C: queue.declare queue='dead' durable arguments={x-max-length=0 x-overflow='reject-publish'}
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        wait 2s
        C: queue.delete queue='dead'
        S: queue.delete-ok 0
        C: queue.declare queue='dead' durable
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        wait 1s
        C: basic.get queue='dead'
        S: basic.get-ok 1 'later' 'k' 0 body='1'
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered body='2'
        ",
    );
}

#[test]
fn bytes_of_a_dead_letter_that_must_arrive_count_until_it_does() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-max-length-bytes=10 x-overflow='reject-publish' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='later'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='12345678'
        S: basic.ack 1
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        C: basic.publish routing-key='q' body='123'
        S: basic.nack 2 multiple requeue
        crash
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='123'
        S: basic.nack 1 multiple requeue
        C: basic.publish routing-key='q' body='12'
        S: basic.ack 2
        C: exchange.declare exchange='later' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        wait 1s
        C: basic.publish routing-key='q' body='12345678'
        S: basic.ack 3
        C: queue.declare queue='dead' passive
        S: queue.declare-ok 'dead' 1 0
        ",
    );
}

#[test]
fn a_dead_letter_that_must_arrive_does_so_at_once_if_it_can() {
    script(
        "
        C: queue.declare queue='dead' durable
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-overflow='reject-publish' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.reject delivery-tag=1
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.get queue='dead'
        S: basic.get-ok 2 '' 'dead' 0 body='1'
        ",
    );
}

/// RabbitMQ: it would stand in the way of dropping the oldest, so there it is not kept.
#[test]
fn a_queue_that_drops_its_oldest_keeps_no_dead_letters() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='later'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        C: exchange.declare exchange='later' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        wait 1h
        C: basic.get queue='dead'
        S: basic.get-empty
        ",
    );
}

/// RabbitMQ: the flag means nothing here, also with a single active consumer.
#[test]
fn no_consumer_of_a_quorum_queue_is_alone() {
    for argument in ["", "x-single-active-consumer=true"] {
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{x-queue-type='quorum' {argument}}}
            S: queue.declare-ok 'q' 0 0
            C: basic.consume queue='q' consumer-tag='t' exclusive
            S: basic.consume-ok 't'
            Cb: basic.consume queue='q' consumer-tag='u' exclusive
            Sb: basic.consume-ok 'u'
            C: basic.publish routing-key='q' body='1'
            S: basic.deliver 't' 1 body='1'
            Sb: nothing
            "
        ));
    }
}

#[test]
fn arguments_of_quorum_queues_are_checked() {
    for (arguments, fault) in [
        (
            "x-delivery-limit='2'",
            "invalid arg 'x-delivery-limit' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22",
        ),
        (
            "x-dead-letter-strategy='twice'",
            "invalid arg 'x-dead-letter-strategy' for queue 'q' in vhost '/': invalid_dlx_strategy",
        ),
        (
            "x-quorum-initial-group-size=0",
            "invalid arg 'x-quorum-initial-group-size' for queue 'q' in vhost '/': {value_zero,0}",
        ),
        ("x-queue-mode='lazy'", "invalid arg 'x-queue-mode' for queue 'q' in vhost '/' of queue type quorum"),
        ("x-queue-version=2", "invalid arg 'x-queue-version' for queue 'q' in vhost '/' of queue type quorum"),
        (
            "x-queue-master-locator='min-masters'",
            "invalid arg 'x-queue-master-locator' for queue 'q' in vhost '/' of queue type quorum",
        ),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{x-queue-type='quorum' {arguments}}}
            S: channel.close 406 \"PRECONDITION_FAILED - {fault}\" 50 10
            "
        ));
    }
    for argument in ["x-delivery-limit=5", "x-dead-letter-strategy='at-least-once'", "x-max-in-memory-length=1"] {
        let name = argument.split('=').next().unwrap_or_default();
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{{argument}}}
            S: channel.close 406 \"PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/' of queue type classic\" 50 10
            "
        ));
    }
}

/// One node is a group of one, and every message is on disk in any case.
#[test]
fn arguments_that_change_nothing_on_one_node_are_taken() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-quorum-initial-group-size=3 x-max-in-memory-length=0 x-queue-leader-locator='balanced' x-max-in-memory-bytes=5}
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

/// RabbitMQ 4.3: what waits to be taken is in the queue, and goes with the rest of it.
#[test]
fn a_purge_takes_dead_letters_that_wait() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-overflow='reject-publish' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='later'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        C: queue.purge queue='q'
        S: queue.purge-ok 0
        crash
        C: exchange.declare exchange='later' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        wait 2s
        C: basic.get queue='dead'
        S: basic.get-empty
        ",
    );
}

/// Also where a body is being read when the purge comes.
#[test]
fn what_dies_after_a_purge_of_dead_letters_goes_on() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-overflow='reject-publish' x-dead-letter-strategy='at-least-once' x-dead-letter-exchange='later'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C+: basic.reject delivery-tag=1
        C: queue.purge queue='q'
        S: queue.purge-ok 0
        C: exchange.declare exchange='later' type='fanout' durable
        S: exchange.declare-ok
        C: queue.declare queue='dead' durable
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='later'
        S: queue.bind-ok
        C: basic.publish routing-key='q' body='2'
        C: basic.get queue='q'
        S: basic.get-ok 2
        C: basic.reject delivery-tag=2
        wait 2s
        C: basic.get queue='dead'
        S: basic.get-ok 3 body='2'
        ",
    );
}

/// Also where its client knows no cancellation and loses the channel.
#[test]
fn a_channel_that_is_closed_because_a_consumer_was_late_has_not_failed() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-consumer-timeout=1000}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='other' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'other' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='other' body='2'
        Cb/0: protocol-header
        Sb/0: connection.start
        Cb/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sb/0: connection.tune
        Cb/0: connection.tune-ok channel-max=2047 frame-max=131072
        Cb/0: connection.open virtual-host='/'
        Sb/0: connection.open-ok
        Cb: channel.open
        Sb: channel.open-ok
        Cb: basic.consume queue='other' consumer-tag='u'
        Sb: basic.consume-ok 'u'
        Sb: basic.deliver 'u' 1
        Cb: basic.consume queue='q' consumer-tag='t'
        Sb: basic.consume-ok 't'
        Sb: basic.deliver 't' 2
        wait 1s
        Sb: channel.close 406
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 redelivered headers={x-acquired-count=i64:1}
        C: basic.get queue='other' no-ack
        S: basic.get-ok 2 redelivered headers={x-acquired-count=i64:1}
        ",
    );
}

/// All that a client leaves behind goes back before anybody is handed anything, and what it consumed with goes, too.
#[test]
fn a_dead_letter_of_a_client_that_leaves_is_not_handed_to_it() {
    script(
        "
        C: queue.declare queue='letters'
        S: queue.declare-ok 'letters' 0 0
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-delivery-limit=0 x-dead-letter-exchange='' x-dead-letter-routing-key='letters'}
        S: queue.declare-ok 'q' 0 0
        Cb/1: basic.consume queue='q' consumer-tag='work'
        Sb/1: basic.consume-ok 'work'
        Cb/2: basic.consume queue='letters' consumer-tag='letters' no-ack
        Sb/2: basic.consume-ok 'letters'
        C: basic.publish routing-key='q' body='m'
        Sb/1: basic.deliver 'work' 1 body='m'
        Cb/0: end
        C: basic.get queue='letters' no-ack
        S: basic.get-ok 1 '' 'letters' 0 body='m'
        ",
    );
}
