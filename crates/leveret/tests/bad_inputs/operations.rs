//! What is asked for and cannot be had: not there, not allowed, not now.

use crate::case::{Cases, GOES_ON, login};

const QUEUE: &str = "C: queue.declare queue='q%' exclusive\nS: queue.declare-ok 'q%' 0 0\n";

pub(crate) fn list(cases: &mut Cases) {
    missing(cases);
    forbidden(cases);
    settling(cases);
    consumers(cases);
    in_use(cases);
    modes(cases);
    permissions(cases);
    patterns(cases);
    replies(cases);
}

fn missing(cases: &mut Cases) {
    cases.kind(42);
    for (missing, lines) in [
        (
            "exchange",
            &[
                "basic.publish exchange='missing%' routing-key='q' body='x'",
                "basic.publish exchange='missing%' mandatory body=''",
                "exchange.declare exchange='missing%' type='direct' passive",
                "exchange.bind source='missing%' destination='amq.direct'",
                "exchange.bind source='amq.direct' destination='missing%'",
            ][..],
        ),
        (
            "queue",
            &[
                "queue.declare queue='missing%' passive",
                "basic.get queue='missing%'",
                "basic.consume queue='missing%'",
                "queue.purge queue='missing%'",
                "queue.bind queue='missing%' exchange='amq.direct'",
            ],
        ),
    ] {
        for line in lines {
            let reply = format!("404 \"NOT_FOUND - no {missing} 'missing%' in vhost '/'\"");
            cases.refuses(*line, &format!("C: {line}"), &reply);
        }
    }
    cases.refuses(
        "a queue that is not there, whose name has line breaks",
        "C: basic.get queue='\\x1b[2J\\r\\nforged'",
        "404",
    );
    cases.refuses(
        "an exchange that is not there, whose name has line breaks",
        "C: basic.publish exchange='\\x1b[2J\\r\\nforged' body='x'",
        "404",
    );
    cases.refuses(
        "a binding to a missing exchange",
        &format!("{QUEUE}C: queue.bind queue='q%' exchange='missing%'"),
        "404",
    );

    cases.kind(43);
    for line in [
        "basic.publish routing-key='q' immediate body='x'",
        "basic.publish routing-key='q' mandatory immediate body='x'",
        "basic.qos prefetch-size=1",
        "basic.qos prefetch-size=4294967295 prefetch-count=1 global",
        "basic.recover",
        "basic.recover-async",
        "channel.flow",
    ] {
        cases.closes(line, &format!("C: {line}"), "540");
    }

    cases.kind(54);
    for (line, answer) in [
        ("queue.delete queue='missing%'", "queue.delete-ok 0"),
        ("queue.delete queue='missing%' if-unused if-empty", "queue.delete-ok 0"),
        ("exchange.delete exchange='missing%'", "exchange.delete-ok"),
        ("queue.unbind queue='missing%' exchange='amq.direct'", "queue.unbind-ok"),
        ("queue.unbind queue='missing%' exchange='missing%'", "queue.unbind-ok"),
        ("exchange.unbind source='missing%' destination='missing%'", "exchange.unbind-ok"),
        ("basic.cancel consumer-tag='missing'", "basic.cancel-ok 'missing'"),
    ] {
        cases.tolerates(line, &format!("C: {line}\nS: {answer}"));
    }
    cases.tolerates(
        "unbinding what is not bound",
        &format!("{QUEUE}C: queue.unbind queue='q%' exchange='amq.direct' routing-key='k'\nS: queue.unbind-ok"),
    );
}

fn forbidden(cases: &mut Cases) {
    cases.kind(44);
    for line in [
        "queue.bind queue='' exchange=''",
        "queue.unbind queue='q%' exchange='' routing-key='q%'",
        "exchange.bind source='' destination='amq.direct'",
        "exchange.bind source='amq.direct' destination=''",
        "exchange.unbind source='' destination='amq.direct'",
        "exchange.delete exchange=''",
        "exchange.declare exchange='' type='direct'",
        "exchange.declare exchange='amq.new' type='direct'",
        "exchange.delete exchange='amq.direct'",
        "exchange.delete exchange='amq.topic' if-unused",
        "queue.declare queue='amq.mine'",
    ] {
        cases.refuses(line, &format!("{QUEUE}C: {line}"), "403");
    }
    cases.script(
        "a publish to an internal exchange",
        format!(
            "C: exchange.declare exchange='x%' type='fanout' internal\nS: exchange.declare-ok
            C/2: basic.publish exchange='x%' body='x'\nS/2: channel.close 403\nC/2: channel.close-ok
            C: exchange.delete exchange='x%'\nS: exchange.delete-ok\n{GOES_ON}"
        ),
    );
    cases.refuses(
        "a publish to the exchange of the firehose",
        "C: basic.publish exchange='amq.rabbitmq.trace' body='x'",
        "403",
    );

    cases.kind(52);
    for line in [
        "queue.declare queue='q%'",
        "queue.declare queue='q%' exclusive",
        "queue.declare queue='q%' passive",
        "basic.get queue='q%'",
        "basic.consume queue='q%'",
        "queue.bind queue='q%' exchange='amq.direct'",
        "queue.unbind queue='q%' exchange='amq.direct'",
        "queue.purge queue='q%'",
        "queue.delete queue='q%'",
    ] {
        cases.script(
            format!("{line} of an exclusive queue of somebody else"),
            format!(
                "{QUEUE}C: basic.publish routing-key='q%' body='mine'
                C: queue.declare queue='q%' exclusive passive\nS: queue.declare-ok 'q%' 1 0
                Cb: {line}\nSb: channel.close 405\nCb: channel.close-ok
                C: basic.get queue='q%' no-ack\nS: basic.get-ok 1 '' 'q%' 0 body='mine'"
            ),
        );
    }
}

