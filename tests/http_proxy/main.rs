//! `helper http-proxy`: requests that were meant for origin servers, and an upstream that is a proxy.

#[path = "../harness/mod.rs"]
mod harness;

mod bodies;
mod ends;
mod options;
mod redirected;
mod refused;
mod translated;
mod with_proxies;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use harness::{Standalone, read_all};

/// An answer without anything remarkable.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// tcpproxy before a proxy.
fn before(proxy: &str, arguments: &[&str]) -> Standalone {
    Standalone::start(&[&["--helper", "http-proxy"], arguments, &[proxy]].concat())
}

/// The next so many bytes.
fn read_count(mut stream: &TcpStream, count: usize) -> String {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A head, with its empty line.
fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Answers every request without a body as [`OK`] says, until there are no more. Returns what came.
fn answer_all(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    let mut answered = 0;
    loop {
        let count = stream.read(&mut buffer).unwrap();
        if count == 0 {
            return String::from_utf8(all).unwrap();
        }
        all.extend_from_slice(&buffer[..count]);
        let heads = all.windows(4).filter(|end| end == b"\r\n\r\n").count();
        for _ in answered..heads {
            stream.write_all(OK).unwrap();
        }
        answered = heads;
    }
}

/// Says everything, and nothing more; returns everything that is said in return.
fn converse(mut client: TcpStream, said: &[u8]) -> String {
    client.write_all(said).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    String::from_utf8(read_all(client)).unwrap()
}
