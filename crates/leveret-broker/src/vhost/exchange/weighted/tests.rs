use std::iter;

use proptest::prelude::*;
use slotmap::KeyData;

use super::*;
use crate::vhost::QueueId;
use crate::vhost::exchange::hash::hash_of;

const HASHES: u64 = 100_000;

fn target(number: u64) -> Target {
    Target::Queue(QueueId::from(KeyData::from_ffi(1 << 32 | number)))
}

fn place(number: u64) -> u64 {
    hash_of(format!("queue-{number}").as_bytes())
}

/// Targets `0` and so on with these weights.
fn targets(weights: &[u32]) -> WeightedTargets {
    let mut targets = WeightedTargets::default();
    for (number, &weight) in (0..).zip(weights) {
        targets.insert(target(number), place(number), weight);
    }
    targets
}

/// Where messages go that have these keys.
fn assignment(targets: &WeightedTargets) -> Vec<Option<Target>> {
    (0..HASHES).map(|key| targets.of_hash(hash_of(&key.to_be_bytes()))).collect()
}

fn moved(before: &[Option<Target>], after: &[Option<Target>]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a part of 100,000")]
    let part = iter::zip(before, after).filter(|(before, after)| before != after).count() as f64 / HASHES as f64;
    part
}

#[test]
fn nothing_is_picked_where_nothing_is_bound() {
    let mut targets = WeightedTargets::default();
    assert_eq!((targets.of_hash(7), targets.of_number(7)), (None, None));
    targets.insert(target(1), place(1), 3);
    assert_eq!((targets.of_hash(7), targets.of_number(7)), (Some(target(1)), Some(target(1))));
    targets.remove(target(1), 3);
    assert_eq!((targets.of_hash(7), targets.of_number(7)), (None, None));
}

/// RabbitMQ has the same test of its own exchange: chi squared with 3 degrees of freedom, at 0.01.
#[test]
fn each_target_has_its_share_of_all_hashes() {
    let weights = [1, 1, 2, 2];
    let assignment = assignment(&targets(&weights));
    let chi_squared: f64 = (0..)
        .zip(weights)
        .map(|(number, weight)| {
            let found = assignment.iter().filter(|&&found| found == Some(target(number))).count();
            #[expect(clippy::cast_precision_loss, reason = "a part of 100,000")]
            let (found, expected) = (found as f64, HASHES as f64 * f64::from(weight) / 6.0);
            (found - expected).powi(2) / expected
        })
        .sum();
    assert!(chi_squared < 11.35, "{chi_squared}");
}

#[test]
fn what_a_weight_moves_is_a_part_of_the_hashes() {
    let before = assignment(&targets(&[1; 10]));
    // One more of eleven, of which a tenth has to move; one less; and one of double weight.
    let mut double = [1; 10];
    double[4] = 2;
    for (weights, most) in [(&[1; 11][..], 0.25), (&[1; 9], 0.25), (&double, 0.25)] {
        let part = moved(&before, &assignment(&targets(weights)));
        assert!(part > 0.05 && part < most, "{part} for {weights:?}");
    }
    // Of a thousand, hardly any.
    let part = moved(&assignment(&targets(&[1; 1000])), &assignment(&targets(&[1; 1001])));
    assert!(part < 0.01, "{part}");
}

#[test]
fn numbers_in_a_row_go_to_each_target_as_often_as_its_weight() {
    let targets = targets(&[3, 1, 2]);
    let found: Vec<_> = (0..6).map(|number| targets.of_number(number).unwrap()).collect();
    for (number, times) in [(0, 3), (1, 1), (2, 2)] {
        assert_eq!(found.iter().filter(|&&found| found == target(number)).count(), times);
    }
    assert!(found.chunk_by(|a, b| a == b).count() == 3, "each in a row: {found:?}");
    assert_eq!(targets.of_number(6), targets.of_number(0));
}

fn step() -> impl Strategy<Value = (u64, u32, bool)> {
    // Few places, some with a long common prefix, and one that two targets share.
    (0..8_u64, 1..5_u32, any::<bool>())
}

fn hard_place(number: u64) -> u64 {
    [0, 1, 2, u64::MAX, u64::MAX - 1, 1 << 63, 7 << 60, 7 << 60][usize::try_from(number).unwrap()]
}

proptest! {
    /// So the same messages go to the same queues after a restart.
    #[test]
    fn what_is_picked_depends_on_weights_and_places_and_not_on_how_they_came_about(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let (mut targets, mut weights) = (WeightedTargets::default(), BTreeMap::<u64, u32>::new());
        for (number, weight, is_insert) in steps {
            let known = weights.entry(number).or_default();
            if is_insert {
                targets.insert(target(number), hard_place(number), weight);
                *known += weight;
            } else {
                targets.remove(target(number), weight);
                *known -= weight.min(*known);
            }
        }
        let mut fresh = WeightedTargets::default();
        for (&number, &weight) in weights.iter().rev() {
            fresh.insert(target(number), hard_place(number), weight);
        }
        prop_assert_eq!(targets.weight, weights.values().copied().map(u64::from).sum::<u64>());
        prop_assert_eq!(targets.known.len(), weights.values().filter(|&&weight| weight > 0).count());
        for number in 0..50 {
            prop_assert_eq!(targets.of_number(number), fresh.of_number(number));
            let hash = hash_of(&number.to_be_bytes());
            prop_assert_eq!(targets.of_hash(hash), fresh.of_hash(hash));
        }
    }
}
