//! Arguments: what cannot be read, what can and means nothing, and names that are odd.

use crate::case::{Cases, GOES_ON, REOPEN, frame, long, method, nested};

/// `queue.declare` of `q%` without its flags and table, as `b"\0\0\x02q%"` would have the wrong length.
const DECLARE_Q: &[u8] = b"\0\0\x01q";

pub(crate) fn list(cases: &mut Cases) {
    unreadable(cases);
    nested_and_repeated(cases);
    names(cases);
    redeclarations(cases);
    values(cases);
}

fn unreadable(cases: &mut Cases) {
    cases.kind(38);
    let whole = [DECLARE_Q, b"\0\0\0\0\x0a\x01kS\0\0\0\x03abc"].concat();
    for cut in [0, 1, 2, 3, 4, 5, 7, 9] {
        cases.closes(format!("queue.declare cut after {cut} bytes"), &method(1, 50, 10, &whole[..cut]), "501");
    }
    for (what, class, id, arguments) in [
        ("basic.publish without anything", 60, 40, &b""[..]),
        ("basic.publish with an exchange that overruns", 60, 40, b"\0\0\xffx"),
        ("basic.publish without flags", 60, 40, b"\0\0\0\x01q"),
        ("basic.ack of seven bytes", 60, 80, b"\0\0\0\0\0\0\x01"),
        ("basic.qos of nothing", 60, 10, b""),
        ("exchange.declare with a type that overruns", 40, 10, b"\0\0\x01x\xf0direct"),
        ("queue.bind that ends early", 50, 20, b"\0\0\x01q\x01x"),
        ("queue.declare with bytes behind it", 50, 10, b"\0\0\x01q\0\0\0\0\0\0"),
        ("channel.close that ends early", 20, 40, b"\0"),
        ("confirm.select of nothing", 85, 10, b""),
        ("tx.select with bytes behind it", 90, 10, b"\0"),
        ("a table longer than its frame", 50, 10, b"\0\0\x01q\0\0\x10\0\0\x01k"),
        ("a table of 4 GiB", 50, 10, b"\0\0\x01q\0\xff\xff\xff\xff"),
    ] {
        cases.closes(what, &method(1, class, id, arguments), "501").takes_no_memory();
    }
    for (what, table) in [
        ("an unknown type", &b"\x01kZ"[..]),
        ("a type of NUL", b"\x01k\0"),
        ("a text longer than the table", b"\x01kS\0\0\0\x05a"),
        ("a text of 4 GiB", b"\x01kS\xff\xff\xff\xff"),
        ("an array longer than the table", b"\x01kA\0\0\x10\0"),
        ("a table longer than the one around it", b"\x01kF\0\0\x10\0"),
        ("bytes longer than the table", b"\x01kx\0\0\0\x09a"),
        ("a name longer than the table", b"\xffk"),
        ("a name and nothing else", b"\x01k"),
        ("half a number", b"\x01kI\0\0"),
        ("half a decimal", b"\x01kD\x02\0"),
        ("half a double", b"\x01kd\0\0\0"),
        ("an array of unknown types", b"\x01kA\0\0\0\x02ZZ"),
        ("a fault in an inner table", b"\x01kF\0\0\0\x03\x01aZ"),
    ] {
        let declare = method(1, 50, 10, &[DECLARE_Q, b"\0", &long(table)].concat());
        cases.closes(format!("queue.declare with {what}"), &declare, "502").takes_no_memory();
    }
}

