//! Queues of which one consumer at a time is served. RabbitMQ: single active consumer.

use leveret_testkit::script;

#[test]
fn the_first_consumer_gets_everything_until_it_goes() {
    script(
        "
        C: queue.declare queue='q' arguments={x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='first' arguments={x-priority=-5}
        S: basic.consume-ok 'first'
        Cb: basic.consume queue='q' consumer-tag='second' arguments={x-priority=10}
        Sb: basic.consume-ok 'second'
        Cc: basic.consume queue='q' consumer-tag='third'
        Sc: basic.consume-ok 'third'
        Cc: basic.publish routing-key='q' body='1'
        Cc: basic.publish routing-key='q' body='2'
        S: basic.deliver 'first' 1 body='1'
        S: basic.deliver 'first' 2 body='2'
        C: basic.ack delivery-tag=1
        Cc: queue.declare queue='q' passive
        Sc: queue.declare-ok 'q' 0 3
        C: basic.cancel consumer-tag='first'
        S: basic.cancel-ok 'first'
        Cc: basic.publish routing-key='q' body='3'
        Sb: basic.deliver 'second' 1 body='3'
        C: basic.nack delivery-tag=2 requeue
        Sb: basic.deliver 'second' 2 redelivered body='2'
        Cb: end
        Sc: basic.deliver 'third' 1 redelivered body='2'
        Sc: basic.deliver 'third' 2 redelivered body='3'
        ",
    );
}

#[test]
fn one_without_credit_is_not_helped_by_the_others() {
    script(
        "
        C: queue.declare queue='q' arguments={x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='first'
        S: basic.consume-ok 'first'
        Cb: basic.consume queue='q' consumer-tag='second' no-ack
        Sb: basic.consume-ok 'second'
        Cb: basic.publish routing-key='q' body='1'
        Cb: basic.publish routing-key='q' body='2'
        S: basic.deliver 'first' 1 body='1'
        Sb: nothing
        C: basic.ack delivery-tag=1
        S: basic.deliver 'first' 2 body='2'
        Sb: nothing
        ",
    );
}

/// RabbitMQ: only in queues of type quorum, and without two of them holding messages at a time.
#[test]
fn in_a_quorum_queue_a_higher_priority_takes_over_once_the_other_holds_nothing() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='low'
        S: basic.consume-ok 'low'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 'low' 1 body='1'
        Cb: basic.consume queue='q' consumer-tag='high' arguments={x-priority=1}
        Sb: basic.consume-ok 'high'
        C: basic.publish routing-key='q' body='2'
        S: nothing
        Sb: nothing
        C: basic.ack delivery-tag=1
        S: nothing
        Sb: basic.deliver 'high' 1 body='2'
        Cc: basic.consume queue='q' consumer-tag='as high' arguments={x-priority=1}
        Sc: basic.consume-ok 'as high'
        C: basic.publish routing-key='q' body='3'
        Sb: basic.deliver 'high' 2 body='3'
        Cb: basic.ack delivery-tag=2 multiple
        Cd: basic.consume queue='q' consumer-tag='highest' arguments={x-priority=2}
        Sd: basic.consume-ok 'highest'
        C: basic.publish routing-key='q' body='4'
        Sd: basic.deliver 'highest' 1 body='4'
        ",
    );
}

#[test]
fn one_that_was_to_make_way_stays_if_the_other_goes_first() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='low'
        S: basic.consume-ok 'low'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 'low' 1 body='1'
        Cb: basic.consume queue='q' consumer-tag='high' arguments={x-priority=1}
        Sb: basic.consume-ok 'high'
        C: basic.publish routing-key='q' body='2'
        S: nothing
        Cb: basic.cancel consumer-tag='high'
        Sb: basic.cancel-ok 'high'
        S: basic.deliver 'low' 2 body='2'
        ",
    );
}

#[test]
fn nobody_can_have_such_a_queue_for_himself() {
    script(
        "
        C: queue.declare queue='q' arguments={x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C/2: basic.consume queue='q' exclusive
        S/2: channel.close 403 \"ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use\" 60 20
        C: queue.declare queue='q'
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-single-active-consumer' for queue 'q' in vhost '/': received none but current is the value 'true' of type 'bool'\" 50 10
        ",
    );
}

/// RabbitMQ: only queues of type quorum refuse it.
#[test]
fn such_a_queue_answers_basic_get_unless_it_is_a_quorum_queue() {
    script(
        "
        C: queue.declare queue='q' arguments={x-single-active-consumer=true}
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1 body='1'
        C: basic.publish routing-key='q' body='2'
        C/2: basic.get queue='q'
        S/2: basic.get-ok 1 '' 'q' 0 body='2'
        C/2: basic.get queue='q'
        S/2: basic.get-empty
        C: queue.declare queue='r' durable arguments={x-queue-type='quorum' x-single-active-consumer=true}
        S: queue.declare-ok 'r' 0 0
        C/3: basic.get queue='r'
        S/3: channel.close 405 \"RESOURCE_LOCKED - cannot obtain access to locked queue 'r' in vhost '/'. basic.get operations are not supported by quorum queues with single active consumer\" 60 70
        ",
    );
}

#[test]
fn the_argument_is_true_or_false() {
    script(
        "
        C: queue.declare queue='q' arguments={x-single-active-consumer='yes'}
        S: channel.close 406 \"PRECONDITION_FAILED - invalid arg 'x-single-active-consumer' for queue 'q' in vhost '/': {unacceptable_type,longstr}\" 50 10
        ",
    );
}
