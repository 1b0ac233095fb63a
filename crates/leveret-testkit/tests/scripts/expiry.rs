//! Messages and queues that go by themselves.

use leveret_testkit::script;

#[test]
fn a_message_is_gone_when_its_expiration_has_passed() {
    for (before, then) in [("999ms", "1ms"), ("800ms", "200ms")] {
        script(&format!(
            "
            C: queue.declare queue='q' durable
            S: queue.declare-ok 'q' 0 0
            C: basic.publish routing-key='q' expiration='1000' body='short' delivery-mode=2
            C: basic.publish routing-key='q' body='long'
            wait {before}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 2 0
            wait {then}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 1 0
            C: basic.get queue='q' no-ack
            S: basic.get-ok 1 '' 'q' 0 body='long'
            "
        ));
    }
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
    for (expires_ms, while_used, used, before, then) in
        [(1000, "900ms", "1h", "999ms", "1ms"), (500, "300ms", "600ms", "300ms", "200ms")]
    {
        script(&format!(
            "
            C: queue.declare queue='q' arguments={{x-expires={expires_ms}}}
            S: queue.declare-ok 'q' 0 0
            wait {while_used}
            C: basic.get queue='q'
            S: basic.get-empty
            wait {while_used}
            C: queue.declare queue='q' arguments={{x-expires={expires_ms}}}
            S: queue.declare-ok 'q' 0 0
            wait {while_used}
            C: basic.consume queue='q' consumer-tag='t'
            S: basic.consume-ok 't'
            wait {used}
            C: basic.cancel consumer-tag='t'
            S: basic.cancel-ok 't'
            wait {before}
            C: basic.publish routing-key='q' body='does not count as use' mandatory
            wait {then}
            C: queue.declare queue='q' passive
            S: channel.close 404
            "
        ));
    }
}

#[test]
fn a_message_expires_on_time_wherever_it_lies() {
    script(
        "
        C: queue.declare queue='dead' durable
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' durable arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='for ever'
        C: basic.publish routing-key='q' delivery-mode=2 body='long' expiration='3000'
        C: basic.publish routing-key='q' delivery-mode=2 body='short' expiration='1000'
        C: basic.publish routing-key='q' delivery-mode=2 body='middle' expiration='2000'
        C: basic.publish routing-key='q' body='transient' expiration='1500'
        wait 1s
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 '' 'dead' 0 body='short'
        wait 499ms
        C: basic.get queue='dead' no-ack
        S: basic.get-empty
        wait 1ms
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 '' 'dead' 0 body='transient'
        restart
        wait 500ms
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 '' 'dead' 0 body='middle'
        wait 1s
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 '' 'dead' 0 body='long'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 0 body='for ever'
        ",
    );
}

#[test]
fn a_message_behind_a_consumer_that_does_not_ack_expires_and_the_consumer_gets_the_next() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=1
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1' expiration='1000'
        S: basic.deliver 't' 1 body='1'
        C: basic.publish routing-key='q' body='2' expiration='1000'
        C: basic.publish routing-key='q' body='3'
        wait 1s
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 1
        C: basic.ack delivery-tag=1
        S: basic.deliver 't' 2 body='3'
        ",
    );
}

/// Returned late, it expires at once; returned in time, when its time has come.
#[test]
fn a_returned_message_expires_at_its_old_deadline() {
    for (before, then) in [("499ms", "1ms"), ("300ms", "200ms")] {
        script(&format!(
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: basic.publish routing-key='q' body='1'
            C: basic.publish routing-key='q' body='2' expiration='2000'
            C: basic.publish routing-key='q' body='3' expiration='1000'
            C: basic.get queue='q'
            S: basic.get-ok 1 body='1'
            C: basic.get queue='q'
            S: basic.get-ok 2 body='2'
            C: basic.get queue='q'
            S: basic.get-ok 3 body='3'
            wait 1500ms
            C: basic.nack delivery-tag=3 multiple requeue
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 2 0
            wait {before}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 2 0
            wait {then}
            C: queue.declare queue='q' passive
            S: queue.declare-ok 'q' 1 0
            "
        ));
    }
}
