//! Opening, tuning, keeping alive and closing a connection.

use leveret_testkit::{Broker, Variation, run_script, script};

#[test]
fn a_connection_is_opened_step_by_step() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start 0 9 locales='en_US' mechanisms='PLAIN AMQPLAIN' server-properties={capabilities={publisher_confirms=true exchange_exchange_bindings=true basic.nack=true consumer_cancel_notify=true connection.blocked=true consumer_priorities=true authentication_failure_close=true per_consumer_qos=true direct_reply_to=true} cluster_name='leveret' copyright='The Leveret authors' information='Licensed under MIT or Apache-2.0' platform='Rust' product='leveret' version='0.1.0'}
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest' locale='en_US'
        S/0: connection.tune 2047 131072 60
        C/0: connection.tune-ok channel-max=10 frame-max=4096 heartbeat=0
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C/1: channel.open
        S/1: channel.open-ok
        ",
    );
}

/// RabbitMQ: errata, "frame-max, method and content header frames". Nothing else can be done with a message that is there.
#[test]
fn headers_from_a_client_with_larger_frames_are_one_frame_for_one_with_smaller_ones() {
    let long = "x".repeat(100_000);
    script(&format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' headers={{k='{long}'}} body='{body}'
        Cb/0: protocol-header
        Sb/0: connection.start
        Cb/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sb/0: connection.tune
        Cb/0: connection.tune-ok channel-max=2047 frame-max=4096
        Cb/0: connection.open virtual-host='/'
        Sb/0: connection.open-ok
        Cb: channel.open
        Sb: channel.open-ok
        Cb: basic.get queue='q'
        Sb: basic.get-ok 1 headers={{k='{long}'}} body='{body}'
        Cb: basic.ack delivery-tag=1
        Cb: basic.get queue='q'
        Sb: basic.get-empty
        ",
        body = "b".repeat(10_000)
    ));
}

#[test]
fn zero_in_tune_ok_means_the_limit_of_the_server() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=0 frame-max=0 heartbeat=0
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C/2047: channel.open
        S/2047: channel.open-ok
        C/2048: channel.open
        S/0: connection.close 530 'NOT_ALLOWED - channel number 2048 is above the negotiated channel_max (2047)' 20 10
        ",
    );
}

#[test]
fn tune_ok_outside_the_limits_is_refused_with_530() {
    for (tune_ok, text) in [
        (
            "channel-max=2047 frame-max=100",
            "negotiated frame_max = 100 is lower than the minimum allowed value (4096)",
        ),
        (
            "channel-max=2047 frame-max=131073",
            "negotiated frame_max = 131073 is higher than the maximum allowed value (131072)",
        ),
        (
            "frame-max=4096 channel-max=2048",
            "negotiated channel_max = 2048 is higher than the maximum allowed value (2047)",
        ),
    ] {
        script(&format!(
            "
            C/0: protocol-header
            S/0: connection.start
            C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
            S/0: connection.tune
            C/0: connection.tune-ok {tune_ok}
            S/0: connection.close 530 'NOT_ALLOWED - {text}' 10 31
            C/0: connection.close-ok
            S/0: end
            "
        ));
    }
}

#[test]
fn amqplain_logs_in_with_a_table() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='AMQPLAIN' response='\\x05LOGINS\\x00\\x00\\x00\\x05guest\\x08PASSWORDS\\x00\\x00\\x00\\x05guest'
        S/0: connection.tune
        ",
    );
}

#[test]
fn a_wrong_password_is_403_to_a_client_that_understands_it() {
    for response in ["\\0guest\\0wrong", "\\0nobody\\0guest"] {
        script(&format!(
            "
            C/0: protocol-header
            S/0: connection.start
            C/0: connection.start-ok mechanism='PLAIN' response='{response}' client-properties={{capabilities={{authentication_failure_close=true}}}}
            S/0: connection.close 403 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.' 0 0
            C/0: connection.close-ok
            S/0: end
            "
        ));
    }
}

#[test]
fn a_wrong_password_closes_the_socket_of_a_client_that_would_not_understand() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0wrong'
        S/0: end
        ",
    );
}

#[test]
fn an_unknown_mechanism_and_a_malformed_response_are_refused() {
    for login in [
        "mechanism='MAGIC' response=''",
        "mechanism='PLAIN' response='guest'",
        "mechanism='AMQPLAIN' response='x'",
        "mechanism='AMQPLAIN' response='\\x05LOGINS\\x00\\x00\\x00\\x05guest'",
    ] {
        script(&format!(
            "
            C/0: protocol-header
            S/0: connection.start
            C/0: connection.start-ok {login}
            S/0: end
            "
        ));
    }
}

