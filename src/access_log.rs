//! A line per ended session in a file of its own, for programs that read such files.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::log::{self, timestamp};
use crate::sys::{self, LocalTime};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::escape::{escape, escape_word};
use crate::terms::reason::Reason;

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// As the closed line in the log.
    #[default]
    Tcpproxy,
    /// The web servers' common format, as rinetd fills it in.
    Common,
    /// rinetd's own: nine columns, separated by tabs.
    Rinetd,
    /// A JSON object.
    Json,
}

impl Format {
    /// The formats by name.
    pub const WORDS: &[(&str, Format)] = &[
        ("tcpproxy", Format::Tcpproxy),
        ("common", Format::Common),
        ("rinetd", Format::Rinetd),
        ("json", Format::Json),
    ];
}

/// What became of a session.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number.
    pub session: u64,
    /// The client, if it was still there to be known.
    pub client: Option<Endpoint>,
    /// The client's name, where it was looked up and confirmed.
    pub name: Option<String>,
    /// What the client had connected to.
    pub local: Option<Endpoint>,
    /// The upstream or handler that was used last; `-` if none was reached for.
    pub server: String,
    /// Bytes delivered to the upstream.
    pub sent: u64,
    /// Bytes delivered to the client.
    pub received: u64,
    /// From its acceptance to its end.
    pub duration: Duration,
    /// Why it ended.
    pub reason: Reason,
    /// It was refused as no allow rule matched, rather than by a deny rule.
    pub not_allowed: bool,
    /// The signal that ended its process, if one did.
    pub signal: Option<String>,
}

impl fmt::Display for Record {
    /// The closed line.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "session {} closed: client=", self.session)?;
        match &self.client {
            Some(client) => write!(f, "{client}")?,
            None => f.write_str("-")?,
        }
        write!(
            f,
            " server={} sent={} received={} duration={:.3}s reason={}",
            escape_word(&self.server),
            self.sent,
            self.received,
            self.duration.as_secs_f64(),
            self.reason
        )?;
        match &self.signal {
            Some(signal) => write!(f, " signal={signal}"),
            None => Ok(()),
        }
    }
}

impl Record {
    fn in_format(&self, format: Format, now: SystemTime, tag: &str) -> String {
        match format {
            Format::Tcpproxy => format!("{} {tag}: {self}\n", timestamp(now, 3)),
            Format::Common => self.common(now),
            Format::Rinetd => self.rinetd(now),
            Format::Json => self.json(now),
        }
    }

    /// As rinetd's `logcommon`, with one blank before the zone and the true zone in its place.
    fn common(&self, now: SystemTime) -> String {
        let [local_host, local_port, server_host, server_port] = self.columns();
        let offset = sys::local_time(now).offset;
        let sign = if offset < 0 { '-' } else { '+' };
        let (hours, minutes) = (offset.abs() / 60, offset.abs() % 60);
        format!(
            "{} - - [{} {sign}{hours:02}{minutes:02}] \"GET /rinetd-services/{local_host}/\
             {local_port}/{server_host}/{server_port}/{} HTTP/1.0\" 200 {} - - - {}\n",
            self.client_host(),
            clf_time(now),
            self.rinetd_word(),
            self.received,
            self.sent,
        )
    }

    /// As rinetd's own format, without the blank behind the time.
    fn rinetd(&self, now: SystemTime) -> String {
        let [local_host, local_port, server_host, server_port] = self.columns();
        format!(
            "{}\t{}\t{local_host}\t{local_port}\t{server_host}\t{server_port}\t{}\t{}\t{}\n",
            clf_time(now),
            self.client_host(),
            self.sent,
            self.received,
            self.rinetd_word(),
        )
    }

    fn client_host(&self) -> String {
        self.client
            .map_or_else(|| "-".to_owned(), |client| client.host())
    }

