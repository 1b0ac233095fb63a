//! Channels and what goes wrong on them.

use leveret_testkit::script;

#[test]
fn a_channel_exception_closes_the_channel_and_its_number_can_be_used_again() {
    script(
        r#"
        C: queue.declare queue='none' passive
        C: queue.declare queue='dropped'
        S: channel.close 404 "NOT_FOUND - no queue 'none' in vhost '/'" 50 10
        C: queue.declare queue='dropped-too'
        S: nothing
        C: channel.close-ok
        C: channel.open
        S: channel.open-ok
        C: queue.declare queue='dropped' passive
        S: channel.close 404
        C: channel.close-ok
        "#,
    );
}

#[test]
fn a_closed_channel_gives_its_unacked_messages_back_in_their_order() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='one'
        C: basic.publish routing-key='q' body='two'
        C: basic.publish routing-key='q' body='three'
        C/2: basic.get queue='q'
        S/2: basic.get-ok 1 '' 'q' 2 body='one'
        C/2: basic.get queue='q'
        S/2: basic.get-ok 2 '' 'q' 1 body='two'
        C/2: channel.close
        S/2: channel.close-ok
        C: basic.consume queue='q' consumer-tag='t' no-ack
        S: basic.consume-ok 't'
        S: basic.deliver 't' 1 redelivered body='one'
        S: basic.deliver 't' 2 redelivered body='two'
        S: basic.deliver 't' 3 body='three'
        ",
    );
}

#[test]
fn close_and_open_may_be_sent_in_one_breath() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: channel.close
        C: channel.open
        C: queue.declare queue='q' passive
        S: channel.close-ok
        S: channel.open-ok
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

/// The answer to the close comes first, so the channel is new when it is opened again.
#[test]
fn a_number_may_be_opened_again_before_its_close_is_answered() {
    script(
        "
        C: tx.select
        S: tx.select-ok
        C+: channel.close
        C+: channel.open
        C: confirm.select
        S: channel.close-ok
        S: channel.open-ok
        S: confirm.select-ok
        ",
    );
}

#[test]
fn opening_a_channel_twice_or_using_a_closed_one_is_504() {
    script(
        "C: channel.open\nS: channel.open-ok\nC: channel.open\nS: connection.close 504 \"CHANNEL_ERROR - second 'channel.open' seen\" 20 10",
    );
    script(
        "
        C: channel.close
        S: channel.close-ok
        C: basic.qos
        S: connection.close 504 \"CHANNEL_ERROR - expected 'channel.open'\" 60 10
        ",
    );
}

#[test]
fn after_a_connection_exception_only_close_ok_is_heard() {
    script(
        "
        C: basic.publish exchange='' routing-key='q' immediate
        S: connection.close 540 'NOT_IMPLEMENTED - immediate=true' 60 40
        C: queue.declare queue='q'
        S: nothing
        C: connection.close-ok
        S: end
        ",
    );
    script(
        "
        C: basic.publish exchange='' routing-key='q' immediate
        S: connection.close 540
        wait 30s
        S: end
        ",
    );
}

#[test]
fn what_rabbitmq_does_not_implement_is_540() {
    for (method, text) in [
        ("basic.qos prefetch-size=1", "prefetch_size!=0 (1)"),
        ("basic.recover", "requeue=false"),
        ("basic.recover-async", "requeue=false"),
        ("channel.flow", "active=false"),
    ] {
        script(&format!("C: {method}\nS: connection.close 540 'NOT_IMPLEMENTED - {text}'"));
    }
}

#[test]
fn flow_and_access_request_are_answered() {
    script(
        "C: channel.flow active\nS: channel.flow-ok active\nC: access.request realm='/data'\nS: access.request-ok 1",
    );
}

#[test]
fn an_answer_that_nobody_asked_for_is_503() {
    for (answer, method) in [("close-ok", 41), ("flow-ok active", 21)] {
        script(&format!(
            "
            C: channel.{answer}
            S: connection.close 503 'COMMAND_INVALID - unimplemented method' 20 {method}
            "
        ));
    }
}

#[test]
fn qos_and_confirm_select_are_answered_in_their_turn() {
    script(
        "
        C: queue.declare
        C: confirm.select
        C: basic.qos prefetch-count=5
        S: queue.declare-ok $name 0 0
        S: confirm.select-ok
        S: basic.qos-ok
        ",
    );
}

/// It is cut at the end, and three dots say so.
#[test]
fn a_reply_text_is_no_longer_than_a_short_string() {
    let name = "q".repeat(255);
    let text: String = format!("NOT_FOUND - no queue '{name}").chars().take(252).chain("...".chars()).collect();
    script(&format!("C: queue.declare queue='{name}' passive\nS: channel.close 404 \"{text}\" 50 10"));
}

#[test]
fn a_close_right_behind_a_fault_does_not_hide_it() {
    script(
        "
        C+: basic.publish exchange='none' body='lost'
        C: channel.close
        S: channel.close 404
        S: channel.close-ok
        C: channel.close-ok
        C: channel.open
        S: channel.open-ok
        ",
    );
}

#[test]
fn a_close_right_behind_a_publish_does_not_hide_its_confirm() {
    script(
        "
        C: confirm.select
        S: confirm.select-ok
        C+: basic.publish routing-key='nowhere' body=''
        C: channel.close
        S: basic.ack 1
        S: channel.close-ok
        ",
    );
}
