//! Writing in ways that std knows nothing of (pwritev2(2)).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Writes what can be written without waiting, as if `O_NONBLOCK` were set, which others would
/// notice. EOPNOTSUPP where the kernel cannot do so with this kind of file.
pub(crate) fn write_now(fd: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    // Where it stands, as write(2) does.
    write_with(fd, bytes, -1, libc::RWF_NOWAIT)
}

/// Writes at a place in a file that is otherwise appended to (Linux 6.9; EOPNOTSUPP before).
pub(crate) fn overwrite(fd: BorrowedFd, bytes: &[u8], offset: u64) -> nix::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    write_with(fd, bytes, offset, RWF_NOAPPEND)
}

/// `RWF_NOAPPEND` of linux/fs.h, which libc does not have for every C library.
const RWF_NOAPPEND: libc::c_int = 0x20;

fn write_with(fd: BorrowedFd, bytes: &[u8], offset: i64, flags: libc::c_int) -> nix::Result<usize> {
    let piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // The kernel puts the offset together of two, of which a wide one has no need.
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    // SAFETY: the one piece is readable for its length, and is only read.
    let written = unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            fd.as_raw_fd(),
            &raw const piece,
            1,
            low,
            high,
            flags,
        )
    };
    Errno::result(written).map(|written| usize::try_from(written).unwrap_or(0))
}
