//! Frames that break the rules of framing, and methods where they have no business.

use crate::case::{Cases, frame, method};

pub(crate) fn list(cases: &mut Cases) {
    broken(cases);
    out_of_place(cases);
    channels(cases);
    closing(cases);
}

fn broken(cases: &mut Cases) {
    for (kind, code, inputs) in [
        (
            16,
            501,
            &[
                ("a method that ends with 0xcd", "01 00 01 00 00 00 04 00 14 00 0a cd"),
                ("a method that ends with 0", "01 00 01 00 00 00 04 00 14 00 0a 00"),
                ("a header that ends with 0", "02 00 01 00 00 00 0e 00 3c 00*12 00"),
                ("a body that ends with 0", "03 00 01 00 00 00 01 'x' 00"),
                ("a heartbeat that ends with 0", "08 00 00 00 00 00 00 00"),
                ("a frame one byte longer than it says", "01 00 01 00 00 00 04 00 3c 00 0a 00 ce"),
            ][..],
        ),
        (
            17,
            501,
            &[
                ("type 0", "00 00 01 00 00 00 00 ce"),
                ("type 4", "04 00 01 00 00 00 00 ce"),
                ("type 5", "05 00 01 00 00 00 03 'abc' ce"),
                ("type 9 on channel 0", "09 00 00 00 00 00 00 ce"),
                ("type 255", "ff 00 01 00 00 00 00 ce"),
            ],
        ),
        (
            18,
            501,
            &[
                ("a frame of 4 GiB", "01 00 01 ff ff ff ff"),
                ("a frame of 2 GiB", "01 00 01 7f ff ff ff"),
                ("a method of 128 KiB and a byte", "01 00 01 00 02 00 01"),
                ("a header of 1 MiB", "02 00 01 00 10 00 00"),
                ("a body of 1 GiB", "03 00 01 40 00 00 00"),
                ("a heartbeat of 16 MiB", "08 00 00 01 00 00 00"),
                ("bytes 0xff and no more", "ff*70"),
            ],
        ),
        (
            19,
            501,
            &[
                ("a method of no bytes", "01 00 01 00 00 00 00 ce"),
                ("a method of one byte", "01 00 01 00 00 00 01 00 ce"),
                ("a method of three bytes", "01 00 01 00 00 00 03 00 14 00 ce"),
                ("a method of three bytes on channel 0", "01 00 00 00 00 00 03 00 0a 00 ce"),
                ("a header of no bytes", "02 00 01 00 00 00 00 ce"),
                ("a header of eleven bytes", "02 00 01 00 00 00 0b 00 3c 00*9 ce"),
            ],
        ),
        (
            20,
            501,
            &[
                ("a heartbeat with a payload", "08 00 00 00 00 00 01 'x' ce"),
                ("a heartbeat with a payload on channel 1", "08 00 01 00 00 00 04 'beat' ce"),
            ],
        ),
        (
            20,
            505,
            &[
                ("a heartbeat on channel 1", "08 00 01 00 00 00 00 ce"),
                ("a heartbeat on a channel that is not open", "08 00 07 00 00 00 00 ce"),
            ],
        ),
        (
            22,
            501,
            &[
                ("a protocol header", "'AMQP' 00 00 09 01"),
                ("a protocol header behind a heartbeat", "08 00 00 00 00 00 00 ce 'AMQP' 00 00 09 01"),
                ("a request of HTTP", "'GET / HTTP/1.1' 0d 0a 0d 0a"),
            ],
        ),
    ] {
        cases.kind(kind);
        for (what, bytes) in inputs {
            cases.closes(*what, &format!("C: raw {bytes}"), &format!("{code} 0 0"));
            if kind == 18 {
                cases.takes_no_memory();
            }
        }
    }
    cases.kind(18).script(
        "a payload longer than was agreed, though the broker would take more",
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
        C: basic.publish routing-key='nowhere'
        C: content-header 4097
        C: content-body 4097*x
        S/0: connection.close 501 0 0
        C/0: connection.close-ok
        S/0: end
        ",
    );
}

