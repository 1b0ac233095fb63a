//! Consumers that hold a delivery for too long. RabbitMQ 4.3: consumer timeouts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use leveret_testkit::{Broker, Variation, run_script, script};

#[test]
fn a_consumer_that_is_late_is_cancelled_and_what_it_holds_goes_back() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1 body='1'
        wait 5s
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 2 body='2'
        wait 4999ms
        S: nothing
        wait 1ms
        S: basic.cancel 't' nowait
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 redelivered body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 redelivered body='2'
        ",
    );
}

/// The worker that finishes after all has nothing to fear: its ack comes too late, and that is all.
#[test]
fn a_late_ack_is_taken_once_and_changes_nothing() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1 body='1'
        wait 10s
        S: basic.cancel 't' nowait
        C: basic.ack delivery-tag=1
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.ack delivery-tag=1
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 1'
        ",
    );
}

#[test]
fn an_ack_in_time_stops_the_clock_and_the_next_delivery_has_all_of_it() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1 body='1'
        wait 9s
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 2 body='2'
        C: basic.ack delivery-tag=1
        wait 9999ms
        S: nothing
        wait 1ms
        S: basic.cancel 't' nowait
        ",
    );
}

#[test]
fn a_consumer_says_more_than_its_queue_and_others_on_its_channel_go_on() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: basic.consume queue='q' consumer-tag='patient' arguments={x-consumer-timeout=60000}
        S: basic.consume-ok 'patient'
        C: basic.consume queue='other' consumer-tag='hasty' arguments={x-consumer-timeout=1000}
        S: basic.consume-ok 'hasty'
        C: basic.consume queue='other' consumer-tag='calm'
        S: basic.consume-ok 'calm'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 'patient' 1
        C: basic.publish routing-key='other' body='2'
        S: basic.deliver 'hasty' 2
        wait 1s
        S: basic.cancel 'hasty' nowait
        S: basic.deliver 'calm' 3 redelivered body='2'
        wait 58999ms
        S: nothing
        wait 1ms
        S: basic.cancel 'patient' nowait
        wait 1h
        S: nothing
        C: basic.ack delivery-tag=3
        ",
    );
}

#[test]
fn what_is_taken_back_counts_no_more_for_the_prefetch_of_the_channel() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='other'
        S: queue.declare-ok 'other' 0 0
        C: basic.qos prefetch-count=1 global
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='hasty' arguments={x-consumer-timeout=1000}
        S: basic.consume-ok 'hasty'
        C: basic.consume queue='other' consumer-tag='calm'
        S: basic.consume-ok 'calm'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 'hasty' 1
        C: basic.publish routing-key='other' body='2'
        S: nothing
        wait 1s
        S: basic.cancel 'hasty' nowait
        S: basic.deliver 'calm' 2 body='2'
        ",
    );
}

#[test]
fn a_message_that_was_got_and_not_settled_closes_its_channel() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C/2: basic.get queue='q'
        S/2: basic.get-ok 1
        wait 10s
        S/2: channel.close 406 'PRECONDITION_FAILED - delivery acknowledgement on channel 2 timed out. Timeout value used: 10000 ms. This timeout value can be configured, see consumers doc guide to learn more' 0 0
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

/// Its timeout goes on counting for what it was given, be it shorter or longer than that of its queue.
#[test]
fn what_a_cancelled_consumer_left_unsettled_closes_its_channel() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/2: basic.consume queue='q' consumer-tag='t' arguments={x-consumer-timeout=10000}
        S/2: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S/2: basic.deliver 't' 1
        C: basic.publish routing-key='q' body='2'
        S/2: basic.deliver 't' 2
        C/2: basic.cancel consumer-tag='t'
        S/2: basic.cancel-ok 't'
        C/2: basic.ack delivery-tag=1
        wait 9999ms
        S: nothing
        wait 1ms
        S/2: channel.close 406 'PRECONDITION_FAILED - delivery acknowledgement on channel 2 timed out. Timeout value used: 10000 ms. This timeout value can be configured, see consumers doc guide to learn more' 0 0
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=1000}
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t' arguments={x-consumer-timeout=3600000}
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 2
        C: basic.cancel consumer-tag='t'
        S: basic.cancel-ok 't'
        wait 59min
        S: nothing
        C: basic.ack delivery-tag=2 multiple
        wait 1h
        S: nothing
        ",
    );
}

/// A transaction holds what it has settled; from the rollback on, it is as late as if it had never been settled.
#[test]
fn what_a_rollback_brings_back_is_late_at_its_time() {
    let one_is_settled = "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        C: tx.select
        S: tx.select-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C/2: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1
        wait 5s
        C/2: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 2
        C: basic.ack delivery-tag=2";
    script(&format!(
        "
        {one_is_settled}
        C: basic.ack delivery-tag=1
        wait 9s
        C: tx.rollback
        S: tx.rollback-ok
        wait 1ms
        S: basic.cancel 't' nowait
        C/2: queue.declare queue='q' passive
        S/2: queue.declare-ok 'q' 2 0
        "
    ));
    script(&format!(
        "
        {one_is_settled}
        wait 5s
        S: basic.cancel 't' nowait
        C: tx.rollback
        S: tx.rollback-ok
        wait 4999ms
        S: nothing
        wait 1ms
        S: channel.close 406
        "
    ));
}

#[test]
fn a_client_that_does_not_know_cancellation_loses_its_channel() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=10000}
        S: queue.declare-ok 'q' 0 0
        Cb/0: protocol-header
        Sb/0: connection.start
        Cb/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sb/0: connection.tune
        Cb/0: connection.tune-ok channel-max=2047 frame-max=131072
        Cb/0: connection.open virtual-host='/'
        Sb/0: connection.open-ok
        Cb: channel.open
        Sb: channel.open-ok
        Cb: basic.consume queue='q' consumer-tag='t'
        Sb: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        Sb: basic.deliver 't' 1
        wait 10s
        Sb: channel.close 406 'PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 10000 ms. This timeout value can be configured, see consumers doc guide to learn more' 0 0
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

#[test]
fn a_timeout_is_a_number_of_milliseconds() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=0}
        S: channel.close 406 \"PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'q' in vhost '/': {value_zero,0}\" 50 10
        C: channel.close-ok
        C/2: queue.declare queue='q'
        S/2: queue.declare-ok 'q' 0 0
        C/2: basic.consume queue='q' arguments={x-consumer-timeout='1s'}
        S/2: channel.close 406 \"PRECONDITION_FAILED - invalid arg 'x-consumer-timeout' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22\" 60 20
        ",
    );
}

#[test]
fn a_setting_counts_where_nobody_else_says() {
    for variation in Variation::ALL {
        let mut broker =
            Broker::new(variation).with(|settings| settings.consumer_timeout = Some(Duration::from_secs(30)));
        let result = run_script(
            &mut broker,
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: basic.consume queue='q' consumer-tag='t'
            S: basic.consume-ok 't'
            C: basic.publish routing-key='q' body='1'
            S: basic.deliver 't' 1
            wait 30s
            S: basic.cancel 't' nowait
            ",
        );
        result.unwrap();
    }
}
