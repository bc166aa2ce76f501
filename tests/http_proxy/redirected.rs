//! Clients that the packet filter has redirected: where their requests go is where they meant to go,
//! whatever their Host fields say (VU#435052).

use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::harness::config_file::Conf;
use crate::harness::gateway::{
    Ends, SERVER, TO_CLIENT, at, filter, on_gateway, seen, serve, start, wait_for_neighbours,
};
use crate::harness::name_server::{Answer, name_server, names};
use crate::harness::peers::read_to_ending;
use crate::harness::{Running, Scratch, field, free_port, patient, read_all};
use crate::{OK, answer_all, read_head};

/// The ports that clients mean, and the one that they are sent to.
const HTTP: u16 = 80;
const OTHER: u16 = 8000;
const OURS: u16 = 8080;

/// Names as the gateway knows them: the server's, one of several addresses, and somebody else's.
const HOSTS: &str = "127.0.0.1 localhost\n\
                     198.51.100.9 www.example\n\
                     2001:db8:2::9 www.example\n\
                     203.0.113.1 cdn.example\n\
                     198.51.100.9 cdn.example\n\
                     203.0.113.5 evil.example\n\
                     2001:db8:9::5 evil.example\n";

/// Runs a test on a gateway that sends to us what a client means for the server.
fn redirected(test: impl FnOnce(Ends) + Send) {
    named(|ends| {
        filter(&format!(
            "table inet test {{ chain from_client {{ type nat hook prerouting priority dstnat;\n\
             iifname toclient tcp dport {{ {HTTP}, {OTHER} }} redirect to :{OURS};\n}}\n}}"
        ));
        test(ends);
    });
}

/// Runs a test on a gateway that knows the names, and has no rules yet.
fn named(test: impl FnOnce(Ends) + Send) {
    on_gateway(|ends| {
        serve(&ends.server, HTTP);
        wait_for_neighbours(&ends, HTTP);
        let scratch = Scratch::new();
        let _names = names(&scratch, HOSTS);
        test(ends);
    });
}

