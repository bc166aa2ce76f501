//! Configuration files: what the program says about one, and a server that has one.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str;

use super::{Running, Said, Scratch, TCPPROXY, patient};

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
