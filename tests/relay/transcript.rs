//! What `--write` records, read back; and what becomes of a session that cannot be recorded.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::SystemTime;

use crate::harness::namespaces::{privately, run};
use crate::harness::noise::Noise;
use crate::harness::peers::{Ending, Through};
use crate::harness::processes::only_child;
use crate::harness::{
    Engine, Running, Scratch, Standalone, TCPPROXY, eventually, field, patient, read_all,
    socket_pair,
};

/// One record of a transcript.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    direction: char,
    time: String,
    bytes: Vec<u8>,
}

/// Reads a transcript as its documentation says it is to be read: lines `DIRECTION TIME LENGTH`,
/// each followed by so many bytes and a newline.
fn parse(mut text: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while !text.is_empty() {
        let end = text.iter().position(|&byte| byte == b'\n').unwrap();
        let header = std::str::from_utf8(&text[..end]).unwrap();
        let words: Vec<&str> = header.split(' ').collect();
        assert_eq!(words.len(), 3, "{header:?}");
        assert!([">", "<"].contains(&words[0]), "{header:?}");
        let length: usize = words[2].parse().unwrap();
        let bytes = &text[end + 1..end + 1 + length];
        assert_eq!(text[end + 1 + length], b'\n', "after {header:?}");
        records.push(Record {
            direction: words[0].chars().next().unwrap(),
            time: words[1].to_owned(),
            bytes: bytes.to_vec(),
        });
        text = &text[end + 2 + length..];
    }
    records
}

/// Everything that was recorded in one direction.
fn stream(records: &[Record], direction: char) -> Vec<u8> {
    let of_direction = records
        .iter()
        .filter(|record| record.direction == direction);
    of_direction
        .flat_map(|record| record.bytes.clone())
        .collect()
}

#[test]
fn a_transcript_gives_both_streams_back() {
    let Through {
        proxy,
        client,
        upstream,
    } = Through::start(Engine::Copy, &[]);
    let request = Noise::new(31).take(3_000_000);
    let reply = Noise::new(32).take(2_000_000);
    let ends = [
        (client, request.clone(), reply.clone()),
        (upstream, reply.clone(), request.clone()),
    ]
    .map(|(stream, mine, theirs)| {
        thread::spawn(move || {
            let sending = stream.try_clone().unwrap();
            let sender = thread::spawn(move || {
                (&sending).write_all(&mine).unwrap();
                sending.shutdown(Shutdown::Write).unwrap();
            });
            assert!(read_all(&stream) == theirs);
            sender.join().unwrap();
        })
    });
    for end in ends {
        end.join().unwrap();
    }
    proxy.closed();
    let files = proxy.transcripts();
    assert_eq!(files.len(), 1, "{files:?}");
    let records = parse(&fs::read(&files[0]).unwrap());
    assert!(stream(&records, '>') == request);
    assert!(stream(&records, '<') == reply);
}