/// A proxy on the gateway that answers each request with its own request line.
fn telling_proxy() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = patient(client.unwrap());
            thread::spawn(move || {
                while client.peek(&mut [0]).is_ok_and(|count| count > 0) {
                    let head = read_head(&client);
                    let line = head.lines().next().unwrap();
                    let length = line.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{line}");
                    client.write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    name
}

fn before(proxy: &str) -> Running {
    start(OURS, &["--helper", "http-proxy", proxy])
}

/// The request line that a proxy gets for a request with these fields.
fn line_for(mut client: &TcpStream, version: &str, fields: &str) -> String {
    let request = format!("GET /a HTTP/{version}\r\n{fields}\r\n");
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(client);
    let length = head.rsplit_once(": ").unwrap().1.trim().parse().unwrap();
    crate::read_count(client, length)
}

#[test]
fn a_host_is_believed_where_it_has_the_address_that_was_meant() {
    redirected(|ends| {
        let ours = before(&telling_proxy());
        for (ip, shown) in SERVER
            .into_iter()
            .zip([SERVER[0].to_owned(), format!("[{}]", SERVER[1])])
        {
            for (port, suffix) in [(HTTP, ""), (OTHER, ":8000")] {
                let client = ends.client.connect(at(ip, port));
                for (fields, authority) in [
                    ("Host: www.example\r\n", format!("www.example{suffix}")),
                    ("Host: WWW.example:80\r\n", "WWW.example".to_owned()),
                    ("Host: www.example:81\r\n", "www.example:81".to_owned()),
                    (&format!("Host: {shown}\r\n"), format!("{shown}{suffix}")),
                    ("Host: evil.example\r\n", format!("{shown}{suffix}")),
                    ("Host: nobody.example\r\n", format!("{shown}{suffix}")),
                    ("Host: 203.0.113.5\r\n", format!("{shown}{suffix}")),
                    ("Host: [2001:db8:9::5]\r\n", format!("{shown}{suffix}")),
                    ("Host: localhost\r\n", format!("{shown}{suffix}")),
                    ("Host:\r\n", format!("{shown}{suffix}")),
                ] {
                    let line = line_for(&client, "1.1", fields);
                    assert_eq!(
                        line,
                        format!("GET http://{authority}/a HTTP/1.1"),
                        "{fields}"
                    );
                }
                let line = line_for(&client, "1.0", "");
                assert_eq!(line, format!("GET http://{shown}{suffix}/a HTTP/1.0"));
            }
        }
        // One of its addresses is enough.
        let client = ends.client.connect(at(SERVER[0], HTTP));
        let line = line_for(&client, "1.1", "Host: cdn.example\r\n");
        assert_eq!(line, "GET http://cdn.example/a HTTP/1.1");
        // Said once in each session.
        let said = ours
            .log
            .wait_for("session 1: the Host field names evil.example, ");
        assert!(said.contains("which is not at 198.51.100.9"), "{said}");
        let all = ours.log.all();
        let notices = all
            .iter()
            .filter(|line| line.contains("session 1: the Host field"));
        assert_eq!(notices.count(), 1, "{all:#?}");
    });
}

#[test]
fn who_was_not_redirected_is_believed() {
    redirected(|ends| {
        let _ours = before(&telling_proxy());
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        let line = line_for(&client, "1.1", "Host: evil.example\r\n");
        assert_eq!(line, "GET http://evil.example/a HTTP/1.1");
    });
}

#[test]
fn a_name_is_looked_up_once_in_a_session() {
    redirected(|ends| {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        name_server(move |name, kind| {
            if name == "far.example" && kind == 1 {
                count.fetch_add(1, Ordering::Relaxed);
            }
            Answer::Address([198, 51, 100, 9])
        });
        let _ours = before(&telling_proxy());
        let client = ends.client.connect(at(SERVER[0], HTTP));
        for host in [
            "far.example",
            "FAR.example",
            "far.example:8080",
            "far.example",
        ] {
            let line = line_for(&client, "1.1", &format!("Host: {host}\r\n"));
            assert_eq!(line, format!("GET http://{host}/a HTTP/1.1"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_name_server_that_is_silent_delays_a_request_and_has_it_go_by_its_address() {
    redirected(|ends| {
        name_server(|_, _| Answer::Silence);
        let _ours = before(&telling_proxy());
        let client = ends.client.connect(at(SERVER[0], HTTP));
        let line = line_for(&client, "1.1", "Host: far.example\r\n");
        assert_eq!(line, "GET http://198.51.100.9/a HTTP/1.1");
    });
}

#[test]
fn a_client_that_goes_while_a_name_is_looked_up_is_noticed() {
    redirected(|ends| {
        name_server(|_, _| Answer::Silence);
        let ours = before(&telling_proxy());
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: far.example\r\n\r\n")
            .unwrap();
        ours.log.wait_for("session 1 opened: ");
        crate::harness::peers::reset(client);
        let closed = ours.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "reason"), "client-reset");
    });
}

#[test]
fn where_the_proxy_is_down_requests_go_to_the_original_destination_as_they_are() {
    redirected(|ends| {
        let nobody = format!("127.0.0.1:{}", free_port());
        let text = format!("port {OURS}\nhelper http-proxy\nserver {nobody} original-dst\n");
        let ours = Conf::new(text).serve(1, &[]);
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        assert_eq!(seen(&client).1, at(SERVER[0], HTTP));
        let said = b"GET /a HTTP/1.1\r\nHost: evil.example\r\n\r\n\0 anything";
        client.write_all(said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&client), said);
        let closed = ours.process.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "server"), "198.51.100.9:80");
        assert_eq!(field(&closed, "reason"), "client-closed");
    });
}

#[test]
fn where_the_proxy_is_up_they_are_translated_though_they_could_fall_back() {
    redirected(|ends| {
        let proxy = crate::harness::upstreams::Upstream::new(answer_all);
        let text = format!(
            "port {OURS}\nhelper http-proxy\nserver {} original-dst\n",
            proxy.name()
        );
        let _ours = Conf::new(text).serve(1, &[]);
        let client = ends.client.connect(at(SERVER[0], HTTP));
        let answer = crate::converse(client, b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n");
        assert_eq!(answer.as_bytes(), OK);
        let got = proxy.result();
        assert!(
            got.starts_with("GET http://www.example/ HTTP/1.1\r\n"),
            "{got}"
        );
    });
}

#[test]
fn who_was_not_redirected_has_nothing_to_fall_back_to() {
    redirected(|ends| {
        let nobody = format!("127.0.0.1:{}", free_port());
        let text = format!("port {OURS}\nhelper http-proxy\nserver {nobody} original-dst\n");
        let ours = Conf::new(text).serve(1, &[]);
        let client = ends.client.connect(at(TO_CLIENT[0], OURS));
        assert_eq!(read_to_ending(&client).0, b"");
        let closed = ours.process.log.wait_for("session 1 closed: ");
        assert_eq!(field(&closed, "reason"), "connect-failed");
    });
}

#[test]
fn the_example_and_the_rules_in_it_serve_clients_with_the_proxy_and_without() {
    named(|ends| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/http-proxy.conf");
        let text = fs::read_to_string(file).unwrap();
        let in_comments = text.lines().filter_map(|line| line.strip_prefix("#   "));
        let rules: Vec<&str> = in_comments
            .skip_while(|line| !line.starts_with("table"))
            .collect();
        filter(&rules.join("\n").replace("LAN", "toclient"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = listener.local_addr().unwrap().to_string();
        let text = text.replace("192.0.2.31:3128", &proxy);
        let text = text.replace("allow 192.168.0.0/16", "allow 192.0.2.0/24");
        assert!(text.contains(&proxy) && text.contains("allow 192.0.2.0/24"));
        let _ours = Conf::new(text).serve(1, &[]);
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        let said = b"GET /a HTTP/1.1\r\nHost: www.example\r\n\r\n";
        client.write_all(said).unwrap();
        let (taken, _) = listener.accept().unwrap();
        let head = read_head(&patient(taken));
        assert!(
            head.starts_with("GET http://www.example/a HTTP/1.1\r\n"),
            "{head}"
        );
        drop((listener, client));
        let mut client = ends.client.connect(at(SERVER[0], HTTP));
        assert_eq!(seen(&client).1, at(SERVER[0], HTTP));
        client.write_all(said).unwrap();
        assert_eq!(read_head(&client).as_bytes(), said);
    });
}
