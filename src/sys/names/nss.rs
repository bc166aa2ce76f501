//! The system's name services, as nsswitch.conf(5) has them: hosts, services, users and groups.
//!
//! Which modules answer is the system's to say, and they are made for the system's own C library.
//! A program that is linked statically cannot load them: its C library is another one, or another
//! version. So getent(1) is asked, which is part of the system's, unless what nsswitch.conf(5)
//! puts first can be asked without it. Where there is no getent, as in a container without
//! anything else, files and our own C library have to do.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::known;
use crate::sys;

/// The TCP port that services(5) has under this name.
pub(crate) fn port(name: &str) -> Option<u16> {
    // http                  80/tcp www
    let is_it = |line: &str| {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let (first, port) = (words.next(), words.next());
        port.is_some_and(|port| port.ends_with("/tcp"))
            && (first == Some(name) || words.any(|alias| alias == name))
    };
    let line = entry("services", &format!("{name}/tcp"), is_it)?;
    let (port, _) = line.split_whitespace().nth(1)?.split_once('/')?;
    port.parse().ok()
}

/// The number of the user of this name.
pub(crate) fn user(name: &str) -> Option<u32> {
    account("passwd", name)
}

/// The number of the group of this name.
pub(crate) fn group(name: &str) -> Option<u32> {
    account("group", name)
}

fn account(database: &str, name: &str) -> Option<u32> {
    // getent(1) would take it for a number, as strtoul(3) does, and a large one for a smaller.
    let digits = name.trim_start().trim_start_matches(['+', '-']);
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
    let is_it = |line: &str| line.split(':').next() == Some(name);
    let line = entry(database, name, is_it)?;
    line.split(':').nth(2)?.parse().ok()
}

/// The line that a database has for a key, if that is not known yet.
fn entry(database: &str, key: &str, is_it: impl Fn(&str) -> bool) -> Option<String> {
    known::answer(database, key, || look_up(database, key, is_it))
}

/// The line that a database has for a key: from its file in /etc if that is what is to be asked
/// first, and has it; else from getent.
fn look_up(database: &str, key: &str, is_it: impl Fn(&str) -> bool) -> Option<String> {
    let in_file = || {
        let file = fs::read(format!("/etc/{database}")).ok()?;
        let text = String::from_utf8_lossy(&file);
        text.lines().find(|line| is_it(line)).map(str::to_owned)
    };
    let is_absent = |module: &&str| *module == "db" && !has_db(database);
    if modules(&configuration(), database)
        .into_iter()
        .find(|module| !is_absent(module))
        == Some("files")
        && let Some(line) = in_file()
    {
        return Some(line);
    }
    if !can_be_asked_for(key) {
        return in_file();
    }
    let printed = GETENT
        .iter()
        .find_map(|getent| printed_by(getent_command(getent, database, key)));
    match printed {
        Some(text) => text.lines().next().map(str::to_owned),
        None => in_file(),
    }
}

/// Whether the module `db` has a file for a database, where glibc or Debian's glibc has those. Often
/// it stands first and has none, and that is no reason to ask getent.
fn has_db(database: &str) -> bool {
    let there = |place: &&str| Path::new(place).join(format!("{database}.db")).exists();
    ["/var/db", "/var/lib/misc"].iter().any(there)
}

/// The addresses that a host has, in the order of preference that the system has (RFC 6724).
/// Waits for as long as the name services do; the error is a sentence.
pub(crate) fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let question = Question::Addresses(host);
    let printed = match question.is_for_getent() {
        true if !question.can_be_asked() => Some(String::new()),
        true => GETENT
            .iter()
            .find_map(|getent| printed_by(question.command(getent))),
        false => None,
    };
    addresses_in(&printed.unwrap_or_else(|| question.ask_own_library()), port)
}

/// Something to ask about hosts, which may take as long as a name server does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question<'a> {
    /// The addresses of a host.
    Addresses(&'a str),
    /// The name of an address.
    NameOf(IpAddr),
}

