//! The proxies that others use: tinyproxy, microsocks and dante, on the way to nginx, asked by curl.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::thread;

use crate::harness::forward_proxies::{InUse, danted, microsocks, tinyproxy};
use crate::harness::noise::Noise;
use crate::harness::super_server::{connect_to, unpacked};
use crate::harness::upstreams::echo;
use crate::harness::{
    Engine, Running, Scratch, Standalone, field, free_port, needs_root, patient, read_all, tool,
};

const WHO: Option<(&str, &str)> = Some(("some-user", "pass-word"));

/// Every proxy, with the option that leads through it.
fn all() -> Vec<(String, InUse)> {
    let with = |scheme: &str, proxy: InUse| (format!("--via={scheme}://{}", proxy.address), proxy);
    let knowing = |scheme: &str, proxy: InUse| {
        let user = "some-user:pass%2dword";
        (format!("--via={scheme}://{user}@{}", proxy.address), proxy)
    };
    vec![
        with("http", tinyproxy(None)),
        knowing("http", tinyproxy(WHO)),
        with("socks5", microsocks(None)),
        knowing("socks5h", microsocks(WHO)),
        with("socks5", danted()),
        // One that asks for nothing is not told anything.
        knowing("socks5", danted()),
    ]
}

/// An HTTP server with one file.
fn nginx(scratch: &Scratch, content: &[u8]) -> (Running, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    fs::write(scratch.join("file"), content).unwrap();
    let file = scratch.join("nginx.conf");
    let place = scratch.path().display();
    let text = format!(
        "daemon off;\nmaster_process off;\nuser root;\npid {place}/pid;\nerror_log stderr;\n\
         events {{}}\nhttp {{ access_log off; client_body_temp_path {place}/1; proxy_temp_path {place}/2; \
         fastcgi_temp_path {place}/3; uwsgi_temp_path {place}/4; scgi_temp_path {place}/5; \
         server {{ listen {address}; root {place}; }} }}\n"
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new(unpacked("nginx/usr/sbin/nginx"));
    command.arg("-p").arg(scratch.path()).args(["-e", "stderr"]);
    command.arg("-c").arg(file);
    let process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    drop(connect_to(address));
    (process, address)
}

#[test]
fn curl_gets_a_file_through_each_of_them() {
    needs_root();
    let scratch = Scratch::new();
    let content = Noise::new(1).take(3 << 20);
    let (_nginx, upstream) = nginx(&scratch, &content);
    let upstream = upstream.to_string();
    for (option, _proxy) in all() {
        for engine in Engine::ALL {
            let server = Standalone::start_with(engine, &[&option, &upstream]);
            let got = Command::new(tool("curl"))
                .args(["-sS", "--noproxy", "*", "--max-time", "20"])
                .arg(format!("http://{}/file", server.address))
                .output()
                .unwrap();
            assert!(got.status.success(), "{option}: {got:?}");
            assert!(got.stdout == content, "{option}: {}", got.stdout.len());
            let closed = server.closed();
            assert_eq!(field(&closed, "server"), upstream, "{option}");
        }
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_through_each_of_them() {
    for (option, _proxy) in all() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let server = Standalone::start(&[&option, &name]);
        let upstream = thread::spawn(move || {
            let mut stream = patient(listener.accept().unwrap().0);
            stream.write_all(b"220 hello\r\n").unwrap();
            let mut said = [0; 6];
            stream.read_exact(&mut said).unwrap();
            said
        });
        let mut client = server.connect();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 hello\r\n", "{option}");
        client.write_all(b"QUIT\r\n").unwrap();
        assert_eq!(&upstream.join().unwrap(), b"QUIT\r\n", "{option}");
    }
}

#[test]
fn each_of_them_looks_up_the_name_itself() {
    let port = echo().port();
    for (option, _proxy) in all() {
        // Resolved to 127.0.0.1, where they all connect from IPv4 alone.
        let server = Standalone::start(&[&option, &format!("localhost:{port}")]);
        let mut client = server.connect();
        client.write_all(b"there and back").unwrap();
        let mut back = [0; 14];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there and back", "{option}");
    }
}

#[test]
fn who_is_not_known_to_them_is_told_so() {
    let (http, socks) = (tinyproxy(WHO), microsocks(WHO));
    let name = echo().to_string();
    for (url, what) in [
        (
            format!("http://{}", http.address),
            "it answered 'HTTP/1.0 407 ",
        ),
        (
            format!("http://some-user:wrong-one@{}", http.address),
            "it answered 'HTTP/1.0 40",
        ),
        (
            format!("socks5://{}", socks.address),
            "it said no: it wants a user and a password (via-auth)",
        ),
        (
            format!("socks5://some-user:wrong-one@{}", socks.address),
            "it said no: it does not take this user and password",
        ),
    ] {
        let server = Standalone::start(&[&format!("--via={url}"), &name]);
        assert_eq!(read_all(server.connect()), b"");
        let notice = server.process.log.wait_for(what);
        assert!(notice.contains(&format!("{name}: through ")), "{notice}");
        let closed = server.closed();
        assert_eq!(field(&closed, "reason"), "connect-failed", "{closed}");
        let all = server.process.log.all().concat();
        assert!(!all.contains("wrong-one"), "{all}");
    }
}

#[test]
fn an_upstream_that_refuses_is_told_from_a_proxy_that_does() {
    let closed = format!("127.0.0.1:{}", free_port());
    for (option, proxy) in all() {
        let server = Standalone::start(&[&option, &closed]);
        assert_eq!(read_all(server.connect()), b"");
        let line = server.closed();
        let expected = if option.contains("http") {
            "connect-failed"
        } else {
            "connect-refused"
        };
        assert_eq!(field(&line, "reason"), expected, "{option}");
        drop(server);
        drop(proxy);
        let server = Standalone::start(&[&option, &closed]);
        assert_eq!(read_all(server.connect()), b"");
        let notice = server.process.log.wait_for(": Connection refused");
        assert!(notice.contains("connect to 127.0.0.1:"), "{notice}");
        let line = server.closed();
        assert_eq!(field(&line, "reason"), "connect-refused", "{option}");
    }
}
