//! The proxy on the way to a service's upstreams: what two settings and a file say about it together.

use super::file::{Files, Problem, Telling};
use super::settings::Written;
use super::{Destination, Entry, Unusable};
use crate::terms::credentials::Credentials;
use crate::terms::error::Error;
use crate::terms::escape::{brief, escape};
use crate::terms::place::Place;
use crate::upstream::ForwardProxy;

/// What is longer is no line with user and password, in bytes: four times what SOCKS has room for.
const LONGEST_LINE: usize = 2048;

/// The proxy through which a service forwards in which this was written, with its credentials.
pub(super) fn proxy_for(
    written: &Written,
    destination: &Destination,
    destination_place: &Place,
    files: &dyn Files,
) -> Result<Option<Box<ForwardProxy>>, Problem> {
    let Destination::Upstreams(upstreams) = destination else {
        return Ok(None);
    };
    let Some(via) = &written.via else {
        return Ok(None);
    };
    let Some(proxy) = &via.value else {
        return Ok(None);
    };
    for upstream in upstreams {
        if let Some(why) = ForwardProxy::objection(upstream) {
            let name = brief(upstream.name(None));
            let what = format!(
                "server {name}: {why}, and via has one ({}): write via no where it is to be reached",
                via.place
            );
            return Err(Problem::misplaced(destination_place.clone(), what));
        }
    }
    let Some(auth) = &written.via_auth else {
        return Ok(Some(Box::new(proxy.clone())));
    };
    if proxy.has_credentials() {
        let what = format!(
            "via-auth: via has a user and a password already ({}): write them in one of the two",
            via.place
        );
        return Err(Problem::misplaced(auth.place.clone(), what));
    }
    let credentials = files
        .read(&auth.value, LONGEST_LINE + 1)
        .map_err(|why| format!("cannot be read: {why}"))
        .and_then(|bytes| in_first_line(&bytes));
    let proxy = credentials.and_then(|credentials| proxy.clone().with(credentials));
    proxy.map(|proxy| Some(Box::new(proxy))).map_err(|why| {
        let name = escape(auth.value.as_os_str().as_encoded_bytes());
        Problem::wrong(auth.place.clone(), format!("via-auth: {name}: {why}"))
    })
}

fn in_first_line(bytes: &[u8]) -> Result<Credentials, String> {
    let line = bytes
        .split(|&byte| byte == b'\n')
        .next()
        .unwrap_or_default();
    if line.len() > LONGEST_LINE {
        return Err(format!("its first line has more than {LONGEST_LINE} bytes"));
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    Credentials::parse(line).map_err(|why| format!("its first line {why}"))
}

/// Complaints about credentials that no proxy is told.
pub(super) fn unused_auth(entries: &[Entry], defaults: &Written) -> Vec<Problem> {
    let is_used = |written: &Written| written.via.as_ref().is_some_and(|via| via.value.is_some());
    let any_uses = is_used(defaults) || entries.iter().any(|entry| is_used(&entry.written));
    let of_defaults = defaults.via_auth.as_ref().filter(|_| !any_uses);
    let of_services = entries.iter().filter_map(|entry| {
        let via = entry.written.via.as_ref().or(defaults.via.as_ref());
        let is_used = via.is_some_and(|via| via.value.is_some());
        entry.written.via_auth.as_ref().filter(|_| !is_used)
    });
    let unused = of_defaults.into_iter().chain(of_services);
    unused
        .map(|auth| {
            let what = "via-auth: there is no via here, to whose proxy it could be told";
            Problem::misplaced(auth.place.clone(), what)
        })
        .collect()
}

/// As [`proxy_for`], where the command line says what is served. A mistake in it is one of usage.
pub(super) fn proxy_of_the_only(
    written: &Written,
    destination: &Destination,
    files: &dyn Files,
) -> Result<Option<Box<ForwardProxy>>, Unusable> {
    let usage_or_problem = |problem: Problem| match (&problem.place, problem.telling) {
        (Place::CommandLine, Telling::Misplaced) => Unusable::Error(Error::usage(option(&problem))),
        (Place::CommandLine, _) => Unusable::Error(Error::config(option(&problem))),
        (Place::File { .. }, _) => Unusable::Problems(vec![problem]),
    };
    if let Some(problem) = unused_auth(&[], written).pop() {
        return Err(usage_or_problem(problem));
    }
    proxy_for(written, destination, &Place::CommandLine, files).map_err(usage_or_problem)
}

/// A problem on the command line, as other options have theirs.
fn option(problem: &Problem) -> String {
    match problem.what.strip_prefix("via-auth: ") {
        Some(what) => format!("option --via-auth: {what}"),
        None => problem.what.clone(),
    }
}