/// What was settled wrongly closes the channel, and what it held goes back.
fn settling(cases: &mut Cases) {
    cases.kind(49);
    let got = format!(
        "{QUEUE}C: basic.publish routing-key='q%' body='one'
        C/2: basic.get queue='q%'\nS/2: basic.get-ok 1 '' 'q%' 0 body='one'\n"
    );
    let goes_back =
        "C/2: channel.close-ok\nC: basic.get queue='q%'\nS: basic.get-ok 1 redelivered '' 'q%' 0 body='one'";
    for line in [
        "basic.ack delivery-tag=2",
        "basic.ack delivery-tag=2 multiple",
        "basic.ack delivery-tag=-1",
        "basic.ack delivery-tag=0",
        "basic.nack delivery-tag=7",
        "basic.nack delivery-tag=2 multiple requeue",
        "basic.nack delivery-tag=0 requeue",
        "basic.reject delivery-tag=9 requeue",
        "basic.reject delivery-tag=0",
    ] {
        cases.script(line, format!("{got}C/2: {line}\nS/2: channel.close 406\n{goes_back}"));
    }
    for line in ["basic.ack", "basic.nack", "basic.reject"] {
        cases.script(
            format!("{line} with a tag of another channel"),
            format!(
                "{got}C/3: {line} delivery-tag=1\nS/3: channel.close 406\nC/3: channel.close-ok
                C/2: basic.reject delivery-tag=1 requeue\nC/2: basic.get queue='q%'\nS/2: basic.get-ok 2 redelivered"
            ),
        );
    }
    for (first, second) in [("basic.ack", "basic.ack"), ("basic.ack", "basic.reject"), ("basic.nack", "basic.ack")]
    {
        cases.script(
            format!("{first} and then {second} of the same delivery"),
            format!(
                "{got}C/2: {first} delivery-tag=1\nC/2: {second} delivery-tag=1\nS/2: channel.close 406
                C/2: channel.close-ok\nC: basic.get queue='q%'\nS: basic.get-empty"
            ),
        );
    }
    cases.script(
        "an ack of what needs none",
        format!(
            "{QUEUE}C: basic.publish routing-key='q%' body='one'\nC/2: basic.get queue='q%' no-ack\nS/2: basic.get-ok 1
            C/2: basic.ack delivery-tag=1\nS/2: channel.close 406"
        ),
    );
    cases.script(
        "an ack of a delivery to a consumer that need not ack",
        format!(
            "{QUEUE}C/2: basic.consume queue='q%' consumer-tag='t' no-ack\nS/2: basic.consume-ok 't'
            C: basic.publish routing-key='q%' body='one'\nS/2: basic.deliver 't' 1 body='one'
            C/2: basic.ack delivery-tag=1\nS/2: channel.close 406"
        ),
    );
    cases.tolerates("all of nothing, which is no fault", "C: basic.ack delivery-tag=0 multiple");
}

