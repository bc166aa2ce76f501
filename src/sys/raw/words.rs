//! What C's `main` is called with.

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

/// The words of the command line, as the C library hands them to `main`, which is the one place
/// where such a value comes from.
#[repr(transparent)]
pub struct Words(*const *mut c_char);

impl Words {
    /// The words, the program's own name first.
    pub(crate) fn all(&self) -> impl Iterator<Item = OsString> {
        self.pointers()
            // SAFETY: each of them points to a string, which is there for as long as the process, and
            // changed by nobody meanwhile: `show_as` has no other thread to run in.
            .map(|pointer| unsafe { CStr::from_ptr(pointer) })
            .map(|word| OsStr::from_bytes(word.to_bytes()).to_owned())
    }

    /// Has others see words of the command line differently (proc(5), cmdline): where there is something
    /// else for one, its memory is overwritten, and cleared behind that. What is longer is cut.
    pub(crate) fn show_as(&self, other: impl Fn(&[u8]) -> Option<Vec<u8>>) {
        for (word, pointer) in self.all().zip(self.pointers()) {
            let Some(mut shown) = other(word.as_bytes()) else {
                continue;
            };
            shown.resize(word.len(), 0);
            // SAFETY: the strings are the program's to change, each within its length (C11, 5.1.2.2.1),
            // and no reference into them is kept: `all` gives copies away.
            unsafe { ptr::copy_nonoverlapping(shown.as_ptr(), pointer.cast(), shown.len()) };
        }
    }

    fn pointers(&self) -> impl Iterator<Item = *mut c_char> {
        // SAFETY: what `main` is called with is an array of pointers that a null pointer ends, and
        // there is none other to be had (C11, 5.1.2.2.1). It is there for as long as the process.
        let pointers = (0..).map(|index| unsafe { *self.0.add(index) });
        pointers.take_while(|pointer| !pointer.is_null())
    }
}