#[test]
fn a_transcript_keeps_the_order_and_the_time_of_what_was_said() {
    let Through {
        proxy,
        mut client,
        mut upstream,
    } = Through::start(Engine::Copy, &[]);
    let start = SystemTime::now();
    // What looks like a record is none, as lengths are counted.
    let said = [
        "> 2026-01-01T00:00:00.000000+00:00 5\n",
        "\n\n",
        "\0\u{ff}<",
        "bye",
    ];
    for (number, text) in said.iter().enumerate() {
        let (from, to) = match number % 2 {
            0 => (&mut client, &mut upstream),
            _ => (&mut upstream, &mut client),
        };
        from.write_all(text.as_bytes()).unwrap();
        to.read_exact(&mut vec![0; text.len()]).unwrap();
    }
    drop(client);
    drop(upstream);
    proxy.closed();
    let file = &proxy.transcripts()[0];
    let records = parse(&fs::read(file).unwrap());
    let directions: String = records.iter().map(|record| record.direction).collect();
    assert_eq!(directions, "><><");
    for (record, text) in records.iter().zip(said) {
        assert_eq!(record.bytes, text.as_bytes());
        // RFC 3339 with microseconds, within the test's time.
        assert_eq!(record.time.len(), "2026-01-01T00:00:00.000000+00:00".len());
        let date = Command::new("date")
            .args(["-d", &record.time, "+%s.%N"])
            .output()
            .unwrap();
        let seconds: f64 = String::from_utf8(date.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let since = seconds
            - start
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs_f64();
        assert!((-0.01..10.0).contains(&since), "{}", record.time);
    }
    assert!(records.is_sorted_by_key(|record| record.time.clone()));
}

#[test]
fn a_transcript_is_its_owners_alone_and_named_after_the_session() {
    let through = Through::start(Engine::Copy, &[]);
    let session = through.session();
    let files = eventually("the transcript", || {
        let files = through.proxy.transcripts();
        (!files.is_empty()).then_some(files)
    });
    let name = files[0].file_name().unwrap().to_str().unwrap();
    assert_eq!(name, format!("transcript.{session}.log"));
    let metadata = fs::metadata(&files[0]).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    if nix::unistd::geteuid().is_root() {
        // It was made by the session, which does not run as root.
        assert_eq!((metadata.uid(), metadata.gid()), (65_535, 65_534));
    }
}

#[test]
fn nothing_is_recorded_of_a_session_that_reached_no_upstream() {
    let proxy = Standalone::start_with(
        Engine::Copy,
        &[&format!("127.0.0.1:{}", crate::harness::free_port())],
    );
    assert_eq!(read_all(proxy.connect()), b"");
    proxy.closed();
    assert!(proxy.transcripts().is_empty());
}

/// A session that a shell starts with `-w BASE`, after it has done something to the file that it
/// would write: `$F` is its path. Both ends are in the test's hands.
struct Hindered {
    session: Running,
    client: TcpStream,
    upstream: TcpStream,
    file: PathBuf,
}

impl Hindered {
    fn start(scratch: &Scratch, before: &str) -> Hindered {
        let upstreams = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, accepted) = socket_pair();
        let base = scratch.join("base");
        // exec keeps the process id, which is in the name.
        let script = format!(
            "F={}.$$.log; {before}\nexec {TCPPROXY} --log stderr -w {} {}",
            base.display(),
            base.display(),
            upstreams.local_addr().unwrap()
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::from(OwnedFd::from(accepted)))
            .stdout(Stdio::null());
        let session = Running::start(&mut command);
        drop(command);
        let upstream = patient(upstreams.accept().unwrap().0);
        let file = scratch.join(&format!("base.{}.log", session.pid()));
        Hindered {
            session,
            client,
            upstream,
            file,
        }
    }

    /// Moves much both ways, and everything arrives. Returns the closed line.
    fn goes_on(&mut self, amount: u64) -> String {
        self.goes_on_after(0, amount)
    }

    /// The same of a session in which the client has sent something before.
    fn goes_on_after(&mut self, before: u64, amount: u64) -> String {
        let sending = self.client.try_clone().unwrap();
        let sender = thread::spawn(move || Noise::new(33).send(&sending, amount));
        Noise::new(33).expect(&self.upstream, amount);
        sender.join().unwrap();
        let sending = self.upstream.try_clone().unwrap();
        let sender = thread::spawn(move || Noise::new(34).send(&sending, amount));
        Noise::new(34).expect(&self.client, amount);
        sender.join().unwrap();
        self.client.shutdown(Shutdown::Write).unwrap();
        self.upstream.shutdown(Shutdown::Write).unwrap();
        let end = Noise::new(0).expect_until_end(&self.upstream);
        assert_eq!(end, (0, Ending::Clean));
        assert_eq!(self.session.status().code(), Some(0));
        let closed = self.session.log.wait_for(" closed: ");
        assert_eq!(field(&closed, "sent"), (before + amount).to_string());
        assert_eq!(field(&closed, "received"), amount.to_string());
        closed
    }

    /// Asserts that there is a transcript of this number, complete and its owner's alone, and not a
    /// warning.
    fn is_recorded_as(&self, number: u32) {
        let name = self.file.to_str().unwrap();
        let name = format!("{}.{number}.log", name.strip_suffix(".log").unwrap());
        let records = parse(&fs::read(&name).unwrap());
        assert!(stream(&records, '>') == Noise::new(33).take(1_000_000));
        assert!(stream(&records, '<') == Noise::new(34).take(1_000_000));
        let mode = fs::symlink_metadata(&name).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let all = self.session.log.all();
        assert!(
            !all.iter().any(|line| line.contains("transcript")),
            "{all:#?}"
        );
    }

    /// The only warning.
    fn warning(&self) -> String {
        let all = self.session.log.all();
        let of_transcript: Vec<&String> = all
            .iter()
            .filter(|line| line.contains("transcript"))
            .collect();
        assert_eq!(of_transcript.len(), 1, "{all:#?}");
        let line = of_transcript[0];
        assert!(line.contains(self.file.to_str().unwrap()), "{line}");
        line.clone()
    }
}

