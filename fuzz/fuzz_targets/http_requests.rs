//! What a client says is read the same in whatever pieces it comes; and what goes on to the proxy, with
//! other targets, is the same requests with the same bodies to whoever reads it: were it not, a request
//! could be hidden in another one. What a proxy says takes no answer from the wrong request.
//!
//! The first byte says into what pieces the rest is cut. Run with `cargo fuzz run -s none http_requests`
//! (cargo-fuzz).
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpproxy::http::{Authority, Dialogue, Form, Refusal, Request, Requests};

/// A reader's account of a stream: each request, and what was passed on behind its head.
#[derive(Debug, PartialEq)]
struct Account {
    requests: Vec<(Request, Vec<u8>)>,
    refusal: Option<Refusal>,
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Account {
    let mut requests = Requests::default();
    let mut account = Account {
        requests: Vec::new(),
        refusal: None,
    };
    for mut rest in pieces {
        while !rest.is_empty() {
            let mut body = Vec::new();
            let read = requests.read(rest, &mut body);
            if let Some((_, bodies)) = account.requests.last_mut() {
                bodies.extend(body);
            } else {
                assert!(body.is_empty());
            }
            match read {
                Ok((taken, request)) => {
                    assert!(taken > 0);
                    rest = &rest[taken..];
                    account
                        .requests
                        .extend(request.map(|request| (request, Vec::new())));
                }
                Err(refusal) => {
                    account.refusal = Some(refusal);
                    return account;
                }
            }
        }
    }
    account
}

/// The head as the proxy is to have it.
fn translated(request: &Request) -> Vec<u8> {
    let mut head = Vec::new();
    match (
        request.form(),
        Authority::of(request.host(), None, |_, _| true),
    ) {
        (Form::Origin, Some(authority)) => {
            request.write_prefixed(&format!("http://{authority}"), &mut head);
        }
        _ => request.write(&mut head),
    }
    head
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, said)) = bytes.split_first() else {
        return;
    };
    let whole = read([said].into_iter());
    let pieces = read(said.chunks(usize::from(cut) + 1));
    assert_eq!(whole.requests, pieces.requests);
    // A head that is not complete need not be looked at with every piece.
    assert!(whole.refusal.is_some() || pieces.refusal.is_none());

    let mut onward = Vec::new();
    for (request, body) in &whole.requests {
        onward.extend(translated(request));
        onward.extend(body);
    }
    let proxys = read([&onward[..]].into_iter());
    assert_eq!(proxys.refusal, None);
    assert_eq!(proxys.requests.len(), whole.requests.len());
    for ((ours, our_body), (proxys, proxys_body)) in whole.requests.iter().zip(&proxys.requests) {
        assert_eq!(our_body, proxys_body);
        assert_eq!(ours.host(), proxys.host());
        let form = match ours.form() {
            Form::Origin if ours.host().is_some() => Form::Absolute,
            form => form,
        };
        assert_eq!(proxys.form(), form);
        assert!(proxys.target().ends_with(ours.target()));
    }

    // Both sides at once: whatever the order, each byte is taken once at most.
    let mut dialogue = Dialogue::default();
    let (client, proxy) = said.split_at(said.len() / 2);
    let mut rest = client;
    for answer in proxy.chunks(usize::from(cut) + 1) {
        if let Ok((taken, _)) = dialogue.request(rest, &mut Vec::new()) {
            rest = &rest[taken..];
        }
        dialogue.answer(answer);
        let _ = dialogue.turn();
    }
});
