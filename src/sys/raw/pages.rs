//! Memory that comes from the kernel and goes back to it.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

/// A stretch of memory of its own. A page of it costs nothing until it is written to, and all of it
/// is the kernel's again when this is dropped: malloc(3) would keep what is freed, up to 32 MiB
/// (mallopt(3), `M_TRIM_THRESHOLD`), and calloc(3) write to what it gives.
///
/// The first small ones are part of the program itself, so that a relay of messages makes no system
/// call for them. They stay the program's.
pub(crate) struct Pages {
    start: NonNull<u8>,
    length: usize,
    /// Which of the program's own it is, if it is one.
    reserve: Option<usize>,
}

/// How large a small stretch may be.
const SMALL: usize = 16 << 10;

/// Memory for small stretches, one for each direction of a relay. It is not made to begin with a page:
/// so a message in the first of them often touches none that was not touched before.
struct Reserve([UnsafeCell<[u8; SMALL]>; 2]);

// SAFETY: each stretch is reached only through the one `Pages` that has set its flag in `TAKEN`,
// until that one's end.
unsafe impl Sync for Reserve {}

static RESERVE: Reserve = Reserve([const { UnsafeCell::new([0; SMALL]) }; 2]);

/// Which of them are in use. Elsewhere, as each page that is written to costs.
static TAKEN: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

impl Pages {
    /// So many bytes; none need no memory.
    pub(crate) fn new(length: usize) -> nix::Result<Pages> {
        if length == 0 {
            return Ok(Pages::default());
        }
        if length <= SMALL {
            let is_free = |taken: &AtomicBool| !taken.swap(true, Ordering::Acquire);
            if let Some(number) = TAKEN.iter().position(is_free) {
                let start = NonNull::new(RESERVE.0[number].get().cast()).ok_or(Errno::ENOMEM)?;
                return Ok(Pages {
                    start,
                    length,
                    reserve: Some(number),
                });
            }
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
        Ok(Pages {
            start,
            length,
            reserve: None,
        })
    }
}

impl Default for Pages {
    fn default() -> Pages {
        Pages {
            start: NonNull::dangling(),
            length: 0,
            reserve: None,
        }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are there, are initialised (with zero, or what was there before), and
        // are only reached through this value, which is borrowed for as long as the slice lives.
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
        match self.reserve {
            Some(number) => TAKEN[number].store(false, Ordering::Release),
            // SAFETY: this is what was mapped, and nobody can have a reference to it any more. It
            // fails only for what is no mapping.
            None if self.length > 0 => unsafe {
                libc::munmap(self.start.as_ptr().cast(), self.length);
            },
            None => {}
        }
    }
}
