//! The system calls of a program that is started for one short connection, from its execve to its
//! exit, its children's included.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use super::Bench;
use crate::Outcome;
use crate::commands;
use crate::contestants::{Installed, find};
use crate::results::Row;

pub(super) fn measure(bench: &mut Bench) {
    let Some(strace) = find("strace", "usr/bin/strace") else {
        bench
            .results
            .note("strace is not installed: no system calls were counted".into());
        return;
    };
    for installed in bench.results.present.clone() {
        for _ in 0..bench.effort.of(1, 3, 5) {
            match count(bench, &strace.to_string_lossy(), &installed) {
                Ok(None) => {}
                Ok(Some(calls)) => {
                    let row = Row::SystemCalls;
                    bench.results.add(row, installed.contestant, calls as f64);
                }
                Err(problem) => {
                    let name = installed.contestant.name();
                    let note = format!("{name}, system calls: {problem}");
                    bench.results.failed(installed.contestant, note);
                    break;
                }
            }
        }
    }
}

fn count(bench: &Bench, strace: &str, installed: &Installed) -> Outcome<Option<usize>> {
    let Some(words) = commands::inherited(installed, bench.backend.at) else {
        return Ok(None);
    };
    let record = bench.scratch.join("strace");
    let (mut client, served) = connection()?;
    let served = OwnedFd::from(served);
    let mut command = Command::new(strace);
    command
        .args(["-f", "-qq", "-e", "signal=none", "-o"])
        .arg(&record);
    command.arg("--").args(&words);
    command
        .stdin(served.try_clone()?)
        .stdout(served)
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    // The descriptors that were meant for the child: the client would never see the end.
    drop(command);
    let outcome = exchange(&mut client);
    if outcome.is_err() {
        // It may have ended, which is as good.
        let _ = child.kill();
    }
    child.wait()?;
    outcome?;
    let lines = fs::read_to_string(&record)?;
    // Where two processes were at it, a call that was interrupted by the other has a second line.
    let calls = lines.lines().filter(|line| !line.contains(" resumed>"));
    Ok(Some(calls.count()))
}

fn connection() -> Outcome<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    Ok((client, listener.accept()?.0))
}

fn exchange(client: &mut TcpStream) -> Outcome<()> {
    client.write_all(b"request")?;
    let mut reply = [0; 7];
    client.read_exact(&mut reply)?;
    client.shutdown(Shutdown::Write)?;
    match (&reply, client.read(&mut [0])?) {
        (b"request", 0) => Ok(()),
        _ => Err("another reply than was sent for".into()),
    }
}
