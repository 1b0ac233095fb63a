//! Bytes that no honest client sends. Only the guilty connection suffers.

use leveret_testkit::{Broker, Variation, run_script, script};

/// After an open connection with a channel, `input` gets `reply`; a bystander notices nothing.
fn refused(input: &str, reply: &str) {
    script(&format!(
        "
        Cby: queue.declare queue='q'
        Sby: queue.declare-ok 'q' 0 0
        Cby: basic.consume queue='q' consumer-tag='t' no-ack
        Sby: basic.consume-ok 't'
        C: basic.qos
        S: basic.qos-ok
        {input}
        S/0: connection.close {reply}
        C/0: connection.close-ok
        S/0: end
        Cby: basic.publish routing-key='q' body='still here'
        Sby: basic.deliver 't' 1 body='still here'
        Cnew: queue.declare queue='q' passive
        Snew: queue.declare-ok 'q' 0 1
        "
    ));
}

/// The first publish of a connection, all its frames at once, without names or without property flags.
#[test]
fn a_publish_that_lacks_names_or_flags_is_refused_whole_or_not() {
    let no_names = "01 00 01 00 00 00 07 00 3c 00 28 00 00 00 ce";
    let names = "01 00 01 00 00 00 0a 00 3c 00 28 00 00 00 01 'q' 00 ce";
    let header = "02 00 01 00 00 00 0e 00 3c 00*12 ce";
    let no_flags = "02 00 01 00 00 00 0c 00 3c 00*10 ce";
    refused(&format!("C: raw {no_names} {header}"), "501");
    refused(&format!("C: raw {names} {no_flags}"), "502");
    script(&format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: raw {names} {header}
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body=''
        "
    ));
}

/// The texts are Erlang terms: RabbitMQ shows type and payload, sixteen octets of it, and what is wrong.
#[test]
fn broken_frames_are_501() {
    for (input, text) in [
        (
            "C: raw 01 00 01 00 00 00 04 00 14 00 0a cd",
            "type 1, all octets = <<0,20,0,10>>: {invalid_frame_end_marker,205}",
        ),
        (
            "C: raw 03 00 01 00 00 00 11 'ABCDEFGHIJKLMNOPQ' 01",
            "type 3, first 16 octets = <<\"ABCDEFGHIJKLMNOP\">>: {invalid_frame_end_marker,1}",
        ),
        (
            "C: raw 03 00 01 00 00 00 06 'a' 22 5c 1b 'b' 08 00",
            "type 3, all octets = <<\"a\\x5c\"\\x5c\\x5c\\x5ceb\\x5cb\">>: {invalid_frame_end_marker,0}",
        ),
        ("C: raw 00 00 01 00 00 00 00 ce", "type 0, all octets = <<>>: unknown_frame"),
        ("C: raw 05 00 01 00 00 00 03 'ABC' ce", "type 5, all octets = <<\"ABC\">>: unknown_frame"),
        ("C: raw ff*70", "type 255, all octets = <<>>: {frame_too_large,4294967295,131064}"),
        ("C: raw 'AMQP' 00 00 09 01", "type 65, all octets = <<>>: {frame_too_large,1342177289,131064}"),
        ("C: raw 01 00 01 7f ff ff ff", "type 1, all octets = <<>>: {frame_too_large,2147483647,131064}"),
        ("C: raw 03 00 01 ff ff ff ff", "type 3, all octets = <<>>: {frame_too_large,4294967295,131064}"),
        ("C: raw 01 00 01 00 00 00 00 ce", "type 1, all octets = <<>>: unknown_frame"),
        ("C: raw 01 00 01 00 00 00 03 00 14 00 ce", "type 1, all octets = <<0,20,0>>: unknown_frame"),
        ("C: raw 02 00 01 00 00 00 04 00 3c 00 00 ce", "type 2, all octets = <<0,60,0,0>>: unknown_frame"),
        ("C: raw 08 00 00 00 00 00 01 'A' ce", "type 8, all octets = <<\"A\">>: unknown_frame"),
    ] {
        refused(input, &format!("501 'FRAME_ERROR - {text}' 0 0"));
    }
}

