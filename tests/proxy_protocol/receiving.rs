//! What an announced client is: the client, for everything that asks who that is.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};

use crate::bytes::{LOCAL, v1_tcp, v2, v2_tcp};
use crate::harness::access_log::{lines, members};
use crate::harness::clients::connect_from;
use crate::harness::peers::{assert_echoes, read_to_ending};
use crate::harness::processes::only_child;
use crate::harness::upstreams::{Forbidden, Upstream, echo};
use crate::harness::{
    Scratch, Standalone, end_of, field, hand_over, launched_by, patient, read_all,
};

const CLIENT: &str = "192.0.2.7:50123";
const REACHED: &str = "198.51.100.1:25";
const SHOW: &str = "/usr/bin/env";

fn start(arguments: &[&str]) -> Standalone {
    Standalone::start(&[&["--accept-proxy", "127.0.0.1"], arguments].concat())
}

fn announced(proxy: &Standalone, header: &[u8]) -> TcpStream {
    let mut client = proxy.connect();
    client.write_all(header).unwrap();
    client
}

fn variables(text: &[u8]) -> BTreeMap<String, String> {
    let text = std::str::from_utf8(text).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let ours = pairs.filter(|(name, _)| name.starts_with("PROXY_"));
    ours.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn programs_and_the_log_are_told_the_announced_ends_and_the_proxy() {
    for (client, reached) in [(CLIENT, REACHED), ("[2001:db8::7]:1", "[2001:db8::1]:2525")] {
        for header in [v1_tcp(client, reached), v2_tcp(client, reached, b"")] {
            let proxy = start(&[SHOW]);
            let stream = announced(&proxy, &header);
            let peer = stream.local_addr().unwrap();
            let found = variables(&read_all(stream));
            let [client, reached] = [client, reached].map(|end| end.parse::<SocketAddr>().unwrap());
            for (name, value) in [
                ("PROXY_CLIENT", client.ip().to_string()),
                ("PROXY_CLIENTNAME", client.ip().to_string()),
                ("PROXY_CLIENTPORT", client.port().to_string()),
                ("PROXY_INTERFACE", reached.ip().to_string()),
                ("PROXY_PORT", reached.port().to_string()),
                ("PROXY_PEER", peer.ip().to_string()),
                ("PROXY_PEERPORT", peer.port().to_string()),
            ] {
                assert_eq!(found.get(name), Some(&value), "{name} in {found:?}");
            }
            for line in [proxy.process.log.wait_for(" opened: "), proxy.closed()] {
                let ends = format!(": client={client} via={peer} ");
                assert!(line.contains(&ends), "{line}, not {ends}");
            }
            let opened = proxy.process.log.wait_for(" opened: ");
            assert_eq!(field(&opened, "local"), reached.to_string());
        }
    }
}

#[test]
fn where_nobody_is_announced_the_proxy_is_the_client_itself() {
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 192.0.2.7 198.51.100.1 1 2\r\n".to_vec(),
        v2(LOCAL, 0x11, &[1; 12]),
        v2(0x21, 0, b"any"),
    ] {
        let scratch = Scratch::new();
        let log = scratch.join("log");
        let arguments = ["--accept-proxy", "ANY", "--log"];
        let log_to = format!("file:{}", log.display());
        let mut command = launched_by(&[], &arguments);
        // What a program before us was told is not said of this client.
        command
            .env("PROXY_PEER", "192.0.2.66")
            .args([&log_to, SHOW]);
        let (mut stream, mut child) = hand_over(&mut command);
        let (own, local) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        stream.write_all(&header).unwrap();
        let found = variables(&read_all(stream));
        end_of(&mut child);
        assert_eq!(found["PROXY_CLIENT"], "127.0.0.1");
        assert_eq!(found["PROXY_CLIENTPORT"], own.port().to_string());
        assert_eq!(found["PROXY_PORT"], local.port().to_string());
        assert!(!found.contains_key("PROXY_PEER"), "{found:?}");
        let said = fs::read_to_string(log).unwrap();
        assert!(!said.contains(" via="), "{said}");
    }
}

