//! Users and what they may do, while that changes. RabbitMQ: access control.

use leveret_testkit::script;

/// Logs in as `marie` on connection `m`, channel 1 open.
const MARIE: &str = "
    set user 'marie' password='secret'
    set permissions 'marie' configure='^marie-' write='.*' read='.*'
    Cm/0: protocol-header
    Sm/0: connection.start
    Cm/0: connection.start-ok mechanism='PLAIN' response='\\0marie\\0secret' client-properties={capabilities={authentication_failure_close=true}}
    Sm/0: connection.tune
    Cm/0: connection.tune-ok
    Cm/0: connection.open virtual-host='/'
    Sm/0: connection.open-ok
    Cm: channel.open
    Sm: channel.open-ok
    ";

fn as_marie(lines: &str) {
    script(&format!("{MARIE}{lines}"));
}

#[test]
fn a_refusal_names_permission_resource_and_user() {
    for (method, text) in [
        ("queue.declare queue='q'", "configure access to queue 'q' in vhost '/' refused for user 'marie'"),
        (
            "exchange.declare exchange='x' type='fanout'",
            "configure access to exchange 'x' in vhost '/' refused for user 'marie'",
        ),
    ] {
        as_marie(&format!("Cm: {method}\nSm: channel.close 403 \"ACCESS_REFUSED - {text}\""));
    }
    as_marie(
        "
        set permissions 'marie' configure='' write='' read=''
        Cm: basic.publish routing-key='q' body='m'
        Sm: channel.close 403 \"ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'marie'\" 60 40
        ",
    );
}

#[test]
fn new_permissions_go_for_the_next_operation_though_the_route_is_remembered() {
    as_marie(
        "
        Cm: queue.declare queue='marie-q'
        Sm: queue.declare-ok 'marie-q' 0 0
        Cm: queue.bind queue='marie-q' exchange='amq.direct' routing-key='k'
        Sm: queue.bind-ok
        Cm: basic.publish exchange='amq.direct' routing-key='k' body='one'
        Cm: basic.publish exchange='amq.direct' routing-key='k' body='two'
        Cm: basic.publish routing-key='marie-q' body='three'
        set permissions 'marie' configure='' write='^amq\\.direct$' read='.*'
        Cm: basic.publish exchange='amq.direct' routing-key='k' body='four'
        Cm: basic.get queue='marie-q' no-ack
        Sm: basic.get-ok message-count=3 body='one'
        set permissions 'marie' configure='' write='' read='.*'
        Cm: basic.publish exchange='amq.direct' routing-key='k' body='five'
        Sm: channel.close 403
        Cm: channel.close-ok
        Cm: channel.open
        Sm: channel.open-ok
        Cm: basic.publish routing-key='marie-q' body='six'
        Sm: channel.close 403
        Cm: channel.close-ok
        clear permissions 'marie'
        Cm: channel.open
        Sm: channel.open-ok
        Cm: basic.get queue='marie-q' no-ack
        Sm: channel.close 403
        Cm: channel.close-ok
        set permissions 'marie' configure='.*' write='.*' read='.*'
        Cm: channel.open
        Sm: channel.open-ok
        Cm: queue.purge queue='marie-q'
        Sm: queue.purge-ok 3
        ",
    );
}