fn out_of_place(cases: &mut Cases) {
    cases.kind(21);
    cases.closes("a content header on channel 0", "C/0: content-header 5", "505 0 0");
    cases.closes("a body on channel 0", "C/0: content-body 'x'", "505 0 0");
    cases.closes("an empty body on channel 0", "C/0: content-body ''", "505 0 0");

    cases.kind(23);
    for (class, id) in [(99, 10), (50, 999), (0, 0), (65535, 65535), (60, 200), (20, 0), (90, 60), (110, 10)] {
        let text = format!("540 'NOT_IMPLEMENTED - unknown method {class}.{id}' {class} {id}");
        cases.closes(format!("method {class}.{id}"), &method(1, class, id, b""), &text);
    }
    cases.closes("method 99.10 on channel 0", &method(0, 99, 10, b"").replace("C:", "C/0:"), "540");
    cases.closes("method 50.999 with arguments", &method(1, 50, 999, &[0; 300]), "540");

    cases.kind(24);
    for (what, class, id, arguments) in [
        ("queue.declare", 50, 10, &b"\0\0\x01q\0\0\0\0\0"[..]),
        ("basic.publish", 60, 40, b"\0\0\0\x01q\0"),
        ("basic.qos", 60, 10, b"\0\0\0\0\0\0\0"),
        ("channel.open", 20, 10, b"\0"),
        ("tx.commit", 90, 20, b""),
    ] {
        cases.closes(
            format!("{what} on channel 0"),
            &method(0, class, id, arguments),
            &format!("504 'CHANNEL_ERROR - unexpected method in connection state running' {class} {id}"),
        );
    }
    for (what, id, arguments) in [
        ("connection.close", 50, &b"\0\xc8\0\0\0\0\0"[..]),
        ("connection.close-ok", 51, b""),
        ("connection.open", 40, b"\x01/\0\0"),
        ("connection.tune-ok", 31, b"\0\0\0\0\0\0\0\0"),
        ("connection.start-ok", 11, b"\0\0\0\0\x05PLAIN\0\0\0\0\x05en_US"),
        ("connection.secure-ok", 21, b"\0\0\0\0"),
        ("connection.update-secret", 70, b"\0\0\0\x05guest\0"),
        ("connection.open-ok", 41, b"\0"),
    ] {
        cases.closes(format!("{what} on channel 1"), &method(1, 10, id, arguments), "503");
    }

    cases.kind(27);
    for answer in [
        "exchange.declare-ok",
        "exchange.delete-ok",
        "exchange.bind-ok",
        "exchange.unbind-ok",
        "queue.declare-ok",
        "queue.bind-ok",
        "queue.unbind-ok",
        "queue.purge-ok",
        "queue.delete-ok",
        "basic.qos-ok",
        "basic.consume-ok",
        "basic.return body='x'",
        "basic.deliver body='x'",
        "basic.get-ok body='x'",
        "basic.get-empty",
        "basic.recover-ok",
        "confirm.select-ok",
        "tx.select-ok",
        "tx.commit-ok",
        "tx.rollback-ok",
        "channel.open-ok",
        "channel.close-ok",
        "channel.flow-ok",
    ] {
        cases.closes(answer, &format!("C: {answer}"), "503");
    }
    cases.tolerates(
        "basic.cancel-ok, with which a client may answer basic.cancel",
        "C: basic.cancel-ok consumer-tag='t'",
    );
    for answer in [
        "connection.start",
        "connection.secure",
        "connection.tune",
        "connection.open-ok",
        "connection.blocked",
        "connection.unblocked",
        "connection.update-secret-ok",
    ] {
        cases.closes(answer, &format!("C/0: {answer}"), "504");
    }
}

