//! Ack, nack, reject, recover.

use leveret_testkit::script;

const THREE_DELIVERED: &str = "
    C: queue.declare queue='q' durable
    S: queue.declare-ok 'q' 0 0
    C: basic.publish routing-key='q' body='1' delivery-mode=2
    C: basic.publish routing-key='q' body='2'
    C: basic.publish routing-key='q' body='3' delivery-mode=2
    C: basic.qos prefetch-count=3
    S: basic.qos-ok
    C: basic.consume queue='q' consumer-tag='t'
    S: basic.consume-ok 't'
    S: basic.deliver 't' 1 body='1'
    S: basic.deliver 't' 2 body='2'
    S: basic.deliver 't' 3 body='3'
    ";

fn after_three_deliveries(rest: &str) {
    script(&format!("{THREE_DELIVERED}{rest}"));
}

#[test]
fn an_acked_message_is_gone() {
    after_three_deliveries(
        "
        C: basic.ack delivery-tag=2
        C: channel.close
        S: channel.close-ok
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 redelivered '' 'q' 1 body='1'
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 2 redelivered '' 'q' 0 body='3'
        ",
    );
}

#[test]
fn multiple_acks_everything_up_to_the_tag_and_tag_zero_everything() {
    after_three_deliveries(
        "
        C: basic.ack delivery-tag=2 multiple
        C: basic.recover requeue
        S: basic.recover-ok
        S: basic.deliver 't' 4 redelivered body='3'
        C: basic.ack multiple
        C: basic.recover requeue
        S: basic.recover-ok
        C: basic.ack multiple
        ",
    );
}

#[test]
fn a_requeued_message_goes_back_to_its_place() {
    after_three_deliveries(
        "
        C: basic.cancel consumer-tag='t'
        S: basic.cancel-ok 't'
        C: basic.publish routing-key='q' body='4'
        C: basic.nack delivery-tag=3 requeue
        C: basic.reject delivery-tag=1 requeue
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 redelivered '' 'q' 2 body='1'
        C: basic.nack delivery-tag=2 requeue
        C: basic.get queue='q' no-ack
        S: basic.get-ok 5 redelivered '' 'q' 2 body='2'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 6 redelivered '' 'q' 1 body='3'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 7 '' 'q' 0 body='4'
        ",
    );
}

#[test]
fn a_message_rejected_without_requeue_is_gone() {
    after_three_deliveries(
        "
        C: basic.reject delivery-tag=1
        C: basic.nack delivery-tag=3 multiple
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 1
        C: basic.recover requeue
        S: basic.recover-ok
        ",
    );
}

#[test]
fn recover_requeues_all_and_the_consumer_gets_them_again() {
    after_three_deliveries(
        "
        C: basic.recover-async requeue
        S: basic.deliver 't' 4 redelivered body='1'
        S: basic.deliver 't' 5 redelivered body='2'
        S: basic.deliver 't' 6 redelivered body='3'
        C: basic.recover requeue
        S: basic.recover-ok
        S: basic.deliver 't' 7 redelivered body='1'
        S: basic.deliver 't' 8 redelivered body='2'
        S: basic.deliver 't' 9 redelivered body='3'
        ",
    );
}

#[test]
fn an_unknown_tag_closes_the_channel_and_requeues_all() {
    for settle in ["basic.ack delivery-tag=4", "basic.nack delivery-tag=9 multiple", "basic.reject delivery-tag=7"]
    {
        let tag = settle.split(['=', ' ']).nth(2).unwrap();
        after_three_deliveries(&format!(
            "
            C: {settle}
            S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag {tag}'
            C/2: queue.declare queue='q' passive
            S/2: queue.declare-ok 'q' 3 0
            "
        ));
    }
}

#[test]
fn a_tag_settles_once() {
    after_three_deliveries(
        "
        C: basic.ack delivery-tag=2
        C: basic.ack delivery-tag=2
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 2' 60 80
        ",
    );
}