#[test]
fn topic_permissions_are_for_routing_keys_of_topic_exchanges() {
    as_marie(
        "
        set topic permissions 'marie' exchange='amq.topic' write='^{username}\\.' read='^(public|{username})\\.'
        set topic permissions 'marie' exchange='amq.direct' write='' read=''
        Cm: queue.declare queue='marie-q'
        Sm: queue.declare-ok
        Cm: queue.bind queue='marie-q' exchange='amq.topic' routing-key='public.#'
        Sm: queue.bind-ok
        Cm: queue.bind queue='marie-q' exchange='amq.direct' routing-key='anything'
        Sm: queue.bind-ok
        Cm: basic.publish exchange='amq.topic' routing-key='marie.a' body='one'
        Cm: basic.publish exchange='amq.topic' routing-key='marie.a' body='two'
        Cm: basic.publish exchange='amq.direct' routing-key='anything' body='three'
        Cm: basic.publish exchange='amq.topic' routing-key='paul.a' body='four'
        Sm: channel.close 403 \"ACCESS_REFUSED - write access to topic 'paul.a' in exchange topic 'amq.topic' in vhost '/' refused for user 'marie'\" 60 40
        Cm: channel.close-ok
        Cm: channel.open
        Sm: channel.open-ok
        Cm: queue.bind queue='marie-q' exchange='amq.topic' routing-key='paul.#'
        Sm: channel.close 403 \"ACCESS_REFUSED - read access to topic 'paul.#' in exchange topic 'amq.topic' in vhost '/' refused for user 'marie'\" 50 20
        Cm: channel.close-ok
        Cm: channel.open
        Sm: channel.open-ok
        Cm: basic.publish exchange='amq.topic' routing-key='marie.a' headers={CC=['paul.a']} body='five'
        Sm: channel.close 403
        Cm: channel.close-ok
        clear topic permissions 'marie' exchange='amq.topic'
        Cm: channel.open
        Sm: channel.open-ok
        Cm: queue.bind queue='marie-q' exchange='amq.topic' routing-key='paul.#'
        Sm: queue.bind-ok
        Cm: basic.publish exchange='amq.topic' routing-key='paul.a' body='six'
        Cm: queue.purge queue='marie-q'
        Sm: queue.purge-ok 2
        ",
    );
}

#[test]
fn topic_permissions_count_behind_a_delay_and_know_the_virtual_host() {
    as_marie(
        "
        Cm: exchange.declare exchange='marie-x' type='x-delayed-message' arguments={x-delayed-type='topic'}
        Sm: exchange.declare-ok
        set topic permissions 'marie' exchange='marie-x' write='^{vhost}$' read=''
        Cm: basic.publish exchange='marie-x' routing-key='/' headers={x-delay=1000} body='1'
        Cm: basic.publish exchange='marie-x' routing-key='x' headers={x-delay=1000} body='2'
        Sm: channel.close 403
        ",
    );
}

#[test]
fn characters_of_a_name_that_stands_for_a_variable_are_no_pattern() {
    script(
        "
        set user 'm.*' password='secret'
        set permissions 'm.*' configure='.*' write='.*' read='.*'
        set topic permissions 'm.*' exchange='amq.topic' write='^{username}$' read=''
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0m.*\\0secret'
        S/0: connection.tune
        C/0: connection.tune-ok
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C: channel.open
        S: channel.open-ok
        C: basic.publish exchange='amq.topic' routing-key='m.*' body='its own'
        C: basic.publish exchange='amq.topic' routing-key='marie' body='not its own'
        S: channel.close 403
        ",
    );
}

#[test]
fn only_an_impersonator_publishes_in_the_name_of_others() {
    as_marie(
        "
        Cm: queue.declare queue='marie-q'
        Sm: queue.declare-ok
        Cm: basic.publish routing-key='marie-q' user-id='marie' body='one'
        set user 'marie' password='secret' tags='impersonator management'
        Cm: basic.publish routing-key='marie-q' user-id='paul' body='two'
        Cm: queue.purge queue='marie-q'
        Sm: queue.purge-ok 2
        set user 'marie' password='secret' tags='administrator'
        Cm: basic.publish routing-key='marie-q' user-id='paul' body='three'
        Sm: channel.close 406 \"PRECONDITION_FAILED - user_id property set to 'paul' but authenticated user was 'marie'\" 60 40
        ",
    );
}

#[test]
fn a_virtual_host_without_permissions_for_a_user_is_530() {
    script(
        "
        set user 'paul' password='secret'
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0paul\\0secret'
        S/0: connection.tune
        C/0: connection.tune-ok
        C/0: connection.open virtual-host='/'
        S/0: connection.close 530 \"NOT_ALLOWED - access to vhost '/' refused for user 'paul'\" 10 40
        ",
    );
}

