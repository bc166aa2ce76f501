//! The proxies that people have, squid and tinyproxy, and curl, which knows of neither.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::harness::gateway::{Ends, SERVER, at, filter, on_gateway, start, wait_for_neighbours};
use crate::harness::name_server::names;
use crate::harness::super_server::unpacked;
use crate::harness::{Running, Scratch, eventually, patient, read_all};
use crate::read_head;

const HTTP: u16 = 80;
const OURS: u16 = 8080;
const PROXY: u16 = 3128;

/// The value of a field in a head.
fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A chunked body, without its framing.
fn read_chunks(mut stream: &TcpStream) -> Vec<u8> {
    let mut body = Vec::new();
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
        if !line.ends_with(b"\r\n") {
            continue;
        }
        let text = str::from_utf8(&line).unwrap().trim().to_owned();
        line.clear();
        let size = usize::from_str_radix(&text, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// A sum that notices what is lost, repeated or misplaced.
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Answers each request with what it was.
fn serve_one(mut client: TcpStream) {
    while client.peek(&mut [0]).is_ok_and(|count| count > 0) {
        let head = read_head(&client);
        if value(&head, "Expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        }
        if value(&head, "Upgrade").is_some() {
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
            client.write_all(answer).unwrap();
            let _ = std::io::copy(&mut &client, &mut &client);
            return;
        }
        let body = match (
            value(&head, "Content-Length"),
            value(&head, "Transfer-Encoding"),
        ) {
            (Some(length), None) => {
                let mut body = vec![0; length.parse().unwrap()];
                client.read_exact(&mut body).unwrap();
                body
            }
            (None, Some(_)) => read_chunks(&client),
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => panic!("{head}"),
        };
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let host = value(&head, "Host").unwrap_or("-");
        let told = format!("{method} {target} {host} {} {:x}\n", body.len(), sum(&body));
        let told = told.repeat(if target == "/long" { 100_000 } else { 1 });
        let shown = if method == "HEAD" { "" } else { &told };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{shown}",
            told.len()
        );
        client.write_all(answer.as_bytes()).unwrap();
    }
}

/// Runs a test on a gateway that has a proxy and sends to us what clients mean for the server.
fn before_a_proxy(
    launch: impl FnOnce(&Scratch) -> Running + Send,
    test: impl FnOnce(&Ends) + Send,
) {
    on_gateway(|ends| {
        let listener = ends
            .server
            .here(|| TcpListener::bind(("::", HTTP)).unwrap());
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = patient(client.unwrap());
                thread::spawn(move || serve_one(client));
            }
        });
        wait_for_neighbours(&ends, HTTP);
        filter(&format!(
            "table inet test {{ chain from_client {{ type nat hook prerouting priority dstnat;\n\
             iifname toclient tcp dport {HTTP} redirect to :{OURS};\n}}\n}}"
        ));
        let scratch = Scratch::new();
        let hosts = format!(
            "127.0.0.1 localhost\n{} www.example\n203.0.113.5 evil.example\n",
            SERVER[0]
        );
        let _names = names(&scratch, &hosts);
        let _proxy = launch(&scratch);
        eventually("the proxy to listen", || {
            TcpStream::connect(("127.0.0.1", PROXY)).ok()
        });
        let _ours = start(
            OURS,
            &["--helper", "http-proxy", &format!("127.0.0.1:{PROXY}")],
        );
        test(&ends);
    });
}

fn squid(scratch: &Scratch) -> Running {
    let file = scratch.join("squid.conf");
    let common = unpacked("squid-common/usr/share/squid/mime.conf");
    let messages = unpacked("squid-langpack/usr/share/squid-langpack/templates/ERR_ACCESS_DENIED");
    let text = format!(
        "http_port 127.0.0.1:{PROXY}\nhttp_access allow all\ncache deny all\naccess_log none\n\
         cache_log /dev/null\ncache_store_log none\npid_filename none\npinger_enable off\n\
         mime_table {}\nicon_directory {}\nerror_directory {}\nunlinkd_program {}\n\
         coredump_dir {}\nshutdown_lifetime 0 seconds\nhttp_upgrade_request_protocols OTHER allow all\n",
        common.display(),
        common.with_file_name("icons").display(),
        messages.parent().unwrap().display(),
        unpacked("squid/usr/lib/squid/unlinkd").display(),
        scratch.path().display(),
    );
    fs::write(&file, text).unwrap();
    let program = unpacked("squid/usr/sbin/squid");
    launch(&program, &["-N", "-f", file.to_str().unwrap()])
}

