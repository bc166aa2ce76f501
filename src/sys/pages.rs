//! Memory that comes from the kernel and goes back to it.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use nix::errno::Errno;

/// A stretch of memory of its own, all zero at first. A page of it costs nothing until it is
/// written to, and all of it is the kernel's again when this is dropped: malloc(3) would keep what
/// is freed, up to 32 MiB (mallopt(3), `M_TRIM_THRESHOLD`), and calloc(3) write to what it gives.
pub(crate) struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// So many bytes; none need no memory.
    pub(crate) fn new(length: usize) -> nix::Result<Pages> {
        if length == 0 {
            return Ok(Pages::default());
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Pages { start, length })
    }
}

impl Default for Pages {
    fn default() -> Pages {
        Pages {
            start: NonNull::dangling(),
            length: 0,
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped there, are initialised (to zero), and are only reached
        // through this value, which is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the value is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: this is what was mapped, and nobody can have a reference to it any more. It
            // fails only for what is no mapping.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        }
    }
}
