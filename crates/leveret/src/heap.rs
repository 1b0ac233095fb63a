//! How the process allocates memory.

/// Has all threads share one heap, and every large block be a mapping of its own. glibc gives each thread its own heap, and what
/// one of them has freed is of no use to the others: bodies that are published by one thread, let go by another and read
/// back by a third then take up to three times the memory. And it takes larger and larger blocks from the heap once some were
/// freed, where what is freed between others does not go back to the system. To be called before there are other threads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn set_up() {
    /// Bytes of a block from which on it is a mapping.
    const LARGE_BYTES: libc::c_int = 1024 * 1024;
    let parameters = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, LARGE_BYTES),
        // As glibc sets it where it chooses the other one itself.
        (libc::M_TRIM_THRESHOLD, 2 * LARGE_BYTES),
    ];
    for (parameter, value) in parameters {
        #[expect(unsafe_code, reason = "nothing else sets this but a variable of the environment")]
        // SAFETY: it stores a number in the allocator, and no other thread is there to read it meanwhile.
        let is_set = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(is_set, 1, "glibc knows these parameters");
    }
}

/// Gives the system back what was freed, wherever it lies in the heap: glibc itself does so only with what lies at its end.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn give_back() {
    #[expect(
        unsafe_code,
        reason = "200,000 messages that came due at once left 160 MiB of free blocks between others"
    )]
    // SAFETY: any thread may call it at any time.
    let _is_any = unsafe { libc::malloc_trim(0) };
}

/// Other allocators do that themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn give_back() {}

/// Other allocators have no such parameters.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn set_up() {}
