//! Publishing: mandatory, sender-selected distribution, what is checked in properties.

use leveret_testkit::script;

#[test]
fn an_unroutable_message_is_dropped_unless_it_is_mandatory() {
    script(
        "
        C: basic.publish routing-key='nowhere' body='x'
        S: nothing
        C: basic.publish routing-key='nowhere' mandatory body='hi' type='t'
        S: basic.return 312 'NO_ROUTE' '' 'nowhere' body='hi' type='t'
        ",
    );
}

#[test]
fn a_missing_exchange_closes_the_channel() {
    script(
        "
        C: basic.publish exchange='none' routing-key='q' body='x'
        S: channel.close 404 \"NOT_FOUND - no exchange 'none' in vhost '/'\" 60 40
        ",
    );
}

/// RabbitMQ: sender-selected distribution.
#[test]
fn cc_and_bcc_are_further_routing_keys_and_bcc_is_not_shown() {
    script(
        "
        C: queue.declare queue='a'
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b'
        S: queue.declare-ok 'b' 0 0
        C: queue.declare queue='c'
        S: queue.declare-ok 'c' 0 0
        C: basic.publish routing-key='a' headers={CC=['b' 'a'] k=1 BCC=['c']} body='x' app-id='app'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 '' 'a' 0 headers={CC=['b' 'a'] k=1} body='x' app-id='app'
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 '' 'a' 0 headers={CC=['b' 'a'] k=1}
        C: basic.get queue='c' no-ack
        S: basic.get-ok 3 '' 'a' 0 headers={CC=['b' 'a'] k=1}
        C: basic.publish routing-key='nowhere' mandatory headers={CC=['b']} body='x'
        S: nothing
        C: basic.publish routing-key='nowhere' mandatory headers={CC=[1 'b' void]} body='x'
        S: nothing
        C: basic.publish routing-key='a' headers={CC='b'} body='x'
        S: channel.close 406 'PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\\x22CC\\x22,longstr}'
        ",
    );
}

#[test]
fn headers_add_a_limited_number_of_keys_each_once() {
    let distinct = |count| (0..count).map(|at| format!("'k{at}'")).collect::<Vec<_>>().join(" ");
    let equal = "'q' ".repeat(2000);
    for (keys, most) in [(equal.as_str(), true), (&distinct(1024), true), (&distinct(1025), false)] {
        let answer = if most {
            "S: basic.ack 1"
        } else {
            "S: channel.close 406 'PRECONDITION_FAILED - more than 1024 routing keys in headers \\x27CC\\x27 and \\x27BCC\\x27'"
        };
        script(&format!(
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: confirm.select
            S: confirm.select-ok
            C: basic.publish routing-key='q' headers={{CC=[{keys}]}} body='x'
            {answer}
            Cother: queue.declare queue='q' passive
            Sother: queue.declare-ok 'q' {messages} 0
            ",
            messages = u8::from(most)
        ));
    }
}

/// RabbitMQ: validated user-id.
#[test]
fn user_id_is_the_login_or_absent() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' user-id='guest' body='x'
        C: basic.publish routing-key='q' user-id='root' body='x'
        S: channel.close 406 \"PRECONDITION_FAILED - user_id property set to 'root' but authenticated user was 'guest'\" 60 40
        C/2: queue.purge queue='q'
        S/2: queue.purge-ok 1
        ",
    );
}

#[test]
fn a_refused_content_does_not_disturb_its_channel_number() {
    script(
        "
        C: basic.publish routing-key='q' user-id='root' body=300000*x
        S: channel.close 406
        C: channel.close-ok
        C: channel.open
        S: channel.open-ok
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

/// The connection remembers the way of the last routing keys; every change of it is noticed.
#[test]
fn a_remembered_route_follows_the_bindings() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='amq.direct' routing-key='k'
        S: queue.bind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='1'
        C: queue.unbind queue='q' exchange='amq.direct' routing-key='k'
        S: queue.unbind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='2'
        S: basic.return 312 'NO_ROUTE' 'amq.direct' 'k' body='2'
        C: queue.bind queue='q' exchange='amq.direct' routing-key='k'
        S: queue.bind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='3'
        C: queue.delete queue='q'
        S: queue.delete-ok 2
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='4'
        S: basic.return 312 'NO_ROUTE' 'amq.direct' 'k' body='4'
        ",
    );
}

#[test]
fn a_remembered_route_follows_the_queue_of_that_name() {
    script(
        "
        C: basic.publish routing-key='q' mandatory body='1'
        S: basic.return 312 'NO_ROUTE' '' 'q' body='1'
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' mandatory body='2'
        C: queue.delete queue='q'
        S: queue.delete-ok 1
        C: basic.publish routing-key='q' mandatory body='3'
        S: basic.return 312 'NO_ROUTE' '' 'q' body='3'
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' mandatory body='4'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 0 body='4'
        ",
    );
}

