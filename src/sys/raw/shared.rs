//! Memory that a process shares with those that it forks.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;

/// So many numbers, 0 at first, that processes which are forked from now on have in common with this
/// one. They are there for good.
pub(crate) fn shared_numbers(count: usize) -> nix::Result<&'static [AtomicU64]> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            count * size_of::<AtomicU64>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let start = NonNull::new(start.cast::<AtomicU64>()).ok_or(Errno::ENOMEM)?;
    // SAFETY: so many zeros are there, each of them a number; whoever has the page changes them as
    // atomics alone; nothing unmaps it.
    Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), count) })
}