fn consumers(cases: &mut Cases) {
    cases.kind(50);
    let consumes = format!("{QUEUE}C: basic.consume queue='q%' consumer-tag='t'\nS: basic.consume-ok 't'\n");
    cases.closes("a consumer tag twice", &format!("{consumes}C: basic.consume queue='q%' consumer-tag='t'"), "530");
    cases.closes(
        "a consumer tag twice, for another queue",
        &format!("{consumes}C: queue.declare exclusive\nS: queue.declare-ok\nC: basic.consume consumer-tag='t'"),
        "530",
    );
    cases.closes("a consumer tag twice, without an answer", &format!("{QUEUE}C: basic.consume queue='q%' consumer-tag='t' nowait\nC: basic.consume queue='q%' consumer-tag='t' nowait"), "530");

    cases.kind(51);
    for (what, first, second) in [
        ("an exclusive consumer where there is one", "", "exclusive"),
        ("a consumer where there is an exclusive one", "exclusive", ""),
        ("two exclusive consumers", "exclusive", "exclusive"),
    ] {
        cases.script(
            what,
            format!(
                "C: queue.declare queue='q%' auto-delete\nS: queue.declare-ok 'q%' 0 0
                C: basic.consume queue='q%' consumer-tag='t' {first}\nS: basic.consume-ok 't'
                Cb: basic.consume queue='q%' {second}\nSb: channel.close 403\nCb: channel.close-ok
                Cb/2: basic.publish routing-key='q%' body='x'\nS: basic.deliver 't' 1 body='x'"
            ),
        );
    }
}

fn in_use(cases: &mut Cases) {
    cases.kind(53);
    let consumes = format!("{QUEUE}C/2: basic.consume queue='q%' consumer-tag='t'\nS/2: basic.consume-ok 't'\n");
    cases.refuses(
        "a queue with a consumer, if unused",
        &format!("{consumes}C: queue.delete queue='q%' if-unused"),
        "406",
    );
    cases.refuses(
        "a queue with a message, if empty",
        &format!("{QUEUE}C: basic.publish routing-key='q%' body='x'\nC: queue.delete queue='q%' if-empty"),
        "406",
    );
    cases.refuses(
        "a queue with both, if unused and empty",
        &format!("{QUEUE}C: basic.publish routing-key='q%' body='x'\nC: basic.get queue='q%'\nS: basic.get-ok\nC: basic.reject delivery-tag=1 requeue\nC: queue.delete queue='q%' if-unused if-empty"),
        "406",
    );
    for (what, bind, answer) in [
        ("a queue", "queue.bind queue='q%' exchange='x%'", "queue.bind-ok"),
        ("an exchange", "exchange.bind source='x%' destination='amq.fanout'", "exchange.bind-ok"),
    ] {
        cases.script(
            format!("an exchange to which {what} is bound, if unused"),
            format!(
                "{QUEUE}C: exchange.declare exchange='x%' type='topic'\nS: exchange.declare-ok\nC: {bind}\nS: {answer}
                C/2: exchange.delete exchange='x%' if-unused\nS/2: channel.close 406\nC/2: channel.close-ok
                C: exchange.delete exchange='x%'\nS: exchange.delete-ok"
            ),
        );
    }
}

fn modes(cases: &mut Cases) {
    cases.kind(55);
    for (what, before, line) in [
        ("tx.commit without tx.select", "", "tx.commit"),
        ("tx.rollback without tx.select", "", "tx.rollback"),
        ("tx.select behind confirm.select", "C: confirm.select\nS: confirm.select-ok", "tx.select"),
        ("confirm.select behind tx.select", "C: tx.select\nS: tx.select-ok", "confirm.select"),
        ("tx.commit behind confirm.select", "C: confirm.select\nS: confirm.select-ok", "tx.commit"),
        (
            "confirm.select in a transaction with a message",
            "C: tx.select\nS: tx.select-ok\nC: basic.publish routing-key='q' body='x'",
            "confirm.select nowait",
        ),
    ] {
        cases.refuses(what, &format!("{before}\nC: {line}"), "406");
    }
}

