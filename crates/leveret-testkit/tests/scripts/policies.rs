//! Policies and operator policies, as what they do to queues and exchanges shows them. RabbitMQ: policies.

use std::fmt::Write as _;

use leveret_testkit::{Broker, Variation, run_script, script};

#[test]
fn a_policy_is_in_force_for_queues_that_are_there_and_for_those_to_come() {
    script(
        "
        C: queue.declare queue='old'
        S: queue.declare-ok 'old' 0 0
        C: basic.publish routing-key='old' body='1'
        C: basic.publish routing-key='old' body='2'
        C: basic.publish routing-key='old' body='3'
        set policy 'short' pattern='^(old|new)$' definition={max-length=2}
        C: queue.declare queue='old' passive
        S: queue.declare-ok 'old' 2 0
        C: queue.declare queue='new'
        S: queue.declare-ok 'new' 0 0
        C: queue.declare queue='another new'
        S: queue.declare-ok 'another new' 0 0
        C: basic.publish routing-key='new' body='1'
        C: basic.publish routing-key='new' body='2'
        C: basic.publish routing-key='new' body='3'
        C: basic.publish routing-key='another new' body='1'
        C: basic.publish routing-key='another new' body='2'
        C: basic.publish routing-key='another new' body='3'
        C: queue.declare queue='new' passive
        S: queue.declare-ok 'new' 2 0
        C: queue.declare queue='another new' passive
        S: queue.declare-ok 'another new' 3 0
        C: basic.get queue='old' no-ack
        S: basic.get-ok 1 body='2'
        ",
    );
}

#[test]
fn the_policy_with_the_highest_priority_is_in_force_alone() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        set policy 'wide' pattern='' priority=-1 definition={max-length=1 message-ttl=1000}
        set policy 'narrow' pattern='^q' priority=5 definition={max-length=3}
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        wait 1s
        C: basic.publish routing-key='q' body='3'
        C: basic.publish routing-key='q' body='4'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        clear policy 'narrow'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        clear policy 'wide'
        C: basic.publish routing-key='q' body='5'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        ",
    );
}

#[test]
fn of_an_argument_and_a_policy_the_smaller_number_is_in_force() {
    script(
        "
        set policy 'p' pattern='^q' definition={max-length=2}
        C: queue.declare queue='q1' arguments={x-max-length=1}
        S: queue.declare-ok 'q1' 0 0
        C: queue.declare queue='q3' arguments={x-max-length=3}
        S: queue.declare-ok 'q3' 0 0
        C: basic.publish routing-key='q1' body='x'
        C: basic.publish routing-key='q1' body='x'
        C: basic.publish routing-key='q3' body='x'
        C: basic.publish routing-key='q3' body='x'
        C: basic.publish routing-key='q3' body='x'
        C: queue.declare queue='q1' passive
        S: queue.declare-ok 'q1' 1 0
        C: queue.declare queue='q3' passive
        S: queue.declare-ok 'q3' 2 0
        -- A redeclaration is compared with the arguments, and not with what the policy says.
        C: queue.declare queue='q3' arguments={x-max-length=3}
        S: queue.declare-ok 'q3' 2 0
        C: queue.declare queue='q3' arguments={x-max-length=2}
        S: channel.close 406
        ",
    );
}

#[test]
fn an_operator_policy_limits_what_a_policy_and_an_argument_say() {
    script(
        "
        C: queue.declare queue='q' arguments={x-max-length=4}
        S: queue.declare-ok 'q' 0 0
        set policy 'p' pattern='' definition={max-length=3}
        set operator policy 'limit' pattern='^q' definition={max-length=2}
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        clear operator policy 'limit'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        clear policy 'p'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 4 0
        ",
    );
}

/// RabbitMQ: policies of the type that a queue does not have are not for it.
#[test]
fn policies_are_for_the_types_of_queues_that_they_name() {
    script(
        "
        C: queue.declare queue='c'
        S: queue.declare-ok 'c' 0 0
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'q' 0 0
        set policy 'all' pattern='' definition={max-length=3}
        set policy 'classic' pattern='' apply-to='classic_queues' priority=1 definition={max-length=2}
        set policy 'quorum' pattern='' apply-to='quorum_queues' priority=1 definition={max-length=1}
        set policy 'streams' pattern='' apply-to='streams' priority=2 definition={max-length=0}
        set policy 'exchanges' pattern='' apply-to='exchanges' priority=2 definition={max-length=0}
        C: basic.publish routing-key='c' body='x'
        C: basic.publish routing-key='c' body='x'
        C: basic.publish routing-key='c' body='x'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='c' passive
        S: queue.declare-ok 'c' 2 0
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        ",
    );
}

