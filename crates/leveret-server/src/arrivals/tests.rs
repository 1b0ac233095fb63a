//! Tests of the turns.

use super::*;

/// Up to which nobody waits.
const BOUND: usize = 1_000_000;

/// Bytes of the largest content.
const LARGEST: usize = 4_000_000;

impl Arrival {
    /// So much has arrived of one content, if anything.
    fn bring(&mut self, unfinished: usize) {
        self.set(Arrived { unfinished, ..self.arrived });
    }
}

/// Whether it may be read, once it has heard of all that has changed.
async fn may_read(arrival: &mut Arrival) -> bool {
    while !arrival.may_read(true) {
        if tokio::time::timeout(Duration::ZERO, arrival.event()).await != Ok(Event::Change) {
            return false;
        }
    }
    true
}

fn several<const N: usize>(bound: usize) -> [Arrival; N] {
    let all = Arrivals::new(16 * bound, LARGEST);
    [(); N].map(|()| Arrival::new(Arc::clone(&all)))
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_they_take_turns_in_the_order_in_which_they_came() {
    let [mut first, mut second, mut third, mut small] = several(BOUND);
    first.bring(1_000_000);
    assert!(may_read(&mut first).await, "all together may have so much");
    second.bring(1_000_000);
    small.bring(ARRIVING_BYTES_SMALL);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    third.bring(900_000);
    assert!(!may_read(&mut third).await);
    assert!(may_read(&mut small).await, "nobody waits with little");
    first.bring(3_000_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    first.bring(0);
    assert!(!may_read(&mut third).await, "the second was there before");
    assert!(may_read(&mut second).await);
}

/// Many beginnings are much, too, and each may come with a single read.
#[tokio::test(start_paused = true)]
async fn beyond_the_bound_a_read_brings_little_without_a_turn() {
    let [mut large, small] = several(BOUND);
    large.bring(BOUND);
    assert!(!large.is_to_bring_little() && !small.is_to_bring_little());
    large.bring(BOUND + 1);
    assert!(may_read(&mut large).await);
    assert!(!large.is_to_bring_little() && small.is_to_bring_little());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_turn_hear_that_none_is_needed_any_more() {
    let [mut first, mut second, mut third] = several(BOUND);
    first.bring(700_000);
    second.bring(700_000);
    third.bring(200_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
    // Not the one that has the turn.
    second.bring(0);
    assert_eq!(third.event().await, Event::Change);
    assert!(third.may_read(true) && first.may_read(true));
}

#[tokio::test(start_paused = true)]
async fn nobody_has_a_turn_while_publishers_wait_for_room() {
    let [mut waiting, mut large, mut small] = several(BOUND);
    large.bring(100_000);
    small.bring(100);
    large.all.set_short_of_room(true);
    assert!(may_read(&mut large).await, "they are few");
    waiting.set(Arrived { waiting: 1_000_000, ..Arrived::default() });
    assert!(!may_read(&mut large).await && may_read(&mut small).await);
    assert!(waiting.may_read(true), "what it brings now is none of that");
    large.all.set_short_of_room(false);
    assert_eq!(large.event().await, Event::Change);
    assert!(large.may_read(true));
}

/// Be it in a transaction or not.
#[tokio::test(start_paused = true)]
async fn who_brings_more_than_the_largest_content_on_several_channels_is_told_at_once() {
    for is_transacted in [false, true] {
        let [mut arrival] = several(BOUND);
        let arrived = |unfinished| Arrived { unfinished, is_transacted, ..Arrived::default() };
        arrival.set(arrived(LARGEST + BOUND));
        assert!(may_read(&mut arrival).await);
        arrival.set(arrived(LARGEST + BOUND + 1));
        assert!(!arrival.may_read(true), "nothing more is read, and it hears why at once");
        let begun = Instant::now();
        assert_eq!(arrival.event().await, Event::Excess(LARGEST + BOUND));
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}

/// Another content of its own may wait for room meanwhile, and it is the broker that does not read on.
#[tokio::test(start_paused = true)]
async fn who_cannot_be_read_in_a_transaction_gives_its_turn_back_and_is_excused() {
    let [mut first, mut second] = several(BOUND);
    let transacted =
        |unfinished, waiting| Arrived { unfinished, waiting, is_transacted: true, ..Arrived::default() };
    first.set(transacted(2 * BOUND, 0));
    assert!(may_read(&mut first).await);
    first.set(transacted(2 * BOUND, BOUND));
    second.set(transacted(100_000, 0));
    first.all.set_short_of_room(true);
    assert!(!may_read(&mut second).await);
    // Its commands wait, from which it hears of the shortage, and then of the end of its slice.
    let mut heard = 0;
    while matches!(first.turn, Turn::Taken { .. }) {
        heard += 1;
        assert!(heard < 5, "it keeps its turn");
        first.may_read(false);
        assert_eq!(first.event().await, Event::Change);
    }
    assert!(may_read(&mut second).await);
    assert!(first.excuse(100, false));
}

/// Its end may be what makes room.
#[tokio::test(start_paused = true)]
async fn who_is_in_a_transaction_waits_for_others_who_are_and_for_nobody_else() {
    let [mut large, mut first, mut second] = several(BOUND);
    let transacted = |unfinished| Arrived { unfinished, is_transacted: true, ..Arrived::default() };
    large.bring(1_500_000);
    assert!(may_read(&mut large).await);
    first.set(transacted(100_000));
    second.set(transacted(100_000));
    large.all.set_short_of_room(true);
    assert!(!may_read(&mut large).await);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    first.set(transacted(0));
    assert!(may_read(&mut second).await);
    // The transaction is over, and the content goes on.
    second.set(Arrived { unfinished: 100_000, ..Arrived::default() });
    assert!(!may_read(&mut second).await);
    large.all.set_short_of_room(false);
    assert!(may_read(&mut large).await && !may_read(&mut second).await);
    large.bring(0);
    assert!(may_read(&mut second).await);
}

#[tokio::test(start_paused = true)]
async fn who_brings_nothing_where_there_are_turns_hears_so_whether_it_has_one_or_not() {
    let [mut first, mut second, mut third] = several(6 * BOUND);
    let all = Arc::clone(&first.all);
    for arrival in [&mut first, &mut second, &mut third] {
        arrival.bring(2_500_000);
    }
    assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
    let begun = Instant::now();
    let nothing = async {
        while first.event().await == Event::Change {
            first.may_read(true);
        }
        assert_eq!(begun.elapsed(), ARRIVING_TURN);
        assert!(!first.excuse(0, true), "nothing has come since");
        assert!(first.excuse(ARRIVING_SLICE_BYTES, false), "it waits for others");
    };
    let enough = async {
        while second.event().await == Event::Change {
            second.may_read(true);
            second.bring(second.arrived.unfinished + ARRIVING_SLICE_BYTES);
        }
    };
    let no_turn = async {
        while third.event().await == Event::Change {}
        assert_eq!(begun.elapsed(), ARRIVING_TURN);
        assert!(!third.excuse(0, false) && third.excuse(1, false));
    };
    tokio::select! {
        _ = async { tokio::join!(nothing, no_turn) } => {}
        () = enough => panic!("it has brought something all the time"),
    }
    let begun = Instant::now();
    tokio::time::advance(ARRIVING_TURN / 2).await;
    third.bring(2_500_000 + ARRIVING_TURN_BYTES);
    assert_eq!(third.event().await, Event::Overdue);
    assert_eq!(begun.elapsed(), ARRIVING_TURN * 3 / 2, "it has brought enough meanwhile");
    drop((first, second));
    third.renew();
    assert!(may_read(&mut third).await, "they have given it up");
    third.bring(0);
    assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
}

/// Brings a byte whenever it may.
async fn trickle(mut arrival: Arrival) {
    while arrival.event().await == Event::Change {
        if arrival.may_read(true) {
            arrival.bring(arrival.arrived.unfinished + 1);
        }
    }
    assert!(!arrival.excuse(0, false));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_those_who_bring_next_to_nothing() {
    const SLOW: u32 = 1000;
    let all = Arrivals::new(16 * 8 * BOUND, LARGEST);
    let mut slow: Vec<_> = (0..SLOW).map(|_| Arrival::new(Arc::clone(&all))).collect();
    for arrival in &mut slow {
        arrival.bring(10_000);
    }
    for mut arrival in slow {
        may_read(&mut arrival).await;
        tokio::spawn(trickle(arrival));
    }
    // As they came before, each has a turn first; then only one of them at a time stands in line.
    for most in [ARRIVING_SLICE + ARRIVING_SLICE_MIN * SLOW, ARRIVING_SLICE_MIN * 2, ARRIVING_SLICE_MIN * 2] {
        let mut other = Arrival::new(Arc::clone(&all));
        other.bring(100_000);
        let begun = Instant::now();
        while !other.may_read(true) {
            assert_eq!(other.event().await, Event::Change);
        }
        assert!(begun.elapsed() <= most + Duration::from_millis(2), "{:?}", begun.elapsed());
    }
    tokio::time::sleep(ARRIVING_TURN).await;
    assert!(all.bytes.load(Ordering::Relaxed) <= all.bytes_max, "as many have given up as need to");
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_and_brings_what_it_can_is_not_overdue() {
    let [mut first, mut second] = several(5 * BOUND);
    first.bring(3_000_000);
    second.bring(3_000_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    let begun = Instant::now();
    // Each has too little for a slice to the full, and as much for the next one as has come while it waited.
    while begun.elapsed() < 2 * ARRIVING_TURN {
        for arrival in [&mut first, &mut second] {
            let Ok(event) = tokio::time::timeout(Duration::ZERO, arrival.event()).await else { continue };
            assert_eq!(event, Event::Change);
            let had_waited = matches!(arrival.turn, Turn::Taken { waited, .. } if waited > Duration::ZERO);
            if arrival.may_read(true) && had_waited {
                arrival.bring(arrival.arrived.unfinished + ARRIVING_SLICE_BYTES);
            }
        }
        tokio::time::advance(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn while_there_is_too_much_and_few_wait_nobody_loses_a_turn_and_who_brings_nothing_is_soon_overdue() {
    let [mut first, mut second, mut third] = several(BOUND);
    first.bring(900_000);
    second.bring(900_000);
    third.bring(10_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
    let begun = Instant::now();
    assert_eq!(first.event().await, Event::Change, "it loses its turn");
    assert!(may_read(&mut second).await && !may_read(&mut first).await);
    second.bring(1_200_000);
    let keep = async {
        while second.event().await == Event::Change {
            second.bring(second.arrived.unfinished + ARRIVING_SLICE_BYTES / 8);
            assert!(second.may_read(true));
        }
    };
    let overdue = async |arrival: &mut Arrival| {
        while arrival.event().await == Event::Change {
            assert!(!arrival.may_read(true));
        }
    };
    // One of them has had no turn.
    tokio::select! {
        () = keep => panic!("it has brought something"),
        _ = async { tokio::join!(overdue(&mut first), overdue(&mut third)) } => {}
    }
    assert_eq!(begun.elapsed(), ARRIVING_SLICE + ARRIVING_SLOW);
    assert!(!first.excuse(0, false) && first.excuse(ARRIVING_SLICE_BYTES, false) && third.excuse(1, false));
    assert!(!may_read(&mut first).await && third.may_read(true), "what may be the rest of a content is read");
    third.bring(10_001);
    assert!(!may_read(&mut third).await && !third.excuse(1, false), "it was not");
    third.renew();
    drop(first);
    while second.may_read(true) {
        assert_eq!(second.event().await, Event::Change);
    }
    assert!(may_read(&mut third).await);
    // And so is who has the turn.
    second.bring(2_100_000);
    third.bring(10_002);
    assert!(!may_read(&mut second).await);
    let begun = Instant::now();
    while third.event().await == Event::Change {
        assert!(third.may_read(true));
    }
    assert_eq!(begun.elapsed(), ARRIVING_SLOW);
}

#[tokio::test(start_paused = true)]
async fn while_there_is_too_much_the_one_that_brings_nothing_loses_its_turn_the_sooner_the_more_wait() {
    for (waiting, patience_ms) in [(7, 500), (8, 260), (24, 140), (500, 60)] {
        let all = Arrivals::new(16 * BOUND, LARGEST);
        let mut first = Arrival::new(Arc::clone(&all));
        first.bring(2 * BOUND + 1);
        assert!(may_read(&mut first).await);
        let mut others: Vec<_> = (0..waiting).map(|_| Arrival::new(Arc::clone(&all))).collect();
        for other in &mut others {
            other.bring(10_000);
            assert!(!may_read(other).await);
        }
        assert!(first.may_read(true));
        let begun = Instant::now();
        while first.may_read(true) {
            assert_eq!(first.event().await, Event::Change);
        }
        assert_eq!(begun.elapsed(), Duration::from_millis(patience_ms), "{waiting} wait");
        assert!(may_read(&mut others[0]).await);
        while first.event().await == Event::Change {
            assert!(!first.may_read(true));
        }
        assert_eq!(begun.elapsed(), ARRIVING_SLOW, "{waiting} wait");
    }
}

/// At the pace that is asked for, in packets that are small and come all the time.
#[tokio::test(start_paused = true)]
async fn while_there_is_too_much_who_goes_on_at_a_moderate_pace_is_not_overdue() {
    let [mut first, mut second] = several(BOUND);
    first.bring(2_100_000);
    second.bring(10_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    let packet = ARRIVING_SLICE_BYTES / 4;
    for _ in 0..ARRIVING_TURN_BYTES / packet {
        tokio::time::advance(ARRIVING_SLOW / 5).await;
        first.bring(first.arrived.unfinished + packet);
        assert!(may_read(&mut first).await);
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_read_gives_its_turn_back_and_is_not_slow() {
    let [mut first, mut second, mut third] = several(BOUND);
    for arrival in [&mut first, &mut second, &mut third] {
        arrival.bring(600_000);
    }
    assert!(may_read(&mut first).await && !may_read(&mut second).await && !may_read(&mut third).await);
    first.may_read(false);
    assert_eq!(first.event().await, Event::Change);
    assert!(!first.may_read(false) && matches!(first.turn, Turn::NotNeeded) && !first.is_slow);
    assert!(may_read(&mut second).await && !may_read(&mut third).await && !may_read(&mut first).await);
    // Where nobody waits, nobody is slow.
    drop((second, third));
    first.bring(1_200_000);
    assert!(may_read(&mut first).await);
    assert_eq!(first.event().await, Event::Change);
    assert!(first.may_read(true) && !first.is_slow);
}

#[tokio::test(start_paused = true)]
async fn a_turn_ends_with_each_content_though_the_next_one_has_begun() {
    let [mut first, mut second] = several(BOUND);
    first.bring(2_000_000);
    second.bring(2_000_000);
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    // A small one on another channel makes no room.
    first.set(Arrived { completed: 1, ..first.arrived });
    assert!(may_read(&mut first).await && !may_read(&mut second).await);
    first.set(Arrived { completed: 2, unfinished: READ_BYTES, ..first.arrived });
    assert!(!may_read(&mut first).await && may_read(&mut second).await);
    // What was given up is not missing.
    second.bring(1_000_000);
    second.bring(1_000_000 + ARRIVING_SLICE_BYTES);
    tokio::time::advance(ARRIVING_SLICE).await;
    assert_eq!(second.event().await, Event::Change, "its slice is over");
    assert!(!may_read(&mut first).await && may_read(&mut second).await);
}
