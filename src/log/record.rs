//! What is left of a session when it has ended, as a line of each format.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use super::journal::Ended;
use super::time::timestamp;
use crate::sys::{self, LocalTime};
use crate::terms::escape::escape_word;
use crate::terms::facts::{Facts, Via};
use crate::terms::reason::Reason;

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// As the closed line in the log.
    #[default]
    Tcpproxy,
    /// The web servers' common format, as rinetd fills it in.
    Common,
    /// rinetd's own: nine columns, separated by tabs.
    Rinetd,
    /// What rinetd itself would write, to the byte: also when a session opens.
    RinetdOpened,
    /// A JSON object.
    Json,
}

impl Format {
    /// The formats by name.
    pub(crate) const WORDS: &[(&str, Format)] = &[
        ("tcpproxy", Format::Tcpproxy),
        ("common", Format::Common),
        ("rinetd", Format::Rinetd),
        ("rinetd-opened", Format::RinetdOpened),
        ("json", Format::Json),
    ];
}

/// A service as it was written: rinetd's log has those words, and not the addresses that came of them.
pub(crate) trait Wording {
    /// The address or name that it listens at, if it was written for one.
    fn listener(&self) -> Option<String>;
    /// Where it leads first. `local_port` stands for one that is missing.
    fn server(&self, local_port: Option<u16>) -> String;
}

/// What became of a session.
pub(super) struct Record<'a> {
    pub(super) session: u64,
    /// What was known of its ends; `None` for a client that was gone before it could be looked at.
    pub(super) facts: Option<&'a Facts>,
    /// From its acceptance to its end.
    pub(super) duration: Duration,
    pub(super) ended: &'a Ended,
    /// What its service was written as, where that is known.
    pub(super) wording: Option<&'a dyn Wording>,
}

impl fmt::Display for Record<'_> {
    /// The closed line.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "session {} closed: client=", self.session)?;
        match self.facts {
            Some(facts) => write!(f, "{}{}", facts.client, Via(facts.via))?,
            None => f.write_str("-")?,
        }
        write!(
            f,
            " server={} sent={} received={} duration={:.3}s reason={}",
            escape_word(&self.ended.server),
            self.ended.sent,
            self.ended.received,
            self.duration.as_secs_f64(),
            self.ended.reason
        )?;
        match &self.ended.signal {
            Some(signal) => write!(f, " signal={signal}"),
            None => Ok(()),
        }
    }
}

