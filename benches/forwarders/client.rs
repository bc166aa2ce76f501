//! The client: the load. Started by the driver for one turn, it writes what it measured on standard
//! output, as whole numbers on one line, times in nanoseconds.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::load::{self, Transfer, Way};
use crate::pattern::Pattern;
use crate::results::median;

/// What a small request is. The backend sends the same back.
const REQUEST: [u8; 64] = [b'x'; 64];

pub(crate) fn run(words: &[String]) -> Outcome<()> {
    let [what, at, arguments @ ..] = words else {
        return Err("the client was started by hand".into());
    };
    let at: SocketAddr = at.parse()?;
    match (what.as_str(), arguments) {
        ("connections", [count]) => connections(at, count.parse()?),
        ("storm", [clients, milliseconds]) => storm(at, clients.parse()?, milliseconds.parse()?),
        ("round-trips", [count]) => round_trips(at, count.parse()?),
        ("bulk", [way, clients, length]) => {
            bulk(at, way.parse()?, clients.parse()?, length.parse()?)
        }
        ("hold", [count]) => hold(at, count.parse()?),
        ("ladder", [count, window]) => ladder(at, count.parse()?, window.parse()?),
        _ => Err(format!("the client does not know what {words:?} is").into()),
    }
}

/// How a short connection is ended, by the client.
#[derive(Clone, Copy)]
enum Ending {
    /// Closed as soon as the reply is there.
    Close,
    /// Ended for writing when the reply is there, and over when the forwarder has ended it as well.
    Both,
}

/// One request, one reply.
fn exchange(mut server: &TcpStream) -> io::Result<()> {
    server.write_all(&REQUEST)?;
    let mut reply = [0; REQUEST.len()];
    server.read_exact(&mut reply)?;
    match reply == REQUEST {
        true => Ok(()),
        false => Err(io::Error::other("another reply than was sent for")),
    }
}

/// Whether the way to the backend is there: a request and its reply, within a second.
pub(crate) fn probe(at: SocketAddr) -> io::Result<()> {
    let server = TcpStream::connect(at)?;
    server.set_read_timeout(Some(Duration::from_secs(1)))?;
    exchange(&server)
}

/// A connection, a request, the reply, the end. How long all of it took.
fn short_connection(at: SocketAddr, ending: Ending) -> io::Result<Duration> {
    let start = Instant::now();
    let mut server = TcpStream::connect(at)?;
    exchange(&server)?;
    if let Ending::Both = ending {
        server.shutdown(Shutdown::Write)?;
        if server.read(&mut [0])? != 0 {
            return Err(io::Error::other("more than the reply"));
        }
    }
    drop(server);
    Ok(start.elapsed())
}

/// So many connections, one after the other: the median of their times.
fn connections(at: SocketAddr, count: usize) -> Outcome<()> {
    let times = (0..count).map(|_| short_connection(at, Ending::Both));
    say(&[median_time(times.collect::<io::Result<_>>()?)])
}

/// Connections by so many clients at once for so long: how many were over by then, and how many there
/// were with those that took longer. A client whose connection is not accepted tries again after a
/// second; it is to cost as much as one client does, not hold up the end for all.
fn storm(at: SocketAddr, clients: usize, milliseconds: u64) -> Outcome<()> {
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let counts = all_of(clients, || {
        let mut in_time = 0;
        let mut all = 0;
        while Instant::now() < end {
            short_connection(at, Ending::Close)?;
            all += 1;
            in_time += usize::from(Instant::now() <= end);
        }
        Ok((in_time, all))
    })?;
    let in_time: usize = counts.iter().map(|count| count.0).sum();
    let all: usize = counts.iter().map(|count| count.1).sum();
    write_line(&[in_time as u128, all as u128])
}

/// What so many clients at once come to.
fn all_of<T: Send>(
    clients: usize,
    client: impl Fn() -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(&client)).collect();
        let outcomes = clients.into_iter().map(|client| client.join());
        outcomes
            .map(|one| one.unwrap_or_else(|_| Err(io::Error::other("a client panicked"))))
            .collect()
    })
}

/// Requests and replies on one connection: the median of their times.
fn round_trips(at: SocketAddr, count: usize) -> Outcome<()> {
    let server = TcpStream::connect(at)?;
    server.set_nodelay(true)?;
    // The first ones find cold caches, and a session that is only just set up.
    for _ in 0..count / 10 {
        exchange(&server)?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        exchange(&server)?;
        times.push(start.elapsed());
    }
    say(&[median_time(times)])
}

/// Transfers of this length each, over so many connections at once: how long it took from when all
/// of them were set up until the last was verified.
fn bulk(at: SocketAddr, way: Way, clients: usize, length: u64) -> Outcome<()> {
    let pattern = Pattern::new();
    let together = Barrier::new(clients);
    let client = || {
        let set_up = order(at, &Transfer { way, length });
        together.wait();
        let mut server = set_up?;
        let start = Instant::now();
        server.write_all(load::GO)?;
        match way {
            Way::Down => load::receive(&server, &pattern, length)?,
            Way::Up => {
                load::send(&server, &pattern, length)?;
                let mut verdict = [0];
                server.read_exact(&mut verdict)?;
                if &verdict != load::INTACT {
                    return Err(io::Error::other("the payload that was sent up is spoilt"));
                }
            }
        }
        Ok((start, Instant::now()))
    };
    let times = all_of(clients, client)?;
    let start = times.iter().map(|time| time.0).min();
    let end = times.iter().map(|time| time.1).max();
    say(&[end
        .zip(start)
        .map_or(Duration::ZERO, |(end, start)| end - start)])
}

fn order(at: SocketAddr, transfer: &Transfer) -> io::Result<TcpStream> {
    let mut server = TcpStream::connect(at)?;
    server.set_nodelay(true)?;
    transfer.write(&server)?;
    server.read_exact(&mut [0; load::READY.len()])?;
    Ok(server)
}

/// So many connections that have been used once and are idle, until standard input ends.
fn hold(at: SocketAddr, count: usize) -> Outcome<()> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let server = TcpStream::connect(at)?;
        exchange(&server)?;
        held.push(server);
    }
    say(&[])?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Connections that stay, one after the other: the median time from connect to the first byte of the
/// first few, and of the last few, when all the others are alive.
fn ladder(at: SocketAddr, count: usize, window: usize) -> Outcome<()> {
    for _ in 0..window {
        short_connection(at, Ending::Both)?;
    }
    let mut held = Vec::with_capacity(count);
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let server = TcpStream::connect(at)?;
        exchange(&server)?;
        times.push(start.elapsed());
        held.push(server);
    }
    let last = times.split_off(times.len() - window);
    times.truncate(window);
    say(&[median_time(times), median_time(last)])
}

fn median_time(times: Vec<Duration>) -> Duration {
    let times = times.iter().map(|time| time.as_nanos() as f64).collect();
    Duration::from_nanos(median(times) as u64)
}

fn say(times: &[Duration]) -> Outcome<()> {
    let nanoseconds: Vec<u128> = times.iter().map(Duration::as_nanos).collect();
    write_line(&nanoseconds)
}

fn write_line(numbers: &[u128]) -> Outcome<()> {
    let words: Vec<String> = numbers.iter().map(u128::to_string).collect();
    println!("{}", words.join(" "));
    Ok(io::stdout().flush()?)
}