fn nested_and_repeated(cases: &mut Cases) {
    const HEADERS: &str = "the headers of a message";
    cases.kind(39);
    for (letter, name, levels) in
        [(b'F', "tables", 15_000), (b'A', "arrays", 20_000), (b'F', "tables", 65), (b'A', "arrays", 65)]
    {
        let deep = long(&nested(letter, levels));
        let consume = [&b"\0\0\x01q\x01t\0"[..], &deep].concat();
        let header = [&b"\0\x3c\0\0\0\0\0\0\0\0\0\0\x20\0"[..], &deep].concat();
        for (place, input) in [
            ("queue.declare", method(1, 50, 10, &[DECLARE_Q, b"\0", &deep].concat())),
            ("exchange.declare", method(1, 40, 10, &[&b"\0\0\x01x\x06direct\0"[..], &deep].concat())),
            ("queue.bind", method(1, 50, 20, &[&b"\0\0\x01q\x01x\0\0"[..], &deep].concat())),
            ("basic.consume", method(1, 60, 20, &consume)),
            (HEADERS, format!("C: basic.publish routing-key='q'\n{}", frame(2, 1, &header))),
        ] {
            let reply = if place == HEADERS { "502 60 40" } else { "502" };
            cases.closes(format!("{levels} nested {name} in {place}"), &input, reply).takes_no_memory();
        }
    }
    let deep = long(&nested(b'F', 63));
    let header = [&b"\0\x3c\0\0\0\0\0\0\0\0\0\0\x20\0"[..], &deep].concat();
    cases.tolerates(
        "63 nested tables in the headers of a message, which are not too many",
        &format!(
            "C: queue.declare queue='q%' exclusive\nS: queue.declare-ok 'q%' 0 0\nC: basic.publish routing-key='q%'\n{}
            C: basic.get queue='q%' no-ack\nS: basic.get-ok 1 '' 'q%' 0 body=''",
            frame(2, 1, &header)
        ),
    );

    cases.kind(40);
    let equal = long(&b"\x01kI\0\0\0\x01".repeat(10_000));
    let different: Vec<u8> = (0..10_000u32)
        .flat_map(|nth| [&b"\x04"[..], &nth.to_be_bytes().map(|byte| byte % 64 + 48), b"t\x01"].concat())
        .collect();
    for (what, fields) in [("equal", equal), ("different", long(&different))] {
        let header = [&b"\0\x3c\0\0\0\0\0\0\0\0\0\0\x20\0"[..], &fields].concat();
        cases.tolerates(
            format!("10,000 {what} names in the arguments of a binding, and in the headers of a message"),
            &format!(
                "C: queue.declare queue='long%' exclusive\nS: queue.declare-ok\nC: queue.bind exchange='amq.headers' arguments={{k=1}}\nS: queue.bind-ok
                {}\nS: queue.bind-ok
                C: basic.publish exchange='amq.headers' mandatory\n{}\nC: queue.purge\nS: queue.purge-ok",
                method(1, 50, 20, &[&b"\0\0\0\x0bamq.headers\0\0"[..], &fields].concat()),
                frame(2, 1, &header),
            ),
        );
        cases.tolerates(
            format!("10,000 {what} names in the arguments of a queue"),
            &format!(
                "C: basic.qos\nS: basic.qos-ok\n{}\nS: queue.declare-ok\nC: queue.delete\nS: queue.delete-ok 0",
                method(1, 50, 10, &[&b"\0\0\0\x04"[..], &fields].concat())
            ),
        );
        cases.tolerates(
            format!("10,000 {what} names in the arguments of a consumer"),
            &format!(
                "C: queue.declare exclusive\nS: queue.declare-ok\n{}\nS: basic.consume-ok 't'",
                method(1, 60, 20, &[&b"\0\0\0\x01t\0"[..], &fields].concat())
            ),
        );
    }
}

fn names(cases: &mut Cases) {
    cases.kind(41);
    for (what, class, id, arguments) in [
        ("a queue", 50, 10, &b"\0\0\x02\xff\xfe\0\0\0\0\0"[..]),
        ("half a character for a queue", 50, 10, b"\0\0\x02a\xc3\0\0\0\0\0"),
        ("a surrogate for a queue", 50, 10, b"\0\0\x03\xed\xa0\x80\0\0\0\0\0"),
        ("an exchange", 40, 10, b"\0\0\x01\xff\x06direct\0\0\0\0\0"),
        ("a routing key", 60, 40, b"\0\0\0\x01\xff\0"),
        ("a consumer tag", 60, 20, b"\0\0\x01q\x01\x80\0\0\0\0\0"),
        ("a key of a binding", 50, 20, b"\0\0\x01q\x0aamq.direct\x01\xc0\0\0\0\0\0"),
    ] {
        cases.closes(
            format!("{what} that is not UTF-8"),
            &method(1, class, id, arguments),
            "501 'FRAME_ERROR - Malformed UTF-8 in shortstr' 0 0",
        );
    }
    let longest = "n".repeat(255);
    for (what, name) in [
        ("NUL", "a\\0b"),
        ("markup", "<script>alert(1)</script>"),
        ("255 bytes", &longest),
        ("escapes of a terminal", "\\x1b[31mred\\x07"),
        ("a path", "../../etc/passwd"),
        ("a format", "{}%s%n{0}"),
        ("a regular expression", "(a+)+$"),
        ("characters beyond ASCII", "큐☃"),
        ("blanks", "   "),
    ] {
        // The script would take '%' for a number.
        let name = name.replace('%', "!");
        cases.tolerates(
            format!("a queue with {what} for a name"),
            &format!(
                "C: queue.declare queue='{name}' exclusive\nS: queue.declare-ok '{name}' 0 0
                C: queue.bind queue='{name}' exchange='amq.direct' routing-key='{name}'\nS: queue.bind-ok
                C: basic.publish exchange='amq.direct' routing-key='{name}' body='x'
                C: basic.get queue='{name}' no-ack\nS: basic.get-ok 1 'amq.direct' '{name}' 0 body='x'
                C: queue.delete queue='{name}'\nS: queue.delete-ok 0"
            ),
        );
    }
    cases.tolerates(
        "line breaks in the name of a queue, which are taken out",
        "C: queue.declare queue='a\\r\\nb%' exclusive\nS: queue.declare-ok 'ab%' 0 0",
    );
}

