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

/// RabbitMQ: everything else takes effect, and the channel is closed.
#[test]
fn a_commit_of_what_a_full_queue_does_not_take_is_406_and_the_rest_is_done() {
    for overflow in ["reject-publish", "reject-publish-dlx"] {
        script(&format!(
            "
            C: queue.declare queue='full' arguments={{x-max-length=1 x-overflow='{overflow}'}}
            S: queue.declare-ok 'full' 0 0
            C: queue.declare queue='q'
            S: queue.declare-ok 'q' 0 0
            C/2: basic.publish routing-key='q' body='acked'
            C/2: basic.publish routing-key='q' body='returns'
            C: tx.select
            S: tx.select-ok
            C: basic.get queue='q'
            S: basic.get-ok 1
            C: basic.get queue='q'
            S: basic.get-ok 2
            C: basic.publish routing-key='full' body='1'
            C: tx.commit
            S: tx.commit-ok
            C: basic.publish routing-key='full' body='refused'
            C: basic.publish routing-key='q' body='2'
            C: basic.ack delivery-tag=1
            C: tx.commit
            S: channel.close 406 'PRECONDITION_FAILED - partial tx completion' 90 20
            C: channel.close-ok
            C/2: basic.get queue='q' no-ack
            S/2: basic.get-ok 1 redelivered '' 'q' 1 body='returns'
            C/2: basic.get queue='q' no-ack
            S/2: basic.get-ok 2 '' 'q' 0 body='2'
            C/2: queue.declare queue='full' passive
            S/2: queue.declare-ok 'full' 1 0
            "
        ));
    }
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
