//! Declaring, deleting and purging queues.

use leveret_testkit::script;

#[test]
fn declaring_the_same_queue_again_reports_what_is_in_it() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 1 0
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

#[test]
fn only_ready_messages_are_counted() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='y'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

#[test]
fn a_redeclaration_that_differs_is_406() {
    for (first, second, argument, received, current) in [
        ("durable", "", "durable", "'false'", "'true'"),
        ("", "durable", "durable", "'true'", "'false'"),
        ("auto-delete", "", "auto_delete", "'false'", "'true'"),
        ("", "arguments={x-expires=5}", "x-expires", "the value '5' of type 'signedint'", "none"),
        ("arguments={x-message-ttl=5}", "", "x-message-ttl", "none", "the value '5' of type 'signedint'"),
        // Also those that mean nothing.
        ("", "arguments={x-queue-mode='lazy'}", "x-queue-mode", "the value 'lazy' of type 'longstr'", "none"),
        ("arguments={x-queue-mode='lazy'}", "", "x-queue-mode", "none", "the value 'lazy' of type 'longstr'"),
        (
            "arguments={x-queue-mode='lazy'}",
            "arguments={x-queue-mode='default'}",
            "x-queue-mode",
            "'default'",
            "'lazy'",
        ),
        ("", "arguments={x-queue-version=3}", "x-queue-version", "the value '3' of type 'signedint'", "none"),
        (
            "",
            "arguments={x-queue-master-locator='min-masters'}",
            "x-queue-master-locator",
            "the value 'min-masters' of type 'longstr'",
            "none",
        ),
        (
            "durable arguments={x-queue-type='quorum'}",
            "durable arguments={x-queue-type='quorum' x-max-in-memory-length=6}",
            "x-max-in-memory-length",
            "the value '6' of type 'signedint'",
            "none",
        ),
        (
            "durable arguments={x-queue-type='quorum' x-quorum-initial-group-size=1}",
            "durable arguments={x-queue-type='quorum'}",
            "x-quorum-initial-group-size",
            "none",
            "the value '1' of type 'signedint'",
        ),
        (
            "durable arguments={x-queue-type='quorum' x-queue-leader-locator='balanced'}",
            "durable arguments={x-queue-type='quorum'}",
            "x-queue-leader-locator",
            "none",
            "the value 'balanced' of type 'longstr'",
        ),
        // Of several, the first in an order of RabbitMQ's own.
        (
            "arguments={x-queue-mode='lazy' x-overflow='drop-head' x-max-length=5}",
            "",
            "x-max-length",
            "none",
            "the value '5' of type 'signedint'",
        ),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' {first}
            S: queue.declare-ok 'q' 0 0
            C: queue.declare queue='q' {second}
            S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/': received {received} but current is {current}\" 50 10
            "
        ));
    }
}

/// RabbitMQ compares the arguments of its type only.
#[test]
fn what_a_redeclaration_says_of_other_types_is_passed_over() {
    for (first, second) in [
        ("", "arguments={x-max-in-memory-length=5 x-delivery-limit=3}"),
        (
            "durable arguments={x-queue-type='quorum'}",
            "durable arguments={x-queue-type='quorum' x-queue-mode='lazy'}",
        ),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' {first}
            S: queue.declare-ok 'q' 0 0
            C: queue.declare queue='q' {second}
            S: queue.declare-ok 'q' 0 0
            "
        ));
    }
}

#[test]
fn a_redeclaration_may_write_the_same_number_in_another_width() {
    script(
        "
        C: queue.declare queue='q' arguments={x-expires=60000 x-unknown='a'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' arguments={x-expires=i64:60000 x-queue-type='classic' x-unknown='b'}
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

#[test]
fn the_empty_name_gets_a_generated_one_and_then_means_the_last_one_declared() {
    script(
        "
        C: queue.declare
        S: queue.declare-ok $name 0 0
        C: basic.publish routing-key=$name body='x'
        C: basic.get no-ack
        S: basic.get-ok 1 '' $name 0
        C: queue.purge
        S: queue.purge-ok 0
        C: queue.delete
        S: queue.delete-ok 0
        C/2: basic.get
        S/2: channel.close 404 'NOT_FOUND - no previously declared queue' 60 70
        ",
    );
}

#[test]
fn generated_names_differ() {
    script(
        "
        C: queue.declare
        S: queue.declare-ok $one 0 0
        C: queue.declare queue=$one passive
        S: queue.declare-ok $one 0 0
        C: queue.declare
        S: queue.declare-ok $two 0 0
        C: queue.delete queue=$one
        S: queue.delete-ok 0
        C: queue.declare queue=$two passive
        S: queue.declare-ok $two 0 0
        ",
    );
}

#[test]
fn names_that_begin_with_amq_are_reserved() {
    script(
        "
        C: queue.declare queue='amq.mine'
        S: channel.close 403 \"ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'\" 50 10
        ",
    );
}

#[test]
fn line_breaks_are_stripped_from_names() {
    script("C: queue.declare queue='a\\r\\nb'\nS: queue.declare-ok 'ab' 0 0");
}

#[test]
fn an_exclusive_queue_is_locked_for_other_connections() {
    for method in [
        "queue.declare queue='q' exclusive",
        "queue.declare queue='q' passive",
        "queue.declare queue='q'",
        "queue.bind queue='q' exchange='amq.direct'",
        "queue.purge queue='q'",
        "queue.delete queue='q'",
        "basic.consume queue='q'",
        "basic.get queue='q'",
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' exclusive
            S: queue.declare-ok 'q' 0 0
            Cb: {method}
            Sb: channel.close 405 \"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.\"
            C: basic.get queue='q'
            S: basic.get-empty
            "
        ));
    }
}

#[test]
fn a_shared_queue_cannot_be_declared_exclusive() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' exclusive
        S: channel.close 405
        ",
    );
}

