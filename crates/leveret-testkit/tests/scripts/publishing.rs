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
