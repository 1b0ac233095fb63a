//! What becomes of messages that leave a queue without having been consumed. RabbitMQ: dead letter exchanges.

use leveret_testkit::script;

/// Queue `q`, whose dead letters go to exchange `dlx` and from there to queue `dead`.
const QUEUES: &str = "
    C: exchange.declare exchange='dlx' type='direct'
    S: exchange.declare-ok
    C: queue.declare queue='dead'
    S: queue.declare-ok 'dead' 0 0
    C: queue.bind queue='dead' exchange='dlx' routing-key='q'
    S: queue.bind-ok
    C: queue.declare queue='q' arguments={x-dead-letter-exchange='dlx'}
    S: queue.declare-ok 'q' 0 0
    ";

#[test]
fn a_rejected_message_goes_on_and_tells_of_its_death() {
    for method in ["basic.reject", "basic.nack"] {
        script(&format!(
            "{QUEUES}
            C: basic.publish routing-key='q' body='1' headers={{k='v'}} correlation-id='c'
            C: basic.get queue='q'
            S: basic.get-ok 1
            C: {method} delivery-tag=1
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 0 0
            C: basic.get queue='dead' no-ack
            S: basic.get-ok 2 'dlx' 'q' 0 body='1' correlation-id='c' headers={{k='v' x-death=[{{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}}
            "
        ));
    }
}

#[test]
fn an_expired_message_goes_on_without_its_expiration() {
    for (before, then, later) in [("999ms", "1ms", "1h"), ("800ms", "200ms", "200ms")] {
        script(&format!(
            "{QUEUES}
            C: basic.publish routing-key='q' body='1' expiration='1000'
            C: basic.publish routing-key='q' body='2'
            wait {before}
            C: basic.get queue='dead' no-ack
            S: basic.get-empty
            wait {then}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 1 0
            C: basic.get queue='dead' no-ack
            S: basic.get-ok 1 'dlx' 'q' 0 body='1' expiration=void headers={{x-death=[{{original-expiration='1000' count=i64:1 reason='expired' queue='q' time=ts:1790000001 exchange='' routing-keys=['q']}}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='expired' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='expired'}}
            wait {later}
            C: queue.declare queue='dead' passive
            S: queue.declare-ok 'dead' 0 0
            "
        ));
    }
}

/// The delay queue that everybody builds: a time to live, and the default exchange as the way back.
#[test]
fn a_time_to_live_and_the_default_exchange_make_a_delay() {
    for (time_to_live_ms, before, then) in [(60_000, "59999ms", "1ms"), (1000, "800ms", "200ms")] {
        script(&format!(
            "
            C: queue.declare queue='work'
            S: queue.declare-ok 'work' 0 0
            C: queue.declare queue='later' arguments={{x-message-ttl={time_to_live_ms} x-dead-letter-exchange='' x-dead-letter-routing-key='work'}}
            S: queue.declare-ok 'later' 0 0
            Cb: basic.consume queue='work' consumer-tag='t' no-ack
            Sb: basic.consume-ok 't'
            C: basic.publish routing-key='later' body='1'
            wait {before}
            Sb: nothing
            wait {then}
            Sb: basic.deliver 't' 1 exchange='' routing-key='work' body='1'
            "
        ));
    }
}

#[test]
fn the_same_death_is_counted_and_comes_first() {
    script(
        "
        C: queue.declare queue='a' arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='b'}
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b' arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='a'}
        S: queue.declare-ok 'b' 0 0
        C: basic.publish exchange='amq.fanout' routing-key='first' body='nowhere'
        C: basic.publish routing-key='a' body='1'
        C: basic.get queue='a'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        wait 1s
        C: basic.get queue='b'
        S: basic.get-ok 2 headers={x-death=[{count=i64:1 reason='rejected' queue='a' time=ts:1790000000 exchange='' routing-keys=['a']}] x-first-death-exchange='' x-first-death-queue='a' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='a' x-last-death-reason='rejected'}
        C: basic.reject delivery-tag=2
        C: basic.get queue='a'
        S: basic.get-ok 3 headers={x-death=[{count=i64:1 reason='rejected' queue='b' time=ts:1790000001 exchange='' routing-keys=['b']} {count=i64:1 reason='rejected' queue='a' time=ts:1790000000 exchange='' routing-keys=['a']}] x-first-death-exchange='' x-first-death-queue='a' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='b' x-last-death-reason='rejected'}
        C: basic.reject delivery-tag=3
        C: basic.get queue='b'
        S: basic.get-ok 4 headers={x-death=[{count=i64:2 reason='rejected' queue='a' time=ts:1790000000 exchange='' routing-keys=['a']} {count=i64:1 reason='rejected' queue='b' time=ts:1790000001 exchange='' routing-keys=['b']}] x-first-death-exchange='' x-first-death-queue='a' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='a' x-last-death-reason='rejected'}
        ",
    );
}

/// RabbitMQ 4.0: a client that sends a dead letter again begins a new life.
#[test]
fn what_a_client_writes_as_x_death_is_delivered_and_not_believed() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1' headers={{x-death=[{{count=i64:7 reason='rejected' queue='q'}}] x-first-death-queue='made up' x-last-death-queue='made up'}}
        C: basic.get queue='q'
        S: basic.get-ok 1 headers={{x-death=[{{count=i64:7 reason='rejected' queue='q'}}] x-first-death-queue='made up' x-last-death-queue='made up'}}
        C: basic.reject delivery-tag=1
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 headers={{x-death=[{{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}}
        "
    ));
}

#[test]
fn a_dead_letter_keeps_all_its_keys_and_hides_those_of_bcc() {
    script(
        "
        C: exchange.declare exchange='dlx' type='direct'
        S: exchange.declare-ok
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='dlx'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='cc'
        S: queue.declare-ok 'cc' 0 0
        C: queue.bind queue='cc' exchange='dlx' routing-key='copy'
        S: queue.bind-ok
        C: queue.declare queue='bcc'
        S: queue.declare-ok 'bcc' 0 0
        C: queue.bind queue='bcc' exchange='dlx' routing-key='blind'
        S: queue.bind-ok
        C: basic.publish routing-key='q' body='1' headers={CC=['copy'] BCC=['blind']}
        C: basic.get queue='q'
        S: basic.get-ok 1 headers={CC=['copy']}
        C: basic.reject delivery-tag=1
        C: basic.get queue='cc' no-ack
        S: basic.get-ok 2 'dlx' 'q' 0 headers={CC=['copy'] x-death=[{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q' 'copy']}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}
        C: basic.get queue='bcc' no-ack
        S: basic.get-ok 3 'dlx' 'q' 0 body='1'
        ",
    );
}

#[test]
fn a_routing_key_for_dead_letters_replaces_all_others() {
    script(
        "
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='amq.direct' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='amq.direct' routing-key='dead'
        S: queue.bind-ok
        C: queue.declare queue='copied'
        S: queue.declare-ok 'copied' 0 0
        C: queue.bind queue='copied' exchange='amq.direct' routing-key='copy'
        S: queue.bind-ok
        C: basic.publish routing-key='q' body='1' headers={CC=['copy'] BCC=['copy']}
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        C: basic.get queue='copied'
        S: basic.get-empty
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 'amq.direct' 'dead' 0 headers={x-death=[{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q' 'copy']}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}
        ",
    );
}

#[test]
fn an_exchange_that_is_not_there_takes_nothing_and_may_come_later() {
    script(
        "
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='dlx'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.reject delivery-tag=1
        C: exchange.declare exchange='dlx' type='fanout' internal
        S: exchange.declare-ok
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.bind queue='dead' exchange='dlx'
        S: queue.bind-ok
        C: basic.get queue='q'
        S: basic.get-ok 2
        C: basic.reject delivery-tag=2
        C: basic.get queue='dead'
        S: basic.get-ok 3 'dlx' 'q' 0 body='2'
        ",
    );
}

#[test]
fn several_rejected_at_once_go_on_in_their_order() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1'
        S: basic.deliver 't' 2 body='2'
        S: basic.deliver 't' 3 body='3'
        C: basic.nack delivery-tag=3 multiple
        C: basic.consume queue='dead' consumer-tag='u'
        S: basic.consume-ok 'u'
        S: basic.deliver 'u' 4 body='1'
        S: basic.deliver 'u' 5 body='2'
        S: basic.deliver 'u' 6 body='3'
        "
    ));
}

/// RabbitMQ: a message that comes back by itself to where it was is dropped; whoever rejects it breaks the circle.
#[test]
fn a_circle_ends_unless_somebody_rejects() {
    script(
        "
        C: queue.declare queue='q' arguments={x-message-ttl=200 x-dead-letter-exchange='' x-dead-letter-routing-key='q'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        wait 200ms
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='a' arguments={x-message-ttl=200 x-dead-letter-exchange='' x-dead-letter-routing-key='b'}
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b' arguments={x-message-ttl=200 x-dead-letter-exchange='' x-dead-letter-routing-key='a'}
        S: queue.declare-ok 'b' 0 0
        C: basic.publish routing-key='a' body='2'
        wait 200ms
        C: basic.get queue='b'
        S: basic.get-ok 1 body='2'
        C: basic.reject delivery-tag=1
        wait 200ms
        C: queue.declare queue='b' passive
        S: queue.declare-ok 'b' 1 0
        wait 200ms
        C: queue.declare queue='a' passive
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b' passive
        S: queue.declare-ok 'b' 0 0
        ",
    );
}

#[test]
fn a_deleted_or_expired_queue_sends_nothing_on() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-expires=1000 x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='r' arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'r' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='r' body='2'
        C: basic.publish routing-key='r' body='3'
        C: queue.purge queue='r'
        S: queue.purge-ok 2
        C: basic.publish routing-key='r' body='4'
        C: queue.delete queue='r'
        S: queue.delete-ok 1
        wait 1s
        C: queue.declare queue='dead' passive
        S: queue.declare-ok 'dead' 0 0
        ",
    );
}

#[test]
fn a_rejection_in_a_transaction_takes_effect_with_it() {
    script(&format!(
        "{QUEUES}
        C: basic.publish routing-key='q' body='1'
        C/2: tx.select
        S/2: tx.select-ok
        C/2: basic.get queue='q'
        S/2: basic.get-ok 1
        C/2: basic.reject delivery-tag=1
        C: basic.get queue='dead'
        S: basic.get-empty
        C/2: tx.commit
        S/2: tx.commit-ok
        C: basic.get queue='dead'
        S: basic.get-ok 1 'dlx' 'q' 0 body='1'
        "
    ));
}

/// Durable queues `q` and `dead`; what dies in `q` goes to `dead`.
const DURABLE: &str = "
    C: queue.declare queue='dead' durable
    S: queue.declare-ok 'dead' 0 0
    C: queue.declare queue='q' durable arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
    S: queue.declare-ok 'q' 0 0
    ";

#[test]
fn a_dead_letter_and_how_often_it_died_survive_a_restart() {
    for stop in ["restart", "crash"] {
        script(&format!(
            "{DURABLE}
            C: queue.declare queue='back' durable arguments={{x-dead-letter-exchange='' x-dead-letter-routing-key='q'}}
            S: queue.declare-ok 'back' 0 0
            C: basic.publish routing-key='q' delivery-mode=2 body='1'
            C: basic.get queue='q'
            S: basic.get-ok 1
            C: basic.reject delivery-tag=1
            {stop}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 0 0
            C: basic.get queue='dead'
            S: basic.get-ok 1 '' 'dead' 0 headers={{x-death=[{{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}} body='1'
            C: basic.ack delivery-tag=1
            C: basic.publish routing-key='back' delivery-mode=2 body='2'
            C: basic.get queue='back'
            S: basic.get-ok 2
            C: basic.reject delivery-tag=2
            C: basic.get queue='q'
            S: basic.get-ok 3
            {stop}
            C: basic.get queue='q'
            S: basic.get-ok 1 redelivered body='2'
            C: basic.reject delivery-tag=1
            C: basic.get queue='dead'
            S: basic.get-ok 2 headers={{x-death=[{{count=i64:1 reason='rejected' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}} {{count=i64:1 reason='rejected' queue='back' time=ts:1790000000 exchange='' routing-keys=['back']}}] x-first-death-exchange='' x-first-death-queue='back' x-first-death-reason='rejected' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='rejected'}} body='2'
            "
        ));
    }
}

/// Also where the body had to be fetched first: what was rejected is not delivered again.
#[test]
fn a_rejection_is_durable_before_a_later_answer_on_its_channel() {
    script(&format!(
        "{DURABLE}
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.get queue='q'
        S: basic.get-ok 2
        journal stops
        C+: basic.nack delivery-tag=2 multiple
        C: basic.qos prefetch-count=1
        S: nothing
        crash
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q'
        S: basic.get-ok 1 redelivered body='1'
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered body='2'
        C+: basic.nack delivery-tag=2 multiple
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        crash
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.get queue='dead'
        S: basic.get-ok 1 body='1'
        C: basic.get queue='dead'
        S: basic.get-ok 2 body='2'
        "
    ));
}

#[test]
fn what_expired_while_the_broker_was_down_goes_on_at_the_start() {
    script(&format!(
        "{DURABLE}
        C: basic.publish routing-key='q' delivery-mode=2 expiration='1000' body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        crash
        wait 1s
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.get queue='dead'
        S: basic.get-ok 1 '' 'dead' 0 body='1'
        "
    ));
}

#[test]
fn arguments_for_dead_letters_are_checked() {
    for (arguments, fault) in [
        (
            "x-dead-letter-exchange=5",
            "invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'q' in vhost '/'",
        ),
        (
            "x-dead-letter-routing-key='k'",
            "invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': routing_key_but_no_dlx_defined",
        ),
        (
            "x-dead-letter-exchange='x' x-dead-letter-routing-key=1",
            "invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': {unacceptable_type,signedint}",
        ),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' arguments={{{arguments}}}
            S: channel.close 406 \"PRECONDITION_FAILED - {fault}\" 50 10
            "
        ));
    }
    script(
        "
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='a'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='b'}
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received 'b' but current is 'a'\" 50 10
        ",
    );
}