#[test]
fn tag_zero_names_nothing_without_multiple() {
    script("C: basic.ack\nS: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 0' 60 80");
}

#[test]
fn a_delivery_without_ack_has_a_tag_and_nothing_to_settle() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1
        C: basic.ack delivery-tag=1
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 1' 60 80
        ",
    );
}

#[test]
fn tags_belong_to_their_channel() {
    after_three_deliveries(
        "
        C/2: basic.ack delivery-tag=1
        S/2: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 1' 60 80
        ",
    );
}

#[test]
fn settling_a_message_of_a_deleted_queue_is_no_error() {
    after_three_deliveries(
        "
        C: queue.delete queue='q'
        S: queue.delete-ok 0
        S: basic.cancel 't' nowait
        C: basic.ack delivery-tag=1
        C: basic.nack delivery-tag=3 multiple requeue
        C: basic.qos
        S: basic.qos-ok
        ",
    );
}

#[test]
fn acks_that_arrive_together_count_up_to_the_first_unknown_tag() {
    after_three_deliveries(
        "
        C+: basic.ack delivery-tag=1
        C+: basic.ack delivery-tag=2
        C+: basic.ack delivery-tag=2
        C: basic.ack delivery-tag=3
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 2'
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 redelivered '' 'q' 0 body='3'
        ",
    );
    after_three_deliveries(
        "
        C+: basic.ack delivery-tag=2
        C+: basic.ack delivery-tag=3
        C: basic.ack delivery-tag=4
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 4'
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 redelivered '' 'q' 0 body='1'
        ",
    );
}

#[test]
fn acks_that_arrive_together_make_room_for_as_many() {
    after_three_deliveries(
        "
        C+: basic.publish routing-key='q' body='4'
        C+: basic.publish routing-key='q' body='5'
        C: basic.publish routing-key='q' body='6'
        S: nothing
        C+: basic.ack delivery-tag=1
        C+: basic.ack delivery-tag=2
        C: basic.nack delivery-tag=3
        S: basic.deliver 't' 4 body='4'
        S: basic.deliver 't' 5 body='5'
        S: basic.deliver 't' 6 body='6'
        ",
    );
}

#[test]
fn acks_of_several_make_room_for_the_consumer_that_each_is_for() {
    for acks in
        ["C: basic.ack delivery-tag=2 multiple", "C+: basic.ack delivery-tag=1\nC: basic.ack delivery-tag=2"]
    {
        script(&format!(
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: basic.qos prefetch-count=2
            S: basic.qos-ok
            C: basic.consume queue='q' consumer-tag='s'
            S: basic.consume-ok 's'
            C: basic.qos prefetch-count=1
            S: basic.qos-ok
            C: basic.consume queue='q' consumer-tag='t'
            S: basic.consume-ok 't'
            C: basic.publish routing-key='q' body='1'
            S: basic.deliver 's' 1 body='1'
            C: basic.publish routing-key='q' body='2'
            S: basic.deliver 't' 2 body='2'
            C: basic.publish routing-key='q' body='3'
            S: basic.deliver 's' 3 body='3'
            C: basic.publish routing-key='q' body='4'
            C: basic.publish routing-key='q' body='5'
            S: nothing
            {acks}
            S: basic.deliver 's' 4 body='4'
            S: basic.deliver 't' 5 body='5'
            "
        ));
    }
}

#[test]
fn acks_that_arrive_together_in_a_transaction_are_undone_together() {
    after_three_deliveries(
        "
        C: tx.select
        S: tx.select-ok
        C+: basic.ack delivery-tag=1
        C+: basic.ack delivery-tag=2
        C+: basic.ack delivery-tag=3
        C: tx.rollback
        S: tx.rollback-ok
        C: basic.ack delivery-tag=3
        C: tx.commit
        S: tx.commit-ok
        C: basic.recover requeue
        S: basic.recover-ok
        S: basic.deliver 't' 4 redelivered body='1'
        S: basic.deliver 't' 5 redelivered body='2'
        ",
    );
}