#[test]
fn bytes_of_messages_that_were_there_before_a_limit_on_them_count() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='12345'
        C: basic.publish routing-key='q' body='67890'
        C: basic.publish routing-key='q' body='abcde'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='12345'
        set policy 'p' pattern='^q' definition={max-length-bytes=9}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.nack delivery-tag=1 requeue
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        C: basic.publish routing-key='q' body='fghi'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 body='abcde'
        ",
    );
}

/// They are those that a checkpoint has named, too.
#[test]
fn bytes_of_messages_from_before_a_restart_count() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' delivery-mode=2 body='12345'
        checkpoint
        C: basic.publish routing-key='q' delivery-mode=2 body='67890'
        C: basic.publish routing-key='q' delivery-mode=2 body='abcde'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        restart
        set policy 'p' pattern='^q' definition={max-length-bytes=10}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        ",
    );
}

/// RabbitMQ: `maybe_drop_head` of a queue that rejects is nothing.
#[test]
fn a_limit_that_is_lowered_under_a_queue_that_rejects_drops_nothing() {
    script(
        "
        C: queue.declare queue='q' arguments={x-overflow='reject-publish'}
        S: queue.declare-ok 'q' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q' body='1'
        S: basic.ack 1
        C: basic.publish routing-key='q' body='2'
        S: basic.ack 2
        set policy 'p' pattern='^q' definition={max-length=1}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        C: basic.publish routing-key='q' body='3'
        S: basic.nack 3 multiple requeue
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 body='1'
        C: basic.publish routing-key='q' body='3'
        S: basic.nack 4 multiple requeue
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 body='2'
        C: basic.publish routing-key='q' body='3'
        S: basic.ack 5
        ",
    );
}

#[test]
fn what_overflows_is_decided_by_the_argument_in_classic_queues_and_by_the_policy_in_quorum_queues() {
    script(
        "
        set policy 'p' pattern='^q' definition={max-length=1 overflow='reject-publish'}
        C: queue.declare queue='q1' arguments={x-overflow='drop-head'}
        S: queue.declare-ok 'q1' 0 0
        C: queue.declare queue='q2' durable arguments={x-overflow='drop-head' x-queue-type='quorum'}
        S: queue.declare-ok 'q2' 0 0
        C: confirm.select
        S: confirm.select-ok
        C: basic.publish routing-key='q1' body='x'
        S: basic.ack 1
        C: basic.publish routing-key='q1' body='x'
        S: basic.ack 2
        C: basic.publish routing-key='q2' body='x'
        S: basic.ack 3
        C: basic.publish routing-key='q2' body='x'
        S: basic.nack 4 multiple requeue
        ",
    );
}

#[test]
fn a_policy_that_says_where_dead_letters_go_is_in_force_for_the_next_that_dies() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.reject delivery-tag=1
        set policy 'dlx' pattern='^q$' definition={dead-letter-exchange='' dead-letter-routing-key='dead'}
        C: basic.get queue='q'
        S: basic.get-ok 2 body='2'
        C: basic.reject delivery-tag=2
        clear policy 'dlx'
        C: basic.get queue='q'
        S: basic.get-ok 3 body='3'
        C: basic.reject delivery-tag=3
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 4 '' 'dead' 0 body='2'
        C: basic.get queue='dead' no-ack
        S: basic.get-empty
        ",
    );
}

#[test]
fn what_a_lowered_limit_drops_goes_on_as_dead_letters() {
    script(
        "
        C: queue.declare queue='dead'
        S: queue.declare-ok 'dead' 0 0
        C: queue.declare queue='q' arguments={x-dead-letter-exchange='' x-dead-letter-routing-key='dead'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.publish routing-key='q' body='3'
        set policy 'p' pattern='^q$' definition={max-length=1 dead-letter-routing-key='nowhere'}
        C: queue.declare queue='dead' passive
        S: queue.declare-ok 'dead' 2 0
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 1 body='1'
        C: basic.get queue='dead' no-ack
        S: basic.get-ok 2 body='2'
        ",
    );
}

/// RabbitMQ: the deadline of a message is set when it is put into its queue.
#[test]
fn a_time_to_live_by_policy_counts_for_messages_that_come_from_then_on() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='before'
        set policy 'ttl' pattern='^q' definition={message-ttl=1000}
        C: basic.publish routing-key='q' body='under it'
        C: basic.publish routing-key='q' expiration='500' body='sooner by itself'
        wait 500ms
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        clear policy 'ttl'
        C: basic.publish routing-key='q' body='after'
        wait 1h
        C: basic.get queue='q' no-ack
        S: basic.get-ok 1 body='before'
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 body='after'
        C: basic.get queue='q' no-ack
        S: basic.get-empty
        ",
    );
}