fn redeclarations(cases: &mut Cases) {
    cases.kind(45);
    let queue = "C: queue.declare queue='q%' exclusive arguments={x-max-length=5}\nS: queue.declare-ok 'q%' 0 0\n";
    for (what, again) in [
        ("another argument", "exclusive arguments={x-max-length=6}"),
        ("no arguments", "exclusive"),
        ("one more argument", "exclusive arguments={x-max-length=5 x-max-length-bytes=5}"),
        ("auto-delete", "exclusive auto-delete arguments={x-max-length=5}"),
    ] {
        cases.script(
            format!("a queue declared again with {what}"),
            format!("{queue}C: queue.declare queue='q%' {again}\nS: channel.close 406\n{REOPEN}{queue}"),
        );
    }
    cases.refuses(
        "an exclusive queue declared again as not exclusive",
        &format!("{queue}C: queue.declare queue='q%' arguments={{x-max-length=5}}"),
        "405",
    );
    for (what, first, again, code) in [
        ("durable", "", "durable", "406"),
        ("not durable", "durable", "", "406"),
        ("exclusive", "", "exclusive", "405"),
    ] {
        cases.script(
            format!("a queue declared again as {what}"),
            format!(
                "C: queue.declare queue='q%' {first}\nS: queue.declare-ok 'q%' 0 0\nC: queue.declare queue='q%' {again}
                S: channel.close {code}\nC: channel.close-ok\nC/2: queue.delete queue='q%'\nS/2: queue.delete-ok 0"
            ),
        );
    }
    for (what, again) in [
        ("another type", "type='fanout'"),
        ("durable", "type='direct' durable"),
        ("auto-delete", "type='direct' auto-delete"),
        ("internal", "type='direct' internal"),
        ("an alternate exchange", "type='direct' arguments={alternate-exchange='amq.fanout'}"),
    ] {
        cases.script(
            format!("an exchange declared again with {what}"),
            format!(
                "C: exchange.declare exchange='x%' type='direct'\nS: exchange.declare-ok
                C: exchange.declare exchange='x%' {again}\nS: channel.close 406\nC: channel.close-ok
                C/2: exchange.delete exchange='x%'\nS/2: exchange.delete-ok"
            ),
        );
    }
    cases.refuses(
        "a predeclared exchange with another type",
        "C: exchange.declare exchange='amq.direct' type='topic' durable",
        "406",
    );

    cases.kind(46);
    for kind in ["nonsense", "", "DIRECT", "x-jms-topic", "direct "] {
        cases.script(
            format!("an exchange of type '{kind}'"),
            format!(
                "C: exchange.declare exchange='x%' type='{kind}'\nS: channel.close 406\n{REOPEN}
                C: exchange.declare exchange='x%' type='direct' passive\nS: channel.close 404"
            ),
        );
    }
    cases.refuses(
        "a delayed exchange of an unknown type",
        "C: exchange.declare exchange='x%' type='x-delayed-message' arguments={x-delayed-type='nonsense'}",
        "406",
    );
}

fn values(cases: &mut Cases) {
    cases.kind(47);
    for arguments in [
        "x-message-ttl=-1",
        "x-message-ttl='60000'",
        "x-message-ttl=99999999999999",
        "x-expires=0",
        "x-expires=-1",
        "x-expires=true",
        "x-max-length=-1",
        "x-max-length='ten'",
        "x-max-length-bytes=-5",
        "x-overflow='explode'",
        "x-overflow=1",
        "x-max-priority=300",
        "x-max-priority=-1",
        "x-max-priority='high'",
        "x-dead-letter-exchange=1",
        "x-dead-letter-routing-key='k'",
        "x-dead-letter-exchange='x' x-dead-letter-routing-key=7",
        "x-queue-type='mirrored'",
        "x-queue-type='stream'",
        "x-queue-type=1",
        "x-single-active-consumer='yes'",
        "x-queue-mode=1",
        "x-consumer-timeout=-1",
    ] {
        cases.script(
            format!("a queue with {arguments}"),
            format!(
                "C: queue.declare queue='q%' exclusive arguments={{{arguments}}}\nS: channel.close 406\n{REOPEN}
                C: queue.declare queue='q%' passive\nS: channel.close 404"
            ),
        );
    }
    cases.refuses(
        "an alternate exchange that is no text",
        "C: exchange.declare exchange='x%' type='direct' arguments={alternate-exchange=1}",
        "406",
    );
    cases.refuses("x-match of an unknown kind", "C: queue.declare exclusive\nS: queue.declare-ok\nC: queue.bind exchange='amq.headers' arguments={x-match='some'}", "406");

    cases.kind(48);
    let queue = "C: queue.declare queue='q%' exclusive\nS: queue.declare-ok 'q%' 0 0\n";
    for property in [
        "user-id='somebody'",
        "user-id=''",
        "expiration='abc'",
        "expiration='-1'",
        "expiration='1.5'",
        "expiration=' 5'",
        "expiration='99999999999999999999'",
        "headers={CC='other'}",
        "headers={CC={a=1}}",
        "headers={BCC='other'}",
        "headers={BCC=1}",
    ] {
        cases.script(
            format!("a message with {property}"),
            format!(
                "{queue}C/2: basic.publish routing-key='q%' {property} body='x'\nS/2: channel.close 406
                C/2: channel.close-ok\nC: queue.purge queue='q%'\nS: queue.purge-ok 0\n{GOES_ON}"
            ),
        );
    }
}
