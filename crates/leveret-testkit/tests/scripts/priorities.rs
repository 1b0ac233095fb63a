//! Messages that overtake others. RabbitMQ: priority queues.

use leveret_testkit::script;

#[test]
fn higher_priorities_come_first_and_equal_ones_in_their_order() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-priority=5}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='none'
        C: basic.publish routing-key='q' body='two, first' priority=2
        C: basic.publish routing-key='q' body='five' priority=5
        C: basic.publish routing-key='q' body='zero' priority=0
        C: basic.publish routing-key='q' body='two, second' priority=2
        C: basic.publish routing-key='q' body='more than the most' priority=200
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 6 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='five'
        S: basic.deliver 't' 2 body='more than the most' priority=200
        S: basic.deliver 't' 3 body='two, first'
        S: basic.deliver 't' 4 body='two, second'
        S: basic.deliver 't' 5 body='none'
        S: basic.deliver 't' 6 body='zero'
        ",
    );
}

#[test]
fn what_comes_back_goes_to_its_place_among_its_equals() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-priority=9}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1' priority=1
        C: basic.publish routing-key='q' body='2' priority=1
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.get queue='q'
        S: basic.get-ok 2 body='2'
        C: basic.publish routing-key='q' body='3' priority=1
        C: basic.publish routing-key='q' body='4' priority=2
        C: basic.nack delivery-tag=2 requeue
        C: basic.nack delivery-tag=1 requeue
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 body='4'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 redelivered body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 5 redelivered body='2'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 6 body='3'
        ",
    );
}

#[test]
fn a_queue_without_the_argument_knows_no_priorities() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2' priority=9
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 body='2'
        ",
    );
}

/// A checkpoint goes through a queue in the order in which it is delivered, but a message may come before what it has passed.
#[test]
fn a_message_that_overtakes_a_checkpoint_survives_it() {
    const BACKLOG: usize = 600;
    let backlog = "C: basic.publish routing-key='q' delivery-mode=2 body='low'\n".repeat(BACKLOG);
    // As often as there may be complete checkpoints to begin at.
    let crashes = "crash\n".repeat(6);
    for step in ["", "checkpoint step\n", "checkpoint step\ncheckpoint step\n"] {
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{x-max-priority=5}}
            S: queue.declare-ok 'q' 0 0
            {backlog}
            {step}
            C: basic.publish routing-key='q' delivery-mode=2 priority=5 body='highest'
            {step}
            C: basic.publish routing-key='q' delivery-mode=2 priority=1 body='higher'
            checkpoint
            {crashes}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' {messages} 0
            C: basic.get queue='q' no-ack
            S: basic.get-ok 1 body='highest'
            C: basic.get queue='q' no-ack
            S: basic.get-ok 2 body='higher'
            ",
            messages = BACKLOG + 2
        ));
    }
}

#[test]
fn priorities_and_flags_survive_restarts_and_checkpoints() {
    for (checkpoint, stop) in [("", "restart"), ("checkpoint", "restart"), ("checkpoint", "crash")] {
        script(&format!(
            "
            C: queue.declare queue='q' durable arguments={{x-max-priority=255}}
            S: queue.declare-ok 'q' 0 0
            C: basic.publish routing-key='q' delivery-mode=2 body='low' priority=1
            C: basic.publish routing-key='q' delivery-mode=2 body='high' priority=255
            C: basic.publish routing-key='q' delivery-mode=2 body='gone' priority=255
            C: basic.get queue='q'
            S: basic.get-ok 1 body='high'
            C: basic.get queue='q' no-ack
            S: basic.get-ok 2 body='gone'
            {checkpoint}
            {stop}
            {checkpoint}
            C: basic.publish routing-key='q' delivery-mode=2 body='later' priority=255
            C: basic.get queue='q'
            S: basic.get-ok 1 '' 'q' 2 redelivered body='high'
            C: basic.get queue='q'
            S: basic.get-ok 2 '' 'q' 1 body='later'
            C: basic.get queue='q'
            S: basic.get-ok 3 '' 'q' 0 body='low'
            {stop}
            C: basic.get queue='q' no-ack
            S: basic.get-ok 1 redelivered body='high'
            C: basic.get queue='q' no-ack
            S: basic.get-ok 2 redelivered body='later'
            C: queue.purge queue='q'
            S: queue.purge-ok 1
            {stop}
            C: basic.get queue='q'
            S: basic.get-empty
            "
        ));
    }
}

/// RabbitMQ: a limit drops what would be delivered next, so a higher priority may make way for a lower one.
#[test]
fn expiry_limits_and_dead_letters_go_with_priorities() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-max-priority=3 x-max-length=3 x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1' priority=1 expiration='1000'
        C: basic.publish routing-key='q' body='2' priority=2
        C: basic.publish routing-key='q' body='3' priority=3
        C: basic.publish routing-key='q' body='4' priority=0
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 body='3' priority=3
        wait 1s
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 body='1'
        C: queue.purge queue='q'
        S: queue.purge-ok 2
        ",
    );
}

/// RabbitMQ 4.3: 32 priorities, and 4 where a message has none.
#[test]
fn quorum_queues_know_priorities_without_being_told() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum' x-max-priority=2}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='three' priority=3
        C: basic.publish routing-key='q' body='none'
        C: basic.publish routing-key='q' body='four' priority=4
        C: basic.publish routing-key='q' body='five' priority=5
        C: basic.publish routing-key='q' body='thirty-one' priority=31
        C: basic.publish routing-key='q' body='more' priority=77
        crash
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 body='thirty-one'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 body='more'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 body='five'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 body='none'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 5 body='four'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 6 body='three'
        ",
    );
}

#[test]
fn the_argument_is_a_number_up_to_255() {
    for (value, fault) in [
        ("256", "{max_value_exceeded,256}"),
        ("-1", "{value_negative,-1}"),
        ("'1'", "\\x22expected integer, got longstr\\x22"),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' arguments={{x-max-priority={value}}}
            S: channel.close 406 \"PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/': {fault}\" 50 10
            "
        ));
    }
    script(
        "
        C: queue.declare queue='q' arguments={x-max-priority=5}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q'
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but current is the value '5' of type 'signedint'\" 50 10
        ",
    );
}
