//! What was read, so that another process reads the very same, whatever becomes of the files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Files;
use crate::terms::fields;

/// Files as they were when they were read, and what patterns matched.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record {
    read: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    matched: BTreeMap<String, Result<Vec<PathBuf>, String>>,
}

/// Files of which a record is kept. Each is read once: it may change.
pub(crate) struct Recorded<'a> {
    files: &'a dyn Files,
    record: RefCell<Record>,
}

impl<'a> Recorded<'a> {
    pub(crate) fn new(files: &'a dyn Files) -> Recorded<'a> {
        Recorded {
            files,
            record: RefCell::default(),
        }
    }

    pub(crate) fn into_record(self) -> Record {
        self.record.into_inner()
    }
}

impl Files for Recorded<'_> {
    fn read(&self, path: &Path, most: usize) -> Result<Vec<u8>, String> {
        let mut record = self.record.borrow_mut();
        if !record.read.contains_key(path) {
            let bytes = self.files.read(path, most);
            record.read.insert(path.to_owned(), bytes);
        }
        record.read(path, most)
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let mut record = self.record.borrow_mut();
        if !record.matched.contains_key(pattern) {
            let paths = self.files.matching(pattern);
            record.matched.insert(pattern.to_owned(), paths);
        }
        record.matching(pattern)
    }
}

impl Files for Record {
    fn read(&self, path: &Path, most: usize) -> Result<Vec<u8>, String> {
        match self.read.get(path) {
            Some(Ok(bytes)) => Ok(bytes[..bytes.len().min(most)].to_vec()),
            Some(Err(why)) => Err(why.clone()),
            None => Err("it was not read before".to_owned()),
        }
    }

    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
        let paths = self.matched.get(pattern).cloned();
        paths.unwrap_or_else(|| Err("it was not looked for before".to_owned()))
    }
}

impl Record {
    /// As another process can read it.
    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        fields::push_count(to, self.read.len());
        for (path, bytes) in &self.read {
            fields::push(to, path.as_os_str().as_bytes());
            fields::push_count(to, usize::from(bytes.is_ok()));
            fields::push(to, bytes.as_deref().unwrap_or_else(|why| why.as_bytes()));
        }
        fields::push_count(to, self.matched.len());
        for (pattern, paths) in &self.matched {
            fields::push(to, pattern.as_bytes());
            match paths {
                Ok(paths) => {
                    fields::push_count(to, paths.len() + 1);
                    for path in paths {
                        fields::push(to, path.as_os_str().as_bytes());
                    }
                }
                Err(why) => {
                    fields::push_count(to, 0);
                    fields::push(to, why.as_bytes());
                }
            }
        }
    }

    /// What [`Record::write`] has written; `None` if it is something else.
    pub(crate) fn read_from(from: &mut &[u8]) -> Option<Record> {
        let path = |from: &mut &[u8]| {
            let bytes = fields::take(from)?;
            Some(PathBuf::from(OsStr::from_bytes(bytes)))
        };
        let mut record = Record::default();
        for _ in 0..fields::take_count(from)? {
            let path = path(from)?;
            let is_read = fields::take_count(from)? != 0;
            let bytes = if is_read {
                Ok(fields::take(from)?.to_vec())
            } else {
                Err(fields::take_text(from)?)
            };
            record.read.insert(path, bytes);
        }
        for _ in 0..fields::take_count(from)? {
            let pattern = fields::take_text(from)?;
            let paths = match fields::take_count(from)?.checked_sub(1) {
                None => Err(fields::take_text(from)?),
                Some(count) => {
                    let mut paths = Vec::new();
                    for _ in 0..count {
                        paths.push(path(from)?);
                    }
                    Ok(paths)
                }
            };
            record.matched.insert(pattern, paths);
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file that is another one each time.
    struct Changing(Cell<u8>);

    impl Files for Changing {
        fn read(&self, path: &Path, _: usize) -> Result<Vec<u8>, String> {
            self.0.set(self.0.get() + 1);
            let is_there = path != Path::new("/none");
            is_there
                .then(|| vec![self.0.get(); 9])
                .ok_or_else(|| "no".to_owned())
        }

        fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, String> {
            self.0.set(self.0.get() + 1);
            let paths = vec![PathBuf::from(OsStr::from_bytes(&[self.0.get(), 0xff]))];
            (pattern != "[")
                .then_some(paths)
                .ok_or_else(|| "bad".to_owned())
        }
    }

    #[test]
    fn what_was_read_once_is_read_again_the_same_by_another_process_too() {
        let changing = Changing(Cell::new(0));
        let recorded = Recorded::new(&changing);
        let first = recorded.read(Path::new("/a"), 100);
        assert_eq!(recorded.read(Path::new("/a"), 100), first);
        let none = recorded.read(Path::new("/none"), 100);
        let matched = recorded.matching("*");
        assert_eq!(recorded.matching("*"), matched);
        let bad = recorded.matching("[");
        let record = recorded.into_record();
        let mut written = Vec::new();
        record.write(&mut written);
        let mut from = &written[..];
        let again = Record::read_from(&mut from).unwrap();
        assert_eq!((&again, from.len()), (&record, 0));
        assert_eq!(again.read(Path::new("/a"), 100), first);
        assert_eq!(again.read(Path::new("/a"), 4).unwrap().len(), 4);
        assert_eq!(again.read(Path::new("/none"), 100), none);
        assert_eq!((again.matching("*"), again.matching("[")), (matched, bad));
        assert!(again.read(Path::new("/b"), 100).is_err());
        assert!(again.matching("?").is_err());
        for length in 0..written.len() {
            assert_eq!(Record::read_from(&mut &written[..length]), None);
        }
    }
}
