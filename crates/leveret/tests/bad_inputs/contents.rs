//! Contents: headers, bodies, and what is in the way of either.

use crate::case::{Cases, GOES_ON, frame};

const QUEUE: &str = "C: queue.declare queue='q%' exclusive\nS: queue.declare-ok 'q%' 0 0\n";
const PUBLISH: &str = "C: basic.publish routing-key='q%'\n";

pub(crate) fn list(cases: &mut Cases) {
    order(cases);
    sizes(cases);
    headers(cases);
    tolerated(cases);
    returns(cases);
}

fn order(cases: &mut Cases) {
    cases.kind(30);
    // Without a publish no method is at fault.
    for (what, lines, fault) in [
        ("a content header without a method", "C: content-header 5", "0 0"),
        ("an empty content header without a method", "C: content-header 0", "0 0"),
        ("a body without a method", "C: content-body 'x'", "0 0"),
        ("a body without a header", "C: basic.publish routing-key='q%'\nC: content-body 'x'", "60 40"),
        ("a method instead of the header", "C: basic.publish routing-key='q%'\nC: basic.qos", "60 40"),
        (
            "another publish instead of the header",
            "C: basic.publish routing-key='q%'\nC: basic.publish routing-key='q%'",
            "60 40",
        ),
        (
            "a method instead of the body",
            "C: basic.publish routing-key='q%'\nC: content-header 5\nC: basic.qos",
            "60 40",
        ),
        (
            "a method amidst the body",
            "C: basic.publish routing-key='q%'\nC: content-header 5\nC: content-body 'x'\nC: channel.close reply-code=200",
            "60 40",
        ),
        ("two headers", "C: basic.publish routing-key='q%'\nC: content-header 5\nC: content-header 5", "60 40"),
        (
            "a header amidst the body",
            "C: basic.publish routing-key='q%'\nC: content-header 5\nC: content-body 'x'\nC: content-header 5",
            "60 40",
        ),
        (
            "a body behind a method without content",
            "C: basic.recover requeue\nS: basic.recover-ok\nC: content-body 'x'",
            "0 0",
        ),
        (
            "a content header on a channel that is not open",
            &frame(2, 5, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "0 0",
        ),
    ] {
        cases.closes(what, lines, &format!("505 {fault}"));
    }

    cases.kind(31);
    let header = |class: u8, weight: u8| [0, class, 0, weight, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    for (what, header) in [
        ("class 50", header(50, 0)),
        ("class 0", header(0, 0)),
        ("class 61", header(61, 0)),
        ("weight 1", header(60, 1)),
        ("weight 255", header(60, 255)),
    ] {
        cases.closes(
            format!("a content header of {what}"),
            &format!("{PUBLISH}{}", frame(2, 1, &header)),
            "505 60 40",
        );
    }
}

fn sizes(cases: &mut Cases) {
    cases.kind(32);
    let too_long = "501 'FRAME_ERROR - content body frame exceeds remaining content size' 60 40";
    for (what, lines) in [
        ("one byte too long, in one frame", "C: content-header 5\nC: content-body '123456'"),
        ("one byte too long, in two frames", "C: content-header 5\nC: content-body '123'\nC: content-body '456'"),
        (
            "one byte too long, in frames of a byte",
            "C: content-header 2\nC: content-body '1'\nC: content-body ''\nC: content-body '23'",
        ),
        ("128 KiB too long", "C: content-header 1\nC: content-body 131064*x"),
    ] {
        cases.closes(format!("a body {what}"), &format!("{PUBLISH}{lines}"), too_long);
    }
    let much = "C: content-body 131064*x\n".repeat(129);
    cases.closes(
        "a body 16 MiB too long",
        &format!("{PUBLISH}C: content-header 1000000\n{}", much.trim_end()),
        too_long,
    );
    cases.takes_no_memory();
    cases.closes(
        "a body where the header says that there is none",
        &format!("{PUBLISH}C: content-header 0\nC: content-body 'x'"),
        "505 0 0",
    );

    cases.kind(33);
    for (size, unsigned) in [
        ("536870913", "536870913"),
        ("1073741824", "1073741824"),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "9223372036854775808"),
        ("-1", "18446744073709551615"),
    ] {
        cases.closes(
            format!("a size of {unsigned}"),
            &format!("{PUBLISH}C: content-header {size}"),
            &format!(
                "501 'FRAME_ERROR - content body size {unsigned} exceeds maximum allowed size 536870912' 60 40"
            ),
        );
        cases.takes_no_memory();
    }
    for size in ["16777217", "17825792", "536870912"] {
        cases.refuses(
            format!("a size of {size}, above max_message_size"),
            &format!("{PUBLISH}C: content-header {size}"),
            &format!(
                "406 'PRECONDITION_FAILED - message size {size} is larger than configured max size 16777216' 60 40"
            ),
        );
        cases.takes_no_memory();
    }
    let much = "C: content-body 131072*x\n".repeat(128);
    cases.script(
        "a body above max_message_size that comes all the same",
        format!(
            "{PUBLISH}C: content-header 16777217\nS: channel.close 406 60 40\n{much}C: content-body 'x'
            C: channel.close-ok\nC: channel.open\nS: channel.open-ok\n{GOES_ON}"
        ),
    );
    cases.takes_no_memory();
    announced(cases);
    let largest = "C+: content-body 131072*x\n".repeat(128);
    cases.tolerates(
        "the largest message there may be",
        &format!(
            "{QUEUE}{PUBLISH}C: content-header 16777216\n{largest}C: queue.purge queue='q%'\nS: queue.purge-ok 1"
        ),
    );
}

/// Many messages that may be as large as they say, and of which little comes: 800 MiB altogether.
fn announced(cases: &mut Cases) {
    const MANY: u16 = 50;
    for (what, begun) in
        [("nothing", ""), ("an empty frame", "C: content-body ''\n"), ("some bytes", "C: content-body 'some'\n")]
    {
        let announced = format!("C: basic.publish routing-key='nowhere'\nC: content-header 16777216\n{begun}");
        let on_channels = (1..=MANY).map(|number| announced.replace("C:", &format!("C/{number}:")));
        let channels: String = on_channels.collect();
        cases
            .script(
                format!("{MANY} channels on which 16 MiB are announced, and then {what}"),
                format!("{channels}C/100: basic.qos\nS/100: basic.qos-ok"),
            )
            .takes_no_memory();
        let on_connections = (1..=MANY).map(|nth| {
            let announced = announced.replace("C:", &format!("C{nth}:"));
            format!("{announced}C{nth}/2: basic.qos\nS{nth}/2: basic.qos-ok\n")
        });
        cases
            .script(
                format!("{MANY} connections on which 16 MiB are announced, and then {what}"),
                on_connections.collect::<String>(),
            )
            .takes_no_memory();
    }
    // Every frame may be so long: 25 MiB altogether.
    let heads = (1..=4 * MANY)
        .map(|nth| format!("C{nth}: basic.qos\nS{nth}: basic.qos-ok\nC{nth}: raw 03 00 01 00 02 00 00\n"));
    cases
        .script(format!("{} connections that begin a frame of 128 KiB", 4 * MANY), heads.collect::<String>())
        .takes_no_memory();
}

/// Headers that cannot be read reach no queue, and whoever consumes from it goes on.
fn headers(cases: &mut Cases) {
    cases.kind(34);
    let continued: Vec<u8> = b"\0\x01".repeat(500);
    for (what, flags_and_properties) in [
        ("no flags", &b""[..]),
        ("half of the flags", b"\0"),
        ("a content type that is not there", b"\x80\0"),
        ("a content type longer than the header", b"\x80\0\x05a"),
        ("all flags and nothing else", b"\xff\xfc"),
        ("flags that go on", b"\0\x01"),
        ("flags that go on and end", b"\0\x01\0\0"),
        ("flags that never end", &continued),
        ("a flag that nobody has defined", b"\0\x02"),
        ("bytes behind the properties", b"\0\0\0"),
        ("many bytes behind the properties", &[0; 5000]),
        ("headers longer than the header", b"\x20\0\0\0\0\x05a"),
        ("headers of 4 GiB", b"\x20\0\xff\xff\xff\xffa"),
        ("a header of an unknown type", b"\x20\0\0\0\0\x03\x01kZ"),
        ("a header that ends early", b"\x20\0\0\0\0\x07\x01kS\0\0\0\x05"),
        ("a header's name that ends early", b"\x20\0\0\0\0\x02\x05k"),
        ("half a timestamp", b"\0\x40\0\0\0\0"),
        ("a delivery mode that is not there", b"\x10\0"),
    ] {
        let header = frame(2, 1, &[b"\0\x3c\0\0\0\0\0\0\0\0\0\0", flags_and_properties].concat());
        cases.script(
            what,
            format!(
                "
                Cb: queue.declare queue='q%'
                Sb: queue.declare-ok 'q%' 0 0
                Cb: basic.consume queue='q%' consumer-tag='t' no-ack
                Sb: basic.consume-ok 't'
                C: basic.publish routing-key='q%'
                {header}
                S/0: connection.close 502 60 40
                C/0: connection.close-ok
                S/0: end
                Cb: basic.publish routing-key='q%' body='fine'
                Sb: basic.deliver 't' 1 body='fine'
                Cb: queue.delete queue='q%'
                Sb: queue.delete-ok 0
                Sb: basic.cancel 't' nowait
                "
            ),
        );
        cases.takes_no_memory();
    }
}

fn tolerated(cases: &mut Cases) {
    cases.kind(34).tolerates(
        "a content type that is not UTF-8, which is the business of those who read it",
        &format!(
            "{QUEUE}{PUBLISH}{}\nC: queue.purge queue='q%'\nS: queue.purge-ok 1",
            frame(2, 1, b"\0\x3c\0\0\0\0\0\0\0\0\0\0\x80\0\x02\xff\xfe")
        ),
    );
    let get = "C: basic.get queue='q%' no-ack\nS: basic.get-ok 1 '' 'q%' 0";
    cases.kind(35);
    let empties = "C+: content-body ''\n".repeat(1000);
    cases.tolerates(
        "1000 empty body frames before the body",
        &format!("{QUEUE}{PUBLISH}C: content-header 2\n{empties}C: content-body 'ab'\n{get} body='ab'"),
    );
    cases.tolerates(
        "1000 empty body frames amidst the body",
        &format!("{QUEUE}{PUBLISH}C: content-header 2\nC: content-body 'a'\n{empties}C: content-body 'b'\n{get} body='ab'"),
    );
    cases.closes(
        "1000 empty body frames of nothing",
        &format!("{PUBLISH}C: content-header 0\n{empties}C: content-body ''"),
        "505 0 0",
    );

    cases.kind(36);
    cases.tolerates("an empty message", &format!("{QUEUE}{PUBLISH}C: content-header 0\n{get} body=''"));
    cases.tolerates(
        "an empty message with properties",
        &format!("{QUEUE}{PUBLISH}C: content-header 0 content-type='text/plain' headers={{k=1}}\n{get} content-type='text/plain' headers={{k=1}} body=''"),
    );
    cases.tolerates(
        "a thousand empty messages",
        &format!(
            "{QUEUE}{}C: queue.purge queue='q%'\nS: queue.purge-ok 1000",
            "C+: basic.publish routing-key='q%' body=''\n".repeat(1000)
        ),
    );

    cases.kind(37);
    let whole = "Creset: basic.publish routing-key='q%'\nCreset: content-header 1048576\n";
    let half = "Creset: content-body 131064*x\n".repeat(4);
    for (what, lines) in [
        ("the method of a message", "Creset: basic.publish routing-key='q%'".to_owned()),
        ("the method and header of a message", whole.to_owned()),
        ("half of a message", format!("{whole}{half}")),
        ("half of a body frame", format!("{whole}{half}Creset: raw 03 00 01 00 01 ff f8 00*60000")),
        ("seven of eight body frames", format!("{whole}{half}{half}")),
    ] {
        cases.script(
            format!("{what}, and a reset"),
            format!(
                "
                {QUEUE}
                Creset: queue.declare queue='r%'
                Sreset: queue.declare-ok 'r%' 0 0
                Creset: basic.publish routing-key='r%' body='held'
                Creset: basic.get queue='r%'
                Sreset: basic.get-ok 1 '' 'r%' 0 body='held'
                {lines}
                Creset: end
                C: basic.consume queue='r%' consumer-tag='t' no-ack
                S: basic.consume-ok 't'
                -- Now the broker has noticed.
                S: basic.deliver 't' 1 redelivered body='held'
                C: queue.delete queue='r%'
                S: queue.delete-ok 0
                S: basic.cancel 't' nowait
                C: basic.publish routing-key='q%' body='whole'
                C: queue.declare queue='q%' exclusive passive
                S: queue.declare-ok 'q%' 1 0
                C: basic.get queue='q%' no-ack
                S: basic.get-ok 2 '' 'q%' 0 body='whole'
                "
            ),
        );
    }
}

fn returns(cases: &mut Cases) {
    cases.kind(60);
    for (what, exchange, routing_key, headers) in [
        ("the default exchange", "", "nowhere%", ""),
        ("a direct exchange", "amq.direct", "nowhere%", ""),
        ("a topic exchange", "amq.topic", "nowhere%", ""),
        ("a fanout exchange without a queue", "amq.fanout", "", ""),
        ("a headers exchange", "amq.headers", "", "headers={k=1}"),
    ] {
        cases.script(
            format!("a mandatory message that {what} brings nowhere"),
            format!(
                "
                C: confirm.select
                S: confirm.select-ok
                C: basic.publish exchange='{exchange}' routing-key='{routing_key}' mandatory delivery-mode=2 {headers} body='x'
                S: basic.return 312 'NO_ROUTE' '{exchange}' '{routing_key}' delivery-mode=2 {headers} body='x'
                S: basic.ack 1
                "
            ),
        );
    }
}