#[test]
fn an_unknown_virtual_host_is_530() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2047 frame-max=131072
        C/0: connection.open virtual-host='nowhere'
        S/0: connection.close 530 'NOT_ALLOWED - vhost nowhere not found' 10 40
        ",
    );
}

#[test]
fn another_protocol_header_is_answered_with_ours_and_the_socket_is_closed() {
    for header in
        ["'GET / HTTP/1.1'", "'AMQP' 00 00 09 02", "'AMQP' 01 01 08 00", "'amqp' 00 00 09 01", "16 03 01 02 00"]
    {
        script(&format!("Cx/0: raw {header}\nSx/0: protocol-header\nSx/0: end"));
    }
}

#[test]
fn the_older_spelling_of_the_protocol_header_is_understood() {
    script("C/0: raw 'AMQP' 01 01 00 09\nS/0: connection.start 0 9");
}

#[test]
fn a_silent_client_is_cut_off_ten_seconds_after_it_connected() {
    script(
        "
        Cx/0: raw 'AM'
        wait 9999ms
        Sx/0: nothing
        wait 1ms
        Sx/0: end
        ",
    );
    script(
        "
        Cx/0: protocol-header
        Sx/0: connection.start
        wait 6s
        Cx/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sx/0: connection.tune
        wait 4s
        Sx/0: end
        ",
    );
}

#[test]
fn nothing_is_executed_before_the_connection_is_open() {
    for method in ["connection.open virtual-host='/'", "connection.tune-ok frame-max=131072", "connection.close"] {
        script(&format!("Cx/0: protocol-header\nSx/0: connection.start\nCx/0: {method}\nSx/0: end"));
    }
    script("Cx/0: protocol-header\nSx/0: connection.start\nCx/1: channel.open\nSx/0: end");
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2047 frame-max=131072
        C/1: queue.declare queue='q'
        S/0: connection.close 505 'UNEXPECTED_FRAME - type 1, all octets = <<0,50,0,10,0,0,1,113,0,0,0,0,0>>' 0 0
        C/0: connection.close-ok
        Cb: queue.declare queue='q' passive
        Sb: channel.close 404
        Cb: channel.close-ok
        ",
    );
}

#[test]
fn a_client_may_close_before_its_connection_is_open() {
    for tune_ok in ["", "C/0: connection.tune-ok channel-max=2047 frame-max=131072"] {
        script(&format!(
            "
            C/0: protocol-header
            S/0: connection.start
            C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
            S/0: connection.tune
            {tune_ok}
            C/0: connection.close reply-code=200
            S/0: connection.close-ok
            S/0: end
            "
        ));
    }
}

/// Both sides close at the same time: each answers the other, and nothing else is heard any more.
#[test]
fn a_close_that_crosses_one_of_the_broker_is_answered() {
    script(
        "
        C: basic.publish routing-key='q' immediate
        S/0: connection.close 540
        C/0: heartbeat
        C: queue.declare queue='late'
        C/0: connection.update-secret new-secret='guest' reason='late'
        S/0: nothing
        C/0: connection.close reply-code=200
        S/0: connection.close-ok
        C/0: connection.close-ok
        S/0: end
        Cb: queue.declare queue='late' passive
        Sb: channel.close 404
        Cb: channel.close-ok
        ",
    );
}

/// AMQP 0-9-1 §4.2.7: whatever is sent counts as a sign of life.
#[test]
fn a_heartbeat_is_sent_only_if_nothing_else_was() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2047 frame-max=131072 heartbeat=10
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        wait 4s
        C/1: channel.open
        S/1: channel.open-ok
        wait 4999ms
        S/0: nothing
        wait 1ms
        S/0: heartbeat
        ",
    );
}

#[test]
fn the_server_sends_heartbeats_and_gives_up_on_a_client_that_sends_none() {
    let handshake = "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2047 frame-max=131072 heartbeat=10
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        ";
    script(&format!(
        "{handshake}
        wait 5s
        S/0: heartbeat
        wait 5s
        S/0: heartbeat
        C/0: heartbeat
        wait 5s
        S/0: heartbeat
        wait 5s
        S/0: heartbeat
        wait 5s
        S/0: heartbeat
        wait 4999ms
        S/0: nothing
        wait 1ms
        S/0: end
        "
    ));
}

