//! Who may do what: every operation with every combination of permissions, against RabbitMQ's table of what each needs.

use leveret_testkit::{Broker, Variation, run_script};

/// What an operation needs: one letter for the permission, and the name that its pattern has to match.
/// Then what the broker says if all of it is given; where that is nothing, a `basic.qos` follows.
/// RabbitMQ: access control, "How Authorisation Works: Permissions"; `rabbit_channel.erl` for what the table leaves out.
const OPERATIONS: [(&str, Needs, &str); 26] = [
    ("exchange.declare exchange='x' type='topic' durable", All(&["c x"]), "exchange.declare-ok"),
    ("exchange.declare exchange='x' passive", All(&[]), "exchange.declare-ok"),
    ("exchange.declare exchange='new' type='fanout'", All(&["c new"]), "exchange.declare-ok"),
    (
        "exchange.declare exchange='new' type='fanout' arguments={alternate-exchange='y'}",
        All(&["c new", "r new", "w y"]),
        "exchange.declare-ok",
    ),
    ("exchange.delete exchange='x'", All(&["c x"]), "exchange.delete-ok"),
    ("exchange.bind destination='y' source='x' routing-key='k'", All(&["w y", "r x"]), "exchange.bind-ok"),
    ("exchange.bind destination='x' source='y' routing-key='k'", All(&["w x", "r y"]), "exchange.bind-ok"),
    ("exchange.unbind destination='y' source='x' routing-key='k'", All(&["w y", "r x"]), "exchange.unbind-ok"),
    ("queue.declare queue='q'", All(&["c q"]), "queue.declare-ok"),
    ("queue.declare queue='q' passive", Any(&["c q", "r q", "w q"]), "queue.declare-ok"),
    ("queue.declare queue='new'", All(&["c new"]), "queue.declare-ok"),
    (
        "queue.declare queue='new' arguments={x-dead-letter-exchange='y'}",
        All(&["c new", "r new", "w y"]),
        "queue.declare-ok",
    ),
    (
        "queue.declare queue='new' arguments={x-dead-letter-exchange=''}",
        All(&["c new", "r new", "w amq.default"]),
        "queue.declare-ok",
    ),
    ("queue.bind queue='q' exchange='x' routing-key='k'", All(&["w q", "r x"]), "queue.bind-ok"),
    ("queue.bind queue='q' exchange='y' routing-key='k'", All(&["w q", "r y"]), "queue.bind-ok"),
    ("queue.unbind queue='q' exchange='x' routing-key='k'", All(&["w q", "r x"]), "queue.unbind-ok"),
    ("queue.purge queue='q'", All(&["r q"]), "queue.purge-ok"),
    ("queue.delete queue='q'", All(&["c q"]), "queue.delete-ok"),
    ("queue.delete queue='nowhere'", All(&["c nowhere"]), "queue.delete-ok"),
    ("basic.get queue='q' no-ack", All(&["r q"]), "basic.get-empty"),
    ("basic.consume queue='q' no-ack", All(&["r q"]), "basic.consume-ok"),
    ("basic.publish exchange='x' routing-key='k' body='m'", All(&["w x"]), ""),
    ("basic.publish exchange='y' routing-key='k' body='m'", All(&["w y"]), ""),
    ("basic.publish exchange='x' routing-key='k' mandatory body='m'", All(&["w x"]), "basic.return"),
    ("basic.publish routing-key='q' body='m'", All(&["w amq.default"]), ""),
    ("basic.qos prefetch-count=1", All(&[]), "basic.qos-ok"),
];

enum Needs {
    All(&'static [&'static str]),
    Any(&'static [&'static str]),
}
use Needs::{All, Any};

/// Patterns, and the names above that each matches.
const PATTERNS: [(&str, &[&str]); 5] = [
    ("", &[]),
    ("^(q|new)$", &["q", "new"]),
    ("^x", &["x"]),
    ("^y$|default", &["y", "amq.default"]),
    (".*", &["q", "new", "x", "y", "amq.default", "nowhere"]),
];

const LOG_IN: &str = "
    C/0: protocol-header
    S/0: connection.start
    C/0: connection.start-ok mechanism='PLAIN' response='\\0marie\\0secret'
    S/0: connection.tune
    C/0: connection.tune-ok
    C/0: connection.open virtual-host='/'
    S/0: connection.open-ok
    C: channel.open
    S: channel.open-ok
    ";

const TOPOLOGY: &str = "
    Cowner: exchange.declare exchange='x' type='topic' durable
    Sowner: exchange.declare-ok
    Cowner: exchange.declare exchange='y' type='topic'
    Sowner: exchange.declare-ok
    Cowner: queue.declare queue='q'
    Sowner: queue.declare-ok
    set user 'marie' password='secret'
    ";

#[test]
fn every_operation_needs_what_rabbitmqs_table_says() {
    let (mut cells, mut wrong) = (0, Vec::new());
    for (operation, needs, answer) in &OPERATIONS {
        let letters = ["c", "w", "r"];
        for at in 0..PATTERNS.len().pow(3) {
            let granted = [at % 5, at / 5 % 5, at / 25].map(|nth| &PATTERNS[nth]);
            let has = |need: &&str| {
                let (letter, name) = need.split_once(' ').unwrap();
                let nth = letters.iter().position(|other| *other == letter).unwrap();
                granted[nth].1.contains(&name)
            };
            let is_allowed = match needs {
                All(needs) => needs.iter().all(has),
                Any(needs) => needs.iter().any(has),
            };
            let [configure, write, read] = granted.map(|(pattern, _)| *pattern);
            let permissions =
                format!("set permissions 'marie' configure='{configure}' write='{write}' read='{read}'");
            let outcome = match (is_allowed, *answer) {
                (false, _) => "S: channel.close 403".to_owned(),
                (true, "") => "C: basic.qos prefetch-count=7\nS: basic.qos-ok".to_owned(),
                (true, answer) => format!("S: {answer}"),
            };
            let script = format!("{TOPOLOGY}{permissions}\n{LOG_IN}C: {operation}\n{outcome}");
            cells += 1;
            if let Err(error) = run_script(&mut Broker::new(Variation::ALL[0]), &script) {
                wrong.push(format!("{operation} with '{configure}', '{write}', '{read}': {error}"));
            }
        }
    }
    assert!(cells >= 1000, "{cells}");
    assert!(wrong.is_empty(), "{} of {cells} cells are wrong, the first: {}", wrong.len(), wrong[0]);
}