#[test]
fn frames_out_of_place_are_505() {
    const NO_METHOD: &str = "'UNEXPECTED_FRAME - expected method frame, got non method frame instead' 0 0";
    const NO_HEADER: &str =
        "'UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead' 60 40";
    const NO_BODY: &str = "'UNEXPECTED_FRAME - expected content body, got non content body frame instead' 60 40";
    for (input, reply) in [
        ("C: raw 08 00 01 00 00 00 00 ce", "'UNEXPECTED_FRAME - type 8, all octets = <<>>' 0 0"),
        ("C/0: content-header 5", "'UNEXPECTED_FRAME - type 2, all octets = <<0,60,0,0,0,0,0,0,0,0,0,5,0,0>>' 0 0"),
        ("C/0: content-body 'x'", "'UNEXPECTED_FRAME - type 3, all octets = <<\"x\">>' 0 0"),
        ("C: content-header 5", NO_METHOD),
        ("C: content-body 'x'", NO_METHOD),
        ("C/2: content-header 5", NO_METHOD),
        ("C/2: content-body 'x'", NO_METHOD),
        ("C: basic.publish routing-key='q'\n        C: content-body 'x'", NO_HEADER),
        ("C: basic.publish routing-key='q'\n        C: basic.qos", NO_HEADER),
        (
            "C: basic.publish routing-key='q'\n        C: raw 02 00 01 00 00 00 0e 00 3c 00 01 00 00 00 00 00 00 00 00 00 00 ce",
            NO_HEADER,
        ),
        (
            "C: basic.publish routing-key='q'\n        C: raw 02 00 01 00 00 00 0e 00 32 00 00 00 00 00 00 00 00 00 00 00 00 ce",
            "'UNEXPECTED_FRAME - expected content header for class 60, got one for class 50 instead' 60 40",
        ),
        ("C: basic.publish routing-key='q'\n        C: content-header 5\n        C: content-header 5", NO_BODY),
        ("C: basic.publish routing-key='q'\n        C: content-header 5\n        C: basic.qos", NO_BODY),
    ] {
        refused(input, &format!("505 {reply}"));
    }
}

#[test]
fn a_body_longer_than_declared_is_501() {
    for input in ["C: content-body '123456'", "C: content-body '123'\n        C: content-body '456'"] {
        refused(
            &format!("C: basic.publish routing-key='q'\n        C: content-header 5\n        {input}"),
            "501 'FRAME_ERROR - content body frame exceeds remaining content size' 60 40",
        );
    }
}

#[test]
fn a_size_beyond_all_limits_is_501_at_the_header() {
    for (size, unsigned) in [
        ("536870913", "536870913"),
        ("1073741824", "1073741824"),
        ("-9223372036854775808", "9223372036854775808"),
        ("-1", "18446744073709551615"),
    ] {
        refused(
            &format!("C: basic.publish routing-key='q'\n        C: content-header {size}"),
            &format!(
                "501 'FRAME_ERROR - content body size {unsigned} exceeds maximum allowed size 536870912' 60 40"
            ),
        );
    }
}

#[test]
fn a_broken_content_header_is_502() {
    for header in [
        "00 3c 00 00 00 00 00 00 00 00 00 00",
        "00 3c 00 00 00 00 00 00 00 00 00 00 80 00",
        "00 3c 00 00 00 00 00 00 00 00 00 00 80 00 05 'a'",
        "00 3c 00 00 00 00 00 00 00 00 00 00 00 01",
        "00 3c 00 00 00 00 00 00 00 00 00 00 00 00 00",
        "00 3c 00 00 00 00 00 00 00 00 00 00 20 00 00 00 00 05 'a'",
        "00 3c 00 00 00 00 00 00 00 00 00 00 20 00 00 00 00 03 01 'kZ'",
    ] {
        let length =
            header.split(' ').count() - header.matches("'kZ'").count() + 2 * header.matches("'kZ'").count();
        refused(
            &format!("C: basic.publish routing-key='q'\n        C: raw 02 00 01 00 00 00 {length:02x} {header} ce"),
            "502",
        );
    }
}