#[test]
fn a_new_password_or_none_goes_for_the_next_login() {
    as_marie(
        "
        set user 'marie' password='other'
        Cm/0: connection.update-secret new-secret='secret' reason='renewed'
        Sm/0: connection.close 530 'NOT_ALLOWED - New secret was refused by one of the backends' 10 70
        ",
    );
    as_marie(
        "
        set user 'marie' password='other'
        Cm/0: connection.update-secret new-secret='other' reason='renewed'
        Sm/0: connection.update-secret-ok
        delete user 'marie'
        Cm/0: connection.update-secret new-secret='other' reason='renewed'
        Sm/0: connection.close 530
        ",
    );
    for password in ["", "guest"] {
        script(&format!(
            "
            set user 'guest'
            C/0: protocol-header
            S/0: connection.start
            C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0{password}' client-properties={{capabilities={{authentication_failure_close=true}}}}
            S/0: connection.close 403
            "
        ));
    }
}

#[test]
fn a_virtual_host_has_no_more_connections_and_queues_than_it_may() {
    script(
        "
        set vhost max-connections=1 max-queues=2
        C: queue.declare queue='one'
        S: queue.declare-ok
        C: queue.declare queue='two' exclusive
        S: queue.declare-ok
        C: queue.declare queue='one'
        S: queue.declare-ok
        C: queue.declare queue='three'
        S: channel.close 406 \"PRECONDITION_FAILED - cannot declare queue 'three': queue limit in vhost '/' (2) is reached\" 50 10
        Cb/0: protocol-header
        Sb/0: connection.start
        Cb/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sb/0: connection.tune
        Cb/0: connection.tune-ok
        Cb/0: connection.open virtual-host='/'
        Sb/0: connection.close 530 \"NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (1) is reached\" 10 40
        C: channel.close-ok
        set vhost
        C: channel.open
        S: channel.open-ok
        C: queue.declare queue='three'
        S: queue.declare-ok
        Cc: queue.declare queue='four'
        Sc: queue.declare-ok
        ",
    );
}

#[test]
fn a_user_has_no_more_connections_and_channels_than_they_may() {
    script(
        "
        set user limits 'guest' max-connections=1 max-channels=2
        C/1: queue.declare queue='q'
        S/1: queue.declare-ok
        C/2: queue.declare queue='q'
        S/2: queue.declare-ok
        Cb/0: protocol-header
        Sb/0: connection.start
        Cb/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        Sb/0: connection.tune
        Cb/0: connection.tune-ok
        Cb/0: connection.open virtual-host='/'
        Sb/0: connection.close 530 \"NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is reached\" 10 40
        C/2: channel.close reply-code=200 reply-text='' class-id=0 method-id=0
        S/2: channel.close-ok
        C/1: queue.declare queue='nowhere' passive
        S/1: channel.close 404
        C/1: channel.close-ok
        C/3: channel.open
        S/3: channel.open-ok
        C/4: channel.open
        S/4: channel.open-ok
        C/5: channel.open
        S/0: connection.close 530 \"NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (2)\"
        ",
    );
}

/// RabbitMQ: `default_queue_type`. Only what a queue of that type can be becomes one.
#[test]
fn a_queue_that_does_not_say_has_the_default_type_of_its_virtual_host() {
    script(
        "
        set vhost default-queue-type='quorum'
        C: queue.declare queue='q' durable
        S: queue.declare-ok
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok
        C: queue.declare queue='q' durable
        S: queue.declare-ok
        C: queue.declare queue='c' durable arguments={x-queue-type='classic'}
        S: queue.declare-ok
        C: queue.declare queue='t'
        S: queue.declare-ok
        C: queue.declare queue='t' arguments={x-queue-type='classic'}
        S: queue.declare-ok
        C: queue.declare queue='e' durable exclusive
        S: queue.declare-ok
        C: queue.declare queue='c' durable
        S: channel.close 406
        ",
    );
}
