//! Publisher confirms.

use leveret_testkit::script;

/// basic.publish, field `mandatory`: the return comes first, then the confirm.
#[test]
fn unroutable_mandatory_publish_is_returned_then_confirmed() {
    script(
        "
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='' routing-key='nowhere' mandatory body='hi'
        S: basic.return 312 'NO_ROUTE' '' 'nowhere' body='hi'
        S: basic.ack 1
        ",
    );
}

#[test]
fn every_publish_after_select_counts() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='0'
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.publish routing-key='nowhere' body='2'
        S: basic.ack 2
        C: confirm.select nowait
        C: basic.publish routing-key='q' body='3' delivery-mode=2
        S: basic.ack 3
        C/2: basic.publish routing-key='q' body='4'
        S/2: nothing
        ",
    );
}

#[test]
fn what_arrives_together_with_a_select_is_confirmed_if_it_comes_behind_it() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='0'
        C+: basic.publish routing-key='q' body='1'
        C+: basic.publish routing-key='q' body='2'
        C+: confirm.select nowait
        C+: basic.publish routing-key='q' body='3'
        C: queue.declare queue='q' passive
        S: basic.ack 1
        S: queue.declare-ok 'q' 4 0
        C: basic.publish routing-key='q' body='4'
        S: basic.ack 2
    ",
    );
}

#[test]
fn a_persistent_message_in_a_durable_queue_is_confirmed() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='r' durable
        S: queue.declare-ok 'r' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' delivery-mode=2 headers={CC=['r']} body='1'
        S: basic.ack 1
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='1'
        C: basic.get queue='r' no-ack
        S: basic.get-ok 2 '' 'q' 0 body='1'
        ",
    );
}

#[test]
fn numbers_begin_again_on_a_new_channel() {
    script(
        "
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='nowhere' body=''
        S: basic.ack 1
        C: channel.close
        S: channel.close-ok
        C: channel.open
        S: channel.open-ok
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='nowhere' body=''
        S: basic.ack 1
        ",
    );
}

#[test]
fn after_a_missing_exchange_nothing_more_is_confirmed() {
    script(
        "
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish exchange='none' body=''
        C: basic.publish routing-key='nowhere' body=''
        S: channel.close 404
        S: nothing
        ",
    );
}

/// A confirm of a persistent message in a durable queue waits for the journal; others do not wait for it.
#[test]
fn a_confirm_waits_until_its_message_is_durable() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        journal stops
        C: basic.publish routing-key='q' delivery-mode=2 body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        S: nothing
        C: basic.publish routing-key='q' body='transient'
        S: basic.ack 3
        journal keeps up
        S: basic.ack 2 multiple
        C: basic.publish routing-key='q' delivery-mode=2 body='4'
        S: basic.ack 4
        ",
    );
}

/// RabbitMQ: what can be confirmed without a gap goes out as one ack.
#[test]
fn publishes_that_arrive_together_are_confirmed_together() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        journal stops
        C+: basic.publish routing-key='q' delivery-mode=2 body='1'
        C+: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.publish routing-key='q' delivery-mode=2 body='3'
        S: nothing
        journal keeps up
        S: basic.ack 3 multiple
        ",
    );
}
