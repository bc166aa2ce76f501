//! Long bodies: whole, and held back by who reads them slowly.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::noise::Noise;
use crate::harness::peers::send_until_blocked;
use crate::harness::upstreams::Upstream;
use crate::{OK, before, converse, read_count, read_head};

const LENGTH: usize = 100_000_000;

/// Fails unless the next so many bytes are what this makes.
fn assert_arrives(mut stream: impl Read, noise: &mut Noise, count: usize) {
    let mut piece = vec![0; 1 << 16];
    let mut left = count;
    while left > 0 {
        let most = left.min(piece.len());
        let read = stream.read(&mut piece[..most]).unwrap();
        assert!(read > 0, "{left} bytes are missing");
        assert!(noise.take(read) == piece[..read], "behind {}", count - left);
        left -= read;
    }
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways_by_length() {
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        assert_arrives(&stream, &mut Noise::new(1), LENGTH);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Noise::new(2).send(&stream, LENGTH as u64);
        crate::answer_all(stream)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client.write_all(head.as_bytes()).unwrap();
    Noise::new(1).send(&client, LENGTH as u64);
    read_head(&client);
    assert_arrives(&client, &mut Noise::new(2), LENGTH);
    // And the next one is a request again.
    converse(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(proxy.result(), "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n");
}

/// Sends a chunked body of this.
fn send_chunks(mut stream: &TcpStream, noise: &mut Noise, count: usize) {
    let mut left = count;
    for size in [1, 100, 65_536, 7, 1_000_000].into_iter().cycle() {
        if left == 0 {
            break;
        }
        let size = left.min(size);
        write!(stream, "{size:x};n=v\r\n").unwrap();
        stream.write_all(&noise.take(size)).unwrap();
        stream.write_all(b"\r\n").unwrap();
        left -= size;
    }
    stream.write_all(b"0\r\nDigest: none\r\n\r\n").unwrap();
}

/// Fails unless a chunked body of this comes.
fn assert_chunks_arrive(stream: &TcpStream, noise: &mut Noise, count: usize) {
    let mut stream = BufReader::new(stream);
    let mut line = || -> (String, usize) {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut stream, &mut line).unwrap();
        let size = line
            .split_once(";n=v")
            .map_or(0, |(size, _)| usize::from_str_radix(size, 16).unwrap());
        assert_arrives(&mut stream, noise, size);
        if size > 0 {
            let mut end = [0; 2];
            stream.read_exact(&mut end).unwrap();
            assert_eq!(&end, b"\r\n");
        }
        (line, size)
    };
    let mut arrived = 0;
    loop {
        let (text, size) = line();
        arrived += size;
        if size == 0 {
            assert_eq!((text.as_str(), arrived), ("0\r\n", count));
            assert_eq!(line().0, "Digest: none\r\n");
            assert_eq!(line().0, "\r\n");
            return;
        }
    }
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways_in_chunks() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        assert_chunks_arrive(&stream, &mut Noise::new(3), LENGTH);
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).unwrap();
        send_chunks(&stream, &mut Noise::new(4), LENGTH);
        crate::answer_all(stream)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let head = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(head).unwrap();
    send_chunks(&client, &mut Noise::new(3), LENGTH);
    read_head(&client);
    assert_chunks_arrive(&client, &mut Noise::new(4), LENGTH);
    converse(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(proxy.result(), "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn who_reads_slowly_holds_back_who_sends() {
    let (say, said) = std::sync::mpsc::channel();
    let proxy = Upstream::new(move |stream: TcpStream| {
        read_head(&stream);
        // It reads nothing until the client has noticed.
        let sent: u64 = said.recv().unwrap();
        assert_arrives(&stream, &mut Noise::new(5), sent as usize);
        sent
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    let length = 1_u64 << 40;
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let sent = send_until_blocked(&client, &mut Noise::new(5));
    // What the kernel holds for four sockets is a few megabytes each (tcp_wmem and tcp_rmem of tcp(7)).
    assert!(sent < 50_000_000, "{sent} bytes were taken");
    say.send(sent).unwrap();
    assert_eq!(proxy.result(), sent);
}

#[test]
fn bandwidth_holds_bodies_back_and_they_arrive_whole() {
    let length = 400_000;
    let proxy = Upstream::new(move |mut stream: TcpStream| {
        read_head(&stream);
        assert_arrives(&stream, &mut Noise::new(7), length);
        stream.write_all(OK).unwrap();
    });
    let ours = before(&proxy.name(), &["--bandwidth", "100000"]);
    let mut client = ours.connect();
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let began = Instant::now();
    client.write_all(head.as_bytes()).unwrap();
    Noise::new(7).send(&client, length as u64);
    assert_eq!(read_count(&client, OK.len()).as_bytes(), OK);
    // But for what is a burst of 64 KiB.
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    proxy.result();
}

#[test]
fn an_answer_may_come_while_the_body_is_still_sent() {
    let proxy = Upstream::new(|mut stream: TcpStream| {
        read_head(&stream);
        stream.write_all(OK).unwrap();
        assert_arrives(&stream, &mut Noise::new(6), 5_000_000);
        crate::answer_all(stream)
    });
    let ours = before(&proxy.name(), &[]);
    let mut client = ours.connect();
    client
        .write_all(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        .unwrap();
    assert_eq!(read_count(&client, OK.len()).as_bytes(), OK);
    let writing = client.try_clone().unwrap();
    let writer = thread::spawn(move || Noise::new(6).send(&writing, 5_000_000));
    writer.join().unwrap();
    converse(client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(proxy.result(), "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n");
}
