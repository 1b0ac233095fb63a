//! Before a connection is open: headers, logins, limits. AMQP 0-9-1 §2.2.4: until then a fault closes the socket without a
//! word, but for those that clients have learnt to hear of.

use crate::case::{Cases, GOES_ON, frame, long, method, nested, raw};

const START: &str = "C/0: protocol-header\nS/0: connection.start\n";
const LOGIN: &str =
    "C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'\nS/0: connection.tune\n";
const TUNE: &str = "C/0: connection.tune-ok channel-max=2047 frame-max=131072\n";
const UNDERSTANDS: &str = "client-properties={capabilities={authentication_failure_close=true}}";

pub(crate) fn list(cases: &mut Cases) {
    headers(cases);
    order(cases);
    logins(cases);
    limits(cases);
    cases.kind(14);
    for (what, line, ids) in [
        ("start-ok again", "connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'", "10 11"),
        ("secure-ok, unasked", "connection.secure-ok response='x'", "10 21"),
        ("tune-ok again", "connection.tune-ok frame-max=131072", "10 31"),
        ("open again", "connection.open virtual-host='/'", "10 40"),
        ("open of another virtual host", "connection.open virtual-host='other'", "10 40"),
        ("close-ok, unasked", "connection.close-ok", "10 51"),
    ] {
        cases.closes(
            what,
            &format!("C/0: {line}"),
            &format!("504 'CHANNEL_ERROR - unexpected method in connection state running' {ids}"),
        );
    }
}

fn headers(cases: &mut Cases) {
    for (kind, headers) in [
        (
            1,
            &[
                ("a request of HTTP", "'GET / HTTP/1.1' 0d 0a 'Host: localhost' 0d 0a 0d 0a"),
                ("a TLS hello", "16 03 01 00 8b 01 00 00 87 03 03 00*64"),
                ("a banner of SSH", "'SSH-2.0-OpenSSH_9.6' 0d 0a"),
                ("zeroes", "00*8"),
                ("64 KiB of zeroes", "00*65536"),
                ("64 KiB of 0xff", "ff*65536"),
                ("lower case", "'amqp' 00 00 09 01"),
                ("one wrong byte", "'B'"),
                ("a heartbeat", "08 00 00 00 00 00 00 ce"),
            ][..],
        ),
        (
            2,
            &[
                ("revision 2", "'AMQP' 00 00 09 02"),
                ("revision 0", "'AMQP' 00 00 09 00"),
                ("version 9-9-9-9", "'AMQP' 09 09 09 09"),
                ("AMQP 1.0", "'AMQP' 00 01 00 00"),
                ("AMQP 1.0 with SASL", "'AMQP' 03 01 00 00"),
            ],
        ),
        (
            3,
            &[
                ("version 0-8", "'AMQP' 01 01 08 00"),
                ("version 0-8, another spelling", "'AMQP' 01 01 00 08"),
                ("version 0-10", "'AMQP' 01 01 00 0a"),
            ],
        ),
    ] {
        cases.kind(kind);
        for (what, header) in headers {
            cases.script(*what, format!("C/0: raw {header}\nS/0: protocol-header\nS/0: end"));
        }
    }
    cases.kind(4);
    for (what, header) in [("one byte", "41"), ("four bytes", "'AMQP'"), ("seven bytes", "'AMQP' 00 00 09")] {
        cases.script(format!("{what} of the header and no more"), format!("C/0: raw {header}\nC/0: end\nS/0: end"));
        cases.script(format!("{what} of the header and a reset"), format!("Creset/0: raw {header}\nCreset/0: end"));
    }
    cases.script("nothing and no more", "C/0: end\nS/0: end");
    cases.script("a whole header and no more", format!("{START}C/0: end\nS/0: end"));
}

