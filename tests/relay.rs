//! The relay as its two peers see it, under each engine.

mod harness;

use std::io::Write;
use std::net::Shutdown;

use harness::{Engine, Standalone, Upstream, field, read_all};

#[test]
fn reply_arrives_after_the_client_half_closes() {
    for engine in Engine::ALL {
        let upstream = Upstream::new(|mut stream| {
            let request = read_all(&stream);
            stream.write_all(b"reply").unwrap();
            request
        });
        let proxy = Standalone::start_with(engine, &[&upstream.name()]);
        let mut client = proxy.connect();
        client.write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(client), b"reply", "{engine:?}");
        assert_eq!(upstream.result(), b"request", "{engine:?}");
        let closed = proxy.closed();
        assert_eq!(field(&closed, "reason"), "client-closed", "{engine:?}");
        assert_eq!(field(&closed, "sent"), "7", "{engine:?}");
        assert_eq!(field(&closed, "received"), "5", "{engine:?}");
    }
}