#[test]
fn arguments_that_overrun_their_frame_are_501_and_broken_tables_502() {
    for (input, reply) in [
        (
            "C: raw 01 00 01 00 00 00 07 00 32 00 0a 00 00 05 ce",
            "501 'FRAME_ERROR - cannot decode <<0,0,5>>' 50 10",
        ),
        (
            "C: raw 01 00 01 00 00 00 0c 00 32 00 0a 00 00 01 'q' 00 00 00 00 ce",
            "501 'FRAME_ERROR - cannot decode <<0,0,1,113,0,0,0,0>>' 50 10",
        ),
        (
            "C: raw 01 00 01 00 00 00 07 00 55 00 0a 00 'ab' ce",
            "501 'FRAME_ERROR - cannot decode <<0,97,98>>' 85 10",
        ),
        (
            "C: raw 01 00 01 00 00 00 08 00 3c 00 1e 02 ff fe 00 ce",
            "501 'FRAME_ERROR - Malformed UTF-8 in shortstr' 0 0",
        ),
        ("C: raw 01 00 01 00 00 00 10 00 32 00 0a 00 00 01 'q' 00 00 00 00 03 01 'k' 'Z' ce", "502"),
        ("C: raw 01 00 01 00 00 00 11 00 32 00 0a 00 00 01 'q' 00 00 00 00 04 01 'k' 'S' 00 ce", "502"),
    ] {
        refused(input, reply);
    }
}

#[test]
fn unknown_methods_are_540_and_methods_of_servers_503() {
    refused("C: raw 01 00 01 00 00 00 04 00 63 00 0a ce", "540 'NOT_IMPLEMENTED - unknown method 99.10' 99 10");
    refused("C: raw 01 00 01 00 00 00 04 00 32 03 e7 ce", "540");
    for method in ["queue.declare-ok", "basic.deliver", "basic.return", "basic.qos-ok", "confirm.select-ok"] {
        refused(&format!("C: {method}"), "503 'COMMAND_INVALID - unimplemented method'");
    }
}

#[test]
fn methods_on_the_wrong_channel_are_504_or_503() {
    const RUNNING: &str = "504 'CHANNEL_ERROR - unexpected method in connection state running'";
    for (input, ids) in [
        ("C: raw 01 00 00 00 00 00 0b 00 3c 00 0a 00 00 00 00 00 00 00 ce", "60 10"),
        ("C: raw 01 00 00 00 00 00 05 00 14 00 0a 00 ce", "20 10"),
        ("C/0: connection.start-ok mechanism='PLAIN'", "10 11"),
        ("C/0: connection.tune-ok", "10 31"),
        ("C/0: connection.open virtual-host='/'", "10 40"),
        ("C/0: connection.close-ok", "10 51"),
    ] {
        refused(input, &format!("{RUNNING} {ids}"));
    }
    refused("C: raw 01 00 01 00 00 00 04 00 0a 00 33 ce", "503 'COMMAND_INVALID - unimplemented method' 10 51");
}

#[test]
fn a_channel_above_the_limit_is_530() {
    refused("C: raw 01 08 00 00 00 00 05 00 14 00 0a 00 ce", "530");
}

#[test]
fn many_empty_body_frames_are_harmless() {
    let empty = "C: content-body ''\n".repeat(1000);
    script(&format!(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q'
        C: content-header 2
        {empty}
        C: content-body 'ab'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 '' 'q' 0 body='ab'
        "
    ));
}

#[test]
fn half_a_message_is_no_message() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        Cb: basic.publish routing-key='q'
        Cb: content-header 10
        Cb: content-body '12345'
        Cb: end
        Sb: end
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 0 0
        ",
    );
}

#[test]
fn before_login_a_frame_is_at_most_8_kib() {
    script(
        "
        Cx/0: protocol-header
        Sx/0: connection.start
        Cx/0: raw 01 00 00 00 10 00 00
        Sx/0: end
        ",
    );
}

/// Each channel may be in the middle of a content, but all of them together not in the middle of very many: they take
/// four times the largest message at most. What is closed or complete does not count.
#[test]
fn contents_that_are_never_complete_are_506_before_they_take_the_memory() {
    let mut text = String::from("Cby: basic.qos\nSby: basic.qos-ok\n");
    let rest = |channel: u16| format!("C/{channel}: content-body 130000*x\n");
    let begin = |channel: u16| {
        format!("C/{channel}: basic.publish routing-key='q'\nC/{channel}: content-header 520000\n")
            + &rest(channel).repeat(3)
    };
    text.extend((1..=170).map(begin));
    text.extend((1..=170).map(rest));
    text.extend((1..=172).map(begin));
    text.push_str("S/0: nothing\n");
    text.push_str(&begin(173));
    text.push_str("S/0: connection.close 506 'RESOURCE_ERROR - contents that are not complete take more than 67108864 bytes on this connection; end some first' 60 40\nCby: basic.qos\nSby: basic.qos-ok\n");
    if let Err(failure) = run_script(&mut Broker::new(Variation::ALL[0]), &text) {
        let failure: String = failure.chars().take(500).collect();
        panic!("{failure}");
    }
}
