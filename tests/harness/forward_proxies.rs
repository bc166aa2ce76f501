//! Proxies on the way to an upstream: the real ones, as their packages have them, and one that follows a
//! script.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use super::super_server::{connect_to, unpacked};
use super::{Running, Scratch, free_port, patient};

/// Who a proxy serves: everybody, or who knows a user and a password.
pub type Credentials<'a> = Option<(&'a str, &'a str)>;

/// A proxy in use, on 127.0.0.1.
pub struct InUse {
    pub process: Running,
    pub address: SocketAddr,
    _scratch: Scratch,
}

impl InUse {
    fn start(make: impl FnOnce(&Scratch, u16) -> Command) -> InUse {
        let scratch = Scratch::new();
        let port = free_port();
        let mut command = make(&scratch, port);
        let process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        drop(connect_to(address));
        InUse {
            process,
            address,
            _scratch: scratch,
        }
    }
}

/// An HTTP proxy.
pub fn tinyproxy(credentials: Credentials) -> InUse {
    InUse::start(|scratch, port| {
        let file = scratch.join("tinyproxy.conf");
        let mut text = format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\n");
        if let Some((user, password)) = credentials {
            text += &format!("BasicAuth {user} {password}\n");
        }
        fs::write(&file, text).unwrap();
        let mut command = Command::new(unpacked("tinyproxy-bin/usr/bin/tinyproxy"));
        command.arg("-d").arg("-c").arg(file);
        command
    })
}

/// A SOCKS proxy.
pub fn microsocks(credentials: Credentials) -> InUse {
    InUse::start(|_, port| {
        let mut command = Command::new(unpacked("microsocks/usr/bin/microsocks"));
        command.args(["-i", "127.0.0.1", "-p", &port.to_string()]);
        if let Some((user, password)) = credentials {
            command.args(["-u", user, "-P", password]);
        }
        command
    })
}

/// Another SOCKS proxy, which serves everybody.
pub fn danted() -> InUse {
    InUse::start(|scratch, port| {
        let file = scratch.join("danted.conf");
        let text = format!(
            "logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\n\
             clientmethod: none\nsocksmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n\
             client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}\n\
             socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}\n"
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(unpacked("dante-server/usr/sbin/danted"));
        command.arg("-f").arg(file);
        command.arg("-p").arg(scratch.join("pid"));
        command
    })
}

/// A proxy that serves every connection with a script, which is told how many came before, until the
/// test ends. What a client has sent may be read to its end or not: nothing is asked.
pub struct Scripted {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    pub fn new(script: impl Fn(Asked, usize) + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (script, noted) = (Arc::new(script), Arc::clone(&requests));
        thread::spawn(move || {
            for (stream, count) in listener.incoming().zip(0..) {
                let stream = patient(stream.unwrap());
                stream.set_nodelay(true).unwrap();
                let asked = Asked {
                    stream,
                    requests: Arc::clone(&noted),
                };
                let script = Arc::clone(&script);
                thread::spawn(move || script(asked, count));
            }
        });
        Scripted { address, requests }
    }

    pub fn http(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn socks(&self) -> String {
        format!("socks5://{}", self.address)
    }

    /// The requests that were read so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// A connection to a scripted proxy.
pub struct Asked {
    pub stream: TcpStream,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Asked {
    /// Reads a request of HTTP's, and notes it.
    pub fn connect(&self) -> String {
        let mut request = String::new();
        // Byte by byte: what comes behind it is the client's.
        let mut reader = BufReader::with_capacity(1, &self.stream);
        while !request.ends_with("\r\n\r\n") {
            let count = reader.read_line(&mut request).unwrap();
            assert!(count > 0, "the request ends with {request:?}");
        }
        self.requests.lock().unwrap().push(request.clone());
        request
    }

    /// Reads so many bytes.
    pub fn read(&self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        (&self.stream).read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads a greeting of SOCKS, takes it without credentials, and reads the request for a name or an
    /// address. Returns that.
    pub fn socks(&self) -> Vec<u8> {
        let [version, methods] = self.read(2)[..] else {
            unreachable!("it is two bytes");
        };
        assert_eq!(version, 5);
        assert!(self.read(usize::from(methods)).contains(&0));
        self.say([5, 0]);
        self.socks_request()
    }

    /// Reads a request of SOCKS.
    pub fn socks_request(&self) -> Vec<u8> {
        let head = self.read(5);
        let rest = match head[3] {
            1 => 3 + 2,
            3 => usize::from(head[4]) + 2,
            4 => 15 + 2,
            other => panic!("an address of type {other}"),
        };
        [head, self.read(rest)].concat()
    }

    /// Says something. Whoever it is for may have gone.
    pub fn say(&self, bytes: impl AsRef<[u8]>) {
        let _ = (&self.stream).write_all(bytes.as_ref());
    }
}
