//! Who a session runs as: ids are looked up once, and given up for good before a client is served.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getegid, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid,
    setresuid, setuid,
};

use crate::error::{Error, Status, describe};
use crate::log::brief;
use crate::settings::Fault;
use crate::value;

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl Ids {
    /// The effective ids of this process.
    pub fn current() -> Ids {
        Ids {
            uid: geteuid(),
            gid: getegid(),
        }
    }
}

/// The user of this name or number. Unknown users and root are refused.
pub fn find_user(text: &str) -> Result<Uid, Fault> {
    let uid = match value::account(text)? {
        Some(number) => Uid::from_raw(number),
        None => found(
            "user",
            text,
            User::from_name(text).map(|user| user.map(|user| user.uid)),
        )?,
    };
    if uid.is_root() {
        return Err(Fault::Refused(
            "tcpproxy never serves as root: write another user than uid 0".to_owned(),
        ));
    }
    Ok(uid)
}

/// The group of this name or number. Unknown groups are refused.
pub fn find_group(text: &str) -> Result<Gid, Fault> {
    match value::account(text)? {
        Some(number) => Ok(Gid::from_raw(number)),
        None => found(
            "group",
            text,
            Group::from_name(text).map(|group| group.map(|group| group.gid)),
        ),
    }
}

fn found<T>(what: &str, name: &str, found: nix::Result<Option<T>>) -> Result<T, Fault> {
    let name = brief(name);
    match found {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(Fault::Refused(format!("there is no {what} '{name}'"))),
        Err(errno) => Err(Fault::Refused(format!(
            "{what} '{name}' cannot be looked up: {}",
            describe(errno)
        ))),
    }
}

/// Whether any of the process's user ids is root's, so that it could serve, or come back, as root.
pub fn has_root() -> bool {
    match getresuid() {
        Ok(ids) => ids.real.is_root() || ids.effective.is_root() || ids.saved.is_root(),
        Err(_) => true,
    }
}

/// Gives up root for these ids: supplementary groups, then the group, then the user, all verified.
/// Without root the ids stay as they are. Returns the ids in force. A failure is of status 77:
/// nothing may be served then.
pub fn switch_to(ids: Ids) -> Result<Ids, Error> {
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
    let supplementary = getgroups().map_err(|errno| failed("getgroups", errno))?;
    let changed = [users.real, users.effective, users.saved] == [ids.uid; 3]
        && [groups.real, groups.effective, groups.saved] == [ids.gid; 3]
        && supplementary.is_empty();
    if !changed || setuid(Uid::from_raw(0)).is_ok() {
        return Err(failed("verification", Errno::EPERM));
    }
    Ok(ids)
}