/// Nothing is executed out of order.
fn order(cases: &mut Cases) {
    cases.kind(6);
    let queue = "Cb: queue.declare queue='q%' exclusive\nSb: queue.declare-ok 'q%' 0 0\n";
    let is_empty = "Cb: queue.declare queue='q%' exclusive passive\nSb: queue.declare-ok 'q%' 0 0";
    for line in [
        "C/0: connection.open virtual-host='/'",
        "C/0: connection.tune-ok frame-max=131072",
        "C/0: connection.secure-ok response='x'",
        "C/0: connection.close reply-code=200",
        "C: channel.open",
        "C: queue.delete queue='q%'",
        "C: basic.publish routing-key='q%' body='too early'",
        "C/0: heartbeat\nC: basic.qos",
    ] {
        let what = format!("{line} instead of start-ok");
        cases.script(what, format!("{queue}{START}{line}\nS/0: end\n{is_empty}"));
    }
    cases.script(
        "all in one breath, without a login",
        format!(
            "{queue}C+/0: protocol-header\nC+/0: connection.open virtual-host='/'\nC+: channel.open
            C: basic.publish routing-key='q%' body='too early'\nS/0: connection.start\nS/0: end\n{is_empty}"
        ),
    );
    for (after, steps) in [("login", format!("{START}{LOGIN}")), ("tune-ok", format!("{START}{LOGIN}{TUNE}"))] {
        for line in ["C: channel.open", "C: basic.publish routing-key='q%' body='too early'"] {
            let said = "S/0: connection.close 505 0 0\nC/0: connection.close-ok\nS/0: end";
            cases.script(format!("{line} after {after}"), format!("{queue}{steps}{line}\n{said}\n{is_empty}"));
        }
    }
    cases.script(
        "start-ok twice",
        format!(
            "{START}{LOGIN}C/0: connection.start-ok mechanism='PLAIN' response='\\0guest\\0guest'
        S/0: connection.close 504\nC/0: connection.close-ok\nS/0: end"
        ),
    );

    cases.kind(7);
    for (what, bytes) in [
        ("a frame of 2 GiB", "01 00 00 7f ff ff ff"),
        ("a frame of 4 GiB", "01 00 00 ff ff ff ff"),
        ("the head of a start-ok of 1 MiB", "01 00 00 00 10 00 00"),
        ("a start-ok of 1 MiB", "01 00 00 00 10 00 00 00 0a 00 0b 00*1048573"),
        ("one byte more than 8 KiB", "01 00 00 00 00 20 01"),
        ("a body frame of 1 GiB", "03 00 01 40 00 00 00"),
    ] {
        cases.script(what, format!("{START}C/0: raw {bytes}\nS/0: end")).takes_no_memory();
    }
    let many = (0..50).map(|nth| {
        format!("C{nth}/0: protocol-header\nS{nth}/0: connection.start\nC{nth}/0: raw 01 00 00 00 10 00 00\nS{nth}/0: end\n")
    });
    cases
        .script("the head of a start-ok of 1 MiB, from 50 connections", many.collect::<String>())
        .takes_no_memory();
}