/// What several publishes have in common is looked up once; what they do not is not taken for it.
#[test]
fn publishes_that_arrive_together_may_differ_in_anything() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='r'
        S: queue.declare-ok 'r' 0 0
        C+: basic.publish routing-key='q' body='1'
        C+: basic.publish routing-key='q' body='2'
        C+: basic.publish routing-key='q' body=''
        C+: basic.publish routing-key='q' body=5000*x
        C+: basic.publish routing-key='r' body='r1'
        C+: basic.publish routing-key='r' body='r2' priority=3
        C+: basic.publish routing-key='r' body='r3' priority=4
        C+: basic.publish routing-key='r' body='r4' message-id='m'
        C+: basic.publish routing-key='nowhere' mandatory body='back'
        C+: basic.publish routing-key='nowhere' body='gone'
        C+: basic.publish routing-key='q' body='p' delivery-mode=2
        C+: basic.publish routing-key='q' body='t'
        C+: basic.publish routing-key='q' headers={CC=['r']} body='both'
        C: basic.publish routing-key='q' mandatory body='last'
        S: basic.return 312 'NO_ROUTE' '' 'nowhere' body='back'
        C: basic.consume queue='q' consumer-tag='c' no-ack
        S: basic.consume-ok 'c'
        S: basic.deliver 'c' 1 '' 'q' body='1'
        S: basic.deliver 'c' 2 '' 'q' body='2'
        S: basic.deliver 'c' 3 '' 'q' body=''
        S: basic.deliver 'c' 4 '' 'q' body=5000*x
        S: basic.deliver 'c' 5 '' 'q' body='p' delivery-mode=2
        S: basic.deliver 'c' 6 '' 'q' body='t'
        S: basic.deliver 'c' 7 '' 'q' body='both' headers={CC=['r']}
        S: basic.deliver 'c' 8 '' 'q' body='last'
        C: basic.consume queue='r' consumer-tag='d' no-ack
        S: basic.consume-ok 'd'
        S: basic.deliver 'd' 9 '' 'r' body='r1'
        S: basic.deliver 'd' 10 '' 'r' body='r2' priority=3
        S: basic.deliver 'd' 11 '' 'r' body='r3' priority=4
        S: basic.deliver 'd' 12 '' 'r' body='r4' message-id='m'
        S: basic.deliver 'd' 13 '' 'q' body='both' headers={CC=['r']}
        ",
    );
}

#[test]
fn of_publishes_that_arrive_together_a_consumer_gets_as_many_as_it_may_have() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.qos prefetch-count=2
        S: basic.qos-ok
        C: basic.consume queue='q' consumer-tag='a'
        S: basic.consume-ok 'a'
        C+/2: basic.publish routing-key='q' body='1'
        C+/2: basic.publish routing-key='q' body='2'
        C+/2: basic.publish routing-key='q' body='3'
        C+/2: basic.get queue='q' no-ack
        C+/2: basic.publish routing-key='q' body='4'
        C/2: basic.publish routing-key='q' body='5'
        S: basic.deliver 'a' 1 body='1'
        S: basic.deliver 'a' 2 body='2'
        S/2: basic.get-ok 1 '' 'q' 0 body='3'
        C+: basic.ack delivery-tag=1
        C: basic.ack delivery-tag=2
        S: basic.deliver 'a' 3 body='4'
        S: basic.deliver 'a' 4 body='5'
        ",
    );
}

#[test]
fn the_same_publish_means_what_its_channel_is_at_the_time() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/3: tx.select
        S/3: tx.select-ok
        C+: basic.publish routing-key='q' body='1'
        C+/2: basic.publish routing-key='q' body='2'
        C+: basic.publish routing-key='q' body='3'
        C+/3: basic.publish routing-key='q' body='in a transaction'
        C+/3: basic.publish routing-key='q' body='in a transaction'
        C/2: basic.publish routing-key='q' body='4'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 4 0
        C+/3: tx.rollback
        C+/2: basic.publish exchange='none' routing-key='q' body='a fault'
        C+/2: basic.publish routing-key='q' body='dropped'
        C: basic.publish routing-key='q' body='5'
        S/3: tx.rollback-ok
        S/2: channel.close 404 \"NOT_FOUND - no exchange 'none' in vhost '/'\" 60 40
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 5 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 4 body='1'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 '' 'q' 3 body='2'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 2 body='3'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 '' 'q' 1 body='4'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 5 '' 'q' 0 body='5'
        ",
    );
}

/// What is taken out of the message travels beside it, in a block of limited size.
#[test]
fn hidden_keys_take_a_limited_number_of_bytes() {
    let long = "k".repeat(250);
    let keys = |count| (100..100 + count).map(|at| format!("'{long}{at}'")).collect::<Vec<_>>().join(" ");
    let refusal =
        "S: channel.close 406 'PRECONDITION_FAILED - the keys in header \\x27BCC\\x27 take more than 64 KiB' 60 40";
    for (count, answer) in [(255, "S: basic.ack 1"), (259, refusal)] {
        let keys = keys(count);
        script(&format!(
            "
            C: confirm.select
            S: confirm.select-ok
            C: basic.publish routing-key='q' headers={{BCC=[{keys}]}} body='x'
            {answer}
            "
        ));
    }
}
