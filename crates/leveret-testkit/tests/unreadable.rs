//! Messages whose bodies are on disk and cannot be read back from there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use leveret_testkit::{Broker, Eviction, Lag, Variation, Windows, continue_script, run_script};

/// Every body goes to disk at once, and whoever needs one waits for it; sooner or later.
fn brokers() -> impl Iterator<Item = Broker> {
    [Lag::None, Lag::AsLongAsPossible].into_iter().map(|lag| {
        let (eviction, windows) = (Eviction::Always, Windows::Wide);
        Broker::new(Variation { byte_by_byte: false, eviction, lag, windows })
    })
}

/// Publishes one message that cannot be read back, and one behind it that can.
fn damaged_and_whole(broker: &mut Broker, delivery_mode: u8) {
    let publish = |body| format!("C: basic.publish routing-key='q' delivery-mode={delivery_mode} body='{body}'");
    let declare = "C: queue.declare queue='q' durable\nS: queue.declare-ok 'q' 0 0";
    run_script(broker, &format!("{declare}\n{}\nC: basic.qos\nS: basic.qos-ok", publish("damaged"))).unwrap();
    broker.damage_bodies();
    continue_script(broker, &format!("{}\nC: basic.qos\nS: basic.qos-ok", publish("whole"))).unwrap();
}

const CONSUME: &str = "
    C: basic.consume queue='q' consumer-tag='t' no-ack
    S: basic.consume-ok 't'
    S: basic.deliver 't' 1 '' 'q' body='whole'
    S: nothing
    ";

/// The one that was passed over has used up a delivery tag.
fn get(flags: &str) -> String {
    format!(
        "
        C: basic.get queue='q' {flags}
        S: basic.get-ok 2 '' 'q' 0 body='whole'
        C: basic.get queue='q' {flags}
        S: basic.get-empty
        "
    )
}

#[test]
fn a_persistent_message_that_cannot_be_read_back_is_passed_over_until_the_next_start() {
    for way in [CONSUME, &get("no-ack"), &(get("") + "C: basic.ack delivery-tag=2")] {
        for mut broker in brokers() {
            damaged_and_whole(&mut broker, 2);
            continue_script(&mut broker, way).unwrap();
            let after = "
                restart
                C: basic.get queue='q' no-ack
                S: basic.get-ok 1 redelivered '' 'q' 0 body='damaged'
                C: basic.get queue='q' no-ack
                S: basic.get-empty
                ";
            continue_script(&mut broker, after).unwrap();
        }
    }
}

/// Nothing else knows of it, so it does not count any more.
#[test]
fn a_transient_message_that_cannot_be_read_back_is_gone() {
    for way in [CONSUME, &get("no-ack"), &(get("") + "C: basic.ack delivery-tag=2")] {
        for mut broker in brokers() {
            damaged_and_whole(&mut broker, 1);
            continue_script(&mut broker, way).unwrap();
            let after =
                "C: queue.purge queue='q'\nS: queue.purge-ok 0\nC: queue.delete queue='q'\nS: queue.delete-ok 0";
            continue_script(&mut broker, after).unwrap();
        }
    }
}
