//! The effective configuration as a tcpproxy.conf that means the same.

use std::fmt::Write;

use crate::config::settings::{SETTINGS, Scope, Setting, Written};
use crate::config::{Config, Destination, Entry};
use crate::terms::value::{quote, quote_command};

/// Prints a configuration with every setting's effective value, defaults included. Services stand
/// on their own: what they inherit is written out in each. But for the rules: those of the defaults
/// may be of another level than those of a service, and there may be thousands of both.
pub fn print(config: &Config) -> String {
    let has_rules = config.defaults.rules.own().next().is_some();
    let is_of_rules = |setting: &Setting| matches!(setting.name, "allow" | "deny");
    let mut text = String::new();
    settings(&mut text, &config.defaults, "", |setting| {
        // The server itself logs too.
        setting.scope == Scope::Server
            || setting.name == "log-name"
            || has_rules && is_of_rules(setting)
    });
    for entry in &config.services {
        let Entry {
            place: _,
            interface,
            port,
            written,
            destination,
            destination_place: _,
        } = entry;
        let place = format!("{interface}:{port}");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\nbind {}", quote(&place));
        match destination {
            Destination::Upstreams(upstreams) => {
                for upstream in upstreams {
                    let _ = writeln!(text, "    server {}", quote(&upstream.name(None)));
                }
            }
            Destination::Handler(program) => {
                let _ = writeln!(text, "    exec {}", quote_command(&program.words()));
            }
        }
        let effective = written.clone().in_service(&config.defaults);
        settings(&mut text, &effective, "    ", |setting| {
            let none_but_above = has_rules && is_of_rules(setting);
            setting.scope == Scope::Service
                && !(none_but_above && (setting.show)(&effective).is_empty())
        });
    }
    text
}

/// Prints the settings by which a connection is served that is handed over, for a server that is
/// named on the command line: a file has no place for that but a comment.
pub(crate) fn print_handed_over(defaults: &Written, destination: &Destination) -> String {
    let mut text = String::new();
    settings(&mut text, defaults, "", |setting| {
        setting.scope != Scope::CommandLine
    });
    let server = match destination {
        Destination::Upstreams(upstreams) => {
            let names = upstreams.iter().map(|upstream| quote(&upstream.name(None)));
            format!("server {}", names.collect::<Vec<_>>().join(" "))
        }
        Destination::Handler(program) => format!("exec {}", quote_command(&program.words())),
    };
    text + &format!("# for the connection that is handed over: {server}\n")
}

fn settings(text: &mut String, written: &Written, indent: &str, wanted: impl Fn(&Setting) -> bool) {
    for setting in SETTINGS.iter().filter(|setting| wanted(setting)) {
        let values = (setting.show)(written);
        // Writing to a String cannot fail.
        if values.is_empty() {
            let _ = writeln!(text, "{indent}# {} is not set", setting.name);
        }
        for value in values {
            let _ = writeln!(text, "{indent}{} {value}", setting.name);
        }
    }
}