fn logins(cases: &mut Cases) {
    cases.kind(8);
    let nuls = "\\0".repeat(3500);
    for (what, login, code) in [
        ("an unknown mechanism", "mechanism='MAGIC' response='x'", 503),
        ("a mechanism with line breaks", "mechanism='\\x1b[2J\\r\\nforged' response='x'", 503),
        ("a user with line breaks", "mechanism='PLAIN' response='\\0\\x1b[2J\\r\\nforged\\0x'", 403),
        ("EXTERNAL, which is not offered", "mechanism='EXTERNAL'", 503),
        ("no mechanism", "mechanism='' response='\\0guest\\0guest'", 503),
        ("a mechanism in lower case", "mechanism='plain' response='\\0guest\\0guest'", 503),
        ("PLAIN without a NUL", "mechanism='PLAIN' response='guest'", 403),
        ("PLAIN with one NUL", "mechanism='PLAIN' response='\\0guest'", 403),
        ("PLAIN without anything", "mechanism='PLAIN'", 403),
        ("PLAIN with 3500 NULs", &format!("mechanism='PLAIN' response='{nuls}'"), 403),
        ("PLAIN for somebody else", "mechanism='PLAIN' response='admin\\0guest\\0guest'", 403),
        ("AMQPLAIN that is no table", "mechanism='AMQPLAIN' response='x'", 403),
        ("AMQPLAIN without anything", "mechanism='AMQPLAIN'", 403),
        (
            "AMQPLAIN without a password",
            "mechanism='AMQPLAIN' response='\\x05LOGINS\\x00\\x00\\x00\\x05guest'",
            403,
        ),
    ] {
        cases.script(what, format!("{START}C/0: connection.start-ok {login}\nS/0: end"));
        cases.script(
            format!("{what}, from a client that understands"),
            format!(
                "{START}C/0: connection.start-ok {login} {UNDERSTANDS}\nS/0: connection.close {code} 0 0
                C/0: connection.close-ok\nS/0: end"
            ),
        );
    }
    for (what, response) in [
        ("a wrong password", "\\0guest\\0wrong"),
        ("an unknown user", "\\0stranger\\0guest"),
        ("an empty password", "\\0guest\\0"),
        ("no user", "\\0\\0guest"),
        ("a password and a NUL", "\\0guest\\0guest\\0"),
        ("a password and a line break", "\\0guest\\0guest\\n"),
    ] {
        let start_ok = format!("{START}C/0: connection.start-ok mechanism='PLAIN' response='{response}'");
        cases.kind(9).script(
            what,
            format!(
                "{start_ok} {UNDERSTANDS}
                S/0: connection.close 403 'ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.' 0 0
                C/0: connection.close-ok\nS/0: end"
            ),
        );
        cases.kind(10).script(what, format!("{start_ok}\nS/0: end"));
    }

    cases.kind(11);
    for (user, vhost) in
        [("guest", "nowhere"), ("guest", ""), ("guest", "other"), ("nobody", "other"), ("guest", "//")]
    {
        let text = match vhost {
            "other" => format!("access to vhost 'other' refused for user '{user}'"),
            _ => format!("vhost {vhost} not found"),
        };
        open(cases, &format!("{user} opens '{vhost}'"), user, vhost, &format!("530 \"NOT_ALLOWED - {text}\""));
    }
    open(cases, "guest opens a name of 255 bytes", "guest", &"v".repeat(255), "530");
    open(cases, "guest opens a name with line breaks", "guest", "\\x1b[2J\\r\\nforged", "530");
}

/// A virtual host that is not there, or not for this user.
fn open(cases: &mut Cases, what: &str, user: &str, vhost: &str, reply: &str) {
    cases.script(
        what,
        format!(
            "{START}C/0: connection.start-ok mechanism='PLAIN' response='\\0{user}\\0{user}'\nS/0: connection.tune
            {TUNE}C/0: connection.open virtual-host='{vhost}'\nS/0: connection.close {reply}
            C/0: connection.close-ok\nS/0: end"
        ),
    );
}

