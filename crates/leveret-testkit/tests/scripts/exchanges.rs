//! Exchanges and bindings.

use leveret_testkit::script;

/// Two queues, `a` and `b`, and an exchange `x` of the given type.
fn with_exchange(declare: &str, rest: &str) {
    script(&format!(
        "
        C: queue.declare queue='a'
        S: queue.declare-ok 'a' 0 0
        C: queue.declare queue='b'
        S: queue.declare-ok 'b' 0 0
        C: exchange.declare exchange='x' {declare}
        S: exchange.declare-ok
        {rest}
        "
    ));
}

#[test]
fn a_direct_exchange_routes_by_the_exact_key() {
    with_exchange(
        "type='direct'",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' routing-key='k.l'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='k' body='1'
        C: basic.publish exchange='x' routing-key='K' body='2'
        C: queue.purge queue='a'
        S: queue.purge-ok 1
        C: queue.purge queue='b'
        S: queue.purge-ok 0
        ",
    );
}

#[test]
fn a_fanout_exchange_routes_to_all_and_each_once() {
    with_exchange(
        "type='fanout'",
        "
        C: queue.bind queue='a' exchange='x' routing-key='1'
        S: queue.bind-ok
        C: queue.bind queue='a' exchange='x' routing-key='2'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='any' body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'any' 0
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 'x' 'any' 0
        ",
    );
}

#[test]
fn a_topic_exchange_routes_by_words() {
    with_exchange(
        "type='topic'",
        "
        C: queue.bind queue='a' exchange='x' routing-key='*.orange.*'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' routing-key='lazy.#'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='quick.orange.rabbit' mandatory body='1'
        C: basic.publish exchange='x' routing-key='lazy' mandatory body='2'
        C: basic.publish exchange='x' routing-key='lazy.orange.hare' mandatory body='3'
        C: basic.publish exchange='x' routing-key='orange' mandatory body='4'
        S: basic.return 312
        C: queue.purge queue='a'
        S: queue.purge-ok 2
        C: queue.purge queue='b'
        S: queue.purge-ok 2
        ",
    );
}

#[test]
fn a_headers_exchange_routes_by_headers() {
    with_exchange(
        "type='headers'",
        "
        C: queue.bind queue='a' exchange='x' arguments={x-match='all' format='pdf' type='report'}
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' arguments={x-match='any' format='pdf' type='log'}
        S: queue.bind-ok
        C: basic.publish exchange='x' headers={format='pdf' type='report'} body='1'
        C: basic.publish exchange='x' headers={format='zip' type='log'} body='2'
        C: basic.publish exchange='x' headers={format='zip'} mandatory body='3'
        S: basic.return 312
        C: basic.publish exchange='x' headers={format='pdf'} body='4'
        C: queue.purge queue='a'
        S: queue.purge-ok 1
        C: queue.purge queue='b'
        S: queue.purge-ok 3
        C: queue.bind queue='a' exchange='x' arguments={x-match='some'}
        S: channel.close 406
        ",
    );
}

#[test]
fn the_predeclared_exchanges_are_there() {
    for (name, kind) in [
        ("amq.direct", "direct"),
        ("amq.fanout", "fanout"),
        ("amq.topic", "topic"),
        ("amq.headers", "headers"),
        ("amq.match", "headers"),
    ] {
        script(&format!(
            "
            C: exchange.declare exchange='{name}' passive
            S: exchange.declare-ok
            C: exchange.declare exchange='{name}' type='{kind}' durable
            S: exchange.declare-ok
            C: exchange.delete exchange='{name}'
            S: channel.close 403
            "
        ));
    }
    script("C: basic.publish exchange='amq.rabbitmq.trace' body=''\nS: channel.close 403");
}

#[test]
fn a_redeclared_exchange_must_be_equivalent() {
    for (second, argument, received, current) in [
        ("type='fanout' durable", "type", "'fanout'", "'direct'"),
        ("type='direct'", "durable", "'false'", "'true'"),
        ("type='direct' durable auto-delete", "auto_delete", "'true'", "'false'"),
        ("type='direct' durable internal", "internal", "'true'", "'false'"),
    ] {
        script(&format!(
            "
            C: exchange.declare exchange='x' type='direct' durable arguments={{unknown=1}}
            S: exchange.declare-ok
            C: exchange.declare exchange='x' type='direct' durable
            S: exchange.declare-ok
            C: exchange.declare exchange='x' {second}
            S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg '{argument}' for exchange 'x' in vhost '/': received {received} but current is {current}\" 40 10
            "
        ));
    }
}

