//! What C's `main` is called with.

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;

/// The words of the command line, as the C library hands them to `main`, which is the one place
/// where such a value comes from.
#[repr(transparent)]
pub struct Words(*const *const c_char);

impl Words {
    /// The words, the program's own name first.
    pub(crate) fn all(&self) -> impl Iterator<Item = OsString> {
        // SAFETY: what `main` is called with is an array of pointers that a null pointer ends, and
        // there is none other to be had (C11, 5.1.2.2.1). It is there for as long as the process.
        let pointers = (0..).map(|index| unsafe { *self.0.add(index) });
        pointers
            .take_while(|pointer| !pointer.is_null())
            // SAFETY: each of them points to a string, of which the same holds.
            .map(|pointer| unsafe { CStr::from_ptr(pointer) })
            .map(|word| OsStr::from_bytes(word.to_bytes()).to_owned())
    }
}