fn limits(cases: &mut Cases) {
    cases.kind(12);
    for (field, value, bound) in [
        ("frame_max", 100u32, "lower than the minimum allowed value (4096)"),
        ("frame_max", 1, "lower than the minimum allowed value (4096)"),
        ("frame_max", 4095, "lower than the minimum allowed value (4096)"),
        ("frame_max", 131_073, "higher than the maximum allowed value (131072)"),
        ("frame_max", u32::MAX, "higher than the maximum allowed value (131072)"),
        ("channel_max", 2048, "higher than the maximum allowed value (2047)"),
        ("channel_max", 65_535, "higher than the maximum allowed value (2047)"),
    ] {
        let argument = field.replace('_', "-");
        cases.script(
            format!("{field} {value}"),
            format!(
                "{START}{LOGIN}C/0: connection.tune-ok {argument}={value}
                S/0: connection.close 530 'NOT_ALLOWED - negotiated {field} = {value} is {bound}'
                C/0: connection.close-ok\nS/0: end"
            ),
        );
    }
    let open = |tune: &str| {
        format!(
            "{START}{LOGIN}C/0: connection.tune-ok {tune}\nC/0: connection.open virtual-host='/'\nS/0: connection.open-ok\n"
        )
    };
    let closed = "C/0: connection.close-ok\nS/0: end";
    cases.script(
        "zero for channel-max, which is the broker's, and the last channel",
        format!("{}C/2047: channel.open\nS/2047: channel.open-ok", open("channel-max=0 frame-max=131072")),
    );
    for (channel_max, number) in [(0, 2048), (0, 65535), (2047, 2048), (2046, 2047), (1, 2)] {
        let most = if channel_max == 0 { 2047 } else { channel_max };
        cases.script(
            format!("channel {number}, where {channel_max} was agreed on"),
            format!(
                "{}C/{number}: channel.open
                S/0: connection.close 530 'NOT_ALLOWED - channel number {number} is above the negotiated channel_max ({most})' 20 10\n{closed}",
                open(&format!("channel-max={channel_max} frame-max=131072"))
            ),
        );
    }
    // RabbitMQ takes payloads of that size; with the eight bytes around them, they are longer than the specification allows.
    for (agreed, most) in [(0u32, 131_072u32), (131_072, 131_072), (131_071, 131_071), (8192, 8192), (4096, 4096)] {
        cases.kind(if agreed == 0 { 12 } else { 18 });
        let open = format!("{}C: channel.open\nS: channel.open-ok\n", open(&format!("frame-max={agreed}")));
        cases.script(
            format!("a frame as long as may be, where {agreed} was agreed on"),
            format!(
                "{open}C: basic.publish routing-key='nowhere'\nC: content-header {most}\nC: content-body {most}*x\n{GOES_ON}"
            ),
        );
        for (what, kind) in [("method", 1), ("header", 2), ("body", 3)] {
            let [a, b, c, d] = (most + 1).to_be_bytes();
            cases.script(
                format!("the head of a {what} one byte longer, where {agreed} was agreed on"),
                format!(
                    "{open}C: raw {kind:02x} 00 01 {a:02x} {b:02x} {c:02x} {d:02x}
                    S/0: connection.close 501 'FRAME_ERROR - type {kind}, all octets = <<>>: {{frame_too_large,{},{}}}' 0 0\n{closed}",
                    most + 1,
                    most - 8
                ),
            );
        }
    }

    cases.kind(13);
    let start_ok = |properties: &[u8], mechanism: &[u8], response: &[u8]| {
        let mechanism = [&[u8::try_from(mechanism.len()).unwrap()], mechanism].concat();
        method(0, 10, 11, &[long(properties), mechanism, long(response), b"\x05en_US".to_vec()].concat())
    };
    for (letter, name, levels) in [(b'F', "tables", 550), (b'A', "arrays", 800), (b'F', "tables", 65)] {
        let deep = nested(letter, levels);
        cases.script(
            format!("{levels} nested {name} in the properties of a client"),
            format!("{START}{}\nS/0: end", start_ok(&deep, b"PLAIN", b"\0guest\0guest")),
        );
        cases.script(
            format!("{levels} nested {name} in AMQPLAIN"),
            format!("{START}{}\nS/0: end", start_ok(b"", b"AMQPLAIN", &deep)),
        );
    }
    let deep = nested(b'F', 60);
    cases.script(
        "60 nested tables in the properties of a client, which are not too many",
        format!("{START}{}\nS/0: connection.tune", start_ok(&deep, b"PLAIN", b"\0guest\0guest")),
    );
    cases.script(
        "properties of a client that end early",
        format!("{START}{}\nS/0: end", method(0, 10, 11, &[0, 0, 1, 0])),
    );
    cases.script("a start-ok of nothing", format!("{START}{}\nS/0: end", frame(1, 0, &[0, 10, 0, 11])));
    cases.script(
        "half a start-ok and no more",
        format!("{START}{}\nC/0: end\nS/0: end", raw(&[1, 0, 0, 0, 0, 0, 9, 0])),
    );
}