impl Record<'_> {
    pub(super) fn in_format(&self, format: Format, now: SystemTime, tag: &str) -> String {
        match format {
            Format::Tcpproxy => format!("{} {tag}: {self}\n", timestamp(now, 3)),
            Format::Common => self.common(now),
            Format::Rinetd => self.rinetd(now),
            Format::RinetdOpened => self.rinetds_own(now),
            Format::Json => self.json(now),
        }
    }

    /// As rinetd's `logcommon`, with one blank before the zone and the true zone in its place.
    fn common(&self, now: SystemTime) -> String {
        let [local_host, local_port, server_host, server_port] = self.columns();
        // As Apache does it (mod_log_config, custom log formats); a backslash has become two before.
        let server_host = server_host.replace('"', "\\\"");
        let offset = sys::local_time(now).offset;
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        format!(
            "{} - - [{} {sign}{hours:02}{minutes:02}] \"GET /rinetd-services/{local_host}/\
             {local_port}/{server_host}/{server_port}/{} HTTP/1.0\" 200 {} - - - {}\n",
            self.client_host(),
            clf_time(now),
            self.rinetd_word(),
            self.ended.received,
            self.ended.sent,
        )
    }

    /// As rinetd's own format, without the blank behind the time.
    fn rinetd(&self, now: SystemTime) -> String {
        let columns = self.columns();
        let (sent, received) = (self.ended.sent, self.ended.received);
        let (client, word) = (self.client_host(), self.rinetd_word());
        let time = clf_time(now);
        format!(
            "{time}\t{client}\t{}\t{sent}\t{received}\t{word}\n",
            columns.join("\t")
        )
    }

    /// As rinetd's own log has it.
    fn rinetds_own(&self, now: SystemTime) -> String {
        let local_port = self.facts.and_then(|facts| facts.local.port());
        let server = match self.wording {
            Some(wording) if self.ended.server == "-" => wording.server(local_port),
            _ => self.ended.server.clone(),
        };
        let word = match self.rinetd_word() {
            // rinetd says why in a place that it then leaves empty.
            "local-connect-failed" => "local-connect-failed -",
            word => word,
        };
        let bytes = (self.ended.sent, self.ended.received);
        rinetds_own(now, self.facts, self.wording, &server, bytes, word)
    }

    fn client_host(&self) -> String {
        client_host(self.facts)
    }

    /// The local host and port, and the server's.
    fn columns(&self) -> [String; 4] {
        columns(self.facts, &self.ended.server)
    }

    /// rinetd's word for how it ended. Where it has none, ours.
    fn rinetd_word(&self) -> &'static str {
        match self.ended.reason {
            Reason::ClientClosed | Reason::ClientReset => "done-remote-closed",
            Reason::ServerClosed | Reason::ServerReset => "done-local-closed",
            Reason::DeniedByRule if self.ended.not_allowed => "not-allowed",
            Reason::DeniedByRule | Reason::DeniedByProgram => "denied",
            Reason::ConnectTimeout
            | Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::NameNotFound => "local-connect-failed",
            Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::MaxDuration
            | Reason::TooManySessions
            | Reason::TooManyFromClient
            | Reason::TooFastFromClient
            | Reason::BadProxyHeader
            | Reason::ProtocolError
            | Reason::Terminated
            | Reason::HandlerExited
            | Reason::HandlerFailed
            | Reason::InternalError => self.ended.reason.word(),
        }
    }

    fn json(&self, now: SystemTime) -> String {
        let mut object = String::from("{");
        let mut member = |name: &str, value: String| {
            let separator = if object.len() == 1 { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(object, "{separator}\"{name}\":{value}");
        };
        member("time", json_string(&timestamp(now, 3).to_string()));
        member("session", self.session.to_string());
        for (end, port, endpoint) in [
            (
                "client",
                "client_port",
                self.facts.map(|facts| facts.client),
            ),
            ("via", "via_port", self.facts.and_then(|facts| facts.via)),
            ("local", "local_port", self.facts.map(|facts| facts.local)),
        ] {
            if let Some(endpoint) = endpoint {
                member(end, json_string(&endpoint.host()));
                if let Some(number) = endpoint.port() {
                    member(port, number.to_string());
                }
            }
        }
        if let Some(name) = self.facts.and_then(|facts| facts.name.as_ref()) {
            member("name", json_string(name));
        }
        if self.ended.server != "-" {
            member("server", json_string(&self.ended.server));
        }
        member("sent", self.ended.sent.to_string());
        member("received", self.ended.received.to_string());
        member("duration", format!("{:.3}", self.duration.as_secs_f64()));
        member("reason", json_string(self.ended.reason.word()));
        if let Some(signal) = &self.ended.signal {
            member("signal", json_string(signal));
        }
        object + "}\n"
    }
}

/// The line that rinetd writes when a session opens.
pub(super) fn opened_line(now: SystemTime, facts: &Facts, wording: Option<&dyn Wording>) -> String {
    let server = wording.map_or_else(
        || "-".to_owned(),
        |wording| wording.server(facts.local.port()),
    );
    rinetds_own(now, Some(facts), wording, &server, (0, 0), "opened")
}

/// A line as rinetd's own log has it, with the blank behind the time, and what listens as it was
/// written.
fn rinetds_own(
    now: SystemTime,
    facts: Option<&Facts>,
    wording: Option<&dyn Wording>,
    server: &str,
    (sent, received): (u64, u64),
    word: &str,
) -> String {
    let mut columns = columns(facts, server);
    if let Some(listener) = wording.and_then(Wording::listener) {
        columns[0] = escape_word(listener);
    }
    let (time, client) = (clf_time(now), client_host(facts));
    format!(
        "{time} \t{client}\t{}\t{sent}\t{received}\t{word}\n",
        columns.join("\t")
    )
}

fn client_host(facts: Option<&Facts>) -> String {
    facts.map_or_else(|| "-".to_owned(), |facts| facts.client.host())
}

