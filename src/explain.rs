//! What would happen to a client: `--explain`.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::gate::Verdict;
use crate::service::{Action, Service, Services};
use crate::settings::Explained;
use crate::sys::names::accounts;
use crate::sys::user::{self, Ids};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::escape::brief;
use crate::terms::value::Complaint;

impl Explained {
    /// Parses `C` or `C,L`: a client's address (or `unix`), and the local address, port, or both
    /// that it reaches.
    pub fn parse(text: &str) -> Result<Explained, Complaint> {
        let (client, local) = match text.split_once(',') {
            Some((client, local)) => (client, Some(local)),
            None => (text, None),
        };
        let client = match client {
            "unix" => None,
            _ => Some(address(client).ok_or_else(|| {
                format!(
                    "'{}' is not an IP address (or the word unix)",
                    brief(client)
                )
            })?),
        };
        let (local, port) = match local {
            None => (None, None),
            Some(local) => parse_local(local)?,
        };
        Ok(Explained {
            client,
            local,
            port,
        })
    }

    fn client(&self) -> Endpoint {
        match self.client {
            Some(address) => Endpoint::Inet(SocketAddr::new(address.to_canonical(), 0)),
            None => Endpoint::Unix,
        }
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(text).parse().ok()
}

fn parse_local(text: &str) -> Result<(Option<IpAddr>, Option<u16>), Complaint> {
    if let Some(address) = address(text) {
        return Ok((Some(address), None));
    }
    match text.rsplit_once(':') {
        Some(("" | "*", port)) => Ok((None, Some(accounts::port(port)?))),
        Some((local, port)) => match address(local) {
            Some(address) => Ok((Some(address), Some(accounts::port(port)?))),
            None => Err(format!("'{}' is not an IP address", brief(local))),
        },
        None => Ok((None, Some(accounts::port(text)?))),
    }
}

/// What there is to say, and whether the rules would let the client in everywhere it asked for.
pub struct Explanation {
    /// Lines for people.
    pub text: String,
    /// Whether the rules would let it in.
    pub admitted: bool,
}

/// Explains what would happen to a client. Where it was not said what it reaches, every service is
/// explained, and it has to be let in by all of them.
pub fn explain(asked: &Explained, services: &Services) -> Result<Explanation, Error> {
    let chosen: Vec<&Service> = match (asked.local, asked.port) {
        (Some(local), Some(port)) => {
            let reached = Endpoint::Inet(SocketAddr::new(local.to_canonical(), port));
            services
                .find(&reached)?
                .into_iter()
                .map(AsRef::as_ref)
                .collect()
        }
        (Some(local), None) => services.all_for(local)?,
        (None, Some(port)) => services.all_on(port),
        (None, None) => services.all().map(AsRef::as_ref).collect(),
    };
    if chosen.is_empty() {
        return Ok(Explanation {
            text: "service: none is configured for that address and port\n".to_owned(),
            admitted: false,
        });
    }
    let mut explanation = Explanation {
        text: String::new(),
        admitted: true,
    };
    for (number, service) in chosen.into_iter().enumerate() {
        if number > 0 {
            explanation.text.push('\n');
        }
        explanation.admitted &= explain_one(asked, service, &mut explanation.text);
    }
    Ok(explanation)
}

fn explain_one(asked: &Explained, service: &Service, text: &mut String) -> bool {
    let client = asked.client();
    let verdict = service.gate.rules.judge(&client);
    let (admitted, rule) = match verdict {
        Verdict::Pass(rule) => (true, rule),
        Verdict::Refuse(rule) => (false, rule),
    };
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}: {value}");
    };
    line("client", &client.host());
    line("service", &service.label);
    line(
        "rules",
        match admitted {
            true => "admitted",
            false => "refused",
        },
    );
    line(
        "rule",
        &match (admitted, rule) {
            (_, Some(rule)) => format!("{rule} ({})", rule.place()),
            (true, None) => "none applies".to_owned(),
            (false, None) => "no allow rule matches".to_owned(),
        },
    );
    line(
        "program",
        &match &service.gate.program {
            Some(access) => brief(access.program.line().as_encoded_bytes()),
            None => "none is asked".to_owned(),
        },
    );
    line(
        "user",
        &match user::has_root() {
            true => service.ids.to_string(),
            false => format!("{} (started as root: {})", Ids::current(), service.ids),
        },
    );
    let server = brief(
        service
            .server_line(asked.port.or(service.port))
            .as_encoded_bytes(),
    );
    match service.action {
        Action::Forward(_) => line("upstream", &server),
        Action::Exec(_) => line("handler", &server),
    }
    admitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_what_they_reach_are_read_in_every_form() {
        let parsed = |text: &str| Explained::parse(text).unwrap();
        let of = |client: &str, local: Option<&str>, port| Explained {
            client: Some(client.parse().unwrap()),
            local: local.map(|local| local.parse().unwrap()),
            port,
        };
        assert_eq!(parsed("192.0.2.7"), of("192.0.2.7", None, None));
        assert_eq!(parsed("::1,25"), of("::1", None, Some(25)));
        assert_eq!(parsed("::1,[::2]:25"), of("::1", Some("::2"), Some(25)));
        assert_eq!(parsed("[::1],::2"), of("::1", Some("::2"), None));
        assert_eq!(
            parsed("1.2.3.4,5.6.7.8:25"),
            of("1.2.3.4", Some("5.6.7.8"), Some(25))
        );
        assert_eq!(parsed("unix").client, None);
        for text in [
            "",
            "host",
            "1.2.3",
            "1.2.3.4,",
            "1.2.3.4,host:25",
            "1.2.3.4,70000",
        ] {
            assert!(Explained::parse(text).is_err(), "{text}");
        }
    }
}
