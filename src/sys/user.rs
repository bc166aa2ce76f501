//! Who a session runs as: ids are looked up once, and given up for good before a client is served.

use std::fmt;

use nix::errno::Errno;
use nix::sys::prctl;
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

/// Which capabilities a process has when it has changed its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capabilities {
    /// None of root's; without root, those that it was started with.
    AsStarted,
    None,
    /// `CAP_NET_ADMIN` alone, until [`sys::give_up_capabilities`].
    NetAdmin,
}

/// Fails with status 77 if this process has no `CAP_NET_ADMIN` to keep.
pub(crate) fn check_net_admin() -> Result<(), Error> {
    match sys::has_net_admin() {
        Ok(true) => Ok(()),
        Ok(false) => Err(lacks_net_admin()),
        Err(errno) => Err(Error::system("capget", errno)),
    }
}

fn lacks_net_admin() -> Error {
    let line = "connecting from the client's address (source) needs CAP_NET_ADMIN: start as root, \
                or with that capability (systemd.exec(5), AmbientCapabilities=)";
    Error::new(Status::NotPermitted, line)
}

fn keep_only(keep: Capabilities) -> Result<(), Error> {
    let kept = match keep {
        Capabilities::AsStarted => Ok(()),
        Capabilities::None => sys::give_up_capabilities(),
        Capabilities::NetAdmin => sys::keep_net_admin_alone(),
    };
    kept.map_err(|errno| match (keep, sys::has_net_admin()) {
        (Capabilities::NetAdmin, Ok(false)) => lacks_net_admin(),
        // A filter of system calls, perhaps.
        _ => Error::new(
            Status::NotPermitted,
            format!("cannot give up capabilities: capset: {}", describe(errno)),
        ),
    })
}

/// Gives up root for these ids: supplementary groups, then the group, then the user, all verified.
/// Without root the ids stay as they are. Returns the ids in force. A failure is of status 77:
/// nothing may be served then.
pub(crate) fn switch_to(ids: Ids, keep: Capabilities) -> Result<Ids, Error> {
    if !has_root() {
        keep_only(keep)?;
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
    if keep == Capabilities::NetAdmin {
        sys::empty_bounding_set();
        prctl::set_keepcaps(true).map_err(|errno| failed("prctl", errno))?;
    }
    setresuid(ids.uid, ids.uid, ids.uid).map_err(|errno| failed("setresuid", errno))?;
    // With all of root's the way back would be open.
    keep_only(keep)?;
    if keep == Capabilities::NetAdmin {
        prctl::set_keepcaps(false).map_err(|errno| failed("prctl", errno))?;
    }
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