impl Question<'_> {
    /// Asks, in a process that has nothing else to do and may become another program, and writes
    /// what getent(1) prints. Returns that process's exit status.
    pub(crate) fn ask_as_process(&self, mut tell: File) -> i32 {
        if self.is_for_getent() {
            if !self.can_be_asked() {
                return 0;
            }
            for getent in GETENT {
                if let Ok(stdout) = tell.try_clone() {
                    // If this returns, it is not there.
                    let _: io::Error = self.command(getent).stdout(stdout).exec();
                }
            }
        }
        match tell.write_all(self.ask_own_library().as_bytes()) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    }

    /// Whether the C library that we are linked with cannot do as the system's would.
    fn is_for_getent(&self) -> bool {
        let own_library_suffices =
            || cfg!(target_env = "gnu") && are_built_in(&modules(&configuration(), "hosts"));
        cfg!(target_feature = "crt-static") && !own_library_suffices()
    }

    fn can_be_asked(&self) -> bool {
        match self {
            Question::Addresses(host) => can_be_asked_for(host),
            Question::NameOf(_) => true,
        }
    }

    fn command(&self, getent: &str) -> Command {
        match self {
            Question::Addresses(host) => getent_command(getent, "ahosts", host),
            Question::NameOf(address) => getent_command(getent, "hosts", &address.to_string()),
        }
    }

    /// Asks the C library that we are linked with. Returns what getent(1) would print.
    fn ask_own_library(&self) -> String {
        match *self {
            Question::Addresses(host) => match (host, 0).to_socket_addrs() {
                Ok(found) => found.map(|found| line_of(&found)).collect(),
                Err(error) => format!("{FAILED}{error}"),
            },
            Question::NameOf(address) => sys::name_by_address(address)
                .map_or_else(String::new, |name| format!("{address} {name}\n")),
        }
    }
}

/// What an answer begins with that only says why there is none.
const FAILED: char = '!';

/// The addresses in an answer to [`Question::Addresses`], with a port. Never empty; the error is a
/// sentence.
pub(crate) fn addresses_in(answer: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Some(failure) = answer.strip_prefix(FAILED) {
        return Err(failure.to_owned());
    }
    // 192.0.2.7       STREAM www.example
    let addresses: Vec<SocketAddr> = answer
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (text, kind) = (words.next()?, words.next()?);
            (kind == "STREAM").then(|| address(text, port)).flatten()
        })
        .collect();
    match addresses.is_empty() {
        true => Err("no address of it is known".to_owned()),
        false => Ok(addresses),
    }
}

/// The name in an answer to [`Question::NameOf`].
pub(crate) fn name_in(answer: &str) -> Option<&str> {
    // 192.0.2.7       www.example web.example
    answer.split_whitespace().nth(1)
}

/// An address, with or without a numeric zone.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, port)),
        Err(_) => {
            let zoned = format!("[{text}]:{port}").parse::<SocketAddrV6>();
            zoned.ok().map(SocketAddr::V6)
        }
    }
}

fn line_of(address: &SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            format!("{}%{} STREAM\n", v6.ip(), v6.scope_id())
        }
        _ => format!("{} STREAM\n", address.ip()),
    }
}

/// Where getent is, and where it is looked for otherwise: a super-server may have no PATH.
const GETENT: [&str; 2] = ["/usr/bin/getent", "getent"];

/// Whether getent(1) would not take it for an option. Not every getent understands `--` (that of
/// Alpine does not), and no name that it could know begins like that.
fn can_be_asked_for(key: &str) -> bool {
    !key.starts_with('-')
}

/// What a program prints; `None` if it cannot be started. How it ended is not asked: a super-server
/// may have left SIGCHLD ignored, and then nobody is told.
fn printed_by(mut command: Command) -> Option<String> {
    let mut child = command.stdout(Stdio::piped()).spawn().ok()?;
    let mut printed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        // What came before a failure is all there is.
        let _ = stdout.read_to_end(&mut printed);
    }
    let _ = child.wait();
    Some(String::from_utf8_lossy(&printed).into_owned())
}

