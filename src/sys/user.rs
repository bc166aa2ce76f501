//! Who a session runs as: ids are looked up once, and given up for good before a client is served.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, getegid, geteuid, getresgid, getresuid, setgroups, setresgid, setresuid, setuid,
};

use crate::sys;
use crate::terms::error::{Error, Status, describe};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl Ids {
    /// The effective ids of this process.
    pub(crate) fn current() -> Ids {
        Ids {
            uid: geteuid(),
            gid: getegid(),
        }
    }
}

/// Whether any of the process's user ids is root's, so that it could serve, or come back, as root.
pub(crate) fn has_root() -> bool {
    match getresuid() {
        Ok(ids) => ids.real.is_root() || ids.effective.is_root() || ids.saved.is_root(),
        Err(_) => true,
    }
}

/// Gives up root for these ids: supplementary groups, then the group, then the user, all verified.
/// Without root the ids stay as they are. Returns the ids in force. A failure is of status 77:
/// nothing may be served then.
pub(crate) fn switch_to(ids: Ids) -> Result<Ids, Error> {
    if !has_root() {
        return Ok(Ids::current());
    }
    let failed = |call: &str, errno: Errno| {
        Error::new(
            Status::NotPermitted,
            format!("cannot serve as {ids}: {call}: {}", describe(errno)),
        )
    };
    setgroups(&[]).map_err(|errno| failed("setgroups", errno))?;
    setresgid(ids.gid, ids.gid, ids.gid).map_err(|errno| failed("setresgid", errno))?;
    setresuid(ids.uid, ids.uid, ids.uid).map_err(|errno| failed("setresuid", errno))?;
    let users = getresuid().map_err(|errno| failed("getresuid", errno))?;
    let groups = getresgid().map_err(|errno| failed("getresgid", errno))?;
    let supplementary =
        sys::count_supplementary_groups().map_err(|errno| failed("getgroups", errno))?;
    let changed = [users.real, users.effective, users.saved] == [ids.uid; 3]
        && [groups.real, groups.effective, groups.saved] == [ids.gid; 3]
        && supplementary == 0;
    if !changed || setuid(Uid::from_raw(0)).is_ok() {
        return Err(failed("verification", Errno::EPERM));
    }
    Ok(ids)
}
