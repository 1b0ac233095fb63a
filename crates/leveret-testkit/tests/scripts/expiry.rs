//! Messages and queues that go by themselves.

use leveret_testkit::script;

#[test]
fn a_message_is_gone_when_its_expiration_has_passed() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' expiration='1000' body='short' delivery-mode=2
        C: basic.publish routing-key='q' body='long'
        wait 999ms
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        wait 1ms
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='long'
        ",
    );
}

#[test]
fn the_shorter_of_queue_and_message_counts() {
    script(
        "
        C: queue.declare queue='q' arguments={x-message-ttl=1000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' expiration='60000' body='2'
        C: basic.publish routing-key='q' expiration='5000' body='3'
        wait 1s
        C: basic.get queue='q'
        S: basic.get-empty
        C: basic.publish routing-key='q' expiration='10' body='4'
        wait 10ms
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

#[test]
fn zero_means_deliver_now_or_never() {
    script(
        "
        C: queue.declare queue='q' arguments={x-message-ttl=0}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t' no-ack
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='2'
        S: basic.deliver 't' 1 body='2'
        ",
    );
}

#[test]
fn an_unacked_message_does_not_expire_but_keeps_its_deadline() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' expiration='1000' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1
        wait 2s
        C: basic.nack delivery-tag=1 requeue
        C: basic.get queue='q'
        S: basic.get-empty
        ",
    );
}

#[test]
fn an_expiration_that_is_no_number_closes_the_channel() {
    for (value, fault) in
        [("abc", "no_integer"), ("1 ", "{leftover_string,\\x22 \\x22}"), ("-1", "{value_negative,-1}")]
    {
        script(&format!(
            "
            C: basic.publish routing-key='q' expiration='{value}' body='1'
            S: channel.close 406 \"PRECONDITION_FAILED - invalid expiration '{value}': {fault}\" 60 40
            "
        ));
    }
}

#[test]
fn an_unused_queue_goes_after_x_expires() {
    script(
        "
        C: queue.declare queue='q' arguments={x-expires=1000}
        S: queue.declare-ok 'q' 0 0
        wait 900ms
        C: basic.get queue='q'
        S: basic.get-empty
        wait 900ms
        C: queue.declare queue='q' arguments={x-expires=1000}
        S: queue.declare-ok 'q' 0 0
        wait 900ms
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        wait 1h
        C: basic.cancel consumer-tag='t'
        S: basic.cancel-ok 't'
        wait 999ms
        C: basic.publish routing-key='q' body='does not count as use' mandatory
        wait 1ms
        C: queue.declare queue='q' passive
        S: channel.close 404
        ",
    );
}
