//! Limits that processes share which know nothing of one another: started by inetd or systemd, one
//! for each client, with a state directory.

use std::fs;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::{children, is_alive};
use crate::harness::super_server::SuperServer;
use crate::harness::upstreams::{Forbidden, echo};
use crate::harness::{
    Running, Scratch, end_of, eventually, field, launched_by, needs_root, patient, read_all, share,
};

const ONE_PROCESS_PER_CLIENT: [SuperServer; 6] = [
    SuperServer::OpenbsdInetd,
    SuperServer::InetutilsInetd,
    SuperServer::Xinetd,
    SuperServer::Tcpserver,
    SuperServer::ActivateInetd,
    SuperServer::ActivateConnection,
];

/// Whether this client is served, rather than closed without a byte.
fn is_served(mut client: &TcpStream) -> bool {
    // It may have been closed already.
    let _ = client.write_all(b"x");
    client.read_exact(&mut [0; 1]).is_ok()
}

/// A listener whose clients the test hands over one by one, as a super-server does; and the state
/// directory that they share.
struct Handing {
    listener: TcpListener,
    scratch: Scratch,
}

impl Handing {
    fn new() -> Handing {
        Handing {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            scratch: Scratch::new(),
        }
    }

    fn directory(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Starts tcpproxy for one client.
    fn start(&self, arguments: &[&str]) -> (TcpStream, Running) {
        let client = patient(TcpStream::connect(self.listener.local_addr().unwrap()).unwrap());
        let (accepted, _) = self.listener.accept().unwrap();
        let directory = self.directory();
        let shared = [
            "--log",
            "stderr",
            "--state-dir",
            directory.to_str().unwrap(),
        ];
        let mut command = launched_by(&[], &[&shared, arguments].concat());
        command.stdin(share(&accepted)).stdout(Stdio::null());
        let session = Running::start(&mut command);
        (client, session)
    }

    /// The only file of the directory.
    fn file(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.directory()).unwrap();
        let file = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        file
    }
}

fn assert_refused(client: &TcpStream, session: &mut Running, reason: &str) {
    assert_eq!(read_to_ending(client).0, b"");
    assert_eq!(session.status().code(), Some(0));
    let closed = session.log.wait_for(" closed: ");
    assert_eq!(field(&closed, "reason"), reason);
    let all = session.log.all();
    assert!(
        !all.iter().any(|line| line.contains(" opened: ")),
        "{all:?}"
    );
}

#[test]
fn so_many_sessions_from_one_client_under_every_super_server() {
    needs_root();
    let upstream = echo().to_string();
    for server in ONE_PROCESS_PER_CLIENT {
        let scratch = Scratch::new();
        let directory = scratch.join("state");
        let state = ["--state-dir", directory.to_str().unwrap()];
        let limit = ["--max-per-source", "2", &upstream];
        let activated = server.start("127.0.0.1", &[&state[..], &limit].concat());
        let first = activated.connect();
        assert_echoes(&first);
        let second = activated.connect();
        assert_echoes(&second);
        assert!(!is_served(&activated.connect()), "{server:?}");
        let closed = activated.log("reason=too-many-from-client");
        assert!(closed.contains(" closed: "), "{closed}");
        let other = crate::harness::clients::connect_from("127.0.0.2", activated.address);
        assert!(is_served(&other), "{server:?}");
        drop(first);
        activated.log("reason=client-closed");
        eventually("a place", || is_served(&activated.connect()).then_some(()));
        assert_echoes(&second);
    }
}

#[test]
fn a_client_that_is_too_fast_under_every_super_server() {
    needs_root();
    let upstream = echo().to_string();
    for server in ONE_PROCESS_PER_CLIENT {
        let scratch = Scratch::new();
        let directory = scratch.join("state");
        let state = ["--state-dir", directory.to_str().unwrap()];
        let limit = ["--rate", "1/1h:2", &upstream];
        let activated = server.start("127.0.0.1", &[&state[..], &limit].concat());
        assert_echoes(&activated.connect());
        assert_echoes(&activated.connect());
        assert!(!is_served(&activated.connect()), "{server:?}");
        activated.log("reason=too-fast-from-client");
        let other = crate::harness::clients::connect_from("127.0.0.2", activated.address);
        assert!(is_served(&other), "{server:?}");
    }
}

