//! Consuming: turns, priorities, prefetch, exclusivity, cancellation.

use leveret_testkit::{Broker, Variation, run_script, script};

#[test]
fn consumers_take_turns() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='a' no-ack
        S: basic.consume-ok 'a'
        Cb: basic.consume queue='q' consumer-tag='b' no-ack
        Sb: basic.consume-ok 'b'
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        S: basic.deliver 'a' 1 body='1'
        Sb: basic.deliver 'b' 1 body='2'
        S: basic.deliver 'a' 2 body='3'
        ",
    );
}

#[test]
fn consumers_that_ack_and_others_share_a_queue_and_what_comes_back_goes_first() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='a' no-ack
        S: basic.consume-ok 'a'
        Cb: basic.consume queue='q' consumer-tag='b'
        Sb: basic.consume-ok 'b'
        Cc: basic.consume queue='q' consumer-tag='c' no-ack
        Sc: basic.consume-ok 'c'
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        S: basic.deliver 'a' 1 body='1'
        Sb: basic.deliver 'b' 1 body='2'
        Sc: basic.deliver 'c' 1 body='3'
        Cb: basic.nack delivery-tag=1 requeue
        Cb: basic.publish routing-key='q' body='4'
        S: basic.deliver 'a' 2 redelivered body='2'
        Sb: basic.deliver 'b' 2 body='4'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 3
        ",
    );
}

/// RabbitMQ: consumer priorities. Lower ones are served only while all higher ones are blocked.
#[test]
fn a_higher_priority_is_served_first_while_it_has_credit() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='low' no-ack
        S: basic.consume-ok 'low'
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='high' arguments={x-priority=10}
        S: basic.consume-ok 'high'
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 'high' 1 body='1'
        S: basic.deliver 'low' 2 body='2'
        C: basic.ack delivery-tag=1
        C: basic.publish routing-key='q' body='3'
        S: basic.deliver 'high' 3 body='3'
        ",
    );
}

#[test]
fn prefetch_limits_the_unacked_deliveries_of_each_consumer_started_later() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: basic.publish routing-key='q' body='4'
        C: basic.qos prefetch-count=2
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1'
        S: basic.deliver 't' 2 body='2'
        S: nothing
        C: basic.ack delivery-tag=2
        S: basic.deliver 't' 3 body='3'
        S: nothing
        C: basic.ack delivery-tag=3 multiple
        S: basic.deliver 't' 4 body='4'
        ",
    );
}

#[test]
fn a_prefetch_for_the_channel_counts_all_of_its_consumers() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='a'
        S: basic.consume-ok 'a'
        C: basic.qos prefetch-count=2 global
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='b'
        S: basic.consume-ok 'b'
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        S: basic.deliver 'a' 1 body='1'
        S: basic.deliver 'b' 2 body='2'
        S: nothing
        C: basic.ack delivery-tag=1
        S: basic.deliver 'a' 3 body='3'
        C: basic.qos global
        S: basic.qos-ok
        C: basic.publish routing-key='q' body='4'
        S: basic.deliver 'b' 4 body='4'
        ",
    );
}

#[test]
fn raising_the_prefetch_of_the_channel_lets_deliveries_go_on() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=1 global
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 1 body='1'
        S: nothing
        C: basic.qos prefetch-count=2 global
        S: basic.qos-ok
        S: basic.deliver 't' 2 body='2'
        ",
    );
}

#[test]
fn get_does_not_count_in_the_prefetch() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='1'
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 2 body='2'
        ",
    );
}

#[test]
fn an_exclusive_consumer_is_alone() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t' exclusive
        S: basic.consume-ok 't'
        C/2: basic.consume queue='q'
        S/2: channel.close 403 \"ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use\" 60 20
        C: basic.cancel consumer-tag='t'
        S: basic.cancel-ok 't'
        C: basic.consume queue='q' consumer-tag='u'
        S: basic.consume-ok 'u'
        C/3: basic.consume queue='q' exclusive
        S/3: channel.close 403
        ",
    );
}

#[test]
fn consume_ok_comes_before_the_first_delivery_and_cancel_ok_after_the_last() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.consume queue='q' consumer-tag='t' no-ack
        C: basic.publish routing-key='q' body='2'
        C: basic.cancel consumer-tag='t'
        C: basic.publish routing-key='q' body='3'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1'
        S: basic.deliver 't' 2 body='2'
        S: basic.cancel-ok 't'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

#[test]
fn what_a_cancelled_consumer_has_not_settled_stays_with_its_channel() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='1'
        C: basic.cancel consumer-tag='t'
        S: basic.cancel-ok 't'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.ack delivery-tag=1
        C: channel.close
        S: channel.close-ok
        C/2: queue.declare queue='q' passive
        S/2: queue.declare-ok 'q' 0 0
        ",
    );
}

