//! Surroundings of a test's own: a network without the machine's addresses, and mounts that
//! nobody else sees. Everything that the test starts in there is in there too.

use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::errno::Errno;

use super::{PATIENCE, Scratch, needs_root};

/// Runs a test in namespaces of its own, in a thread of its own: network (with `lo` up) and
/// mounts. Threads and processes that it starts are in them too.
pub fn privately(test: impl FnOnce() + Send) {
    needs_root();
    let in_namespaces = || {
        // SAFETY: unshare(2) takes an integer. It concerns this thread alone, which ends with
        // the test.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        Errno::result(done).expect("namespaces of one's own need root");
        run("mount", &["--make-rprivate", "/"]);
        run("ip", &["link", "set", "lo", "up"]);
        test();
    };
    let ended = thread::scope(|scope| scope.spawn(in_namespaces).join());
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: run tests/setup"));
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {says}");
}

/// Gives the loopback interface another address, `ADDRESS/LENGTH`.
pub fn add_address(address: &str) {
    let mut arguments = vec!["addr", "add", address, "dev", "lo"];
    if address.contains(':') {
        // No time is lost on finding out whether somebody else has it.
        arguments.push("nodad");
    }
    run("ip", &arguments);
}

/// A /dev of the test's own, without /dev/log.
pub fn bare_dev(scratch: &Scratch) {
    let place = scratch.join("dev");
    fs::create_dir(&place).unwrap();
    let place = place.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", place]);
    for device in ["null", "zero", "full", "urandom"] {
        fs::write(format!("{place}/{device}"), "").unwrap();
        let ours = format!("{place}/{device}");
        run("mount", &["--bind", &format!("/dev/{device}"), &ours]);
    }
    fs::create_dir(format!("{place}/pts")).unwrap();
    let options = "newinstance,ptmxmode=0666";
    let pts = format!("{place}/pts");
    run("mount", &["-t", "devpts", "-o", options, "none", &pts]);
    symlink("pts/ptmx", format!("{place}/ptmx")).unwrap();
    run("mount", &["--move", place, "/dev"]);
}

/// The system's log, as far as programs see it.
pub fn system_log() -> UnixDatagram {
    let _ = fs::remove_file("/dev/log");
    let socket = UnixDatagram::bind("/dev/log").unwrap();
    fs::set_permissions("/dev/log", fs::Permissions::from_mode(0o666)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A file of the system that the test has its own version of.
pub struct Replaced<'a> {
    path: &'a Path,
}

impl<'a> Replaced<'a> {
    /// Puts a file with this content over a system's file.
    pub fn with(scratch: &Scratch, path: &'a str, content: &str) -> Replaced<'a> {
        let path = Path::new(path);
        let ours = scratch.join(&format!("{}.ours", path.file_name().unwrap().display()));
        fs::write(&ours, content).unwrap();
        run(
            "mount",
            &["--bind", ours.to_str().unwrap(), path.to_str().unwrap()],
        );
        Replaced { path }
    }

    /// Makes a program of it, which it is not at first.
    pub fn executable(self) -> Replaced<'a> {
        fs::set_permissions(self.path, Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Changes the content.
    pub fn change(&self, content: &str) {
        fs::write(self.path, content).unwrap();
    }
}

/// Has names looked up in this hosts file, and then in the DNS at 127.0.0.1.
pub fn names<'a>(scratch: &Scratch, hosts: &str) -> Replaced<'a> {
    Replaced::with(scratch, "/etc/nsswitch.conf", "hosts: files dns\n");
    Replaced::with(
        scratch,
        "/etc/resolv.conf",
        "nameserver 127.0.0.1\noptions timeout:5 attempts:3\n",
    );
    Replaced::with(scratch, "/etc/hosts", hosts)
}

/// What the test's name server says to a question.
pub enum Answer {
    /// An IPv4 address.
    Address([u8; 4]),
    /// The name of an address: its labels, of any bytes.
    Name(Vec<Vec<u8>>),
    /// There is no such name.
    Unknown,
    /// Nothing, ever.
    Silence,
}

/// A name server at 127.0.0.1:53, as [`names`] has it asked. It is asked for a name and the type
/// of the record (A is 1, PTR is 12; RFC 1035 §3.2.2).
pub fn name_server(answer: impl Fn(&str, u16) -> Answer + Send + 'static) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[..length];
            let (name, kind, end) = read_question(question);
            let data = match answer(&name, kind) {
                Answer::Address(address) if kind == 1 => Some(address.to_vec()),
                Answer::Name(labels) if kind == 12 => Some(encode_name(&labels)),
                Answer::Silence => continue,
                // The name exists, but not with such a record.
                Answer::Address(_) | Answer::Name(_) => None,
                Answer::Unknown => {
                    let mut reply = question[..end].to_vec();
                    // A response, recursion available, no such name.
                    reply[2..4].copy_from_slice(&[0x81, 0x83]);
                    reply[6..12].fill(0);
                    let _ = socket.send_to(&reply, from);
                    continue;
                }
            };
            let mut reply = question[..end].to_vec();
            reply[2..4].copy_from_slice(&[0x81, 0x80]);
            reply[6..12].copy_from_slice(&[0, u8::from(data.is_some()), 0, 0, 0, 0]);
            if let Some(data) = data {
                // The name of the question, by reference; class IN; for a minute.
                reply.extend_from_slice(&[0xc0, 12, 0, kind as u8, 0, 1, 0, 0, 0, 60]);
                reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
                reply.extend_from_slice(&data);
            }
            let _ = socket.send_to(&reply, from);
        }
    });
}

/// The name and type that a packet asks for, and where the question ends.
fn read_question(packet: &[u8]) -> (String, u16, usize) {
    let mut labels = Vec::new();
    let mut at = 12;
    while packet[at] != 0 {
        let length = usize::from(packet[at]);
        labels.push(String::from_utf8_lossy(&packet[at + 1..=at + length]).into_owned());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([packet[at + 1], packet[at + 2]]);
    (labels.join("."), kind, at + 5)
}

fn encode_name(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for label in labels {
        encoded.push(label.len() as u8);
        encoded.extend_from_slice(label);
    }
    encoded.push(0);
    encoded
}
