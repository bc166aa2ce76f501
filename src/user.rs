//! Who a session runs as: ids are looked up once, and given up for good before a client is served.

use std::fmt;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getegid, geteuid, getgroups, getresgid, getresuid, setgroups, setresgid,
    setresuid, setuid,
};

use crate::error::{Error, Status};
use crate::log::escape;
use crate::value::Account;

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

/// What the original's -1 and -2 were when ids had 16 bits.
const DEFAULT: (u32, u32) = (65535, 65534);

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl Ids {
    /// The ids to serve as. Unknown names, and uid 0, are configuration errors.
    pub fn find(user: Option<&Account>, group: Option<&Account>) -> Result<Ids, Error> {
        let uid = match user {
            None => Uid::from_raw(DEFAULT.0),
            Some(Account::Number(number)) => Uid::from_raw(*number),
            Some(Account::Name(name)) => match User::from_name(name) {
                Ok(Some(user)) => user.uid,
                Ok(None) => return Err(unknown("user", name)),
                Err(errno) => return Err(Error::system(format_args!("user '{name}'"), errno)),
            },
        };
        if uid.is_root() {
            return Err(Error::config(
                "option -u/--user: tcpproxy never serves as root: write another user than uid 0",
            ));
        }
        let gid = match group {
            None => Gid::from_raw(DEFAULT.1),
            Some(Account::Number(number)) => Gid::from_raw(*number),
            Some(Account::Name(name)) => match Group::from_name(name) {
                Ok(Some(group)) => group.gid,
                Ok(None) => return Err(unknown("group", name)),
                Err(errno) => return Err(Error::system(format_args!("group '{name}'"), errno)),
            },
        };
        Ok(Ids { uid, gid })
    }

    /// The effective ids of this process.
    pub fn current() -> Ids {
        Ids {
            uid: geteuid(),
            gid: getegid(),
        }
    }
}

fn unknown(what: &str, name: &str) -> Error {
    let option = if what == "user" {
        "-u/--user"
    } else {
        "-g/--group"
    };
    Error::config(format!(
        "option {option}: there is no {what} '{}'",
        escape(name)
    ))
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
            format!("cannot serve as {ids}: {call}: {}", errno.desc()),
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
