//! How each contestant is told to forward. All of them log nothing (but for tcpproxy under
//! super-servers, which is run without any option there, and so writes its two lines), limit
//! nothing, and have a backlog that 16 clients cannot fill, where they know such an option.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::unistd::geteuid;

use crate::Outcome;
use crate::contestants::{Contestant, Installed, find};

/// Who starts a process for each connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SuperServer {
    Tcpserver,
    Xinetd,
    Systemd,
}

impl SuperServer {
    pub(crate) const ALL: [SuperServer; 3] = [
        SuperServer::Tcpserver,
        SuperServer::Xinetd,
        SuperServer::Systemd,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            SuperServer::Tcpserver => "tcpserver",
            SuperServer::Xinetd => "xinetd",
            SuperServer::Systemd => "systemd",
        }
    }

    pub(crate) fn find(self) -> Option<String> {
        let (package, file) = match self {
            SuperServer::Tcpserver => ("ucspi-tcp-ipv6", "usr/bin/tcpserver"),
            SuperServer::Xinetd => ("xinetd", "usr/sbin/xinetd"),
            SuperServer::Systemd => ("systemd", "usr/bin/systemd-socket-activate"),
        };
        find(package, file)?.to_str().map(str::to_owned)
    }

    /// Has it start `words` for each connection at `at`. None of the words has a blank in it.
    pub(crate) fn command(
        self,
        program: &str,
        words: &[String],
        at: SocketAddr,
        files: &Files,
    ) -> Outcome<Vec<String>> {
        let (ip, port) = (at.ip().to_string(), at.port().to_string());
        Ok(match self {
            SuperServer::Tcpserver => {
                let options = ["-HRD", "-l0", "-c", "100000", "-b", "4096"];
                let head = [&[program][..], &options, &[&ip, &port]].concat();
                [own(&head), words.to_vec()].concat()
            }
            SuperServer::Xinetd => {
                let serve = format!(
                    "server = {}\nserver_args = {}",
                    words[0],
                    words[1..].join(" ")
                );
                xinetd(program, at, &serve, files)?
            }
            SuperServer::Systemd => {
                let at = at.to_string();
                let head = [program, "--accept", "--inetd", "-l", &at];
                [own(&head), words.to_vec()].concat()
            }
        })
    }
}

/// How a forwarder comes by its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// It listens itself.
    Standalone,
    /// It is started for each.
    Under(SuperServer),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Mode::Standalone => Ok(()),
            Mode::Under(by) => write!(f, " under {}", by.name()),
        }
    }
}

/// Where a forwarder's own files go: beginnings of their names.
pub(crate) struct Files {
    pub(crate) stem: PathBuf,
}

impl Files {
    fn path(&self, ending: &str) -> PathBuf {
        self.stem.with_extension(ending)
    }

    fn write(&self, ending: &str, text: &str) -> Outcome<String> {
        let file = self.path(ending);
        fs::write(&file, text)?;
        Ok(file.display().to_string())
    }
}

