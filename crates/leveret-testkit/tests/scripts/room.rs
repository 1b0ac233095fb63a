//! A node that has too little memory or disk: who publishes waits, everybody else goes on.

use leveret_testkit::script;

/// RabbitMQ: `connection.blocked` is told once, to a connection that publishes, and taken back once.
#[test]
fn who_publishes_without_room_is_told_and_waits() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        short of memory
        S: nothing
        C: basic.publish routing-key='q' body='1'
        S/0: connection.blocked 'low on memory'
        C: basic.publish routing-key='q' body='2'
        S: nothing
        room again
        S/0: connection.unblocked
        S: basic.ack 2 multiple
        C: basic.publish routing-key='q' body='3'
        S: basic.ack 3
        short of disk
        C: basic.publish routing-key='q' body='4'
        S/0: connection.blocked 'low on disk'
        short of memory and disk
        S: nothing
        short of memory
        S: nothing
        room again
        S/0: connection.unblocked
        S: basic.ack 4
        ",
    );
}

#[test]
fn a_connection_that_only_consumes_goes_on_without_room() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        short of memory
        Cb: basic.get queue='q'
        Sb: basic.get-ok 1 routing-key='q' message-count=1 body='1'
        Cb: basic.ack delivery-tag=1
        Cb: queue.purge queue='q'
        Sb: queue.purge-ok 1
        Cb: queue.delete queue='q'
        Sb: queue.delete-ok 0
        room again
        Sb: nothing
        S: nothing
        ",
    );
}

/// What a client sent before its first publish is executed, what comes behind waits with it.
#[test]
fn acks_before_the_first_publish_count_without_room() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 routing-key='q' body='1'
        short of memory
        C+: basic.ack delivery-tag=1
        C+: basic.publish routing-key='q' body='2'
        C: queue.declare queue='q' passive
        S/0: connection.blocked 'low on memory'
        S: nothing
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 0 0
        room again
        S/0: connection.unblocked
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

/// `connection.blocked` is for clients that say that they know it; the others just wait.
#[test]
fn a_client_that_does_not_know_blocked_is_not_told() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=0 frame-max=0 heartbeat=0
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C: channel.open
        S: channel.open-ok
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        short of memory
        C: basic.publish routing-key='q' body='1'
        C: queue.declare queue='q' passive
        S: nothing
        room again
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

/// A client that goes while it waits takes nothing with it, and leaves nothing half done.
#[test]
fn a_client_that_waits_may_go() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        short of memory
        C: basic.publish routing-key='q' body='1'
        S/0: connection.blocked 'low on memory'
        C: end
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 1 0
        room again
        Sb: nothing
        ",
    );
}

/// RabbitMQ: flow control never triggers `connection.blocked`; only what lasts does.
#[test]
fn a_short_wait_for_the_disk_is_not_told() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        room soon
        C: basic.publish routing-key='q' body='1'
        S: nothing
        room again
        S: basic.ack 1
        room soon
        C: basic.publish routing-key='q' body='2'
        S: nothing
        short of memory
        S/0: connection.blocked 'low on memory'
        room soon
        S: nothing
        room again
        S/0: connection.unblocked
        S: basic.ack 2
        ",
    );
}

/// What a transaction holds takes memory until it ends, so nothing keeps it from ending.
#[test]
fn a_transaction_that_was_begun_may_end_without_room() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: tx.select
        S: tx.select-ok
        C: basic.publish routing-key='q' body='1'
        short of memory
        C: basic.publish routing-key='q' body='2'
        C: tx.commit
        S: tx.commit-ok
        C: basic.publish routing-key='q' body='3'
        S/0: connection.blocked 'low on memory'
        Cb: queue.declare queue='q' passive
        Sb: queue.declare-ok 'q' 2 0
        room again
        S/0: connection.unblocked
        C: tx.commit
        S: tx.commit-ok
        ",
    );
}