fn getent_command(getent: &str, database: &str, key: &str) -> Command {
    let mut command = Command::new(getent);
    if database == "ahosts" && cfg!(target_env = "gnu") {
        // glibc's would leave out the addresses of a family of which the machine has none itself but
        // for loopback: localhost's, perhaps. Others do not know the word.
        command.arg("--no-addrconfig");
    }
    command.args([database, key]);
    // Descriptors 0 and 2 may be the client.
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

fn configuration() -> String {
    let file = fs::read("/etc/nsswitch.conf").unwrap_or_default();
    String::from_utf8_lossy(&file).into_owned()
}

/// The modules that a nsswitch.conf(5) has asked for a database, in order; none if it does not say.
/// Between them stand actions in brackets, as in `[NOTFOUND=return]`.
fn modules<'a>(nsswitch: &'a str, database: &str) -> Vec<&'a str> {
    let listed = nsswitch
        .lines()
        .filter_map(|line| line.split('#').next()?.split_once(':'))
        // Of several lines the last one counts.
        .rfind(|(name, _)| name.trim() == database);
    let (_, listed) = listed.unwrap_or_default();
    let mut in_brackets = false;
    listed
        .split_inclusive(['[', ']'])
        .filter(|part| {
            let is_action = in_brackets;
            in_brackets = part.ends_with('[');
            !is_action
        })
        .flat_map(|part| part.trim_end_matches(['[', ']']).split_whitespace())
        .collect()
}

/// Whether glibc has all of these within itself, as of 2.34, even where it is linked statically. Where
/// none is named, as on a system without nsswitch.conf(5), its defaults are these two.
fn are_built_in(modules: &[&str]) -> bool {
    modules
        .iter()
        .all(|module| matches!(*module, "files" | "dns"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_getent_prints_them() {
        let answer = "192.0.2.7      STREAM www.example\n192.0.2.7      DGRAM  \n\
                      2001:db8::7    STREAM \nfe80::1%3      STREAM \n";
        let found = addresses_in(answer, 25).unwrap();
        let expected = ["192.0.2.7:25", "[2001:db8::7]:25", "[fe80::1%3]:25"];
        assert_eq!(found, expected.map(|text| text.parse().unwrap()));
        for nothing in ["", "\n", "something else"] {
            assert!(addresses_in(nothing, 25).is_err(), "{nothing:?}");
        }
        assert_eq!(addresses_in("!why not", 25), Err("why not".to_owned()));
        let named = name_in("192.0.2.7       www.example web\n");
        assert_eq!(named, Some("www.example"));
        assert_eq!(name_in(""), None);
    }

    #[test]
    fn users_groups_and_services_are_found_by_name() {
        assert_eq!((user("root"), group("root")), (Some(0), Some(0)));
        assert_eq!(user("nosuch"), None);
        assert_eq!(group("nosuch"), None);
        assert_eq!(port("http"), Some(80));
        assert_eq!(port("nosuch"), None);
        // An alias; one that is for UDP alone.
        assert_eq!(port("www"), Some(80));
        assert_eq!(port("tftp"), None);
    }

    // Linked statically, our own library is only asked what it can answer alone.
    #[cfg(not(target_feature = "crt-static"))]
    #[test]
    fn our_own_library_and_getent_give_the_same_answers() {
        for host in ["localhost", "127.1", "fe80::1%lo", "nosuch.invalid"] {
            let question = Question::Addresses(host);
            let own = addresses_in(&question.ask_own_library(), 7).map_err(drop);
            let output = question.command("getent").output().unwrap();
            let getent = addresses_in(&String::from_utf8(output.stdout).unwrap(), 7);
            assert_eq!(own, getent.map_err(drop), "{host}");
        }
    }

    #[test]
    fn only_what_glibc_has_within_itself_is_left_to_it() {
        for (nsswitch, expected, built_in) in [
            ("hosts: files dns\n", &["files", "dns"][..], true),
            (
                "# x\npasswd: sss\n hosts :\tfiles [NOTFOUND=return] dns # sss\n",
                &["files", "dns"],
                true,
            ),
            (
                "hosts: files[ !UNAVAIL=return TRYAGAIN=continue ]dns",
                &["files", "dns"],
                true,
            ),
            (
                "hosts: files mdns4_minimal [NOTFOUND=return] dns\n",
                &["files", "mdns4_minimal", "dns"],
                false,
            ),
            ("hosts: sss\nhosts: files\n", &["files"], true),
            ("hosts:\n", &[], true),
            ("passwd: files\n", &[], true),
            ("", &[], true),
        ] {
            let found = modules(nsswitch, "hosts");
            assert_eq!(found, expected, "{nsswitch:?}");
            assert_eq!(are_built_in(&found), built_in, "{nsswitch:?}");
        }
    }
}