fn tinyproxy(scratch: &Scratch) -> Running {
    let file = scratch.join("tinyproxy.conf");
    let text =
        format!("Port {PROXY}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nLogLevel Critical\n");
    fs::write(&file, text).unwrap();
    let program = unpacked("tinyproxy-bin/usr/bin/tinyproxy");
    launch(&program, &["-d", "-c", file.to_str().unwrap()])
}

fn launch(program: &Path, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Running::start(&mut command)
}

/// What curl prints on the client's machine, which takes both names for the server's.
fn curl(ends: &Ends, arguments: &[&str]) -> String {
    let names = ["www.example", "evil.example"].map(|name| format!("{name}:{HTTP}:{}", SERVER[0]));
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--noproxy", "*"]);
    command.args(["--resolve", &names[0], "--resolve", &names[1]]);
    let output = ends
        .client
        .here(|| command.args(arguments).output().unwrap());
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {says}");
    String::from_utf8(output.stdout).unwrap()
}

/// What every proxy is to do for a client that does not know of it.
fn assert_serves_curl(ends: &Ends) {
    let empty = format!("0 {:x}\n", sum(b""));
    assert_eq!(
        curl(ends, &["http://www.example/a?b"]),
        format!("GET /a?b www.example {empty}")
    );
    assert_eq!(
        curl(
            ends,
            &[
                "-I",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "http://www.example/"
            ]
        ),
        "200"
    );
    assert_eq!(
        curl(
            ends,
            &[
                "-X",
                "OPTIONS",
                "--request-target",
                "/x",
                "http://www.example/"
            ]
        ),
        format!("OPTIONS /x www.example {empty}")
    );
    // It goes where the client had connected to, not where it says.
    let told = curl(ends, &["http://evil.example/"]);
    assert_eq!(told.split(' ').next(), Some("GET"), "{told}");
    // Bodies of either framing, short and long, with a word from the server before.
    let scratch = Scratch::new();
    for length in [0, 5, 3_000_000] {
        let body: Vec<u8> = (0..length)
            .map(|number: u32| (number % 251) as u8)
            .collect();
        let file = scratch.join("body");
        fs::write(&file, &body).unwrap();
        let data = format!("@{}", file.display());
        let expected = format!("POST /up www.example {length} {:x}\n", sum(&body));
        for fields in [
            &[][..],
            &["-H", "Transfer-Encoding: chunked"],
            &["-H", "Expect: 100-continue"],
        ] {
            let arguments = [
                &["--data-binary", &data],
                fields,
                &["http://www.example/up"],
            ]
            .concat();
            assert_eq!(curl(ends, &arguments), expected, "{length} {fields:?}");
        }
    }
    let long = curl(ends, &["http://www.example/long"]);
    let line = format!("GET /long www.example {empty}");
    assert!(long == line.repeat(100_000), "{}", long.len());
}

#[test]
fn squid_serves_clients_that_do_not_know_of_it() {
    before_a_proxy(squid, |ends| {
        assert_serves_curl(ends);
        // Several requests, one connection.
        let urls = [
            "http://www.example/1",
            "http://www.example/2",
            "http://www.example/3",
        ];
        let told = curl(ends, &[&urls[..], &["-w", "%{num_connects}\n"]].concat());
        let counts: Vec<&str> = told.lines().filter(|line| line.len() == 1).collect();
        assert_eq!(counts, ["1", "0", "0"], "{told}");
        let paths: Vec<&str> = told
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert_eq!(paths, ["/1", "/2", "/3"], "{told}");
        // One behind the other, without waiting.
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: www.example\r\n\r\n");
        let last = "GET /z HTTP/1.1\r\nHost: www.example\r\nConnection: close\r\n\r\n";
        let said = [&get("/x")[..], &get("/y"), last].concat();
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        client.write_all(said.as_bytes()).unwrap();
        let answers = String::from_utf8(read_all(client)).unwrap();
        let told: Vec<&str> = answers
            .lines()
            .filter(|line| line.starts_with("GET /"))
            .collect();
        let paths: Vec<&str> = told
            .iter()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        assert_eq!(paths, ["/x", "/y", "/z"], "{answers}");
        // Another protocol.
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        let upgrade = "GET /echo HTTP/1.1\r\nHost: www.example\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        client
            .write_all(format!("{upgrade}\0GET / hello").as_bytes())
            .unwrap();
        let head = read_head(&client);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(crate::read_count(&client, 12), "\0GET / hello");
    });
}

#[test]
fn tinyproxy_serves_clients_that_do_not_know_of_it() {
    before_a_proxy(tinyproxy, assert_serves_curl);
}