#[test]
fn without_heartbeats_silence_is_no_fault() {
    script("C: basic.qos\nS: basic.qos-ok\nwait 48h\nC: basic.qos\nS: basic.qos-ok");
}

#[test]
fn update_secret_proves_the_user_again() {
    script(
        "
        C: connection.update-secret new-secret='guest' reason='renewed'
        S: connection.update-secret-ok
        C: connection.update-secret new-secret='wrong' reason='renewed'
        S: connection.close 530 'NOT_ALLOWED - New secret was refused by one of the backends' 10 70
        ",
    );
}

#[test]
fn exclusive_queues_are_gone_when_close_is_answered() {
    script(
        "
        Cb: queue.declare queue='mine' exclusive
        Sb: queue.declare-ok 'mine' 0 0
        Cb: connection.close reply-code=200
        Sb: connection.close-ok
        Sb: end
        C: queue.declare queue='mine' passive
        S: channel.close 404
        C: channel.close-ok
        ",
    );
}

#[test]
fn a_lost_socket_gives_back_what_its_connection_held() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='one'
        Cb: basic.consume queue='q' consumer-tag='t'
        Sb: basic.consume-ok 't'
        Sb: basic.deliver 't' 1 body='one'
        Cb: end
        Sb: end
        C: basic.get queue='q'
        S: basic.get-ok 1 redelivered '' 'q' 0 body='one'
        ",
    );
}

#[test]
fn a_body_above_max_message_size_closes_the_channel_and_not_the_connection() {
    for variation in Variation::ALL {
        let mut broker = Broker::new(variation).with(|settings| settings.max_message_size = 10);
        let result = run_script(
            &mut broker,
            "
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C: basic.publish routing-key='q' body='0123456789'
            C: basic.publish routing-key='q' body='0123456789a'
            S: channel.close 406 'PRECONDITION_FAILED - message size 11 is larger than configured max size 10' 60 40
            C: channel.close-ok
            C/2: basic.get queue='q'
            S/2: basic.get-ok 1 '' 'q' 0 body='0123456789'
            ",
        );
        result.unwrap();
    }
}

/// RabbitMQ: a payload may be 8 bytes longer than the specification allows.
#[test]
fn a_payload_may_be_as_large_as_frame_max_and_no_larger() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2047 frame-max=4096
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C: channel.open
        S: channel.open-ok
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q'
        C: content-header 4096
        C: content-body 4096*x
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body=4096*x
        C: basic.publish routing-key='q'
        C: content-header 4097
        C: content-body 4097*x
        S/0: connection.close 501
        ",
    );
}

#[test]
fn a_user_without_permissions_is_refused_with_403() {
    const LOGIN_OF_NOBODY: &str = "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0nobody\\0nobody'
        S/0: connection.tune
        C/0: connection.tune-ok
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C: channel.open
        S: channel.open-ok
        ";
    for method in [
        "queue.declare queue='q'",
        "queue.declare queue='q' passive",
        "queue.delete queue='q'",
        "queue.purge queue='q'",
        "queue.bind queue='q' exchange='amq.direct'",
        "queue.unbind queue='q' exchange='amq.direct'",
        "basic.consume queue='q'",
        "basic.get queue='q'",
        "exchange.declare exchange='x' type='direct'",
        "exchange.delete exchange='x'",
        "exchange.bind source='amq.direct' destination='amq.fanout'",
        "basic.publish routing-key='q' body='x'",
        "basic.publish exchange='amq.direct' body='x'",
    ] {
        for variation in Variation::ALL {
            // Whether the queue is there or not, which a user without permissions is not told.
            for declared in ["", "Cowner: queue.declare queue='q'\nSowner: queue.declare-ok 'q' 0 0\n"] {
                let mut broker = Broker::new(variation);
                let nobody = "set user 'nobody' password='nobody'
                    set permissions 'nobody' configure='' write='' read=''";
                let lines = format!("{nobody}\n{declared}{LOGIN_OF_NOBODY}C: {method}\nS: channel.close 403");
                run_script(&mut broker, &lines).unwrap();
            }
        }
    }
}

#[test]
fn an_unknown_mechanism_is_503_to_a_client_that_understands_it() {
    script(
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='MAGIC' client-properties={capabilities={authentication_failure_close=true}}
        S/0: connection.close 503 \"COMMAND_INVALID - unknown authentication mechanism 'MAGIC'\" 0 0
        C/0: connection.close-ok
        S/0: end
        ",
    );
}
