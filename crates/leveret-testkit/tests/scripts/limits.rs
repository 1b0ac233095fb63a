//! Queues that may not be longer. RabbitMQ: queue length limit.

use leveret_testkit::script;

#[test]
fn the_oldest_ready_messages_leave_a_queue_that_is_too_long() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length=2}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q'
        S: basic.get-ok 1 body='2'
        C: basic.publish routing-key='q' body='4'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.nack delivery-tag=1 requeue
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q'
        S: basic.get-ok 2 body='3'
        C: basic.get queue='q'
        S: basic.get-ok 3 body='4'
        C: basic.get queue='q'
        S: basic.get-empty
        ",
    );
}

#[test]
fn bytes_of_bodies_count_and_nothing_else() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length-bytes=10}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='12345' headers={long='a header that does not count'}
        C: basic.publish routing-key='q' body='67890'
        C: basic.publish routing-key='q' body=''
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        C: basic.get queue='q'
        S: basic.get-ok 1 body='67890'
        C: basic.publish routing-key='q' body='123456789'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        C: basic.publish routing-key='q' body='too long for this queue'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.nack delivery-tag=1 requeue
        C: basic.publish routing-key='q' body='abcde'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: queue.purge queue='q'
        S: queue.purge-ok 2
        C: basic.publish routing-key='q' body='0123456789'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

/// RabbitMQ: `maybe_drop_head` does nothing unless the queue drops its head.
#[test]
fn what_comes_back_to_a_full_queue_that_rejects_stays() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='reject-publish'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.nack delivery-tag=1 requeue
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 redelivered body='1'
        ",
    );
}

#[test]
fn a_message_that_a_consumer_takes_at_once_is_never_too_many() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length=0}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 1 body='2'
        C: basic.publish routing-key='q' body='3'
        S: nothing
        C: basic.ack delivery-tag=1
        S: nothing
        ",
    );
}

#[test]
fn what_is_dropped_goes_on_as_a_dead_letter() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='drop-head' x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 '' 'dead' 1 body='1' headers={x-death=[{count=i64:1 reason='maxlen' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='maxlen' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='maxlen'}
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 '' 'dead' 0 body='2'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 0 body='3'
        ",
    );
}

#[test]
fn a_full_queue_that_rejects_tells_publishers_by_a_nack() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='reject-publish'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.publish routing-key='q' body='2' mandatory
        S: basic.nack 2 multiple requeue
        C/2: basic.publish routing-key='q' body='nobody asks'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 body='1'
        C: basic.publish routing-key='q' body='3'
        S: basic.ack 3
        ",
    );
}

/// RabbitMQ: `multiple` where nothing before it is open, and `requeue` always. Neither tells a publisher anything.
#[test]
fn a_nack_goes_ahead_of_a_confirm_that_waits_for_the_journal() {
    script(
        "
        C: queue.declare queue='full' arguments={x-max-length=0 x-overflow='reject-publish'}
        S: queue.declare-ok 'full' 0 0
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        journal stops
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='full' body='2'
        S: basic.nack 2 requeue
        S: nothing
        journal keeps up
        S: basic.ack 1
        C: basic.publish routing-key='full' body='3'
        S: basic.nack 3 multiple requeue
        ",
    );
}

/// A client that puts outcomes in the order of numbers would take the second ack for one of what was refused.
#[test]
fn an_ack_of_several_never_follows_over_a_nack() {
    script(
        "
        C: queue.declare queue='full' arguments={x-max-length=0 x-overflow='reject-publish'}
        S: queue.declare-ok 'full' 0 0
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        journal stops
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='full' body='2'
        S: basic.nack 2 requeue
        C: basic.publish routing-key='q' delivery-mode=2 body='3'
        C: basic.publish routing-key='q' delivery-mode=2 body='4'
        S: nothing
        journal keeps up
        S: basic.ack 1
        S: basic.ack 4 multiple
        ",
    );
}

/// RabbitMQ: one of several queues is enough, and the others have the message all the same.
#[test]
fn one_full_queue_of_several_is_a_nack() {
    script(
        "
        C: queue.declare queue='full' arguments={x-max-length=0 x-overflow='reject-publish'}
        S: queue.declare-ok 'full' 0 0
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: queue.bind queue='full' exchange='amq.fanout'
        S: queue.bind-ok
        C: queue.bind queue='other' exchange='amq.fanout'
        S: queue.bind-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='amq.fanout' body='1'
        S: basic.nack 1 multiple requeue
        C: queue.declare queue='other' passive
        S: queue.declare-ok 'other' 1 0
        C: basic.publish routing-key='other' body='2'
        S: basic.ack 2
        ",
    );
}