#[test]
fn tokens_come_back_by_themselves_and_those_refused_cost_none() {
    let handing = Handing::new();
    let arguments = ["--rate", "1/1500ms", &echo().to_string()];
    let start = Instant::now();
    assert!(is_served(&handing.start(&arguments).0));
    let (client, mut session) = handing.start(&arguments);
    assert_refused(&client, &mut session, "too-fast-from-client");
    let served = eventually("a token", || {
        is_served(&handing.start(&arguments).0).then(|| start.elapsed())
    });
    let seconds = served.as_secs_f64();
    assert!((1.45..2.5).contains(&seconds), "{served:?}");
}

#[test]
fn a_handler_counts_as_long_as_it_lives_however_it_ends() {
    let handing = Handing::new();
    let cat = ["--max-per-source", "1", "/bin/cat"];
    for kills in [false, true, false] {
        let (client, mut session) = handing.start(&cat);
        assert_echoes(&client);
        let name = fs::read_to_string(format!("/proc/{}/comm", session.pid())).unwrap();
        assert_eq!(name, "cat\n");
        let (refused, mut other) = handing.start(&cat);
        assert_refused(&refused, &mut other, "too-many-from-client");
        if kills {
            session.signal(Signal::SIGKILL);
        } else {
            drop(client);
        }
        session.status();
    }
}

#[test]
fn a_session_that_was_killed_frees_its_place_even_as_a_zombie() {
    let handing = Handing::new();
    let arguments = ["--max-per-source", "1", &echo().to_string()];
    let mut zombies = Vec::new();
    for _ in 0..3 {
        let (client, session) = handing.start(&arguments);
        assert_echoes(&client);
        session.signal(Signal::SIGKILL);
        // The client may know before the process has ended.
        eventually("a zombie", || (!is_alive(session.pid())).then_some(()));
        assert_eq!(read_to_ending(&client).0, b"");
        zombies.push(session);
    }
}

#[test]
fn what_a_crash_leaves_in_a_file_hinders_nobody() {
    let handing = Handing::new();
    let arguments = ["--max-per-source", "1", &echo().to_string()];
    let (client, session) = handing.start(&arguments);
    assert_echoes(&client);
    let whole = fs::read(handing.file()).unwrap();
    session.signal(Signal::SIGKILL);
    read_to_ending(&client);
    drop(session);
    let garbage = (0..=255).cycle().take(5_000).collect();
    let files = [
        Vec::new(),
        whole[..whole.len() / 2].to_vec(),
        whole.clone(),
        b"full_at 18446744073709551615\nprocess 1 1\nend\n".to_vec(),
        b"process 99999999999999999999 -1\nprocess\n\n\n".to_vec(),
        garbage,
        [whole, b"process 1 0\nend\n".to_vec()].concat(),
    ];
    for content in files {
        fs::write(handing.file(), &content).unwrap();
        let (client, mut session) = handing.start(&arguments);
        assert_echoes(&client);
        // It counts again from here on.
        let (refused, mut other) = handing.start(&arguments);
        assert_refused(&refused, &mut other, "too-many-from-client");
        drop(client);
        session.status();
    }
}