#[test]
fn everybody_may_publish_to_an_exclusive_queue() {
    script(
        "
        C: queue.declare queue='q' exclusive
        S: queue.declare-ok 'q' 0 0
        Cb: basic.publish routing-key='q' body='x'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='x'
        ",
    );
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer_and_not_before_its_first() {
    script(
        "
        C: queue.declare queue='q' auto-delete
        S: queue.declare-ok 'q' 0 0
        C: basic.get queue='q'
        S: basic.get-empty
        C: basic.consume queue='q' consumer-tag='one'
        S: basic.consume-ok 'one'
        C: basic.consume queue='q' consumer-tag='two'
        S: basic.consume-ok 'two'
        C: basic.cancel consumer-tag='one'
        S: basic.cancel-ok 'one'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 1
        C: basic.cancel consumer-tag='two'
        S: basic.cancel-ok 'two'
        C: queue.declare queue='q' passive
        S: channel.close 404
        ",
    );
}

#[test]
fn purge_takes_ready_messages_and_leaves_unacked_ones() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='one' delivery-mode=2
        C: basic.publish routing-key='q' body='two'
        C: basic.publish routing-key='q' body='three'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 2 body='one'
        C: queue.purge queue='q'
        S: queue.purge-ok 2
        C: basic.reject delivery-tag=1 requeue
        C: basic.publish routing-key='q' body='four'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 redelivered '' 'q' 1 body='one'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 0 body='four'
        C: queue.purge queue='q'
        S: queue.purge-ok 0
        ",
    );
}

#[test]
fn delete_says_how_many_messages_went_with_the_queue() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='x'
        C: queue.delete queue='q'
        S: queue.delete-ok 1
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

#[test]
fn if_unused_and_if_empty_protect_a_queue() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='x'
        C: queue.delete queue='q' if-empty
        S: channel.close 406 \"PRECONDITION_FAILED - queue 'q' in vhost '/' not empty\" 50 40
        C/2: basic.consume queue='q' consumer-tag='t'
        S/2: basic.consume-ok 't'
        S/2: basic.deliver 't' 1
        C/2: queue.delete queue='q' if-unused
        S/2: channel.close 406 \"PRECONDITION_FAILED - queue 'q' in vhost '/' in use\" 50 40
        C/3: queue.delete queue='q' if-unused
        S/3: queue.delete-ok 1
        ",
    );
}

#[test]
fn nowait_is_answered_by_nothing_but_errors() {
    script(
        "
        C: queue.declare queue='q' nowait
        C: queue.purge queue='q' nowait
        C: queue.bind queue='q' exchange='amq.fanout' nowait
        C: basic.consume queue='q' consumer-tag='t' no-ack nowait
        S: nothing
        C: basic.publish exchange='amq.fanout' body='x'
        S: basic.deliver 't' 1 body='x'
        C: basic.cancel consumer-tag='t' nowait
        C: queue.delete queue='q' nowait
        S: nothing
        C: queue.declare queue='q' passive nowait
        S: channel.close 404
        ",
    );
}

