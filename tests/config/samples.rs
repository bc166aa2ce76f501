//! Configurations that people will copy: the original's sample, and those of the manual.

use std::fs;

use crate::harness::config_file::Conf;
use crate::harness::name_server::names;
use crate::harness::namespaces::{add_address, privately};
use crate::harness::{Scratch, field, read_all};

/// The sample of the original's manual page, as a browser copies it. Its white space is U+00A0,
/// which is written as `·` here.
const SAMPLE: &str = "\
·#
·#·/etc/tcpproxy.conf·-·sample·configuration
·#
·
·#
·#·Define·SMTP·proxys·...
·#
·port·25


···#·...·for·outgoing·...
···#
···interface·192.168.1.1
·····server·mailrelay.provider.com


···#·...·and·incoming·email.
···#
···interface·192.44.100.7
·····server·mail.domain.com


·#
·#·There·are·also·NNTP-Servers·on·the·outside
·#
·port·119


····interface·192.168.1.1
······server·nntp.provider.com
·····
····interface·192.168.2.1
······server·nntp.other-provider.com


·#
·#·Users·from·the·outside·can·access·our·internal
·#·POP3·server·...
·#
·port·110


···interface·192.44.100.7


···#·...·but·only·trough·a·real·application·gateway.
···#
···exec·/usr/local/sbin/pop3.proxy·mail.domain.com
";

fn sample() -> String {
    SAMPLE.replace('·', "\u{a0}")
}

const PLACES_OF_SAMPLE: &str = "192.168.1.1:25\n192.44.100.7:25\n192.168.1.1:119\n\
                                192.168.2.1:119\n192.44.100.7:110\n";

#[test]
fn the_originals_sample_is_right_and_its_listeners_are_listed_in_its_order() {
    let conf = Conf::new(sample());
    assert_eq!(conf.says(&["--check"]).ok(), "ok\n");
    assert_eq!(conf.says(&["-z"]).ok(), PLACES_OF_SAMPLE);
}

#[test]
fn the_originals_sample_serves_as_its_manual_page_says() {
    privately(|| {
        let scratch = Scratch::new();
        let hosts = "127.0.0.1 mailrelay.provider.com\n127.0.0.2 mail.domain.com\n";
        let _names = names(&scratch, hosts);
        for address in ["192.168.1.1", "192.168.2.1", "192.44.100.7"] {
            add_address(&format!("{address}/32"));
        }
        let conf = Conf::new(sample());
        let gateway = conf
            .scratch()
            .script("pop3.proxy", "echo gateway to $1 for port $PROXY_PORT");
        // Its path is the only thing that cannot be as it stands.
        let text = sample().replace("/usr/local/sbin/pop3.proxy", gateway.to_str().unwrap());
        let server = conf.with("conf", text).serve(5, &[]);
        for (ip, upstream) in [
            ("192.168.1.1", "mailrelay.provider.com"),
            ("192.44.100.7", "mail.domain.com"),
        ] {
            let to = if ip == "192.168.1.1" {
                "127.0.0.1:25"
            } else {
                "127.0.0.2:25"
            };
            let listener = std::net::TcpListener::bind(to).unwrap();
            let client = server.connect(ip, 25);
            drop(listener.accept().unwrap());
            assert_eq!(read_all(client), b"");
            let closed = server
                .process
                .log
                .wait_for(&format!("server={upstream}:25 "));
            assert_eq!(field(&closed, "reason"), "server-closed");
        }
        let answer = server.answer("192.44.100.7", 110);
        assert_eq!(answer, "gateway to mail.domain.com for port 110\n");
        // What has only interfaces is served on no other address.
        for port in [25, 119, 110] {
            std::net::TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        }
    });
}

#[test]
fn the_manuals_sample_of_a_server_of_today_and_its_smallest_file_are_right() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/man/tcpproxy.conf.5");
    let page = fs::read_to_string(path).unwrap();
    let displays: Vec<&str> = page
        .split(".Bd -literal")
        .skip(1)
        .map(|rest| {
            rest.split_once('\n')
                .unwrap()
                .1
                .split(".Ed\n")
                .next()
                .unwrap()
        })
        .filter(|text| {
            let mut lines = text.lines().map(str::trim_start);
            lines.any(|line| line.starts_with("port ") || line.starts_with("bind "))
        })
        .collect();
    assert!(displays.len() >= 5, "{displays:#?}");
    for text in displays {
        let conf = Conf::new(text.replace("\\e", "\\"));
        assert_eq!(conf.says(&["--check"]).ok(), "ok\n", "{text}");
    }
}