    /// The local host and port, and the server's.
    fn columns(&self) -> [String; 4] {
        let (local_host, local_port) = match self.local {
            Some(local) => (local.host(), local.port().unwrap_or(0).to_string()),
            None => ("-".to_owned(), "0".to_owned()),
        };
        let server = escape_word(&self.server);
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
            _ => (server.as_str(), "0"),
        };
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        [local_host, local_port, host, port.to_owned()]
    }

    /// rinetd's word for how it ended. Where it has none, ours.
    fn rinetd_word(&self) -> &'static str {
        match self.reason {
            Reason::ClientClosed | Reason::ClientReset => "done-remote-closed",
            Reason::ServerClosed | Reason::ServerReset => "done-local-closed",
            Reason::DeniedByRule if self.not_allowed => "not-allowed",
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
            | Reason::Terminated
            | Reason::HandlerExited
            | Reason::HandlerFailed
            | Reason::InternalError => self.reason.word(),
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
            ("client", "client_port", self.client),
            ("local", "local_port", self.local),
        ] {
            if let Some(endpoint) = endpoint {
                member(end, json_string(&endpoint.host()));
                if let Some(number) = endpoint.port() {
                    member(port, number.to_string());
                }
            }
        }
        if let Some(name) = &self.name {
            member("name", json_string(name));
        }
        if self.server != "-" {
            member("server", json_string(&self.server));
        }
        member("sent", self.sent.to_string());
        member("received", self.received.to_string());
        member("duration", format!("{:.3}", self.duration.as_secs_f64()));
        member("reason", json_string(self.reason.word()));
        if let Some(signal) = &self.signal {
            member("signal", json_string(signal));
        }
        object + "}\n"
    }
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

/// What was written about the access log.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// What its lines look like.
    pub format: Format,
}

/// The file.
#[derive(Debug)]
pub struct AccessLog {
    file: File,
    format: Format,
}

impl AccessLog {
    /// Opens the file, or creates it.
    pub fn open(settings: &Settings) -> Result<AccessLog, Error> {
        let Settings { path, format } = settings;
        let file = log::open_file(path).map_err(|error| {
            let path = escape(path.as_os_str().as_encoded_bytes());
            Error::io(format_args!("access log {path}"), &error)
        })?;
        Ok(AccessLog {
            file,
            format: *format,
        })
    }

    /// Writes a line, with one write, so that lines of several processes do not mix.
    pub fn write(&self, record: &Record, tag: &str) -> io::Result<()> {
        let line = record.in_format(self.format, SystemTime::now(), tag);
        let mut file = &self.file;
        file.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            session: 17,
            client: Some(Endpoint::Inet("192.0.2.7:50123".parse().unwrap())),
            name: Some("a\"b.example".to_owned()),
            local: Some(Endpoint::Inet("[2001:db8::1]:25".parse().unwrap())),
            server: "[2001:db8::2]:26".to_owned(),
            sent: 5,
            received: 7,
            duration: Duration::from_millis(3201),
            reason: Reason::ClientClosed,
            not_allowed: false,
            signal: None,
        }
    }

    #[test]
    fn the_closed_line_has_its_fields_in_order() {
        assert_eq!(
            record().to_string(),
            "session 17 closed: client=192.0.2.7:50123 server=[2001:db8::2]:26 sent=5 received=7 \
             duration=3.201s reason=client-closed"
        );
    }

    #[test]
    fn rinetds_formats_have_its_columns() {
        let rinetd = record().rinetd(SystemTime::now());
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
        let common = record().common(SystemTime::now());
        let request = "\"GET /rinetd-services/2001:db8::1/25/2001:db8::2/26/done-remote-closed \
                       HTTP/1.0\" 200 7 - - - 5\n";
        assert!(
            common.starts_with("192.0.2.7 - - [") && common.ends_with(request),
            "{common}"
        );
    }

    #[test]
    fn rinetds_words_tell_a_deny_from_a_missing_allow() {
        let denied = |not_allowed| Record {
            reason: Reason::DeniedByRule,
            not_allowed,
            ..record()
        };
        assert_eq!(denied(false).rinetd_word(), "denied");
        assert_eq!(denied(true).rinetd_word(), "not-allowed");
    }

    #[test]
    fn json_is_an_object_with_what_is_known() {
        let json = record().json(SystemTime::now());
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