#[test]
fn what_a_full_queue_does_not_take_goes_on_as_a_dead_letter_if_it_says_so() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='reject-publish-dlx' x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.publish routing-key='q' body='2'
        S: basic.nack 2 multiple requeue
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 '' 'dead' 0 body='2' headers={x-death=[{count=i64:1 reason='maxlen' queue='q' time=ts:1790000000 exchange='' routing-keys=['q']}] x-first-death-exchange='' x-first-death-queue='q' x-first-death-reason='maxlen' x-last-death-exchange='' x-last-death-queue='q' x-last-death-reason='maxlen'}
        ",
    );
}

/// RabbitMQ: `reject-publish` leaves it to the publisher, whatever becomes of other messages of that queue.
#[test]
fn what_a_full_queue_does_not_take_is_no_dead_letter_unless_it_says_so() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='reject-publish' x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.publish routing-key='q' body='2'
        S: basic.nack 2 multiple requeue
        C: basic.get queue='dead' no-ack
        S: basic.get-empty
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 0 body='1'
        C: basic.reject delivery-tag=1
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 '' 'dead' 0 body='1'
        ",
    );
}

/// Dead letters that nobody takes go round until they come to a queue where they were.
#[test]
fn full_queues_in_a_circle_come_to_an_end() {
    script(
        "
        C: queue.declare queue='a' arguments={x-max-length=0 x-overflow='reject-publish-dlx' x-dead-letter-exchange='' x-dead-letter-routing-key='b'}
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b' arguments={x-max-length=0 x-overflow='reject-publish-dlx' x-dead-letter-exchange='' x-dead-letter-routing-key='a'}
        S: queue.declare-ok 'b' 0 0
        C: queue.declare queue='c' arguments={x-max-length=0 x-dead-letter-exchange='' x-dead-letter-routing-key='d'}
        S: queue.declare-ok 'c' 0 0
        C: queue.declare queue='d' arguments={x-max-length=0 x-dead-letter-exchange='' x-dead-letter-routing-key='c'}
        S: queue.declare-ok 'd' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='a' body='1'
        S: basic.nack 1 multiple requeue
        C: basic.publish routing-key='c' body='2'
        S: basic.ack 2
        C: queue.declare queue='c' passive
        S: queue.declare-ok 'c' 0 0
        C: queue.declare queue='d' passive
        S: queue.declare-ok 'd' 0 0
        ",
    );
}

#[test]
fn a_limit_holds_across_a_restart() {
    for stop in ["restart", "crash"] {
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{x-max-length=2 x-max-length-bytes=6}}
            S: queue.declare-ok 'q' 0 0
            C: basic.publish routing-key='q' delivery-mode=2 body='1'
            C: basic.publish routing-key='q' delivery-mode=2 body='2'
            C: basic.publish routing-key='q' delivery-mode=2 body='333'
            checkpoint
            {stop}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 2 0
            C: basic.publish routing-key='q' delivery-mode=2 body='4444'
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 1 0
            {stop}
            C: basic.get queue='q' no-ack
            S: basic.get-ok 1 '' 'q' 0 body='4444'
            "
        ));
    }
}

#[test]
fn limits_are_checked_and_compared() {
    for (arguments, fault) in [
        ("x-max-length=-1", "invalid arg 'x-max-length' for queue 'q' in vhost '/': {value_negative,-1}"),
        (
            "x-max-length='1'",
            "invalid arg 'x-max-length' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22",
        ),
        (
            "x-max-length-bytes=-5",
            "invalid arg 'x-max-length-bytes' for queue 'q' in vhost '/': {value_negative,-5}",
        ),
        ("x-overflow='drop-tail'", "invalid arg 'x-overflow' for queue 'q' in vhost '/': invalid_overflow"),
        ("x-overflow=1", "invalid arg 'x-overflow' for queue 'q' in vhost '/': {unacceptable_type,signedint}"),
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
        C: queue.declare queue='q' arguments={x-max-length=1 x-overflow='drop-head'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' arguments={x-max-length=2 x-overflow='drop-head'}
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received '2' but current is '1'\" 50 10
        ",
    );
}
