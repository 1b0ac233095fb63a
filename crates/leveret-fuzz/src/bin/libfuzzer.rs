//! libFuzzer drives the target that `LEVERET_FUZZ_TARGET` names. `cargo xtask fuzz` builds and calls this.

#![no_main]

use std::cell::RefCell;

use leveret_fuzz::{Last, STACK_BYTES, Target};
use libfuzzer_sys::fuzz_target;
use rustix::process::{Resource, getrlimit, setrlimit};

thread_local! {
    static DRIVEN: RefCell<(Target, Last)> = {
        // The stack of this thread grows as it is needed, up to what the limit is then.
        let limit = getrlimit(Resource::Stack);
        setrlimit(Resource::Stack, rustix::process::Rlimit { current: Some(STACK_BYTES as u64), ..limit })
            .expect("a limit may be lowered");
        RefCell::new((Target::of_environment(), Last::of_environment()))
    };
}

fuzz_target!(|input: &[u8]| {
    DRIVEN.with_borrow_mut(|(target, last)| {
        last.keep(input);
        (target.run)(input);
    });
});
