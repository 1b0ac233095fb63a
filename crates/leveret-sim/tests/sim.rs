//! Some seeds, what failed once, and that the simulation finds what there is to find.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use leveret_sim::{Config, Failure, Kind, Plan, Stats, check, shorten};

/// Debug builds are slow; `cargo xtask sim` tries thousands.
const SEEDS: u64 = 40;

#[test]
fn the_first_seeds_find_nothing() {
    let mut stats = Stats::default();
    for seed in 0..SEEDS {
        match check(&Plan::of(seed)) {
            Ok(passed) => stats.add(&passed.stats),
            Err(Failure { step, violation }) => panic!("seed {seed} fails at step {step}: {violation}"),
        }
    }
    for (kind, what) in [(Kind::Fault, "power cut"), (Kind::Fault, "write torn"), (Kind::Operation, "commit")] {
        assert!(stats.get(kind, what) > 0, "{what} never occurred");
    }
}

/// Byte for byte: all that clients hear goes into the digest, and what is on the disk at the end.
#[test]
fn the_same_seed_gives_the_same_run() {
    let mut digests = Vec::new();
    for seed in 0..12 {
        let plan = Plan::of(seed);
        assert_eq!(plan, Plan::of(seed));
        let (one, two) = (check(&plan).unwrap(), check(&plan).unwrap());
        assert_eq!(one, two, "seed {seed}");
        digests.push(one.digest);
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 12, "different seeds give different runs");
}

#[test]
fn a_plan_comes_back_from_its_text() {
    let plan = Plan::of(5);
    assert_eq!(Plan::from_text(&format!("# what failed\n{}", plan.to_text().unwrap())).unwrap(), plan);
}

/// A disk that claims to have synced, and has not: what a confirm promises is gone after a power cut.
#[test]
fn a_disk_that_lies_about_syncs_is_found_out_and_the_plan_cut_down() {
    let failed = |seed: &u64| {
        let plan = Plan::of(*seed);
        let plan = Plan { config: Config { lies: true, ..plan.config }, ..plan };
        check(&plan).err().map(|failure| (plan, failure))
    };
    let failures: Vec<_> = (0..8).filter_map(|seed| failed(&seed)).collect();
    assert!(failures.len() >= 4, "only {} seeds of 8 find it", failures.len());
    for (plan, failure) in &failures {
        let (short, again) = shorten(plan, failure, 150);
        assert!(again.is_like(failure), "{failure:?} became {again:?}");
        assert_eq!(check(&short), Err(again), "what is left fails in the same way again");
        let steps = [short.steps.len(), plan.steps.len()];
        assert!(steps[0] * 2 < steps[1], "{} of {} steps", steps[0], steps[1]);
    }
}

/// Each file in `tests/scripts` is what was left of a seed that failed once.
#[test]
fn what_failed_once_does_not_fail_again() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let plan = Plan::from_text(&std::fs::read_to_string(&path).unwrap()).unwrap();
        match check(&plan) {
            // What one of them has to show is that nobody can know.
            Ok(passed) => {
                let is_known = !path.file_name().unwrap().to_string_lossy().starts_with("nobody_knows");
                assert_eq!(passed.is_whole, is_known, "{}", path.display());
            }
            Err(Failure { step, violation }) => panic!("{}, step {step}: {violation}", path.display()),
        }
        count += 1;
    }
    assert!(count >= 10, "only {count} scripts");
}
