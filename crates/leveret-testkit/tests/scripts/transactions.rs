//! `tx.select`, `tx.commit`, `tx.rollback`.

use leveret_testkit::script;

#[test]
fn publishes_and_acks_take_effect_at_commit() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/2: basic.publish routing-key='q' body='old'
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: tx.select
        S: tx.select-ok
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='nowhere' mandatory body='2'
        C: basic.ack delivery-tag=1
        S: nothing
        C/2: queue.declare queue='q' passive
        S/2: queue.declare-ok 'q' 0 0
        C: tx.commit
        S: basic.return 312 'NO_ROUTE' '' 'nowhere' body='2'
        S: tx.commit-ok
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 '' 'q' 0 body='1'
        C: channel.close
        S: channel.close-ok
        C/2: basic.get queue='q'
        S/2: basic.get-empty
        ",
    );
}

#[test]
fn rollback_forgets_publishes_and_keeps_deliveries_unacked() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/2: basic.publish routing-key='q' body='1'
        C/2: basic.publish routing-key='q' body='2'
        C: tx.select
        S: tx.select-ok
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.get queue='q'
        S: basic.get-ok 2
        C: basic.publish routing-key='q' body='forgotten'
        C: basic.ack delivery-tag=1
        C: basic.nack delivery-tag=2 requeue
        C: tx.rollback
        S: tx.rollback-ok
        C: basic.ack delivery-tag=2
        C: tx.commit
        S: tx.commit-ok
        C: channel.close
        S: channel.close-ok
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 redelivered '' 'q' 0 body='1'
        ",
    );
}

#[test]
fn a_closed_channel_rolls_back() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C/2: basic.publish routing-key='q' body='1'
        C: tx.select
        S: tx.select-ok
        C: basic.get queue='q'
        S: basic.get-ok 1
        C: basic.ack delivery-tag=1
        C: basic.publish routing-key='q' body='forgotten'
        C: channel.close
        S: channel.close-ok
        C/2: basic.get queue='q' no-ack
        S/2: basic.get-ok 1 redelivered '' 'q' 0 body='1'
        ",
    );
}

#[test]
fn faults_in_a_transaction_are_told_at_once() {
    script(
        "
        C: tx.select
        S: tx.select-ok
        C: tx.select
        S: tx.select-ok
        C: basic.ack delivery-tag=5
        S: channel.close 406 'PRECONDITION_FAILED - unknown delivery tag 5' 60 80
        C/2: tx.select
        S/2: tx.select-ok
        C/2: basic.publish exchange='none' body=''
        S/2: channel.close 404
        ",
    );
}

#[test]
fn confirm_and_tx_exclude_each_other() {
    script(
        "
        C: tx.select
        S: tx.select-ok
        C: confirm.select
        S: channel.close 406 'PRECONDITION_FAILED - cannot switch from tx to confirm mode' 85 10
        C/2: confirm.select
        S/2: confirm.select-ok
        C/2: tx.select
        S/2: channel.close 406 'PRECONDITION_FAILED - cannot switch from confirm to tx mode' 90 10
        C/3: tx.commit
        S/3: channel.close 406 'PRECONDITION_FAILED - channel is not transactional' 90 20
        C/4: tx.rollback
        S/4: channel.close 406 'PRECONDITION_FAILED - channel is not transactional' 90 30
        ",
    );
}
