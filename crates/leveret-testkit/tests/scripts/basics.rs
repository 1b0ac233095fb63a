//! A message from one client to another.

use leveret_testkit::script;

/// The declare, the publish and the consume of a first program.
#[test]
fn a_message_published_to_the_default_exchange_reaches_the_queue_of_that_name() {
    script(
        "
        Csend: queue.declare queue='my_queue'
        Ssend: queue.declare-ok 'my_queue' 0 0
        Csend: basic.publish exchange='' routing-key='my_queue' body='Hello, World!'
        Csend: connection.close reply-code=200 reply-text='Normal shutdown'
        Ssend: connection.close-ok
        Ssend: end

        Creceive: queue.declare queue='my_queue'
        Sreceive: queue.declare-ok 'my_queue' 1 0
        Creceive: basic.consume queue='my_queue' consumer-tag='ctag1' no-ack
        Sreceive: basic.consume-ok 'ctag1'
        Sreceive: basic.deliver 'ctag1' 1 '' 'my_queue' body='Hello, World!'
        ",
    );
}

#[test]
fn messages_arrive_in_the_order_in_which_they_were_published() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='one'
        C: basic.publish routing-key='q' body='two'
        C: basic.consume queue='q' consumer-tag='t' no-ack
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 body='one'
        S: basic.deliver 't' 2 body='two'
        C: basic.publish routing-key='q' body='three'
        S: basic.deliver 't' 3 body='three'
        ",
    );
}

#[test]
fn all_fourteen_properties_arrive_as_they_were_sent() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='' content-type='text/plain' content-encoding='utf-8' delivery-mode=2 priority=9 correlation-id='c' reply-to='r' expiration='60000' message-id='m' timestamp=5 type='t' user-id='guest' app-id='a' cluster-id='x' headers={int=1 long=i64:1 text='x' flag=true none=void real=1.5 list=[1 'two' true] inner={deep=u8:200 time=ts:7 bytes=x:'b'}}
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='' content-type='text/plain' content-encoding='utf-8' delivery-mode=2 priority=9 correlation-id='c' reply-to='r' expiration='60000' message-id='m' timestamp=5 type='t' user-id='guest' app-id='a' cluster-id='x' headers={int=1 long=i64:1 text='x' flag=true none=void real=1.5 list=[1 'two' true] inner={deep=u8:200 time=ts:7 bytes=x:'b'}}
        ",
    );
}

#[test]
fn a_body_over_several_frames_arrives_whole() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body=300000*x
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body=300000*x
        ",
    );
}

/// AMQP 0-9-1 §4.2.6: the frames of a content may be mixed with those of other channels.
#[test]
fn contents_on_several_channels_at_once_arrive_whole() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/1: basic.publish routing-key='q'
        C/2: basic.publish routing-key='q'
        C/1: content-header 6
        C/2: content-header 6
        C/2: content-body 'two'
        C/1: content-body 'one'
        C/3: basic.publish routing-key='q' body='three'
        C/1: content-body 'one'
        C/1: basic.publish routing-key='q'
        C/2: content-body 'two'
        C/2: basic.publish routing-key='q' body='four'
        C/1: content-header 4
        C/1: content-body 'five'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 4 body='three'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 '' 'q' 3 body='oneone'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 3 '' 'q' 2 body='twotwo'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 4 '' 'q' 1 body='four'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 5 '' 'q' 0 body='five'
        ",
    );
}

#[test]
fn get_takes_one_message_and_says_how_many_are_left() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.get queue='q'
        S: basic.get-empty
        C: basic.publish routing-key='q' body='one'
        C: basic.publish routing-key='q' body='two'
        C: basic.get queue='q'
        S: basic.get-ok 1 '' 'q' 1 body='one'
        C: basic.get queue='q'
        S: basic.get-ok 2 '' 'q' 0 body='two'
        C: basic.get queue='q'
        S: basic.get-empty
        ",
    );
}

/// A `basic.get` that has to fetch its body holds back what its connection asks afterwards, and nothing else.
#[test]
fn answers_keep_the_order_of_their_questions() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='one'
        C: basic.get queue='q'
        C: queue.declare queue='r'
        C: basic.qos prefetch-count=1
        S: basic.get-ok 1 '' 'q' 0 body='one'
        S: queue.declare-ok 'r' 0 0
        S: basic.qos-ok
        ",
    );
}