fn permissions(cases: &mut Cases) {
    let queue = "C: queue.declare queue='q%' auto-delete\nS: queue.declare-ok 'q%' 0 0
        C: basic.publish routing-key='q%' body='x'
        C: queue.declare queue='q%' passive\nS: queue.declare-ok 'q%' 1 0\n";
    let unchanged = "C: queue.declare queue='q%' passive\nS: queue.declare-ok 'q%' 1 0
        C: queue.delete queue='q%'\nS: queue.delete-ok 1
        C: queue.declare queue='new%' passive\nS: channel.close 404\nC: channel.close-ok
        C/2: exchange.declare exchange='x%' type='direct' passive\nS/2: channel.close 404";
    for (kind, user, lines) in [
        (
            56,
            "reader",
            &[
                "queue.declare queue='new%'",
                "queue.declare",
                "queue.declare queue='q%' auto-delete",
                "queue.delete queue='q%'",
                "queue.bind queue='q%' exchange='amq.direct'",
                "queue.unbind queue='q%' exchange='amq.direct'",
                "basic.publish routing-key='q%' body='no'",
                "basic.publish exchange='amq.direct' routing-key='q%' body='no'",
                "exchange.declare exchange='x%' type='direct'",
                "exchange.delete exchange='x%'",
                "exchange.bind source='amq.direct' destination='amq.fanout'",
                "exchange.unbind source='amq.direct' destination='amq.fanout'",
            ][..],
        ),
        (
            57,
            "nobody",
            &[
                "queue.declare queue='q%' passive",
                "queue.declare queue='missing%' passive",
                "basic.get queue='q%'",
                "basic.consume queue='q%'",
                "queue.purge queue='q%'",
                "queue.delete queue='q%'",
                "basic.publish routing-key='q%' body='no'",
            ],
        ),
    ] {
        cases.kind(kind);
        for line in lines {
            let login = login("b", user);
            cases.script(
                format!("{user}: {line}"),
                format!("{queue}{login}Cb: {line}\nSb: channel.close 403\nCb: channel.close-ok\n{unchanged}"),
            );
        }
    }
    for (line, answer) in [
        ("basic.get queue='q%' no-ack", "basic.get-ok 1"),
        ("queue.purge queue='q%'", "queue.purge-ok 1"),
        ("queue.declare queue='q%' passive", "queue.declare-ok 'q%' 1 0"),
    ] {
        cases.kind(56).script(
            format!("reader: {line}, which is allowed"),
            format!(
                "{queue}{}Cb: {line}\nSb: {answer}\nC: queue.delete queue='q%'\nS: queue.delete-ok",
                login("b", "reader")
            ),
        );
    }
    cases.script(
        "reader consumes, which is allowed",
        format!("{queue}{}Cb: basic.consume queue='q%' consumer-tag='t'\nSb: basic.consume-ok 't'\nSb: basic.deliver 't' 1 body='x'", login("b", "reader")),
    );
}

/// Patterns that would take for ever where matching is done by trying.
fn patterns(cases: &mut Cases) {
    cases.kind(58);
    let hashes = ["#"; 60].join(".");
    let words = ["a"; 60].join(".");
    let alternating = ["#.a"; 40].join(".");
    let stars = ["#.*"; 50].join(".");
    for (what, key, routing_key, is_match) in [
        ("60 hashes", &hashes, words.clone(), true),
        ("60 hashes and an empty key", &hashes, String::new(), true),
        ("40 pairs of a hash and a word", &alternating, words.clone(), true),
        ("40 pairs that nothing matches", &alternating, ["a"; 39].join("."), false),
        ("40 pairs that the last word does not match", &alternating, format!("{words}.b"), false),
        ("50 pairs of a hash and a star", &stars, words.clone(), true),
        ("60 hashes and a key of dots only", &hashes, ".".repeat(250), true),
    ] {
        cases.tolerates(
            what,
            &format!(
                "{QUEUE}C: queue.bind queue='q%' exchange='amq.topic' routing-key='{key}'\nS: queue.bind-ok
                C: basic.publish exchange='amq.topic' routing-key='{routing_key}' body='x'
                C: queue.purge queue='q%'\nS: queue.purge-ok {}\nC: queue.delete queue='q%'\nS: queue.delete-ok 0",
                u8::from(is_match)
            ),
        );
    }
}

fn replies(cases: &mut Cases) {
    cases.kind(59);
    for name in [
        "amq.rabbitmq.reply-to.forged",
        "amq.rabbitmq.reply-to.",
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAxMjM0NTY3OAAAAAAAAAAAAAAAAA==.AAAAAAAAAAAAAAAAAAAAAA==",
        "amq.rabbitmq.reply-to",
    ] {
        cases.tolerates(
            format!("a reply to '{name}'"),
            &format!(
                "C: basic.publish routing-key='{name}' mandatory body='x'\nS: basic.return 312 'NO_ROUTE' body='x'"
            ),
        );
    }
    cases.refuses("replies that are to be acked", "C: basic.consume queue='amq.rabbitmq.reply-to'", "406");
    cases.refuses(
        "a second consumer of replies",
        "C: basic.consume queue='amq.rabbitmq.reply-to' no-ack consumer-tag='t'\nS: basic.consume-ok 't'\nC: basic.consume queue='amq.rabbitmq.reply-to' no-ack",
        "406",
    );
    cases.refuses(
        "a binding of the queue of replies",
        "C: queue.bind queue='amq.rabbitmq.reply-to' exchange='amq.direct'",
        "404",
    );
    cases.refuses(
        "a question without a consumer of replies",
        "C: basic.publish routing-key='q' reply-to='amq.rabbitmq.reply-to' body='x'",
        "406",
    );
    cases.tolerates(
        "a declaration of the queue of replies, which is always there",
        "C: queue.declare queue='amq.rabbitmq.reply-to'\nS: queue.declare-ok 'amq.rabbitmq.reply-to' 0 1",
    );
}