#[test]
fn a_header_from_anybody_else_is_no_header() {
    let header = v1_tcp(CLIENT, REACHED);
    let upstream = Forbidden::new();
    let proxy = start(&[&upstream.name()]);
    let mut client = connect_from("127.0.0.2", proxy.address);
    client.write_all(&header).unwrap();
    assert_eq!(read_to_ending(&client).0, b"");
    let closed = proxy.closed();
    assert_eq!(field(&closed, "reason"), "denied-by-rule");
    assert!(
        field(&closed, "client").starts_with("127.0.0.2:"),
        "{closed}"
    );
    let notice = "session 1: denied by rule: no accept-proxy rule matches";
    proxy.process.log.wait_for(notice);
    upstream.assert_untouched();
    // Where others are served, what they send is data, whatever it looks like.
    let proxy = start(&["--proxy-others", "serve", &echo().to_string()]);
    let mut client = connect_from("127.0.0.2", proxy.address);
    client.write_all(&header).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), header);
    let closed = proxy.closed();
    assert!(
        field(&closed, "client").starts_with("127.0.0.2:"),
        "{closed}"
    );
    assert!(!closed.contains(" via="), "{closed}");
}

#[test]
fn rules_judge_the_announced_client_alone() {
    let header = v2_tcp(CLIENT, REACHED, b"");
    for (rules, passes) in [
        (&["--deny", "127.0.0.1"][..], true),
        (&["--allow", "192.0.2.0/24"], true),
        (&["--deny", "192.0.2.7"], false),
        (&["--allow", "127.0.0.1"], false),
    ] {
        let upstream = echo().to_string();
        let proxy = start(&[rules, &[&upstream]].concat());
        let mut client = announced(&proxy, &header);
        // It may have been closed already.
        let _ = client.write_all(b"hello");
        let _ = client.shutdown(Shutdown::Write);
        let expected: &[u8] = if passes { b"hello" } else { b"" };
        assert_eq!(read_to_ending(&client).0, expected, "{rules:?}");
        let reason = if passes {
            "client-closed"
        } else {
            "denied-by-rule"
        };
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), reason, "{rules:?}");
        assert_eq!(field(&closed, "client"), CLIENT, "{rules:?}");
    }
}

#[test]
fn an_ipv4_client_in_ipv6_form_is_compared_as_ipv4() {
    let proxy = start(&["--deny", "192.0.2.0/24", &echo().to_string()]);
    let mapped = v1_tcp("[::ffff:192.0.2.7]:1", "[2001:db8::1]:2");
    assert_eq!(read_to_ending(&announced(&proxy, &mapped)).0, b"");
    assert_eq!(field(&proxy.closed(), "client"), "192.0.2.7:1");
}

#[test]
fn the_port_that_is_missing_is_the_sockets_whatever_is_announced() {
    let proxy = start(&["127.0.0.2"]);
    let upstream = TcpListener::bind(("127.0.0.2", proxy.address.port())).unwrap();
    let mut client = announced(&proxy, &v1_tcp(CLIENT, REACHED));
    client.write_all(b"x").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let came = patient(upstream.accept().unwrap().0);
    assert_eq!(read_all(&came), b"x");
    drop(came);
    let closed = proxy.closed();
    assert_eq!(
        field(&closed, "server"),
        upstream.local_addr().unwrap().to_string()
    );
}

#[test]
fn an_announced_loop_ends_all_the_same() {
    // The hop limit of the real connection is what is counted, and the listener the real one.
    let proxy = start(&["--send-proxy", "v1", "127.0.0.1"]);
    let client = announced(&proxy, &v1_tcp(CLIENT, "198.51.100.1:9"));
    assert_eq!(read_to_ending(&client).0, b"");
    assert_eq!(field(&proxy.closed(), "reason"), "connect-failed");
    proxy
        .process
        .log
        .wait_for("it is the very listener that the client came through");
}

