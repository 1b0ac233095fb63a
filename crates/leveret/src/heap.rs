//! How the process allocates memory.

/// Has all threads share one heap. glibc gives each thread its own, and what one of them has freed is of no use to the
/// others: bodies that are published by one thread, let go by another and read back by a third then take up to three
/// times the memory. To be called before there are other threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn share_one() {
    #[expect(unsafe_code, reason = "nothing else sets this but a variable of the environment")]
    // SAFETY: it stores a number in the allocator, and no other thread is there to read it meanwhile.
    let is_set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(is_set, 1, "glibc knows this parameter");
}

/// Other allocators have no such parameter.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn share_one() {}
