//! A log that nobody reads: nothing waits for it, and what was taken of it is whole lines.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo, pipe};

use crate::harness::config_file::Conf;
use crate::harness::peers::assert_echoes;
use crate::harness::terminal::Terminal;
use crate::harness::upstreams::echo;
use crate::harness::{
    TCPPROXY, end_of, eventually, free_port, needs_root, patient, read_all, wait_for_line,
};

/// Where a server logs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pipe,
    /// One that the server may not open by its name, as it was made by another user.
    PipeOfAnother,
    Fifo,
    Terminal,
    /// As the journal's is.
    Socket,
}

const KINDS: [Kind; 5] = [
    Kind::Pipe,
    Kind::PipeOfAnother,
    Kind::Fifo,
    Kind::Terminal,
    Kind::Socket,
];

/// What can be read of a log, but is not until the test asks.
enum Reader {
    Of(File),
    Terminal(Terminal),
}

impl Reader {
    /// Everything that was taken. The server has ended.
    fn lines(self) -> Vec<String> {
        let mut bytes = Vec::new();
        let is_terminal = matches!(self, Reader::Terminal(_));
        match self {
            Reader::Of(mut file) => drop(file.read_to_end(&mut bytes).unwrap()),
            Reader::Terminal(terminal) => {
                let mut buffer = [0; 4096];
                // Its end is an error: nobody has the other side any more.
                while let Ok(count) = nix::unistd::read(terminal.master().as_fd(), &mut buffer) {
                    bytes.extend_from_slice(&buffer[..count]);
                }
            }
        }
        let text = String::from_utf8(bytes).unwrap().replace("\r\n", "\n");
        // A terminal, unlike the others, takes a part where it has no room for all.
        let (lines, rest) = text.rsplit_once('\n').unwrap();
        assert!(rest.is_empty() || is_terminal, "{rest}");
        lines.lines().map(str::to_owned).collect()
    }
}

/// A server whose log is not read, and that has as much to say of each session as fits into no
/// pipe at once.
struct Unread {
    server: Child,
    address: SocketAddr,
    reader: Reader,
    _conf: Conf,
}

impl Unread {
    fn start(kind: Kind, directives: &str) -> Unread {
        let port = free_port();
        let upstreams = format!("{} {}", echo(), "192.0.2.1:65535 ".repeat(400));
        let conf = Conf::new(format!(
            "standalone yes\n{directives}\nport {port}\ninterface 127.0.0.1\nserver {upstreams}\n"
        ));
        let mut command = match kind {
            Kind::PipeOfAnother => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", TCPPROXY]);
                command
            }
            _ => Command::new(TCPPROXY),
        };
        command.arg("-f").arg(conf.path()).stdin(Stdio::null());
        let fifo = conf.scratch().join("fifo");
        let target = match kind {
            Kind::Fifo => format!("file:{}", fifo.display()),
            _ => "stderr".to_owned(),
        };
        command.args(["--log", &target]);
        let (reader, stderr): (Reader, OwnedFd) = match kind {
            Kind::Pipe | Kind::PipeOfAnother => {
                let (ours, theirs) = pipe().unwrap();
                (Reader::Of(ours.into()), theirs)
            }
            Kind::Fifo => {
                mkfifo(&fifo, Mode::S_IRWXU).unwrap();
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
                let ours = options.open(&fifo).unwrap();
                (Reader::Of(ours), File::create("/dev/null").unwrap().into())
            }
            Kind::Terminal => {
                let terminal = Terminal::new();
                let theirs = terminal.open();
                (Reader::Terminal(terminal), theirs)
            }
            Kind::Socket => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                (Reader::Of(File::from(OwnedFd::from(ours))), theirs.into())
            }
        };
        let server = command.stderr(Stdio::from(stderr)).spawn().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let unread = Unread {
            server,
            address,
            reader,
            _conf: conf,
        };
        eventually("a listener", || TcpStream::connect(address).ok());
        unread
    }

    fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.server.id() as i32), signal).unwrap();
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn a_server_serves_and_hears_whether_its_log_is_read_or_not() {
    needs_root();
    thread::scope(|scope| {
        for kind in KINDS {
            scope.spawn(move || {
                let mut unread = Unread::start(kind, "");
                let client = unread.connect();
                assert_echoes(&client);
                // More than any of them holds. Who hears none of it takes many for one.
                for _ in 0..200 {
                    unread.signal(Signal::SIGUSR1);
                    thread::sleep(Duration::from_millis(2));
                }
                let next = unread.connect();
                assert_echoes(&next);
                assert_echoes(&client);
                unread.signal(Signal::SIGTERM);
                assert_eq!(end_of(&mut unread.server).code(), Some(0), "{kind:?}");
                let null = Reader::Of(File::open("/dev/null").unwrap());
                let lines = std::mem::replace(&mut unread.reader, null).lines();
                let cut: Vec<_> = lines.iter().filter(|line| line.ends_with("...")).collect();
                assert!(!cut.is_empty(), "{kind:?}: {}", cut.len());
                for line in &lines {
                    assert!(line.contains("tcpproxy["), "{kind:?}: {line:?}");
                    assert!(line.len() < 4096, "{kind:?}: {}", line.len());
                }
                for line in cut {
                    assert!(line.contains("session "), "{kind:?}: {line}");
                    assert!(line.len() > 4000, "{kind:?}: {}", line.len());
                }
            });
        }
    });
}

#[test]
fn what_an_access_program_says_is_not_waited_for() {
    needs_root();
    for kind in KINDS {
        let line = "printf '\\001%.0s' $(seq 1024) >&2; echo >&2";
        let script = format!("for i in $(seq 64); do {line}; done; exit 1");
        let unread = Unread::start(kind, &format!("acp /bin/sh -c \"{script}\""));
        assert_eq!(read_all(unread.connect()), b"", "{kind:?}");
    }
}

#[test]
fn a_file_has_the_whole_line() {
    let port = free_port();
    let upstreams = format!("{} {}", echo(), "192.0.2.1:65535 ".repeat(400));
    let conf = Conf::new(format!(
        "standalone yes\nport {port}\ninterface 127.0.0.1\nserver {upstreams}\n"
    ));
    let file = conf.scratch().join("log");
    let log = format!("file:{}", file.display());
    let server = conf.serve(1, &["--log", &log]);
    let client = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
    assert_echoes(&client);
    server.process.signal(Signal::SIGUSR1);
    let line = wait_for_line(&file, "session 1 live: ");
    assert!(
        line.len() > 2 * 4096 - 2000 && line.contains(" age="),
        "{line}"
    );
    let cut = server.process.log.wait_for("session 1 live: ");
    assert!(cut.ends_with("..."), "{cut}");
}