#[test]
fn a_file_that_is_there_already_is_left_alone_and_the_next_name_is_taken() {
    let scratch = Scratch::new();
    let mut hindered = Hindered::start(&scratch, "echo precious >\"$F\"; chmod 666 \"$F\"");
    hindered.goes_on(1_000_000);
    hindered.is_recorded_as(1);
    assert_eq!(fs::read(&hindered.file).unwrap(), b"precious\n");
    // A directory is something, too, and gaps are filled.
    let before =
        "touch \"$F\" \"${F%.log}.1.log\"; mkdir \"${F%.log}.2.log\"; touch \"${F%.log}.4.log\"";
    let mut hindered = Hindered::start(&scratch, before);
    hindered.goes_on(1_000_000);
    hindered.is_recorded_as(3);
}

#[test]
fn a_link_is_not_followed_and_the_next_name_is_taken() {
    let scratch = Scratch::new();
    let target = scratch.join("target");
    // One to a file that is there, and one to a file that is not.
    for exists in [true, false] {
        let _ = fs::remove_file(&target);
        if exists {
            fs::write(&target, "precious").unwrap();
            fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
        }
        let target_path = target.display();
        let before =
            format!("ln -s {target_path} \"$F\"; ln -s {target_path} \"${{F%.log}}.1.log\"");
        let mut hindered = Hindered::start(&scratch, &before);
        hindered.goes_on(1_000_000);
        hindered.is_recorded_as(2);
        match exists {
            true => assert_eq!(fs::read(&target).unwrap(), b"precious"),
            false => assert!(!target.exists()),
        }
    }
    // That a link can be made here at all.
    symlink(&target, scratch.join("link")).unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_to_does_not_end_the_session() {
    crate::harness::needs_root();
    let scratch = Scratch::new();
    let mut hindered =
        Hindered::start(&scratch, &format!("chmod 755 {}", scratch.path().display()));
    hindered.goes_on(1_000_000);
    assert!(hindered.warning().contains("Permission denied"));
    assert!(!hindered.file.exists());
}

/// What a transcript that was cut off has of the client's stream: a prefix.
fn assert_begins_like_the_stream(file: &Path) {
    let text = fs::read(file).unwrap();
    let header = text.iter().position(|&byte| byte == b'\n').unwrap();
    let rest = &text[header + 1..];
    let length = rest.len().min(1_000);
    assert!(length > 0);
    assert!(Noise::new(33).take(length) == rest[..length]);
}

#[test]
fn a_full_disk_does_not_end_the_session() {
    privately(|| {
        let scratch = Scratch::new();
        let place = scratch.path().to_str().unwrap();
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=256k,mode=777", "none", place],
        );
        let mut hindered = Hindered::start(&scratch, "");
        hindered.goes_on(5_000_000);
        let warning = hindered.warning();
        assert!(warning.contains("No space left on device"), "{warning}");
        assert_begins_like_the_stream(&hindered.file);
        run("umount", &[place]);
    });
}

#[test]
fn a_limit_on_file_sizes_does_not_end_the_session() {
    let scratch = Scratch::new();
    // In blocks of 512 bytes.
    let mut hindered = Hindered::start(&scratch, "ulimit -f 200");
    hindered.goes_on(5_000_000);
    let warning = hindered.warning();
    assert!(warning.contains("File too large"), "{warning}");
    assert_begins_like_the_stream(&hindered.file);
    let size = fs::metadata(&hindered.file).unwrap().len();
    assert!(size <= 200 * 512, "{size}");
}

#[test]
fn that_nothing_more_is_recorded_is_said_when_it_happens_and_once() {
    let scratch = Scratch::new();
    // In blocks of 512 bytes.
    let mut hindered = Hindered::start(&scratch, "ulimit -f 2");
    hindered.client.write_all(&[7; 10_000]).unwrap();
    hindered.upstream.read_exact(&mut [0; 10_000]).unwrap();
    // The session goes on, and nobody ends it before the line is there.
    hindered.session.log.wait_for("File too large");
    hindered.goes_on_after(10_000, 1_000_000);
    hindered.warning();
}

#[test]
fn what_was_said_is_in_the_transcript_while_the_session_goes_on() {
    let mut through = Through::start(Engine::Copy, &[]);
    through.client.write_all(b"now").unwrap();
    through.upstream.read_exact(&mut [0; 3]).unwrap();
    let file = through.proxy.transcripts().remove(0);
    let records = parse(&fs::read(&file).unwrap());
    assert_eq!(stream(&records, '>'), b"now");
    // A session that is killed has lost nothing of it.
    let session = only_child(through.proxy.process.pid());
    nix::sys::signal::kill(session, nix::sys::signal::Signal::SIGKILL).unwrap();
    through.proxy.closed();
    assert_eq!(parse(&fs::read(&file).unwrap()), records);
}