#[test]
fn what_cannot_be_declared_or_deleted_is_refused() {
    for (method, reply) in [
        (
            "exchange.declare exchange='x' type='magic'",
            "406 \"PRECONDITION_FAILED - unknown exchange type 'magic'\"",
        ),
        (
            "exchange.declare exchange='amq.x' type='direct'",
            "403 \"ACCESS_REFUSED - exchange name 'amq.x' contains reserved prefix 'amq.*'\"",
        ),
        (
            "exchange.declare exchange='' type='direct'",
            "403 'ACCESS_REFUSED - operation not permitted on the default exchange'",
        ),
        (
            "exchange.declare exchange='' passive",
            "403 'ACCESS_REFUSED - operation not permitted on the default exchange'",
        ),
        (
            "exchange.delete exchange='amq.direct'",
            "403 \"ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed\"",
        ),
        ("exchange.delete exchange=''", "403 'ACCESS_REFUSED - operation not permitted on the default exchange'"),
        (
            "queue.bind queue='q' exchange=''",
            "403 'ACCESS_REFUSED - operation not permitted on the default exchange'",
        ),
        (
            "exchange.bind source='amq.direct' destination=''",
            "403 'ACCESS_REFUSED - operation not permitted on the default exchange'",
        ),
        ("exchange.declare exchange='none' passive", "404 \"NOT_FOUND - no exchange 'none' in vhost '/'\""),
        ("queue.bind queue='none' exchange='amq.direct'", "404 \"NOT_FOUND - no queue 'none' in vhost '/'\""),
        ("queue.bind queue='q' exchange='none'", "404 \"NOT_FOUND - no exchange 'none' in vhost '/'\""),
        (
            "exchange.bind source='none' destination='amq.direct'",
            "404 \"NOT_FOUND - no exchange 'none' in vhost '/'\"",
        ),
        ("exchange.declare exchange='x' type='direct' arguments={alternate-exchange=5}", "406"),
    ] {
        script(&format!(
            "C: queue.declare queue='q'\nS: queue.declare-ok 'q' 0 0\nC: {method}\nS: channel.close {reply}"
        ));
    }
}

#[test]
fn deleting_and_unbinding_what_is_not_there_is_no_error() {
    script(
        "
        C: exchange.delete exchange='none'
        S: exchange.delete-ok
        C: queue.unbind queue='none' exchange='amq.direct' routing-key='k'
        S: queue.unbind-ok
        C: exchange.unbind source='none' destination='amq.direct'
        S: exchange.unbind-ok
        ",
    );
}

#[test]
fn an_exchange_in_use_is_protected_by_if_unused() {
    with_exchange(
        "type='direct'",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: exchange.delete exchange='x' if-unused
        S: channel.close 406 \"PRECONDITION_FAILED - exchange 'x' in vhost '/' in use\" 40 20
        C/2: queue.unbind queue='a' exchange='x' routing-key='k'
        S/2: queue.unbind-ok
        C/2: exchange.delete exchange='x' if-unused
        S/2: exchange.delete-ok
        C/2: basic.publish exchange='x' body=''
        S/2: channel.close 404
        ",
    );
}

#[test]
fn arguments_are_part_of_a_bindings_identity() {
    with_exchange(
        "type='direct'",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k' arguments={n=1 m=2}
        S: queue.bind-ok
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.unbind queue='a' exchange='x' routing-key='k'
        S: queue.unbind-ok
        C: basic.publish exchange='x' routing-key='k' mandatory body='1'
        C: queue.unbind queue='a' exchange='x' routing-key='k' arguments={m=2 n=1}
        S: queue.unbind-ok
        C: basic.publish exchange='x' routing-key='k' mandatory body='2'
        S: basic.return 312
        ",
    );
}

#[test]
fn an_auto_delete_exchange_goes_with_its_last_binding() {
    with_exchange(
        "type='direct' auto-delete",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.bind queue='b' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: queue.unbind queue='a' exchange='x' routing-key='k'
        S: queue.unbind-ok
        C: exchange.declare exchange='x' passive
        S: exchange.declare-ok
        C: queue.delete queue='b'
        S: queue.delete-ok 0
        C: exchange.declare exchange='x' passive
        S: channel.close 404
        ",
    );
}

#[test]
fn clients_may_not_publish_to_an_internal_exchange_but_exchanges_may() {
    with_exchange(
        "type='fanout' internal",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: exchange.bind source='amq.fanout' destination='x'
        S: exchange.bind-ok
        C: basic.publish exchange='amq.fanout' body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'amq.fanout' '' 0 body='1'
        C: basic.publish exchange='x' body='2'
        S: channel.close 403 \"ACCESS_REFUSED - cannot publish to internal exchange 'x' in vhost '/'\" 60 40
        ",
    );
}

/// RabbitMQ: exchange to exchange bindings.
#[test]
fn bindings_between_exchanges_may_go_in_circles_and_each_queue_gets_one_copy() {
    with_exchange(
        "type='fanout'",
        "
        C: exchange.declare exchange='y' type='fanout'
        S: exchange.declare-ok
        C: exchange.bind source='x' destination='y'
        S: exchange.bind-ok
        C: exchange.bind source='y' destination='x'
        S: exchange.bind-ok
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: queue.bind queue='a' exchange='y'
        S: queue.bind-ok
        C: basic.publish exchange='x' body='1'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' '' 0
        C: exchange.unbind source='x' destination='y'
        S: exchange.unbind-ok
        C: exchange.delete exchange='x'
        S: exchange.delete-ok
        C: basic.publish exchange='y' body='2'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 2 'y' '' 0
        ",
    );
}

