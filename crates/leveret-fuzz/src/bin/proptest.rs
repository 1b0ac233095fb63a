//! Drives the target that `LEVERET_FUZZ_TARGET` names with inputs of its corpus that are changed at random, for as many
//! seconds as the first argument says. `cargo xtask fuzz` calls this where there is no nightly toolchain.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use leveret_fuzz::{Last, STACK_BYTES, Target};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

/// What happens to an input.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// So many bytes from one place are put in at another.
    Copy(Index, Index, usize),
    Truncate(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = any::<Index>;
    let octet = prop_oneof![2 => any::<u8>(), 1 => prop::sample::select(&[0, 1, 0x7F, 0x80, 0xCE, 0xFF][..])];
    prop_oneof![
        4 => (place(), octet).prop_map(|(at, octet)| Edit::Set(at, octet)),
        2 => (place(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, 1 << bit)),
        2 => (place(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, more)| Edit::Insert(at, more)),
        2 => (place(), 1..32_usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        3 => (place(), place(), 1..64_usize).prop_map(|(from, to, count)| Edit::Copy(from, to, count)),
        1 => place().prop_map(Edit::Truncate),
    ]
}

fn edited(mut input: Vec<u8>, edits: Vec<Edit>) -> Vec<u8> {
    for edit in edits {
        let length = input.len();
        let place = |at: Index| at.index(length + 1);
        match edit {
            Edit::Set(at, octet) => input.get_mut(place(at)).into_iter().for_each(|byte| *byte = octet),
            Edit::Flip(at, bits) => input.get_mut(place(at)).into_iter().for_each(|byte| *byte ^= bits),
            Edit::Insert(at, more) => drop(input.splice(place(at)..place(at), more)),
            Edit::Remove(at, count) => drop(input.drain(place(at)..length.min(place(at) + count))),
            Edit::Copy(from, to, count) => {
                let copied = input[place(from)..length.min(place(from) + count)].to_vec();
                input.splice(place(to)..place(to), copied);
            }
            Edit::Truncate(at) => input.truncate(place(at)),
        }
    }
    input
}

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|seconds| seconds.parse().ok());
    let seconds = seconds.expect("the first argument is a number of seconds");
    let driven = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || drive(Duration::from_secs(seconds)));
    // Whatever the target panicked with was printed.
    driven.expect("there is room for a thread").join().unwrap_or(ExitCode::FAILURE)
}

/// Inputs that were tried, said also if the target panics with the last one.
struct Tried(u64);

impl Drop for Tried {
    fn drop(&mut self) {
        println!("{} inputs tried", self.0);
    }
}

fn drive(time: Duration) -> ExitCode {
    let (target, mut last) = (Target::of_environment(), Last::of_environment());
    let corpus = target.corpus().expect("the corpus can be read");
    let mut inputs: Vec<_> = corpus.into_iter().map(|(_, input)| input).collect();
    inputs.push(Vec::new());
    let mut tried = Tried(0);
    for input in &inputs {
        last.keep(input);
        tried.0 += 1;
        (target.run)(input);
    }
    let input = prop_oneof![
        8 => (prop::sample::select(inputs.clone()), prop::collection::vec(edit(), 1..8)),
        2 => (prop::sample::select(inputs.clone()), prop::sample::select(inputs))
            .prop_map(|(one, other)| ([one, other].concat(), Vec::new())),
        1 => (prop::collection::vec(any::<u8>(), 0..256), Just(Vec::new())),
    ];
    let input = input.prop_map(|(input, edits)| edited(input, edits));
    let mut runner = TestRunner::new(Config { cases: 1, failure_persistence: None, ..Config::default() });
    let started = Instant::now();
    while started.elapsed() < time {
        let tree = input.new_tree(&mut runner).expect("nothing is refused");
        let input = tree.current();
        last.keep(&input);
        tried.0 += 1;
        (target.run)(&input);
    }
    ExitCode::SUCCESS
}
