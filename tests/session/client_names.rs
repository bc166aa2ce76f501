//! The client's name, as programs and the log have it: confirmed, in time, and harmless.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use crate::harness::name_server::{Answer, name_server, names};
use crate::harness::namespaces::privately;
use crate::harness::processes::children;
use crate::harness::upstreams::Upstream;
use crate::harness::{Scratch, Standalone, eventually, field};

/// What a program finds in PROXY_CLIENTNAME, how long that took, and the opened line.
fn client_name() -> (String, Duration, String) {
    let scratch = Scratch::new();
    let program = scratch.script("name", "echo \"[$PROXY_CLIENTNAME]\"");
    let proxy = Standalone::start(&[program.to_str().unwrap()]);
    let start = Instant::now();
    let mut line = String::new();
    BufReader::new(proxy.connect())
        .read_line(&mut line)
        .unwrap();
    let took = start.elapsed();
    let opened = proxy.process.log.wait_for(" opened: ");
    proxy.closed();
    eventually("every child to end", || {
        children(proxy.process.pid()).is_empty().then_some(())
    });
    (line.trim_end().to_owned(), took, opened)
}

#[test]
fn programs_see_a_client_name_that_leads_back_to_the_client() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "127.0.0.1 friend.example alias.example\n");
        let (name, _, opened) = client_name();
        assert_eq!(name, "[friend.example]");
        assert_eq!(field(&opened, "name"), "friend.example");
    });
}

#[test]
fn programs_see_the_address_where_the_name_leads_elsewhere() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|name, _| match name {
            "1.0.0.127.in-addr.arpa" => Answer::Name(vec![b"bank".into(), b"example".into()]),
            "bank.example" => Answer::Address([192, 0, 2, 66]),
            _ => Answer::Unknown,
        });
        let (name, _, opened) = client_name();
        assert_eq!(name, "[127.0.0.1]");
        assert!(!opened.contains("name="), "{opened}");
        assert!(!opened.contains("bank"), "{opened}");
    });
}

#[test]
fn programs_see_a_name_from_the_dns_that_leads_back() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|name, _| match name {
            "1.0.0.127.in-addr.arpa" => Answer::Name(vec![b"good".into(), b"example".into()]),
            "good.example" => Answer::Address([127, 0, 0, 1]),
            _ => Answer::Unknown,
        });
        assert_eq!(client_name().0, "[good.example]");
    });
}

#[test]
fn a_name_that_takes_long_delays_a_program_by_2_seconds_at_most() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|_, _| Answer::Silence);
        let (name, took, opened) = client_name();
        assert_eq!(name, "[127.0.0.1]");
        assert!((1_900..3_000).contains(&took.as_millis()), "{took:?}");
        assert!(!opened.contains("name="), "{opened}");
    });
}

#[test]
fn a_name_made_to_forge_the_log_does_not() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|name, _| match name {
            "1.0.0.127.in-addr.arpa" => Answer::Name(vec![
                b"x\nsession 99 closed: reason=x y\x1b[31m".into(),
                b"example".into(),
            ]),
            // Whatever it is taken for, it leads back.
            _ => Answer::Address([127, 0, 0, 1]),
        });
        let (name, _, opened) = client_name();
        assert!(!name.contains("session 99"), "{name}");
        assert!(
            !opened.contains("session 99 closed: reason=x y"),
            "{opened}"
        );
        assert!(!opened.contains('\x1b'), "{opened}");
    });
}

#[test]
fn a_name_that_is_read_as_the_address_itself_is_none() {
    for labels in [
        &["2130706433"][..],
        &["0x7f000001"],
        &["0177", "1"],
        &["127", "0", "0", "1"],
    ] {
        privately(|| {
            let scratch = Scratch::new();
            let _names = names(&scratch, "");
            name_server(|name, _| match name {
                "1.0.0.127.in-addr.arpa" => {
                    Answer::Name(labels.iter().map(|label| label.as_bytes().into()).collect())
                }
                _ => Answer::Unknown,
            });
            let (name, _, opened) = client_name();
            assert_eq!(name, "[127.0.0.1]", "{labels:?}");
            assert!(!opened.contains("name="), "{opened}");
        });
    }
}

#[test]
fn no_name_is_looked_up_where_no_program_asks() {
    privately(|| {
        let scratch = Scratch::new();
        let _names = names(&scratch, "");
        name_server(|_, _| Answer::Silence);
        let upstream = Upstream::new(|mut stream| stream.write_all(b"at once").unwrap());
        let proxy = Standalone::start(&[&upstream.name()]);
        let mut heard = [0; 7];
        let start = Instant::now();
        proxy.connect().read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"at once");
        assert!(start.elapsed() < Duration::from_millis(900));
    });
}
