//! How the C library keeps the memory that was freed.

/// Cores for which there is one more arena.
#[cfg(target_env = "gnu")]
const CORES_PER_ARENA: usize = 4;

/// Lets all threads of this process share a few of glibc's arenas.
///
/// glibc makes an arena for each thread, up to eight a core, and gives what an arena has freed to nobody else: a program
/// whose threads come and go, each with its buffers and databases, ends with as many times the memory of one of them. SQLite
/// and other C code use the same allocator. Other C libraries are left as they are.
///
/// Source: mallopt(3), `M_ARENA_MAX`.
pub(super) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = i32::try_from(cores / CORES_PER_ARENA).unwrap_or(i32::MAX).max(2);
        #[expect(
            unsafe_code,
            reason = "the libc crate has no other way to call mallopt, which takes and keeps no memory of ours"
        )]
        // SAFETY: it only sets a number that later allocations look at.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}
