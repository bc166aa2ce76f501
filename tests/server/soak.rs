//! Everything at once, under one server: clients of every kind, while it is told to read its file again
//! and again, its sessions are killed, its disk fills, its system log goes and comes, and descriptors run
//! short. Each client knows what it must get; what it does not get, a killed session must account for.
//!
//! Ten seconds of it are a test. `TCPPROXY_SOAK=1800 cargo test --test server soak -- --nocapture` takes half
//! an hour, and says what has happened.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::clients::connect;
use crate::harness::config_file::Conf;
use crate::harness::namespaces::{bare_dev, privately, run};
use crate::harness::peers::{Ending, reset};
use crate::harness::processes::{children, descriptors_of_server, is_alive};
use crate::harness::{PATIENCE, eventually, patient};

/// How many clients there are at once. More than the server serves at once.
const CLIENTS: u64 = 24;
const MAX_SESSIONS: usize = 16;

/// The byte at a place of the stream of this number.
fn byte(stream: u64, place: u64) -> u8 {
    (stream
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(place.wrapping_mul(167))
        .wrapping_add(place >> 8)) as u8
}

fn send(mut to: &TcpStream, stream: u64, count: u64) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < count {
        let piece = (count - sent).min(1 << 16);
        let bytes: Vec<u8> = (sent..sent + piece).map(|at| byte(stream, at)).collect();
        to.write_all(&bytes)?;
        sent += piece;
    }
    Ok(())
}

/// Reads to the end; fails at the first byte that is another than it must be.
fn receive(mut from: &TcpStream, stream: u64) -> (u64, Ending) {
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return (got, Ending::Clean),
            Ok(count) => {
                let wrong = (got..).zip(&buffer[..count]);
                let wrong = wrong.filter(|(at, found)| **found != byte(stream, *at));
                assert_eq!(wrong.count(), 0, "wrong bytes from {got} on");
                got += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return (got, Ending::Reset);
            }
            Err(error) => panic!("{error} after {got} bytes"),
        }
    }
}

/// What a client asks of the upstream, in the first bytes that it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// To answer with as many bytes, once it has read all of them to their end.
    Answer,
    /// To send as many, and to reset the connection behind them.
    Reset,
    /// To see that the client resets, and does not end, before it has sent them all.
    Lose,
}

fn head(request: Request, stream: u64, count: u64) -> [u8; 17] {
    let mut head = [0; 17];
    head[0] = request as u8;
    head[1..9].copy_from_slice(&stream.to_le_bytes());
    head[9..].copy_from_slice(&count.to_le_bytes());
    head
}

/// What has been wrong, or lost, at the upstream's side.
type Wrong = Arc<Mutex<Vec<String>>>;

fn serve(mut client: TcpStream, wrong: &Wrong) {
    let mut head = [0; 17];
    // A session that was killed has not sent it.
    if client.read_exact(&mut head).is_err() {
        return;
    }
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let (stream, count) = (number(&head[1..9]), number(&head[9..]));
    match head[0] {
        0 => {
            let (got, ending) = receive(&client, stream);
            if (got, ending) == (count, Ending::Clean) {
                // The client's own check tells whether it arrives.
                let _ = send(&client, stream + 1, count);
            }
        }
        1 => {
            let _ = send(&client, stream + 1, count);
            reset(client);
        }
        _ => {
            let (got, ending) = receive(&client, stream);
            // A killed session's sockets are closed by the kernel, in whatever way.
            if ending == Ending::Clean && got == count {
                let line = format!("all of {count} bytes came from a client that had reset");
                wrong.lock().unwrap().push(line);
            }
        }
    }
}

fn upstream(wrong: Wrong) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // In the namespaces of whoever calls; it ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let wrong = Arc::clone(&wrong);
            thread::spawn(move || serve(patient(client), &wrong));
        }
    });
    address
}

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    /// It has missed something: its session must have been killed.
    CutOff,
}

/// A client that has all it must get, or is cut off.
fn fate(complete: bool) -> Fate {
    if complete { Fate::Served } else { Fate::CutOff }
}

struct Ports {
    forward: u16,
    recorded: u16,
    handler: u16,
    denied: u16,
}