#[test]
fn a_time_far_ahead_in_a_file_shuts_nobody_out_for_longer_than_an_empty_bucket() {
    let handing = Handing::new();
    let arguments = ["--rate", "1/300ms", &echo().to_string()];
    assert!(is_served(&handing.start(&arguments).0));
    fs::write(handing.file(), "full_at 9999999999999999\nend\n").unwrap();
    let start = Instant::now();
    eventually("a token", || {
        is_served(&handing.start(&arguments).0).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(3));
}

/// Fails unless a client is turned away without a byte, for a reason that the log names.
fn assert_nobody_is_served(handing: &Handing, says: &str) {
    let upstream = Forbidden::new();
    let limits = ["--max-per-source", "5", "--rate", "100/1"];
    let name = upstream.name();
    let (client, mut session) = handing.start(&[&limits[..], &[&name]].concat());
    assert_eq!(read_to_ending(&client).0, b"", "{says}");
    assert_eq!(session.status().code(), Some(71), "{says}");
    let line = session.log.wait_for("state directory ");
    assert!(line.contains(says), "{line}");
    upstream.assert_untouched();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_that_cannot_be_trusted_lets_nobody_in() {
    needs_root();
    let handing = Handing::new();
    let directory = handing.directory();
    let real = handing.scratch.join("real");
    fs::create_dir(&real).unwrap();
    mode(&real, 0o700);
    symlink(&real, &directory).unwrap();
    assert_nobody_is_served(&handing, "it is not a directory");
    fs::remove_file(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    assert_nobody_is_served(&handing, "it is not a directory");
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    for bits in [0o770, 0o707, 0o777, 0o1777] {
        mode(&directory, bits);
        assert_nobody_is_served(&handing, "others may write to it");
    }
    mode(&directory, 0o700);
    chown(&directory, Some(54321), None).unwrap();
    assert_nobody_is_served(&handing, "it belongs to somebody else");
    assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn a_missing_parent_or_a_link_in_the_file_s_place_lets_nobody_in() {
    let handing = Handing::new();
    let arguments = ["--max-per-source", "1", &echo().to_string()];
    let (client, mut session) = handing.start(&arguments);
    assert_echoes(&client);
    drop(client);
    session.status();
    let file = handing.file();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let metadata = fs::metadata(handing.directory()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
    fs::remove_file(&file).unwrap();
    let precious = handing.scratch.join("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, &file).unwrap();
    let (client, mut session) = handing.start(&arguments);
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(session.status().code(), Some(71));
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    fs::remove_dir_all(handing.directory()).unwrap();
    let missing = handing.scratch.join("missing/state");
    let (client, accepted) = crate::harness::socket_pair();
    let mut command = launched_by(&[], &["--state-dir", missing.to_str().unwrap()]);
    command.args(["--max-per-source", "1", "/bin/echo"]);
    command.stdin(share(&accepted)).stdout(share(&accepted));
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    drop((accepted, command));
    assert_eq!(end_of(&mut child).code(), Some(71));
    assert_eq!(read_all(client), b"");
}

#[test]
fn a_hundred_that_start_at_once_never_exceed_the_limit() {
    let handing = Handing::new();
    let upstream = echo().to_string();
    let arguments = ["--max-per-source", "7", &upstream];
    let started: Vec<(TcpStream, Running)> = thread::scope(|scope| {
        let starts: Vec<_> = (0..100)
            .map(|_| scope.spawn(|| handing.start(&arguments)))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    // The clients' sockets and the processes need not be those of one another: what counts is
    // how many are served.
    let served = started
        .iter()
        .filter(|(client, _)| is_served(client))
        .count();
    assert_eq!(served, 7);
    let refused = started.iter().flat_map(|(_, session)| session.log.all());
    let reasons = refused.filter(|line| line.contains("reason=too-many-from-client"));
    assert_eq!(reasons.count(), 93);
}

#[test]
fn files_with_nothing_to_remember_are_tidied_away() {
    let handing = Handing::new();
    let arguments = ["--rate", "1000/1", "/bin/true"];
    let (_, mut session) = handing.start(&arguments);
    session.status();
    let model = handing.file();
    let stale = |number: u8| {
        let name = model.file_name().unwrap().to_str().unwrap();
        model.with_file_name(name.replace("127.0.0.1", &format!("192.0.2.{number}")))
    };
    // A live process, a full bucket that is still to be remembered, and a file of another name.
    let us = Pid::this();
    let stat = fs::read_to_string(format!("/proc/{us}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let started = fields.split_whitespace().nth(19).unwrap();
    let live = stale(200);
    fs::write(&live, format!("full_at 0\nprocess {us} {started}\nend\n")).unwrap();
    let remembered = stale(201);
    fs::write(&remembered, "full_at 9999999999999999\nend\n").unwrap();
    let foreign = handing.directory().join("foreign");
    fs::write(&foreign, "").unwrap();
    for number in 1..=20 {
        fs::write(stale(number), "full_at 1\nprocess 1 1\nend\n").unwrap();
    }
    // One process in 64 looks, by its number.
    eventually("the files to go", || {
        let (_, mut session) = handing.start(&arguments);
        session.status();
        (1..=20).all(|number| !stale(number).exists()).then_some(())
    });
    assert!(live.exists() && remembered.exists() && foreign.exists());
}

/// The processor time that one session took, started for a client that goes at once.
fn cost_of_a_session(handing: &Handing, arguments: &[&str]) -> Duration {
    let (client, session) = handing.start(arguments);
    drop(client);
    // Not dropped: it is waited for here.
    let session = std::mem::ManuallyDrop::new(session);
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let (pid, status) = (session.pid().as_raw(), std::ptr::null_mut());
    // SAFETY: the status is not asked for, the usage has its place, and the child is ours.
    let waited = unsafe { libc::wait4(pid, status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, pid);
    // SAFETY: wait4(2) has filled it in.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn however_many_files_there_are_no_session_takes_long_and_every_file_has_its_turn() {
    let handing = Handing::new();
    let arguments = ["--rate", "1000/1", "/bin/true"];
    let (_, mut session) = handing.start(&arguments);
    session.status();
    let model = handing.file();
    let named = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).to_string();
        let name = model.file_name().unwrap().to_str().unwrap();
        model.with_file_name(name.replace("127.0.0.1", &address))
    };
    // To be remembered; but for some.
    let is_old = |number: u32| number % 4096 == 17;
    for number in 0..65_536 {
        let full_at = if is_old(number) {
            "1"
        } else {
            "9999999999999999"
        };
        fs::write(named(number), format!("full_at {full_at}\nend\n")).unwrap();
    }
    let costs = (0..200).map(|_| cost_of_a_session(&handing, &arguments));
    let most = costs.max().unwrap();
    assert!(most < Duration::from_millis(50), "{most:?}");
    // With fewer of them, it does not take long until each has been looked at.
    (2_048..65_536)
        .filter(|number| !is_old(*number))
        .for_each(|number| fs::remove_file(named(number)).unwrap());
    eventually("the old ones to go", || {
        (0..64).for_each(|_| {
            cost_of_a_session(&handing, &arguments);
        });
        let mut old = (0..65_536).filter(|number| is_old(*number));
        old.all(|number| !named(number).exists()).then_some(())
    });
    assert!((0..2_048).all(|number| is_old(number) || named(number).exists()));
}

#[test]
fn sessions_under_a_super_server_that_are_killed_free_their_place() {
    needs_root();
    let scratch = Scratch::new();
    let directory = scratch.join("state");
    let state = ["--state-dir", directory.to_str().unwrap()];
    let arguments = [&state[..], &["--max-per-source", "1", "/bin/cat"]].concat();
    for server in [SuperServer::OpenbsdInetd, SuperServer::ActivateConnection] {
        let activated = server.start("127.0.0.1", &arguments);
        for _ in 0..3 {
            let client = activated.connect();
            assert_echoes(&client);
            assert!(!is_served(&activated.connect()), "{server:?}");
            let handler = children(activated.process.pid()).into_iter().find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "cat\n")
            });
            let handler = handler.unwrap();
            kill(handler, Signal::SIGKILL).unwrap();
            eventually("its end", || (!is_alive(handler)).then_some(()));
            assert_eq!(read_to_ending(&client).0, b"");
        }
    }
}

#[test]
fn without_limits_the_directory_stays_empty() {
    let handing = Handing::new();
    let (client, _session) = handing.start(&[&echo().to_string()]);
    assert_echoes(&client);
    assert_eq!(fs::read_dir(handing.directory()).unwrap().count(), 0);
}
