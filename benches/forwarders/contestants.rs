//! Who takes part: which programs there are, where they are found, and in which version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that forwards, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Contestant {
    /// No forwarder: the client talks to the backend.
    Direct,
    Tcpproxy,
    Haproxy,
    Nginx,
    Rinetd,
    SocketProxyd,
    Redir,
    Simpleproxy,
    Socat,
    Xinetd,
    Tcpconnect,
    Nc,
}

use Contestant::*;

/// How a forwarder that listens itself deals with several clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Design {
    ProcessEach,
    EventLoop,
}

impl Contestant {
    pub(crate) const ALWAYS: [Contestant; 2] = [Direct, Tcpproxy];
    pub(crate) const PEERS: [Contestant; 10] = [
        Haproxy,
        Nginx,
        Rinetd,
        SocketProxyd,
        Redir,
        Simpleproxy,
        Socat,
        Xinetd,
        Tcpconnect,
        Nc,
    ];
    pub(crate) const ALL: [Contestant; 12] = [
        Direct,
        Tcpproxy,
        Haproxy,
        Nginx,
        Rinetd,
        SocketProxyd,
        Redir,
        Simpleproxy,
        Socat,
        Xinetd,
        Tcpconnect,
        Nc,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Direct => "direct",
            Tcpproxy => "tcpproxy",
            Haproxy => "haproxy",
            Nginx => "nginx",
            Rinetd => "rinetd",
            SocketProxyd => "socket-proxyd",
            Redir => "redir",
            Simpleproxy => "simpleproxy",
            Socat => "socat",
            Xinetd => "xinetd",
            Tcpconnect => "tcpconnect",
            Nc => "nc",
        }
    }

    pub(crate) fn is_peer(self) -> bool {
        !Contestant::ALWAYS.contains(&self)
    }

    /// Nothing for those that listen nowhere.
    pub(crate) fn design(self) -> Option<Design> {
        match self {
            Direct | Tcpconnect | Nc => None,
            Tcpproxy | Redir | Simpleproxy | Socat | Xinetd => Some(Design::ProcessEach),
            Haproxy | Nginx | Rinetd | SocketProxyd => Some(Design::EventLoop),
        }
    }

    /// The Debian package, and the file in it.
    fn package(self) -> Option<(&'static str, &'static str)> {
        match self {
            Direct | Tcpproxy => None,
            Haproxy => Some(("haproxy", "usr/sbin/haproxy")),
            Nginx => Some(("nginx", "usr/sbin/nginx")),
            Rinetd => Some(("rinetd", "usr/sbin/rinetd")),
            SocketProxyd => Some(("systemd", "usr/lib/systemd/systemd-socket-proxyd")),
            Redir => Some(("redir", "usr/bin/redir")),
            Simpleproxy => Some(("simpleproxy", "usr/bin/simpleproxy")),
            Socat => Some(("socat", "usr/bin/socat")),
            Xinetd => Some(("xinetd", "usr/sbin/xinetd")),
            Tcpconnect => Some(("tcputils", "usr/bin/tcpconnect")),
            Nc => Some(("netcat-openbsd", "usr/bin/nc.openbsd")),
        }
    }

    /// Where it is installed, if it is.
    pub(crate) fn find(self) -> Option<Installed> {
        let Some((package, file)) = self.package() else {
            return Some(Installed {
                contestant: self,
                program: installed()?,
                version: own_version(),
            });
        };
        let program = find(package, file)?;
        Some(Installed {
            contestant: self,
            version: version(package, &program),
            program: program.to_str()?.to_owned(),
        })
    }
}

/// A contestant that can take part.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) contestant: Contestant,
    pub(crate) program: String,
    pub(crate) version: String,
}

/// A file of a Debian package: installed, or unpacked by `tests/setup --bench`. Other systems keep
/// programs wherever PATH leads.
pub(crate) fn find(package: &str, file: &str) -> Option<PathBuf> {
    let unpacked = unpacked(package).join(file);
    let installed = Path::new("/").join(file);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let name = Path::new(file).file_name()?;
    let elsewhere = std::env::split_paths(&path).map(|folder| folder.join(name));
    let mut places = [installed, unpacked].into_iter().chain(elsewhere);
    places.find(|place| place.is_file())
}

fn unpacked(package: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("target/peers").join(package)
}

fn version(package: &str, program: &Path) -> String {
    let unpacked = unpacked(package);
    if program.starts_with(&unpacked) {
        let version = std::fs::read_to_string(unpacked.join("version")).unwrap_or_default();
        return named(package, version.trim());
    }
    let version = first_line("dpkg-query", &["-W", "-f=${Version}", package]);
    named(package, &version.unwrap_or_default())
}

fn named(package: &str, version: &str) -> String {
    match version {
        "" => format!("{package}, version unknown"),
        version => format!("{package} {version}"),
    }
}

/// Our own program, installed as the others are: copied. What a linker has written through a mapping
/// lies in the page cache page by page, and takes a fifth more page faults to start.
fn installed() -> Option<String> {
    let copy = concat!(env!("CARGO_TARGET_TMPDIR"), "/tcpproxy");
    // There is none the first time; the one that there is may be running.
    let _ = fs::remove_file(copy);
    fs::copy(env!("CARGO_BIN_EXE_tcpproxy"), copy).ok()?;
    Some(copy.to_owned())
}

fn own_version() -> String {
    let version = concat!("tcpproxy ", env!("CARGO_PKG_VERSION"));
    let root = env!("CARGO_MANIFEST_DIR");
    match first_line("git", &["-C", root, "describe", "--always", "--dirty"]) {
        Some(commit) => format!("{version}, commit {commit}"),
        None => version.to_owned(),
    }
}

/// What a command prints first, if it succeeds.
pub(crate) fn first_line(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next().filter(|_| output.status.success())?;
    Some(line.to_owned())
}