#[test]
fn the_table_of_sessions_and_the_line_of_one_that_was_killed_have_the_announced_client() {
    let proxy = start(&[&echo().to_string()]);
    let client = announced(&proxy, &v2_tcp(CLIENT, REACHED, b""));
    assert_echoes(&client);
    let peer = client.local_addr().unwrap();
    let session = only_child(proxy.process.pid());
    proxy.process.signal(Signal::SIGUSR1);
    let live = proxy.process.log.wait_for("session 1 live: ");
    let ends = format!("client={CLIENT} via={peer} local={REACHED} ");
    assert!(live.contains(&ends), "{live}");
    kill(session, Signal::SIGKILL).unwrap();
    let closed = proxy.closed();
    assert!(
        closed.contains(&format!("client={CLIENT} via={peer} ")),
        "{closed}"
    );
    assert_eq!(field(&closed, "signal"), "SIGKILL");
    // Its place is another's by now, of whom nothing is known yet.
    let waiting = proxy.connect();
    let peer = waiting.local_addr().unwrap();
    kill(only_child(proxy.process.pid()), Signal::SIGKILL).unwrap();
    let closed = proxy.process.log.wait_for("session 2 closed: ");
    assert_eq!(field(&closed, "client"), peer.to_string());
    assert!(!closed.contains("via="), "{closed}");
}

#[test]
fn the_access_log_has_the_announced_client() {
    for format in ["tcpproxy", "json", "rinetd", "common"] {
        let scratch = Scratch::new();
        let file = scratch.join("access");
        let log = file.to_str().unwrap();
        let upstream = echo().to_string();
        let proxy = start(&[
            "--access-log",
            log,
            "--access-log-format",
            format,
            &upstream,
        ]);
        let client = announced(&proxy, &v1_tcp(CLIENT, REACHED));
        let peer = client.local_addr().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), b"");
        let line = lines(&file, 1).remove(0);
        match format {
            "json" => {
                let members: BTreeMap<String, String> = members(&line).into_iter().collect();
                for (name, value) in [
                    ("client", "\"192.0.2.7\"".to_owned()),
                    ("client_port", "50123".to_owned()),
                    ("via", "\"127.0.0.1\"".to_owned()),
                    ("via_port", peer.port().to_string()),
                    ("local", "\"198.51.100.1\"".to_owned()),
                ] {
                    let found = members.get(name).map(|found| found.trim_matches('"'));
                    assert_eq!(found, Some(value.trim_matches('"')), "{name} in {line}");
                }
            }
            "tcpproxy" => assert!(line.contains(&format!("client={CLIENT} via={peer} "))),
            "rinetd" => assert_eq!(line.split('\t').nth(1), Some("192.0.2.7")),
            _ => assert!(line.starts_with("192.0.2.7 - - ["), "{line}"),
        }
    }
}

#[test]
fn a_transcript_begins_behind_the_header() {
    let scratch = Scratch::new();
    let base = scratch.join("t");
    let upstream = Upstream::new(|stream| read_all(&stream));
    let proxy = start(&[
        "-w",
        base.to_str().unwrap(),
        "--send-proxy",
        "v1",
        &upstream.name(),
    ]);
    let mut client = announced(&proxy, &v1_tcp(CLIENT, REACHED));
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&client), b"");
    assert_eq!(
        upstream.result(),
        [&v1_tcp(CLIENT, REACHED)[..], b"hello"].concat()
    );
    assert_eq!(field(&proxy.closed(), "sent"), "5");
    let transcripts: Vec<_> = fs::read_dir(scratch.path()).unwrap().collect();
    for entry in transcripts {
        let text = fs::read(entry.unwrap().path()).unwrap();
        assert!(!text.windows(5).any(|word| word == b"PROXY"));
    }
}
