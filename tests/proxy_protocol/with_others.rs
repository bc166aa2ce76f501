//! The programs that others announce clients with, or have them announced to: haproxy and nginx; and
//! the super-servers that start us.

use std::fs;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use crate::bytes::{v1_tcp, v2_tcp};
use crate::harness::clients::connect_from;
use crate::harness::super_server::{SuperServer, connect_to, unpacked};
use crate::harness::upstreams::echo;
use crate::harness::{
    Running, Scratch, Standalone, field, free_port, needs_root, patient, read_all,
};

fn haproxy(scratch: &Scratch, text: &str) -> Running {
    let file = scratch.join("haproxy.cfg");
    let defaults = "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 20s\n    timeout server 20s\n";
    fs::write(&file, format!("{defaults}{text}")).unwrap();
    let mut command = Command::new(unpacked("haproxy/usr/sbin/haproxy"));
    command.arg("-db").arg("-f").arg(file);
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

fn nginx(scratch: &Scratch, text: &str) -> Running {
    let file = scratch.join("nginx.conf");
    let module = unpacked("libnginx-mod-stream/usr/lib/nginx/modules/ngx_stream_module.so");
    let place = scratch.path().display();
    let head = format!(
        "load_module {};\ndaemon off;\nmaster_process off;\nuser root;\npid {place}/pid;\n\
         error_log stderr;\nevents {{}}\n",
        module.display()
    );
    fs::write(&file, format!("{head}{text}")).unwrap();
    let mut command = Command::new(unpacked("nginx/usr/sbin/nginx"));
    command
        .arg("-p")
        .arg(scratch.path())
        .arg("-e")
        .arg("stderr")
        .arg("-c")
        .arg(file);
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Fails unless a handler of ours behind somebody else's proxy sees the client that comes to it, and
/// whole what that has to say.
fn assert_client_is_seen(proxy: &Standalone, front: SocketAddr, what: &str) {
    connect_to(front).shutdown(Shutdown::Both).unwrap();
    let mut client = connect_from("127.0.0.9", front);
    let own = client.local_addr().unwrap();
    // Without an end, at which nginx would end both ways.
    client.write_all(b"data").unwrap();
    let said = String::from_utf8(read_all(client)).unwrap();
    let expected = format!(
        "{} {} {} {} 127.0.0.1 data",
        own.ip(),
        own.port(),
        front.ip(),
        front.port()
    );
    assert_eq!(said, expected, "{what}");
    let opened = proxy
        .process
        .log
        .wait_for(&format!("opened: client={own} via=127.0.0.1:"));
    assert_eq!(field(&opened, "local"), front.to_string());
}

/// Says who it serves, and what that has sent.
const SHOW: [&str; 3] = [
    "/bin/sh",
    "-c",
    "printf '%s ' $PROXY_CLIENT $PROXY_CLIENTPORT $PROXY_INTERFACE $PROXY_PORT $PROXY_PEER; exec head -c 4",
];

#[test]
fn haproxy_announces_its_clients_to_us_in_every_way_that_it_has() {
    for options in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority,ssl,cert-cn",
        "send-proxy-v2-ssl-cn",
        "send-proxy check inter 50ms",
        "send-proxy-v2 check inter 50ms",
    ] {
        let proxy = Standalone::start(&[&["--accept-proxy", "127.0.0.1"], &SHOW[..]].concat());
        let scratch = Scratch::new();
        let front = free_port();
        let text = format!(
            "listen front\n    bind 127.0.0.1:{front}\n    unique-id-format %[uuid()]\n    \
             server tcpproxy {} {options}\n",
            proxy.address
        );
        let _haproxy = haproxy(&scratch, &text);
        assert_client_is_seen(&proxy, at(front), options);
        if options.contains("check") {
            // Its checks announce itself, or nobody, and are no trouble.
            proxy.process.log.wait_for(" closed: client=127.0.0.1:");
        }
        let all = proxy.process.log.all();
        assert!(
            !all.iter().any(|line| line.contains("bad PROXY header")),
            "{options}: {all:#?}"
        );
    }
}

#[test]
fn nginx_announces_its_clients_to_us() {
    needs_root();
    let proxy = Standalone::start(&[&["--accept-proxy", "127.0.0.1"], &SHOW[..]].concat());
    let scratch = Scratch::new();
    let front = free_port();
    let text = format!(
        "stream {{ server {{ listen 127.0.0.1:{front}; proxy_pass {}; proxy_protocol on; }} }}\n",
        proxy.address
    );
    let _nginx = nginx(&scratch, &text);
    assert_client_is_seen(&proxy, at(front), "nginx");
}

/// What an HTTP server says of the client that came through a tcpproxy which sends this version.
fn asked_through(version: &str, server: SocketAddr) -> (TcpStream, String, Standalone) {
    connect_to(server).shutdown(Shutdown::Both).unwrap();
    let proxy = Standalone::start(&["--send-proxy", version, &server.to_string()]);
    let mut client = connect_from("127.0.0.9", proxy.address);
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let reply = String::from_utf8(read_all(&client)).unwrap();
    let body = reply.split("\r\n\r\n").nth(1).unwrap_or(&reply).to_owned();
    (client, body, proxy)
}

#[test]
fn haproxy_knows_the_client_that_we_announce() {
    let scratch = Scratch::new();
    let port = free_port();
    let text = format!(
        "frontend back\n    mode http\n    bind 127.0.0.1:{port} accept-proxy\n    http-request \
         return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
    );
    let _haproxy = haproxy(&scratch, &text);
    for version in ["v1", "v2"] {
        let (client, said, proxy) = asked_through(version, at(port));
        let own = client.local_addr().unwrap();
        let expected = format!(
            "127.0.0.9 {} 127.0.0.1 {}",
            own.port(),
            proxy.address.port()
        );
        assert_eq!(said, expected, "{version}");
    }
}

#[test]
fn nginx_knows_the_client_that_we_announce() {
    needs_root();
    let scratch = Scratch::new();
    let port = free_port();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = kinds
        .map(|kind| format!("{kind}_temp_path {kind};"))
        .concat();
    let text = format!(
        "http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ return 200 \
         \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr \
         $proxy_protocol_server_port\"; }} }} }}\n"
    );
    let _nginx = nginx(&scratch, &text);
    for version in ["v1", "v2"] {
        let (client, said, proxy) = asked_through(version, at(port));
        let own = client.local_addr().unwrap();
        let expected = format!(
            "127.0.0.9 {} 127.0.0.1 {}",
            own.port(),
            proxy.address.port()
        );
        assert_eq!(said, expected, "{version}");
    }
}

#[test]
fn it_works_alike_under_every_super_server() {
    needs_root();
    let headers = [
        v1_tcp("192.0.2.7:50123", "198.51.100.1:25"),
        v2_tcp("192.0.2.7:50123", "198.51.100.1:25", b"\x04\0\x01x"),
    ];
    for server in SuperServer::ALL {
        let upstream = echo().to_string();
        let options = ["--accept-proxy", "127.0.0.1", "--log-level", "debug"];
        let forwarding = server.start("127.0.0.1", &[&options[..], &[&upstream]].concat());
        let handling = server.start("127.0.0.1", &[&options[..], &["/bin/cat"]].concat());
        for activated in [&forwarding, &handling] {
            for header in &headers {
                let mut client = patient(activated.connect());
                client.set_nodelay(true).unwrap();
                let all = [&header[..], b"data"].concat();
                client.write_all(&all[..10]).unwrap();
                client.write_all(&all[10..]).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_all(client), b"data", "{server:?}");
            }
            let opened = activated.log(" opened: client=192.0.2.7:50123 via=127.0.0.1:");
            assert_eq!(field(&opened, "local"), "198.51.100.1:25", "{server:?}");
        }
        let mut client = forwarding.connect();
        client
            .write_all(b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n")
            .unwrap();
        assert_eq!(crate::harness::peers::read_to_ending(&client).0, b"");
        forwarding.log("reason=bad-proxy-header");
    }
}