fn channels(cases: &mut Cases) {
    cases.kind(25);
    let not_open = "504 \"CHANNEL_ERROR - expected 'channel.open'\"";
    cases.closes("basic.qos on a channel that is not open", &method(2, 60, 10, b"\0\0\0\0\0\0\0"), not_open);
    cases.closes("basic.publish on a channel that is not open", &method(9, 60, 40, b"\0\0\0\x01q\0"), not_open);
    cases.closes("channel.close on a channel that is not open", &method(3, 20, 40, b"\0\xc8\0\0\0\0\0"), not_open);
    cases.closes("basic.ack on the last channel, not open", &method(2047, 60, 80, &[0; 9]), not_open);
    cases.closes("channel.open twice", "C: channel.open", "504 \"CHANNEL_ERROR - second 'channel.open' seen\"");
    cases.closes(
        "basic.qos on a channel that is closed",
        "C/2: basic.qos\nS/2: basic.qos-ok\nC/2: channel.close reply-code=200\nS/2: channel.close-ok\nC/2: basic.qos",
        not_open,
    );
    cases.closes(
        "basic.publish right behind channel.close",
        "C/2: basic.qos\nS/2: basic.qos-ok\nC+/2: channel.close reply-code=200\nC/2: basic.publish routing-key='q' body='x'\nS/2: channel.close-ok",
        not_open,
    );

    cases.kind(26);
    for number in [2048, 4096, 65535] {
        let text =
            format!("530 'NOT_ALLOWED - channel number {number} is above the negotiated channel_max (2047)' 20 10");
        cases.closes(format!("channel {number} is opened"), &format!("C/{number}: channel.open"), &text);
    }
    for (what, class, id, arguments) in
        [("basic.qos", 60, 10, &[0; 7][..]), ("queue.declare", 50, 10, b"\0\0\x01q\0\0\0\0\0")]
    {
        cases.closes(format!("{what} on channel 2048"), &method(2048, class, id, arguments), "530");
    }
    let header = frame(2, 2048, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    cases.closes("a content header on channel 2048", &header, "530 0 0");
    cases.script(
        "one channel more than was agreed",
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.tune
        C/0: connection.tune-ok channel-max=2
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C/1: channel.open
        S/1: channel.open-ok
        C/2: channel.open
        S/2: channel.open-ok
        C/3: channel.open
        S/0: connection.close 530 'NOT_ALLOWED - channel number 3 is above the negotiated channel_max (2)' 20 10
        C/0: connection.close-ok
        S/0: end
        ",
    );
}

fn closing(cases: &mut Cases) {
    cases.kind(28);
    let gone = "Cb: queue.declare queue='q%' passive\nSb: channel.close 404";
    for (what, lines) in [
        ("a declaration", "C: queue.declare queue='q%'"),
        ("a message for a queue", "C: queue.declare queue='q%'\nC: basic.publish routing-key='q%' body='x'"),
        ("another fault", "C: basic.publish exchange='missing' body='x'\nC: queue.declare queue='q%'"),
        ("contents without methods", "C: content-header 5\nC: content-body 'x'\nC: queue.declare queue='q%'"),
        ("channel.open", "C: channel.open\nC: queue.declare queue='q%'"),
        ("a transaction", "C: tx.select\nC: queue.declare queue='q%'\nC: tx.commit"),
    ] {
        cases.script(
            format!("{what} while the channel is being closed"),
            format!(
                "C: basic.publish exchange='missing' body='x'\nS: channel.close 404\n{lines}\nC: channel.close-ok
                C: channel.open\nS: channel.open-ok\nC: basic.qos\nS: basic.qos-ok\n{gone}"
            ),
        );
    }
    cases.script(
        "a method nobody knows while the channel is being closed",
        format!(
            "C: queue.purge queue='missing'\nS: channel.close 404\n{}\nS/0: connection.close 540",
            method(1, 99, 1, b"")
        ),
    );

    cases.kind(29);
    let goodbye = "C/0: connection.close reply-code=200";
    let is_not_executed = "Cb: queue.declare queue='q%' passive\nSb: channel.close 404";
    cases.script(
        "connection.close",
        format!("C: basic.qos\nS: basic.qos-ok\n{goodbye}\nS/0: connection.close-ok\nS/0: end"),
    );
    cases.script(
        "connection.close with a text of several lines, of a client whose name has some, too",
        "
        C/0: protocol-header
        S/0: connection.start
        C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest' client-properties={connection_name='\\x1b[2J\\r\\nforged' product='\\x1b[2J\\r\\nforged'}
        S/0: connection.tune
        C/0: connection.tune-ok
        C/0: connection.open virtual-host='/'
        S/0: connection.open-ok
        C/0: connection.close reply-code=500 reply-text='\\x1b[2J\\r\\nforged'
        S/0: connection.close-ok
        S/0: end
        ",
    );
    cases.script(
        "connection.close, and more in one breath",
        format!("C: basic.qos\nS: basic.qos-ok\nC+/0: connection.close reply-code=200\nC+: queue.declare queue='q%'\nC: raw ff*70\nS/0: connection.close-ok\nS/0: end\n{is_not_executed}"),
    );
    cases.script("connection.close twice", format!("C: basic.qos\nS: basic.qos-ok\nC+/0: connection.close reply-code=200\n{goodbye}\nS/0: connection.close-ok\nS/0: end"));
    cases.script(
        "connection.close amidst a content",
        format!("C: basic.publish routing-key='q%'\nC: content-header 10\nC: content-body 'half'\n{goodbye}\nS/0: connection.close-ok\nS/0: end"),
    );
    cases.script(
        "connection.close of a client that understands nothing, after a fault",
        format!(
            "C: basic.qos\nS: basic.qos-ok\n{}\nS/0: connection.close 501 0 0\n{goodbye}\nS/0: connection.close-ok",
            frame(0, 1, b"")
        ),
    );
}
