//! What would happen to a client: `--explain`.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::config::service::{Action, Help, Service, Services};
use crate::config::settings::Explained;
use crate::gate::{Rule, Verdict};
use crate::sys::user::{self, Ids};
use crate::terms::endpoint::Endpoint;
use crate::terms::error::Error;
use crate::terms::escape::brief;

/// What there is to say, and whether the rules would let the client in everywhere it asked for.
pub(crate) struct Explanation {
    /// Lines for people.
    pub text: String,
    /// Whether the rules would let it in.
    pub admitted: bool,
}

/// Explains what would happen to a client. Where it was not said what it reaches, every service is
/// explained, and it has to be let in by all of them.
pub(crate) fn explain(asked: &Explained, services: &Services) -> Result<Explanation, Error> {
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
    let (admitted, rule) = match service.gate.judge(&client) {
        Verdict::Pass([None, None]) => (true, "none applies".to_owned()),
        Verdict::Pass(allows) => {
            let name = |rule: &Rule| format!("{rule} ({})", rule.place());
            let names: Vec<String> = allows.into_iter().flatten().map(name).collect();
            (true, names.join(", "))
        }
        Verdict::Refuse(denial) => (false, denial.to_string()),
    };
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}: {value}");
    };
    line("client", &client.host());
    line("service", &service.label);
    line("rules", if admitted { "admitted" } else { "refused" });
    line("rule", &rule);
    line(
        "program",
        &match &service.gate.program {
            Some(access) => brief(access.program.line().as_encoded_bytes()),
            None => "none is asked".to_owned(),
        },
    );
    line(
        "user",
        &if user::has_root() {
            service.ids.to_string()
        } else {
            format!("{} (started as root: {})", Ids::current(), service.ids)
        },
    );
    let port = asked.port.or(service.port);
    let server = service.server_line(|upstream| upstream.name(port));
    let server = brief(server.as_encoded_bytes());
    match &service.action {
        Action::Forward(forward) => {
            if !service.program_may_choose() {
                line("upstream", &server);
            } else if server.is_empty() {
                line("upstream", "the program names it");
            } else {
                let server = format!("{server}, unless the program names another");
                line("upstream", &server);
            }
            if let Some(proxy) = &forward.route.via {
                line("via", &proxy.to_string());
            }
            match &forward.help {
                Some(Help::Ftp(_)) => line("helper", "ftp"),
                Some(Help::HttpProxy { .. }) => line("helper", "http-proxy"),
                None => {}
            }
        }
        Action::Exec(_) => line("handler", &server),
    }
    admitted
}