#[test]
fn cancelling_an_unknown_consumer_is_no_error() {
    script("C: basic.cancel consumer-tag='nobody'\nS: basic.cancel-ok 'nobody'");
}

#[test]
fn a_consumer_tag_is_used_once_on_a_channel() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C/2: basic.consume queue='q' consumer-tag='t'
        S/2: basic.consume-ok 't'
        C: basic.cancel consumer-tag='t'
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.cancel-ok 't'
        S: basic.consume-ok 't'
        C: basic.consume queue='q' consumer-tag='t'
        S: connection.close 530 \"NOT_ALLOWED - attempt to reuse consumer tag 't'\" 60 20
        ",
    );
}

#[test]
fn a_channel_has_no_more_consumers_than_a_setting_says() {
    for variation in Variation::ALL {
        let mut broker = Broker::new(variation).with(|settings| settings.consumer_max_per_channel = Some(2));
        let result = run_script(
            &mut broker,
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: basic.consume queue='q' consumer-tag='t'
            S: basic.consume-ok 't'
            C: basic.consume queue='amq.rabbitmq.reply-to' consumer-tag='u' no-ack
            S: basic.consume-ok 'u'
            C: basic.cancel consumer-tag='t'
            S: basic.cancel-ok 't'
            C: basic.consume queue='q' consumer-tag='v'
            S: basic.consume-ok 'v'
            C/2: basic.consume queue='q' consumer-tag='v'
            S/2: basic.consume-ok 'v'
            C: basic.consume queue='q' consumer-tag='w'
            S: connection.close 530 'NOT_ALLOWED - reached maximum (2) of consumers per channel' 60 20
            ",
        );
        result.unwrap();
    }
}

#[test]
fn an_empty_consumer_tag_gets_a_generated_one() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' no-ack
        S: basic.consume-ok $tag
        C: basic.publish routing-key='q' body='x'
        S: basic.deliver $tag 1
        C: basic.cancel consumer-tag=$tag
        S: basic.cancel-ok $tag
        ",
    );
}

/// RabbitMQ: consumer cancel notification.
#[test]
fn consumers_of_a_deleted_queue_are_cancelled() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        Cb: basic.consume queue='q' consumer-tag='t'
        Sb: basic.consume-ok 't'
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        Sb: basic.cancel 't' nowait
        Cb: basic.cancel consumer-tag='t'
        Sb: basic.cancel-ok 't'
        ",
    );
}

#[test]
fn a_client_that_does_not_know_cancel_notification_is_not_told() {
    script(
        "
        C: queue.declare queue='q'
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
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        Sb: nothing
        ",
    );
}

#[test]
fn no_local_is_accepted_and_means_nothing() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t' no-ack no-local
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='x'
        S: basic.deliver 't' 1 body='x'
        ",
    );
}

#[test]
fn a_consumer_priority_is_a_number() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' arguments={x-priority='high'}
        S: channel.close 406
        ",
    );
}

/// Whatever their values, but behind those of others.
#[test]
fn arguments_of_consumers_of_streams_are_refused_by_other_queues() {
    for argument in ["x-stream-offset='first'", "x-stream-filter=5", "x-stream-match-unfiltered=true"] {
        let name = argument.split('=').next().unwrap_or_default();
        for queue_type in ["classic", "quorum"] {
            script(&format!(
                "
                C: queue.declare queue='q' durable arguments={{x-queue-type='{queue_type}'}}
                S: queue.declare-ok 'q' 0 0
                C: basic.consume queue='q' arguments={{{argument}}}
                S: channel.close 406 \"PRECONDITION_FAILED - invalid arg '{name}' for queue 'q' in vhost '/' of queue type {queue_type}\" 60 20
                C/2: basic.consume queue='q' arguments={{{argument} x-priority='high'}}
                S/2: channel.close 406 \"PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/': \\x22expected integer, got longstr\\x22\" 60 20
                "
            ));
        }
    }
}

#[test]
fn an_argument_that_nobody_defined_means_nothing_to_a_consumer() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t' no-ack arguments={x-cancel-on-ha-failover=true x-unknown='a'}
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='x'
        S: basic.deliver 't' 1 body='x'
        ",
    );
}

/// An ack counts for the consumer that got the delivery, not for one that came after it.
#[test]
fn an_ack_for_a_cancelled_consumer_gives_no_credit_to_the_next_one() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t1'
        S: basic.consume-ok 't1'
        S: basic.deliver 't1' 1 body='1'
        C: basic.cancel consumer-tag='t1'
        S: basic.cancel-ok 't1'
        C: basic.consume queue='q' consumer-tag='t2'
        S: basic.consume-ok 't2'
        S: basic.deliver 't2' 2 body='2'
        C: basic.ack delivery-tag=1
        S: nothing
        C: basic.ack delivery-tag=2
        S: basic.deliver 't2' 3 body='3'
        ",
    );
}
