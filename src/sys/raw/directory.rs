//! A directory, read in parts (getdents64(2)): std would always begin at its start.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;

/// A name in a directory.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a OsStr,
    /// Where the directory goes on behind it, for lseek(2).
    pub(crate) next: i64,
}

/// The next names of a directory, as many as there is room for; none at its end.
pub(crate) fn entries<'a>(
    directory: BorrowedFd,
    room: &'a mut [u8],
) -> nix::Result<impl Iterator<Item = Entry<'a>>> {
    // SAFETY: the room is writable for its length.
    let read = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            room.as_mut_ptr(),
            room.len(),
        )
    };
    let read = usize::try_from(Errno::result(read)?).unwrap_or(0);
    let mut rest: &[u8] = room.get(..read).unwrap_or_default();
    Ok(std::iter::from_fn(move || {
        let (entry, behind) = first_of(rest)?;
        rest = behind;
        Some(entry)
    }))
}

/// The first of what the kernel has written, and the rest of it.
fn first_of(records: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    // struct linux_dirent64: an inode's number, the place of the next, the record's length, the type
    // of the file, and the name, which ends in NUL.
    let next = records.get(8..16)?.try_into().ok()?;
    let length = records.get(16..18)?.try_into().ok()?;
    let (record, rest) = records.split_at_checked(u16::from_ne_bytes(length).into())?;
    let name = record.get(19..)?.split(|&byte| byte == 0).next()?;
    let entry = Entry {
        name: OsStr::from_bytes(name),
        next: i64::from_ne_bytes(next),
    };
    Some((entry, rest))
}