#[test]
fn an_unused_queue_expires_by_policy_counted_from_its_last_use() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.declare queue='kept'
        S: queue.declare-ok 'kept' 0 0
        wait 6s
        set policy 'e' pattern='' definition={expires=10000}
        wait 3s
        C: queue.declare queue='kept' passive
        S: queue.declare-ok 'kept' 0 0
        wait 1s
        C: queue.declare queue='kept' passive
        S: queue.declare-ok 'kept' 0 0
        Cb: queue.declare queue='q' passive
        Sb: channel.close 404
        clear policy 'e'
        wait 1h
        C: queue.declare queue='kept' passive
        S: queue.declare-ok 'kept' 0 0
        set policy 'e' pattern='' definition={expires=10000}
        wait 9999ms
        set policy 'e' pattern='' definition={expires=5000}
        C: queue.declare queue='kept' passive
        S: channel.close 404
        ",
    );
}

#[test]
fn a_delivery_limit_by_policy_is_changed_while_messages_fail() {
    script(
        "
        C: queue.declare queue='q' durable arguments={x-queue-type='quorum'}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C: basic.reject delivery-tag=1 requeue
        C: basic.get queue='q'
        S: basic.get-ok 2 redelivered body='1'
        set policy 'limit' pattern='^q' apply-to='quorum_queues' definition={delivery-limit=2}
        C: basic.reject delivery-tag=2 requeue
        C: basic.get queue='q'
        S: basic.get-ok 3 redelivered body='1'
        set policy 'limit' pattern='^q' apply-to='quorum_queues' definition={delivery-limit=1}
        C: basic.reject delivery-tag=3 requeue
        C: basic.get queue='q'
        S: basic.get-empty
        ",
    );
}

#[test]
fn an_alternate_exchange_by_policy_is_in_force_at_the_next_publish() {
    script(
        "
        C: exchange.declare exchange='x' type='direct'
        S: exchange.declare-ok
        C: exchange.declare exchange='ae' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='ae'
        S: queue.bind-ok
        C: basic.publish exchange='x' routing-key='k' mandatory body='1'
        S: basic.return 312 body='1'
        set policy 'p' pattern='^x$' apply-to='exchanges' definition={alternate-exchange='ae'}
        C: basic.publish exchange='x' routing-key='k' mandatory body='2'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        clear policy 'p'
        C: basic.publish exchange='x' routing-key='k' mandatory body='3'
        S: basic.return 312 body='3'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 1 0
        set policy 'p' pattern='^new$' apply-to='exchanges' definition={alternate-exchange='ae'}
        C: exchange.declare exchange='new' type='direct'
        S: exchange.declare-ok
        C: basic.publish exchange='new' routing-key='k' mandatory body='4'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        ",
    );
}

#[test]
fn an_alternate_exchange_that_a_declaration_names_counts_before_that_of_a_policy() {
    script(
        "
        set policy 'p' pattern='^x$' definition={alternate-exchange='of policy'}
        C: exchange.declare exchange='x' type='direct' arguments={alternate-exchange='own'}
        S: exchange.declare-ok
        C: exchange.declare exchange='own' type='fanout'
        S: exchange.declare-ok
        C: exchange.declare exchange='of policy' type='fanout'
        S: exchange.declare-ok
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: queue.bind queue='q' exchange='of policy'
        S: queue.bind-ok
        C: basic.publish exchange='x' mandatory body='1'
        S: basic.return 312 body='1'
        ",
    );
}

#[test]
fn how_long_a_delivery_may_be_held_is_said_by_a_policy_too() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        C: basic.consume queue='q' consumer-tag='t'
        S: basic.consume-ok 't'
        C: basic.publish routing-key='q' body='1'
        S: basic.deliver 't' 1 body='1'
        wait 5s
        S: nothing
        set policy 'p' pattern='^q' definition={consumer-timeout=20000}
        wait 5s
        S: nothing
        set policy 'p' pattern='^q' definition={consumer-timeout=12000}
        wait 1999ms
        S: nothing
        wait 1ms
        S: basic.cancel 't' nowait
        C: basic.get queue='q' no-ack
        S: basic.get-ok 2 redelivered body='1'
        ",
    );
}

/// At once, where they have been held for longer already; a consumer that says how long is not concerned.
#[test]
fn a_shorter_timeout_counts_for_what_is_held_but_not_for_consumers_that_have_one_of_their_own() {
    script(
        "
        C: queue.declare queue='q' arguments={x-consumer-timeout=60000}
        S: queue.declare-ok 'q' 0 0
        C: basic.publish routing-key='q' body='1'
        C: basic.publish routing-key='q' body='2'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        C/2: basic.consume queue='q' consumer-tag='own' arguments={x-consumer-timeout=30000}
        S/2: basic.consume-ok 'own'
        S/2: basic.deliver 'own' 1 body='2'
        wait 20s
        set policy 'p' pattern='^q' definition={consumer-timeout=10000}
        S: channel.close 406
        C: channel.close-ok
        S/2: basic.deliver 'own' 2 redelivered body='1'
        wait 9999ms
        S: nothing
        wait 1ms
        S/2: basic.cancel 'own' nowait
        ",
    );
}