#[test]
fn arguments_are_checked() {
    for (arguments, fault) in [
        ("x-message-ttl=-1", "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}"),
        (
            "x-message-ttl='1'",
            "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22",
        ),
        ("x-expires=0", "invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}"),
        (
            "x-queue-version=1",
            "invalid arg 'x-queue-version' for queue 'q' in vhost '/': \\x22unsupported queue version '1'\\x22",
        ),
        (
            "x-queue-type='stream'",
            "invalid arg 'x-queue-type' for queue 'q' in vhost '/': \\x22unsupported queue type 'stream'\\x22",
        ),
        (
            "x-queue-version='two'",
            "invalid arg 'x-queue-version' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22",
        ),
        (
            "x-message-ttl=i64:315360000001",
            "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_too_large,315360000001}",
        ),
        ("x-queue-type='quorum'", "invalid property 'non-durable' for queue 'q' in vhost '/'"),
    ] {
        script(&format!(
            "
            C: queue.declare queue='q' arguments={{{arguments}}}
            S: channel.close 406 \"PRECONDITION_FAILED - {fault}\" 50 10
            "
        ));
    }
}

#[test]
fn quorum_and_classic_are_accepted_as_queue_types() {
    script(
        "
        C: queue.declare queue='c' arguments={x-queue-type='classic' x-queue-mode='lazy' x-queue-version=2}
        S: queue.declare-ok 'c' 0 0
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' durable
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received none but current is the value 'quorum' of type 'longstr'\"
        ",
    );
}

/// RabbitMQ refuses arguments of another queue type in these words; so does a broker that lacks them.
#[test]
fn arguments_that_are_not_supported_are_refused_by_name() {
    for argument in [
        "x-consumer-disconnected-timeout",
        "x-delayed-retry-max",
        "x-delayed-retry-min",
        "x-delayed-retry-type",
        "x-initial-cluster-size",
        "x-max-age",
        "x-stream-filter-size-bytes",
        "x-stream-max-segment-size-bytes",
    ] {
        for (flags, queue_type) in [("", "classic"), ("durable", "quorum")] {
            script(&format!(
                "
                C: queue.declare queue='q' {flags} arguments={{x-queue-type='{queue_type}' {argument}=1}}
                S: channel.close 406 \"PRECONDITION_FAILED - invalid arg '{argument}' for queue 'q' in vhost '/' of queue type {queue_type}\" 50 10
                "
            ));
        }
    }
}

/// RabbitMQ: a quorum queue is durable, for everybody, and named by the client.
#[test]
fn what_a_quorum_queue_cannot_be_is_refused() {
    let invalid = |property| format!("invalid property '{property}' for queue 'q' in vhost '/'");
    for (properties, fault) in [
        ("queue='q'", invalid("non-durable")),
        ("queue='q' durable exclusive", invalid("exclusive-owner")),
        ("queue='q' durable auto-delete", invalid("auto-delete")),
        ("durable", "Cannot declare a server-named queue for type rabbit_quorum_queue".to_owned()),
    ] {
        script(&format!(
            "
            C: queue.declare {properties} arguments={{x-queue-type='quorum'}}
            S: channel.close 406 \"PRECONDITION_FAILED - {fault}\" 50 10
            "
        ));
    }
}

/// RabbitMQ: an exclusive queue is never durable, whatever its declaration says.
#[test]
fn an_exclusive_queue_may_be_redeclared_with_another_durability() {
    script(
        "
        C: queue.declare queue='q' exclusive durable
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' exclusive
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='quorum' exclusive durable arguments={x-queue-type='quorum'}
        S: channel.close 406 \"PRECONDITION_FAILED - invalid property 'exclusive-owner' for queue 'quorum' in vhost '/'\"
        ",
    );
}

#[test]
fn empty_names_in_unbind_mean_the_queue_declared_last() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.bind exchange='amq.direct'
        S: queue.bind-ok
        C: queue.unbind exchange='amq.direct'
        S: queue.unbind-ok
        C: basic.publish exchange='amq.direct' routing-key='q' mandatory body=''
        S: basic.return 312
        ",
    );
}

/// What is refused in a first declaration is not let through in a second one.
#[test]
fn a_redeclaration_with_an_argument_that_is_not_supported_is_406() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' arguments={x-max-length=5}
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the value '5' of type 'signedint' but current is none\"
        ",
    );
}

/// In other methods it means the queue declared last.
#[test]
fn the_empty_name_is_the_name_of_no_queue_in_a_passive_declare() {
    script(
        "
        C: queue.declare
        S: queue.declare-ok $name 0 0
        C: queue.declare passive
        S: channel.close 404 \"NOT_FOUND - no queue '' in vhost '/'\" 50 10
        ",
    );
}

/// RabbitMQ names types only where one side has no value.
#[test]
fn an_argument_that_changed_is_shown_without_its_type() {
    script(
        "
        C: queue.declare queue='q' arguments={x-message-ttl=5}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='q' arguments={x-message-ttl=6}
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received '6' but current is '5'\" 50 10
        ",
    );
}
