//! A session with both ends of the control connection in the test's hands.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;

use crate::harness::clients::connect_from;
use crate::harness::{Running, launched_by, patient};

/// A control connection's end, by lines.
pub(crate) struct Talk(BufReader<TcpStream>);

impl Talk {
    pub(crate) fn new(stream: TcpStream) -> Talk {
        Talk(BufReader::new(stream))
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        assert_eq!(self.0.buffer(), b"", "nothing was left unread");
        self.0.into_inner()
    }

    /// Says these bytes.
    pub(crate) fn says(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream().write_all(bytes.as_ref()).unwrap();
    }

    /// The next line, with its end.
    pub(crate) fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).unwrap();
        line
    }

    /// Fails unless the next line is this one.
    #[track_caller]
    pub(crate) fn hears(&mut self, expected: impl AsRef<[u8]>) {
        let (line, expected) = (self.line(), expected.as_ref());
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert_eq!(text(&line), text(expected));
    }

    /// The next line as text, which has to begin so.
    #[track_caller]
    pub(crate) fn hears_start(&mut self, start: &str) -> String {
        let line = String::from_utf8(self.line()).unwrap();
        assert!(line.starts_with(start), "{line:?} instead of {start}");
        line
    }

    /// Fails if anything is heard for a while.
    #[track_caller]
    pub(crate) fn hears_nothing(&self) {
        assert_eq!(self.0.buffer(), b"");
        let timeout = Some(std::time::Duration::from_millis(300));
        self.stream().set_read_timeout(timeout).unwrap();
        let error = self.stream().peek(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        patient(self.stream().try_clone().unwrap());
    }
}

/// A session through a standalone tcpproxy that is past the server's greeting.
pub(crate) struct Session {
    pub(crate) proxy: Running,
    /// Where the proxy listens.
    pub(crate) address: SocketAddr,
    pub(crate) client: Talk,
    pub(crate) server: Talk,
    /// At the server, for data connections.
    pub(crate) data: TcpListener,
}

impl Session {
    /// Between 127.0.0.1 and 127.0.0.1.
    pub(crate) fn start(options: &[&str]) -> Session {
        Session::between("127.0.0.1", "127.0.0.1", options)
    }

    /// Through a listener at one address to a server at another.
    pub(crate) fn between(listens: &str, server: &str, options: &[&str]) -> Session {
        let (proxy, address, control) = proxy_between(listens, server, options);
        let client = patient(TcpStream::connect(address).unwrap());
        Session::greeted(proxy, address, &control, client)
    }

    /// With a client that comes from another address, or says something first.
    pub(crate) fn from_client(source: &str, first: &[u8], options: &[&str]) -> Session {
        let (proxy, address, control) = proxy_between("127.0.0.1", "127.0.0.1", options);
        let mut client = connect_from(source, address);
        client.write_all(first).unwrap();
        Session::greeted(proxy, address, &control, client)
    }

    fn greeted(
        proxy: Running,
        address: SocketAddr,
        control: &TcpListener,
        client: TcpStream,
    ) -> Session {
        let data = TcpListener::bind((control.local_addr().unwrap().ip(), 0)).unwrap();
        let server = patient(control.accept().unwrap().0);
        let (mut client, mut server) = (Talk::new(client), Talk::new(server));
        server.says("220 ready\r\n");
        client.hears("220 ready\r\n");
        Session {
            proxy,
            address,
            client,
            server,
            data,
        }
    }

    /// The client asks by this command; the server hears `heard` and answers in that one's way, naming an
    /// address that is not its own. Returns the client's answer.
    pub(crate) fn passive(&mut self, asks: &str, heard: &str) -> String {
        self.client.says(format!("{asks}\r\n"));
        self.server.hears(format!("{heard}\r\n"));
        let port = self.data.local_addr().unwrap().port();
        let [high, low] = port.to_be_bytes();
        self.server.says(if heard == "PASV" {
            format!("227 Entering Passive Mode (198,51,100,7,{high},{low}).\r\n")
        } else {
            format!("229 Entering Extended Passive Mode (|||{port}|)\r\n")
        });
        self.client.hears_start("22")
    }

    /// Where the client may connect to for data.
    pub(crate) fn passive_at(&mut self) -> SocketAddr {
        let answer = self.passive("PASV", "PASV");
        named_in(&answer)
    }

    /// A data connection: the client's end and the server's.
    pub(crate) fn passive_data(&mut self) -> (TcpStream, TcpStream) {
        let at = self.passive_at();
        let client = patient(TcpStream::connect(at).unwrap());
        let (server, _) = self.data.accept().unwrap();
        (client, patient(server))
    }

    /// The line of the first data connection that ended.
    pub(crate) fn data_line(&self) -> String {
        self.proxy.log.wait_for(" data: mode=")
    }

    /// A command and its reply go through.
    #[track_caller]
    pub(crate) fn assert_goes_on(&mut self) {
        self.client.says("NOOP\r\n");
        self.server.hears("NOOP\r\n");
        self.server.says("200 ok\r\n");
        self.client.hears("200 ok\r\n");
    }
}

/// A proxy with the helper, where it listens, and a server's listener for control connections.
pub(crate) fn proxy_between(
    listens: &str,
    server: &str,
    options: &[&str],
) -> (Running, SocketAddr, TcpListener) {
    let control = TcpListener::bind((server, 0)).unwrap();
    let name = control.local_addr().unwrap().to_string();
    let bind = SocketAddr::new(listens.parse().unwrap(), 0).to_string();
    let arguments = ["-b", &bind, "--log", "stderr", "--helper", "ftp", &name];
    let mut command = launched_by(&[], &[&arguments[..], options].concat());
    let proxy = Running::start(command.stdin(Stdio::null()));
    let line = proxy.log.wait_for("listening on ");
    let address = line.rsplit(' ').next().unwrap().parse().unwrap();
    (proxy, address, control)
}

/// The address in a 227, or in PORT.
#[track_caller]
pub(crate) fn named_in(line: &str) -> SocketAddr {
    let start = line
        .find(|c: char| c == '(' || c == ' ' && line.starts_with('P'))
        .unwrap();
    let numbers = line[start + 1..].trim_end_matches(|c: char| !c.is_ascii_digit());
    let numbers: Vec<u8> = numbers
        .split(',')
        .map(|word| word.parse().unwrap())
        .collect();
    let [a, b, c, d, high, low] = numbers[..] else {
        panic!("{line}");
    };
    SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))
}

/// The port in a 229, or in EPRT: the last number.
#[track_caller]
pub(crate) fn port_in(line: &str) -> u16 {
    let mut fields = line.rsplit('|').skip(1);
    fields.next().unwrap().parse().unwrap()
}