#[test]
fn without_its_policy_a_queue_has_the_timeout_of_all() {
    script(
        "
        C: queue.declare queue='q'
        S: queue.declare-ok 'q' 0 0
        set policy 'p' pattern='^q' definition={consumer-timeout=10000}
        C: basic.publish routing-key='q' body='1'
        C: basic.get queue='q'
        S: basic.get-ok 1 body='1'
        wait 9s
        clear policy 'p'
        wait 1h
        S: nothing
        C: basic.ack delivery-tag=1
        ",
    );
}

#[test]
fn policies_are_back_after_a_restart_and_a_crash() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        C: exchange.declare exchange='x' type='direct' durable
        S: exchange.declare-ok
        C: queue.bind queue='q' exchange='x' routing-key='k'
        S: queue.bind-ok
        set policy 'p' pattern='^q' definition={max-length=3}
        set policy 'gone' pattern='^q' priority=1 definition={max-length=1}
        set operator policy 'p' pattern='^q' definition={max-length=2}
        set policy 'ae' pattern='^x' definition={alternate-exchange='amq.fanout'}
        clear policy 'gone'
        C: queue.bind queue='q' exchange='amq.fanout'
        S: queue.bind-ok
        restart
        C: basic.publish exchange='x' routing-key='another' delivery-mode=2 mandatory body='1'
        C: basic.publish routing-key='q' delivery-mode=2 body='2'
        C: basic.publish routing-key='q' delivery-mode=2 body='3'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        checkpoint
        clear operator policy 'p'
        C: basic.publish routing-key='q' delivery-mode=2 body='4'
        C: basic.publish routing-key='q' delivery-mode=2 body='5'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        crash
        C: basic.publish routing-key='q' delivery-mode=2 body='6'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        ",
    );
}

/// Each step says little, so queues are declared, and policies change, while the checkpoint goes on.
#[test]
fn a_policy_that_changes_during_a_checkpoint_is_what_it_was_in_the_end() {
    script(
        "
        C: queue.declare queue='q' durable
        S: queue.declare-ok 'q' 0 0
        set policy 'a' pattern='^q' definition={max-length=5}
        set policy 'b' pattern='^q' priority=1 definition={max-length=4}
        checkpoint step
        clear policy 'b'
        checkpoint step
        checkpoint step
        set policy 'c' pattern='^q' priority=2 definition={max-length=2}
        checkpoint
        checkpoint
        restart
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 2 0
        clear policy 'c'
        C: basic.publish routing-key='q' body='x'
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 3 0
        ",
    );
}

/// What followed from one hold of the lock is bounded, whatever has to be dropped, and in how many queues.
fn run_in_short_holds(script: &str) {
    let mut broker = Broker::new(Variation::ALL[0]);
    if let Err(error) = run_script(&mut broker, script) {
        panic!("{}", &error[..error.len().min(2000)]);
    }
    assert!(broker.longest_hold() <= 4200, "{} followed from one hold", broker.longest_hold());
}

#[test]
fn a_policy_for_many_queues_takes_effect_in_many_holds() {
    const QUEUES: usize = 3000;
    let mut script = String::new();
    for number in 0..QUEUES {
        let _ = writeln!(script, "C+: queue.declare queue='q{number}' durable nowait");
        for _ in 0..3 {
            let _ = writeln!(script, "C+: basic.publish routing-key='q{number}' delivery-mode=2 body='x'");
        }
    }
    script.push_str(
        "
        C: queue.declare queue='last'
        S: queue.declare-ok 'last' 0 0
        set policy 'p' pattern='^q' definition={max-length=1}
        ",
    );
    for number in [0, QUEUES / 2, QUEUES - 1] {
        let _ = writeln!(script, "C: queue.declare queue='q{number}' passive");
        let _ = writeln!(script, "S: queue.declare-ok 'q{number}' 1 0");
    }
    run_in_short_holds(&script);
}

#[test]
fn a_lowered_limit_empties_a_long_queue_in_many_holds() {
    let mut script = String::from("C+: queue.declare queue='q' durable nowait\n");
    for _ in 0..20_000 {
        script.push_str("C+: basic.publish routing-key='q' delivery-mode=2 body='x'\n");
    }
    script.push_str(
        "
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 20000 0
        set policy 'p' pattern='^q' definition={max-length=10}
        C: queue.declare queue='q' passive
        S: queue.declare-ok 'q' 10 0
        ",
    );
    run_in_short_holds(&script);
}
