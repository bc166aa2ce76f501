//! Configuration files: what the program says about one, and a server that has one.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::{fs, str};

use super::{Lines, PATIENCE, Running, Scratch, TCPPROXY, patient};

/// What a program that has ended has said.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Runs a command to its end, with nothing to read.
    pub fn by(command: &mut Command) -> Said {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let log = Lines::default();
        // One that serves instead of ending is ended with the test.
        let mut process = Running { child, log };
        let [out, err] = [OwnedFd::from(out), OwnedFd::from(err)].map(|end| {
            let (sender, receiver) = mpsc::channel();
            thread::spawn(move || sender.send(super::read_all(fs::File::from(end))));
            receiver
        });
        let text = |all: mpsc::Receiver<Vec<u8>>| {
            let bytes = all.recv_timeout(PATIENCE).expect("the program ends");
            String::from_utf8(bytes).unwrap()
        };
        let (out, err) = (text(out), text(err));
        let status = process.child.wait().unwrap();
        Said {
            status: status.code().expect("no signal has ended it"),
            out,
            err,
        }
    }

    /// The standard output of one that has succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    /// The standard error, as lines, of one that has ended with this status and said nothing else.
    #[track_caller]
    pub fn refused(&self, status: i32) -> Vec<&str> {
        assert_eq!((self.status, self.out.as_str()), (status, ""), "{self:?}");
        self.err.lines().collect()
    }
}

/// A directory with a configuration file that is called `conf`.
pub struct Conf(Scratch);

impl Conf {
    pub fn new(text: impl AsRef<[u8]>) -> Conf {
        Conf(Scratch::new()).with("conf", text)
    }

    /// The same with another file.
    pub fn with(self, name: &str, text: impl AsRef<[u8]>) -> Conf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub fn scratch(&self) -> &Scratch {
        &self.0
    }

    pub fn path(&self) -> PathBuf {
        self.0.join("conf")
    }

    /// tcpproxy, to be started in the directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(TCPPROXY);
        command.current_dir(self.0.path()).args(arguments);
        command
    }

    /// Runs `tcpproxy -f conf ARGUMENTS` to its end, in the directory.
    pub fn says(&self, arguments: &[&str]) -> Said {
        Said::by(&mut self.command(&[&["-f", "conf"], arguments].concat()))
    }

    /// Starts `tcpproxy -f conf --log stderr ARGUMENTS`, and waits until it has so many listeners.
    pub fn serve(self, listeners: usize, arguments: &[&str]) -> Configured {
        let mut command = self.command(&[&["-f", "conf", "--log", "stderr"], arguments].concat());
        let process = Running::start(command.stdin(Stdio::null()));
        process.log.wait_for_count("listening on ", listeners);
        Configured {
            process,
            conf: self,
        }
    }
}

/// A server with a configuration file.
pub struct Configured {
    pub process: Running,
    pub conf: Conf,
}

impl Configured {
    /// Starts a server with this file, and waits until it has so many listeners.
    pub fn start(text: &str, listeners: usize) -> Configured {
        Conf::new(text).serve(listeners, &[])
    }

    /// Where it listens, in the order in which it said so.
    pub fn listeners(&self) -> Vec<SocketAddr> {
        let lines = self.process.log.all();
        let lines = lines.iter().filter(|line| line.contains("listening on "));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect()
    }

    pub fn connect(&self, ip: &str, port: u16) -> TcpStream {
        patient(TcpStream::connect((ip, port)).unwrap())
    }

    /// What a client reads to the end that has said nothing.
    pub fn answer(&self, ip: &str, port: u16) -> String {
        let bytes = super::read_all(self.connect(ip, port));
        str::from_utf8(&bytes).unwrap().to_owned()
    }
}
