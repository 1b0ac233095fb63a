//! Direct reply-to.

use leveret_testkit::script;

const REQUEST: &str = "
    Cserver: queue.declare queue='requests'
    Sserver: queue.declare-ok 'requests' 0 0
    C: basic.consume queue='amq.rabbitmq.reply-to' consumer-tag='replies' no-ack
    S: basic.consume-ok 'replies'
    C: basic.publish routing-key='requests' reply-to='amq.rabbitmq.reply-to' correlation-id='7' body='question'
    Cserver: basic.get queue='requests' no-ack
    Sserver: basic.get-ok 1 '' 'requests' 0 reply-to=$key correlation-id='7' body='question'
    ";

#[test]
fn a_reply_goes_straight_to_the_channel_that_asked() {
    script(&format!(
        "{REQUEST}
        Cserver: basic.publish routing-key=$key mandatory correlation-id='7' body='answer'
        S: basic.deliver 'replies' 1 '' $key correlation-id='7' body='answer'
        Cserver: queue.declare queue=$key passive
        Sserver: queue.declare-ok $key 0 1
        "
    ));
}

#[test]
fn a_reply_to_somebody_who_has_gone_is_unroutable() {
    for end in [
        "C: basic.cancel consumer-tag='replies'\nS: basic.cancel-ok 'replies'",
        "C: channel.close\nS: channel.close-ok",
        "C: end\nS: end",
    ] {
        script(&format!(
            "{REQUEST}
            {end}
            Cserver: basic.publish routing-key=$key body='dropped'
            Cserver: basic.publish routing-key=$key mandatory body='late'
            Sserver: basic.return 312 'NO_ROUTE' '' $key body='late'
            Cserver: queue.declare queue=$key passive
            Sserver: channel.close 404
            "
        ));
    }
}

#[test]
fn what_direct_reply_to_asks_of_its_consumer() {
    script(
        "
        C: basic.publish routing-key='q' reply-to='amq.rabbitmq.reply-to' body=''
        S: channel.close 406 'PRECONDITION_FAILED - fast reply consumer does not exist' 60 40
        C/2: basic.consume queue='amq.rabbitmq.reply-to'
        S/2: channel.close 406 'PRECONDITION_FAILED - reply consumer cannot acknowledge' 60 20
        C/3: basic.consume queue='amq.rabbitmq.reply-to' no-ack
        S/3: basic.consume-ok $tag
        C/3: basic.consume queue='amq.rabbitmq.reply-to' no-ack
        S/3: channel.close 406 'PRECONDITION_FAILED - reply consumer already set' 60 20
        C/4: queue.bind queue='amq.rabbitmq.reply-to' exchange='amq.direct'
        S/4: channel.close 404
        C/5: basic.publish routing-key='amq.rabbitmq.reply-to.forged' mandatory body=''
        S/5: basic.return 312
        ",
    );
}

#[test]
fn addresses_of_replies_can_be_declared_while_somebody_waits_there() {
    script(&format!(
        "{REQUEST}
        Cserver: queue.declare queue=$key
        Sserver: queue.declare-ok $key 0 1
        Cserver: queue.declare queue='amq.rabbitmq.reply-to' passive
        Sserver: queue.declare-ok 'amq.rabbitmq.reply-to' 0 1
        C: basic.cancel consumer-tag='replies'
        S: basic.cancel-ok 'replies'
        Cserver: queue.declare queue=$key
        Sserver: channel.close 404
        "
    ));
}

#[test]
fn a_reply_may_go_to_queues_too() {
    script(&format!(
        "{REQUEST}
        Cserver: basic.publish routing-key=$key headers={{CC=['requests' $key $key]}} body='answer'
        S: basic.deliver 'replies' 1 '' $key body='answer'
        S: nothing
        Cserver: queue.purge queue='requests'
        Sserver: queue.purge-ok 1
        "
    ));
}