/// RabbitMQ: alternate exchanges.
#[test]
fn what_matches_no_binding_goes_to_the_alternate_exchange() {
    with_exchange(
        "type='direct' arguments={alternate-exchange='amq.fanout'}",
        "
        C: queue.bind queue='a' exchange='x' routing-key='k'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='other' mandatory body='0'
        S: basic.return 312
        C: queue.bind queue='b' exchange='amq.fanout'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='k' mandatory body='1'
        C: basic.publish exchange='x' routing-key='other' mandatory body='2'
        C: basic.get queue='a' no-ack
        S: basic.get-ok 1 'x' 'k' 0 body='1'
        C: basic.get queue='b' no-ack
        S: basic.get-ok 2 'x' 'other' 0 body='2'
        ",
    );
}

#[test]
fn a_missing_alternate_exchange_and_a_circle_of_them_end() {
    script(
        "
        C: exchange.declare exchange='x' type='direct' arguments={alternate-exchange='y'}
        S: exchange.declare-ok
        C: basic.publish exchange='x' mandatory body='1'
        S: basic.return 312
        C: exchange.declare exchange='y' type='direct' arguments={alternate-exchange='x'}
        S: exchange.declare-ok
        C: basic.publish exchange='x' mandatory body='2'
        S: basic.return 312
        ",
    );
}

#[test]
fn empty_names_in_bind_mean_the_queue_declared_last() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.bind exchange='amq.direct'
        S: queue.bind-ok
        C: basic.publish exchange='amq.direct' routing-key='q' mandatory body='1'
        C: basic.get no-ack
        S: basic.get-ok 1 'amq.direct' 'q' 0
        ",
    );
}

#[test]
fn nowait_on_exchanges_is_answered_by_nothing_but_errors() {
    script(
        "
        C: exchange.declare exchange='x' type='fanout' nowait
        C: exchange.bind source='x' destination='amq.fanout' nowait
        C: exchange.unbind source='x' destination='amq.fanout' nowait
        C: exchange.delete exchange='x' nowait
        S: nothing
        C: exchange.declare exchange='x' passive nowait
        S: channel.close 404
        ",
    );
}

#[test]
fn a_redeclared_exchange_must_name_the_same_alternate_exchange() {
    script(
        "
        C: exchange.declare exchange='x' type='direct' arguments={alternate-exchange='y'}
        S: exchange.declare-ok
        C: exchange.declare exchange='x' type='direct' arguments={alternate-exchange='y'}
        S: exchange.declare-ok
        C: exchange.declare exchange='x' type='direct'
        S: channel.close 406 \"PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for exchange 'x' in vhost '/': received none but current is the value 'y' of type 'longstr'\" 40 10
        ",
    );
}

#[test]
fn an_auto_delete_exchange_that_was_never_bound_stays() {
    with_exchange(
        "type='direct' auto-delete",
        "
        C: queue.unbind queue='a' exchange='x' routing-key='k'
        S: queue.unbind-ok
        C: exchange.declare exchange='x' passive
        S: exchange.declare-ok
        ",
    );
}

#[test]
fn line_breaks_are_stripped_from_the_names_of_exchanges() {
    script(
        "
        C: exchange.declare exchange='a\\r\\nb' type='direct'
        S: exchange.declare-ok
        C: exchange.declare exchange='ab' passive
        S: exchange.declare-ok
        ",
    );
}

#[test]
fn a_binding_between_exchanges_has_a_key_and_arguments() {
    with_exchange(
        "type='fanout'",
        "
        C: queue.bind queue='a' exchange='x'
        S: queue.bind-ok
        C: exchange.bind source='amq.direct' destination='x' routing-key='k' arguments={n=1}
        S: exchange.bind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='1'
        C: basic.publish exchange='amq.direct' routing-key='other' mandatory body='2'
        S: basic.return 312
        C: exchange.unbind source='amq.direct' destination='x' routing-key='k'
        S: exchange.unbind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='3'
        C: exchange.unbind source='amq.direct' destination='x' routing-key='k' arguments={n=1}
        S: exchange.unbind-ok
        C: basic.publish exchange='amq.direct' routing-key='k' mandatory body='4'
        S: basic.return 312
        C: queue.purge queue='a'
        S: queue.purge-ok 2
        ",
    );
}

#[test]
fn a_long_chain_of_auto_delete_exchanges_goes_without_harm() {
    const LENGTH: u32 = 5_000;
    let declare = |n| format!("C: exchange.declare exchange='x{n}' type='fanout' auto-delete nowait");
    let bind = |n| format!("C: exchange.bind source='x{n}' destination='x{}' nowait", n + 1);
    let declare = (0..=LENGTH).map(declare).collect::<Vec<_>>().join("\n");
    let bind = (0..LENGTH).map(bind).collect::<Vec<_>>().join("\n");
    script(&format!(
        "
        {declare}
        {bind}
        C: exchange.delete exchange='x{LENGTH}'
        S: exchange.delete-ok
        C: exchange.declare exchange='x0' passive
        S: channel.close 404
        "
    ));
}