/// One client of some kind. Returns the kind, its port, and what became of it.
fn client(ports: &Ports, number: u64) -> (&'static str, u16, Fate) {
    let to = |port| {
        let stream = patient(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let own = stream.local_addr().unwrap().port();
        (stream, own)
    };
    let size = (number * 7_919) % 60_000;
    match number % 8 {
        kind @ (0..=2) => {
            let port = if kind == 1 {
                ports.recorded
            } else {
                ports.forward
            };
            let count = if kind == 2 { 1_000_000 } else { size };
            let (mut stream, own) = to(port);
            let sent = stream
                .write_all(&head(Request::Answer, number, count))
                .and_then(|()| send(&stream, number, count))
                .and_then(|()| stream.shutdown(Shutdown::Write));
            let got = receive(&stream, number + 1);
            let complete = sent.is_ok() && got == (count, Ending::Clean);
            (
                ["short", "recorded", "bulk"][kind as usize],
                own,
                fate(complete),
            )
        }
        3 => {
            let (mut stream, own) = to(ports.forward);
            let _ = stream.write_all(&head(Request::Reset, number, size));
            let (got, ending) = receive(&stream, number + 1);
            (
                "upstream resets",
                own,
                fate(got <= size && ending == Ending::Reset),
            )
        }
        4 => {
            let (mut stream, own) = to(ports.forward);
            let _ = stream.write_all(&head(Request::Lose, number, 100_000));
            let _ = send(&stream, number, size);
            reset(stream);
            ("client resets", own, Fate::Served)
        }
        5 => {
            let (stream, own) = to(ports.handler);
            let sent = send(&stream, number, size / 2);
            let ended = sent.and_then(|()| stream.shutdown(Shutdown::Write));
            let got = receive(&stream, number);
            let complete = ended.is_ok() && got == (size / 2, Ending::Clean);
            ("handler", own, fate(complete))
        }
        6 => {
            let (mut stream, own) = to(ports.denied);
            let mut message = String::new();
            let read = stream.read_to_string(&mut message);
            ("denied", own, fate(read.is_ok() && message == "not you\n"))
        }
        _ => {
            let (stream, own) = to(ports.forward);
            drop(stream);
            ("comes and goes", own, Fate::Served)
        }
    }
}

/// Until the time is over: what is done every so often, and how often that was.
fn every(pause: Duration, over: &AtomicBool, count: &AtomicU64, mut what: impl FnMut(u64)) {
    while !over.load(Ordering::Relaxed) {
        what(count.fetch_add(1, Ordering::Relaxed));
        thread::sleep(pause);
    }
}

/// How many descriptors a process can have without another: all below this number may be taken. What
/// a session closes as it begins is below it too, so that it does not inherit the shortage.
fn exhausted_at(pid: Pid) -> u64 {
    let taken = descriptors_of_server(pid);
    taken.iter().map(|(fd, _)| *fd + 1).max().unwrap() as u64
}

fn limit_descriptors(pid: Pid, soft: u64) {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: 4_096,
    };
    // SAFETY: prlimit(2) reads one rlimit; the old one is not asked for.
    let done = unsafe {
        libc::prlimit(
            pid.as_raw(),
            Resource::RLIMIT_NOFILE as u32,
            &limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(done, 0);
}

fn soak(time: Duration) {
    let scratch = crate::harness::Scratch::new();
    bare_dev(&scratch);
    let disk = scratch.join("disk");
    fs::create_dir(&disk).unwrap();
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=256k,mode=1777",
            "none",
            disk.to_str().unwrap(),
        ],
    );
    let program = scratch.script("acp", "echo not you; exit 1");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).unwrap();
    let wrong = Wrong::default();
    let upstream = upstream(Arc::clone(&wrong));
    let port = crate::harness::free_port;
    let ports = Ports {
        forward: port(),
        recorded: port(),
        handler: port(),
        denied: port(),
    };
    let records = scratch.join("records");
    let text = |idle: u64| {
        format!(
            "log syslog\nlog file:{disk}/log\naccess-log {records}\naccess-log-format json\n\
             max-sessions {MAX_SESSIONS}\ntimeout {idle}\n\
             port {}\nserver {upstream}\n\
             port {}\nserver {upstream}\nwrite {disk}/transcript\n\
             port {}\nexec /bin/cat\n\
             port {}\nacp {}\nserver {upstream}\n",
            ports.forward,
            ports.recorded,
            ports.handler,
            ports.denied,
            program.display(),
            disk = disk.display(),
            records = records.display(),
        )
    };
    let conf = Conf::new(text(60));
    let mut command = conf.command(&["-f", "conf"]);
    let mut server = crate::harness::Running::start(command.stdin(std::process::Stdio::null()));
    let pid = server.pid();
    eventually("the server to listen", || {
        let all = [ports.forward, ports.recorded, ports.handler, ports.denied];
        all.iter()
            .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
            .then_some(())
    });
    eventually("those clients to be gone", || {
        children(pid).is_empty().then_some(())
    });
    limit_descriptors(pid, 1_024);
    let at_first = descriptors_of_server(pid).len();

    let over = AtomicBool::new(false);
    let done: Mutex<BTreeMap<(&str, bool), u64>> = Mutex::default();
    let cut_off: Mutex<Vec<(&str, u16)>> = Mutex::default();
    let counts: [AtomicU64; 6] = Default::default();
    let [numbers, kills, reloads, fills, shortages, dumps] = &counts;
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let number = numbers.fetch_add(1, Ordering::Relaxed) * 2;
                    let (kind, own, fate) = client(&ports, number / 2);
                    let mut done = done.lock().unwrap();
                    *done.entry((kind, fate == Fate::Served)).or_default() += 1;
                    if fate == Fate::CutOff {
                        cut_off.lock().unwrap().push((kind, own));
                    }
                }
            });
        }
        scope.spawn(|| {
            every(Duration::from_millis(230), &over, kills, |count| {
                let sessions = children(pid);
                if let Some(session) = sessions.get(count as usize % sessions.len().max(1)) {
                    // It may have ended by itself.
                    let _ = kill(*session, Signal::SIGKILL);
                }
            });
        });
        scope.spawn(|| {
            every(Duration::from_millis(170), &over, reloads, |count| {
                let wrong = "port 25\nsever x\n".to_owned();
                let text = if count % 3 == 1 {
                    wrong
                } else {
                    text(60 + count % 2)
                };
                fs::write(conf.path(), text).unwrap();
                kill(pid, Signal::SIGHUP).unwrap();
            });
        });
        scope.spawn(|| {
            every(Duration::from_millis(350), &over, fills, |count| {
                if count % 2 == 0 {
                    let mut file = fs::File::create(disk.join("fill")).unwrap();
                    // To the last byte that there is.
                    while file.write_all(&[0; 512]).is_ok() {}
                } else {
                    for entry in fs::read_dir(&disk).unwrap().flatten() {
                        // A log file that is away is made anew at the next reload.
                        let _ = fs::remove_file(entry.path());
                    }
                }
            });
        });
        scope.spawn(|| {
            every(Duration::from_millis(400), &over, shortages, |_| {
                limit_descriptors(pid, exhausted_at(pid));
                thread::sleep(Duration::from_millis(150));
                limit_descriptors(pid, 1_024);
            });
        });
        scope.spawn(|| {
            every(Duration::from_millis(90), &over, dumps, |count| {
                kill(pid, Signal::SIGUSR1).unwrap();
                // There for a while, read by nobody; then gone.
                let log = Path::new("/dev/log");
                if count % 10 == 0 {
                    let _ = fs::remove_file(log);
                    drop(UnixDatagram::bind(log));
                } else if count % 10 == 5 {
                    let _ = fs::remove_file(log);
                }
            });
        });
        let ends = Instant::now() + time;
        while Instant::now() < ends {
            thread::sleep(Duration::from_millis(200).min(time));
            if !is_alive(pid) {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(
        server.child.try_wait().unwrap().is_none(),
        "the server has ended"
    );
    limit_descriptors(pid, 1_024);
    fs::write(conf.path(), text(60)).unwrap();
    kill(pid, Signal::SIGHUP).unwrap();
    // Nothing is left over, and it serves as before.
    eventually("every session to end", || {
        children(pid).is_empty().then_some(())
    });
    let (_, _, last) = client(&ports, 0);
    assert_eq!(last, Fate::Served);
    // But for a connection to the system's log, which is made when there is one to be made.
    eventually("its descriptors to be as few as at first", || {
        (descriptors_of_server(pid).len() <= at_first + 1).then_some(())
    });
    drop(connect(ports.forward));

    // Who was cut off had a session that was killed: its record says so, or it had not come so far
    // as to have one.
    let records = fs::read_to_string(&records).unwrap();
    let killed: Vec<&str> = records
        .lines()
        .filter(|line| line.contains("SIGKILL"))
        .collect();
    let cut_off = cut_off.into_inner().unwrap();
    let lost: Vec<_> = cut_off
        .iter()
        .filter(|(_, port)| {
            let is_its = format!("\"client_port\":{port},");
            !killed.iter().any(|line| line.contains(&is_its))
        })
        .collect();
    for ((kind, served), count) in done.into_inner().unwrap() {
        println!(
            "{kind}, {}: {count}",
            if served {
                "served"
            } else {
                "cut off by kill -9"
            }
        );
    }
    for (what, count) in [
        ("kill -9", kills),
        ("reloads", reloads),
        ("disk filled or freed", fills),
        ("descriptor shortages", shortages),
        ("SIGUSR1, with the system log gone now and then", dumps),
    ] {
        println!("{what}: {}", count.load(Ordering::Relaxed));
    }
    println!(
        "sessions killed: {}; clients that lost something else: {}",
        killed.len(),
        lost.len()
    );
    for (kind, port) in &lost {
        let is_its = format!("\"client_port\":{port},");
        let its = records.lines().filter(|line| line.contains(&is_its));
        println!("{kind} from port {port}: {:?}", its.collect::<Vec<_>>());
    }
    assert_eq!(lost, Vec::<&(&str, u16)>::new());
    assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new());
    server.signal(Signal::SIGTERM);
    assert!(server.status().success());
}

#[test]
fn whatever_happens_at_once_each_client_gets_what_it_must() {
    let seconds = std::env::var("TCPPROXY_SOAK").map_or(10, |text| text.parse().unwrap());
    assert!(PATIENCE > Duration::from_secs(10));
    privately(|| soak(Duration::from_secs(seconds)));
}