/// The local host and port, and the server's.
fn columns(facts: Option<&Facts>, server: &str) -> [String; 4] {
    let (local_host, local_port) = match facts {
        Some(Facts { local, .. }) => (local.host(), local.port().unwrap_or(0).to_string()),
        None => ("-".to_owned(), "0".to_owned()),
    };
    let server = escape_word(server);
    // A path is whole, whatever is in it.
    let (host, port) = match server.rsplit_once(':') {
        _ if server.contains('/') => return [local_host, local_port, server, "0".to_owned()],
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
        _ => (server.as_str(), "0"),
    };
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    [local_host, local_port, host, port.to_owned()]
}

/// A string as RFC 8259 §7 has it.
fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            // Writing to a String cannot fail.
            _ if c.is_control() => drop(write!(json, "\\u{:04x}", u32::from(c))),
            _ => json.push(c),
        }
    }
    json.push('"');
    json
}

/// The common log format's time: `20/Nov/2026:06:25:39`, in local time.
fn clf_time(moment: SystemTime) -> String {
    let LocalTime {
        year,
        day,
        hour,
        minute,
        second,
        ..
    } = sys::local_time(moment);
    let month = sys::local_time(moment).month_name();
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::endpoint::Endpoint;

    fn facts() -> Facts {
        Facts {
            session: 17,
            client: Endpoint::Inet("192.0.2.7:50123".parse().unwrap()),
            via: None,
            local: Endpoint::Inet("[2001:db8::1]:25".parse().unwrap()),
            original: None,
            name: Some("a\"b.example".to_owned()),
        }
    }

    fn ended() -> Ended {
        Ended {
            sent: 5,
            received: 7,
            ..Ended::without_bytes("[2001:db8::2]:26", Reason::ClientClosed)
        }
    }

    fn record<'a>(facts: &'a Facts, ended: &'a Ended) -> Record<'a> {
        Record {
            session: 17,
            facts: Some(facts),
            duration: Duration::from_millis(3201),
            ended,
            wording: None,
        }
    }

    #[test]
    fn the_closed_line_has_its_fields_in_order() {
        assert_eq!(
            record(&facts(), &ended()).to_string(),
            "session 17 closed: client=192.0.2.7:50123 server=[2001:db8::2]:26 sent=5 received=7 \
             duration=3.201s reason=client-closed"
        );
    }

    #[test]
    fn a_proxy_that_has_announced_the_client_stands_behind_it() {
        let facts = Facts {
            via: Some(Endpoint::Inet("[2001:db8::9]:40000".parse().unwrap())),
            ..facts()
        };
        let line = record(&facts, &ended()).to_string();
        let start = "session 17 closed: client=192.0.2.7:50123 via=[2001:db8::9]:40000 server=";
        assert!(line.starts_with(start), "{line}");
        let json = record(&facts, &ended()).json(SystemTime::now());
        let via = ",\"client_port\":50123,\"via\":\"2001:db8::9\",\"via_port\":40000,\"local\":";
        assert!(json.contains(via), "{json}");
    }

    #[test]
    fn rinetds_formats_have_its_columns() {
        let rinetd = record(&facts(), &ended()).rinetd(SystemTime::now());
        let columns: Vec<&str> = rinetd.trim_end_matches('\n').split('\t').collect();
        assert_eq!(
            columns[1..],
            [
                "192.0.2.7",
                "2001:db8::1",
                "25",
                "2001:db8::2",
                "26",
                "5",
                "7",
                "done-remote-closed"
            ]
        );
        let common = record(&facts(), &ended()).common(SystemTime::now());
        let request = "\"GET /rinetd-services/2001:db8::1/25/2001:db8::2/26/done-remote-closed \
                       HTTP/1.0\" 200 7 - - - 5\n";
        assert!(
            common.starts_with("192.0.2.7 - - [") && common.ends_with(request),
            "{common}"
        );
    }

    /// `0.0.0.0 25 mail.example 26`.
    struct Forwarding;

    impl Wording for Forwarding {
        fn listener(&self) -> Option<String> {
            Some("0.0.0.0".to_owned())
        }

        fn server(&self, _: Option<u16>) -> String {
            "mail.example:26".to_owned()
        }
    }

    #[test]
    fn what_rinetd_itself_writes_names_what_was_written() {
        let now = SystemTime::now();
        let (time, facts) = (clf_time(now), facts());
        let start = format!("{time} \t192.0.2.7\t0.0.0.0\t25\t");
        let opened = opened_line(now, &facts, Some(&Forwarding));
        assert_eq!(opened, format!("{start}mail.example\t26\t0\t0\topened\n"));
        for (reason, not_allowed, rest) in [
            (
                Reason::ClientClosed,
                false,
                "2001:db8::2\t26\t5\t7\tdone-remote-closed",
            ),
            (
                Reason::ConnectFailed,
                false,
                "2001:db8::2\t26\t5\t7\tlocal-connect-failed -",
            ),
            (
                Reason::DeniedByRule,
                true,
                "mail.example\t26\t0\t0\tnot-allowed",
            ),
            (
                Reason::DeniedByRule,
                false,
                "mail.example\t26\t0\t0\tdenied",
            ),
        ] {
            let ended = match reason {
                Reason::DeniedByRule => Ended {
                    not_allowed,
                    ..Ended::before_action(reason)
                },
                _ => Ended { reason, ..ended() },
            };
            let record = Record {
                wording: Some(&Forwarding),
                ..record(&facts, &ended)
            };
            let line = record.in_format(Format::RinetdOpened, now, "");
            assert_eq!(line, format!("{start}{rest}\n"));
        }
    }

    #[test]
    fn a_handlers_path_stays_one_field_in_each_format() {
        for (path, escaped) in [
            ("/bin/a \"b\"", "/bin/a\\x20\"b\""),
            ("/bin/a\\\"b\\", "/bin/a\\\\\"b\\\\"),
            ("/bin/a\tb\n\u{1b}", "/bin/a\\x09b\\x0a\\x1b"),
            ("/bin/\u{fffd}\u{85}", "/bin/\u{fffd}\\u{85}"),
            ("/bin/a:25", "/bin/a:25"),
            ("./[", "./["),
            ("./[a]:7]", "./[a]:7]"),
            ("unix:/run/a:7", "unix:/run/a:7"),
        ] {
            let ended = Ended::without_bytes(path, Reason::HandlerExited);
            let facts = facts();
            let record = record(&facts, &ended);
            let line = record.to_string();
            assert!(
                line.contains(&format!(" server={escaped} sent=0 ")),
                "{line}"
            );
            let rinetd = record.rinetd(SystemTime::now());
            let columns: Vec<&str> = rinetd.split('\t').collect();
            assert_eq!((columns.len(), columns[4], columns[5]), (9, escaped, "0"));
            let common = record.common(SystemTime::now());
            let (_, request) = common.split_once('"').unwrap();
            // As Apache has it: a quote within the field has a backslash before it.
            let expected = format!(
                "GET /rinetd-services/2001:db8::1/25/{}/0/handler-exited HTTP/1.0\" 200 0 - - - 0\n",
                escaped.replace('"', "\\\"")
            );
            assert_eq!(request, expected);
        }
    }

    #[test]
    fn rinetds_words_tell_a_deny_from_a_missing_allow() {
        let denied = |not_allowed| {
            let ended = Ended {
                reason: Reason::DeniedByRule,
                not_allowed,
                ..ended()
            };
            record(&facts(), &ended).rinetd_word()
        };
        assert_eq!(denied(false), "denied");
        assert_eq!(denied(true), "not-allowed");
    }

    #[test]
    fn json_is_an_object_with_what_is_known() {
        let json = record(&facts(), &ended()).json(SystemTime::now());
        let (_, known) = json.split_once(",\"session\"").unwrap();
        assert_eq!(
            known,
            ":17,\"client\":\"192.0.2.7\",\"client_port\":50123,\"local\":\"2001:db8::1\",\
             \"local_port\":25,\"name\":\"a\\\"b.example\",\"server\":\"[2001:db8::2]:26\",\
             \"sent\":5,\"received\":7,\"duration\":3.201,\"reason\":\"client-closed\"}\n"
        );
        assert_eq!(json_string("\n"), "\"\\u000a\"");
    }
}