fn own(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Bytes that socat moves at a time: its default of 8 KiB makes it several times slower.
const SOCAT_BUFFER: &str = "-b131072";

/// Has it serve an inherited connection: as a super-server starts it. Nothing for those that cannot.
pub(crate) fn inherited(who: &Installed, upstream: SocketAddr) -> Option<Vec<String>> {
    let program = &*who.program;
    let (to, ip, port) = (
        upstream.to_string(),
        upstream.ip().to_string(),
        upstream.port().to_string(),
    );
    let tcp = format!("TCP:{to},nodelay");
    Some(match who.contestant {
        Contestant::Tcpproxy => own(&[program, &to]),
        Contestant::Redir => own(&[program, "-l", "err", "-i", &to]),
        Contestant::Simpleproxy => own(&[program, "-i", "-R", &to]),
        Contestant::Socat => own(&[program, SOCAT_BUFFER, "STDIO", &tcp]),
        Contestant::Tcpconnect => own(&[program, &ip, &port]),
        // Without -N it would not pass on the end of the client's data.
        Contestant::Nc => own(&[program, "-N", &ip, &port]),
        Contestant::Direct
        | Contestant::Haproxy
        | Contestant::Nginx
        | Contestant::Rinetd
        | Contestant::SocketProxyd
        | Contestant::Xinetd => return None,
    })
}

/// Has it listen at `at`. Nothing for those that cannot.
pub(crate) fn standalone(
    who: &Installed,
    at: SocketAddr,
    upstream: SocketAddr,
    files: &Files,
) -> Outcome<Option<Vec<String>>> {
    let program = &*who.program;
    let (from, to) = (at.to_string(), upstream.to_string());
    let (ip, port) = (at.ip(), at.port());
    Ok(Some(match who.contestant {
        Contestant::Direct | Contestant::Tcpconnect | Contestant::Nc => return Ok(None),
        Contestant::Tcpproxy => {
            let quiet = ["--log-level", "error", "--max-sessions", "0"];
            own(&[&[program, "-b", &from][..], &quiet, &[&to]].concat())
        }
        Contestant::Haproxy => {
            let file = files.write("cfg", &haproxy(&from, &to))?;
            own(&[program, "-db", "-f", &file])
        }
        Contestant::Nginx => {
            let Some(text) = nginx(&from, &to, files) else {
                return Ok(None);
            };
            let file = files.write("conf", &text)?;
            own(&[program, "-e", "stderr", "-c", &file])
        }
        Contestant::Rinetd => {
            let (upstream_ip, upstream_port) = (upstream.ip(), upstream.port());
            let text = format!("{ip} {port} {upstream_ip} {upstream_port}\n");
            own(&[program, "-f", "-c", &files.write("conf", &text)?])
        }
        Contestant::SocketProxyd => {
            let Some(activate) = SuperServer::Systemd.find() else {
                return Ok(None);
            };
            own(&[&activate, "-l", &from, program, "-c", "100000", &to])
        }
        Contestant::Redir => own(&[program, "-n", "-l", "err", &from, &to]),
        Contestant::Simpleproxy => own(&[program, "-L", &from, "-R", &to]),
        Contestant::Socat => {
            let listen = format!("TCP-LISTEN:{port},bind={ip},fork,reuseaddr,backlog=4096,nodelay");
            let connect = format!("TCP:{to},nodelay");
            own(&[program, SOCAT_BUFFER, &listen, &connect])
        }
        Contestant::Xinetd => {
            let serve = format!("redirect = {} {}", upstream.ip(), upstream.port());
            xinetd(program, at, &serve, files)?
        }
    }))
}

/// Splicing always, through large pipes: it is slower when left to itself.
fn haproxy(from: &str, to: &str) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 4000\n  tune.pipesize 1048576\n\
         defaults\n  mode tcp\n  maxconn 4000\n  backlog 4096\n  timeout connect 10s\n\
         \x20 timeout client 60s\n  timeout server 60s\n\
         \x20 option splice-request\n  option splice-response\n\
         listen forward\n  bind {from}\n  server backend {to}\n"
    )
}

/// Debian has the stream module in a package of its own; built in, there is no file to load.
fn nginx(from: &str, to: &str, files: &Files) -> Option<String> {
    let module = "usr/lib/nginx/modules/ngx_stream_module.so";
    let module = find("libnginx-mod-stream", module)?;
    Some(format!(
        "load_module {};\ndaemon off;\nuser root;\nworker_processes 1;\npid {};\nlock_file {};\n\
         events {{ worker_connections 4000; }}\n\
         stream {{\n  access_log off;\n  server {{\n    listen {from} backlog=4096;\n\
         \x20   proxy_pass {to};\n  }}\n}}\n",
        module.display(),
        files.path("pid").display(),
        files.path("lock").display(),
    ))
}

fn xinetd(program: &str, at: SocketAddr, serve: &str, files: &Files) -> Outcome<Vec<String>> {
    let (ip, port) = (at.ip(), at.port());
    let text = format!(
        "service forward\n{{\ntype = UNLISTED\nsocket_type = stream\nprotocol = tcp\n\
         flags = IPv4 NODELAY\nbind = {ip}\nport = {port}\nwait = no\nuser = {}\n\
         instances = UNLIMITED\nper_source = UNLIMITED\ncps = 1000000 1\n{serve}\n\
         disable = no\n}}\n",
        // The only one that a benchmark which is not run by root can become.
        geteuid()
    );
    let file = files.write("conf", &text)?;
    let pid = files.path("pid").display().to_string();
    Ok(own(&[program, "-dontfork", "-f", &file, "-pidfile", &pid]))
}
