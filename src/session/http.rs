//! HTTP: requests that clients meant for an origin server are made what the upstream, a proxy, understands
//! (RFC 9112, section 3.2.2). What is a request is `protocol::http`'s business; here is what it takes the
//! system to know, and what becomes of the connections.

use std::collections::VecDeque;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::log::Journal;
use crate::protocol::http::{Authority, Dialogue, Form, Name, Refusal, Request, Turn};
use crate::relay::transcript::Transcript;
use crate::relay::{self, Desk, Hunch, Machine, Outcome, Ready, Relay, Side, Tap};
use crate::sys::names::lookup;
use crate::sys::sockets;
use crate::sys::vigil::Vigil;
use crate::terms::reason::Reason;

/// How long the addresses of a host may be looked for: as long as resolvers wait for one server
/// (resolv.conf(5)). A host that is not found by then is not taken for what the client meant.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Of how many names it is known whether they are the original destination's. A connection has one or two.
const MOST_KNOWN: usize = 16;

/// Between a client that may think that it speaks with an origin server, and a proxy.
pub(super) struct Translator<'a> {
    dialogue: Dialogue,
    destination: Destination<'a>,
    /// What every request is to ask for, unless this very page led to it.
    force: Option<&'a str>,
    ending: Option<Ending>,
    journal: &'a Journal<'a>,
}

/// How it ends where the client has said what is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It is to be told why when it is our turn.
    Pending(Refusal),
    /// It is being told.
    Answered,
}

impl<'a> Translator<'a> {
    /// For a client that had connected to `original` before it was redirected, if it was.
    pub(super) fn new(
        original: Option<SocketAddr>,
        force: Option<&'a str>,
        ends_at: Option<Instant>,
        journal: &'a Journal<'a>,
    ) -> Translator<'a> {
        Translator {
            dialogue: Dialogue::default(),
            destination: Destination {
                original,
                known: VecDeque::new(),
                was_told: false,
                ends_at,
                journal,
            },
            force,
            ending: None,
            journal,
        }
    }

    /// Drives a session to its end.
    #[cold]
    pub(super) fn drive(
        mut self,
        machine: &mut Machine,
        mut transcript: Option<&mut Transcript>,
    ) -> nix::Result<Outcome> {
        self.journal.catch_up();
        let mut hunch = Hunch::default();
        loop {
            let tap = transcript.as_deref_mut().map(|tap| tap as &mut dyn Tap);
            let now = relay::turn(&mut [Relay { machine, tap }], &[], &mut hunch, None)?;
            self.edit(machine, now);
            if let Some(error) = transcript.as_deref_mut().and_then(Transcript::take_failure) {
                super::warn_of_transcript(self.journal, &error);
            }
            if let Some(outcome) = machine.end() {
                return Ok(outcome);
            }
        }
    }

    /// Turns what has arrived into what goes on, and has it sent.
    fn edit(&mut self, machine: &mut Machine, now: Instant) {
        loop {
            let requests = self.edit_requests(machine);
            let answers = self.edit_answers(machine);
            let told = self.answer(machine);
            // Also to pass on an end of input that nothing is left in front of.
            machine.advance([Ready::default(); 2], now, None);
            if !(requests || answers || told) {
                break;
            }
        }
        if self.ending == Some(Ending::Answered) {
            self.close_if_told(machine);
        }
    }

    /// Edits what has come from the client. Returns whether there was something to do.
    fn edit_requests(&mut self, machine: &mut Machine) -> bool {
        if self.ending.is_some() {
            return false;
        }
        let has_ended = machine.has_ended(Side::Client);
        let mut moved = false;
        while let Some(desk) = machine.desk(Side::Client) {
            if desk.onward.len() >= Desk::MOST_ONWARD {
                return moved;
            }
            if self.dialogue.is_opaque() {
                return pass(desk) || moved;
            }
            let (taken, request) = match self.dialogue.request(&desk.arrived, &mut desk.onward) {
                Ok(read) => read,
                Err(refusal) => {
                    self.refuse(refusal);
                    return true;
                }
            };
            desk.arrived.drain(..taken);
            if let Some(request) = request {
                let translated = self.translate(&request, machine);
                match (translated, machine.desk(Side::Client)) {
                    (Ok(head), Some(desk)) => desk.onward.extend(head),
                    (Ok(_), None) => {}
                    (Err(refusal), _) => {
                        self.dialogue.withhold();
                        self.refuse(refusal);
                        return true;
                    }
                }
            } else if taken == 0 {
                break;
            }
            moved = true;
        }
        // Who has reset its connection is not there to be told, and has no desk for it either.
        if has_ended && self.dialogue.is_in_head() && machine.desk(Side::Upstream).is_some() {
            self.refuse(Refusal::Bad("the head is not complete"));
            return true;
        }
        moved
    }

    /// A request's head as the proxy is to have it.
    fn translate(&mut self, request: &Request, machine: &Machine) -> Result<Vec<u8>, Refusal> {
        let mut head = Vec::new();
        let forced = self
            .force
            .filter(|url| request.referer() != Some(url.as_bytes()));
        match (forced, request.form()) {
            // There is no page at the other end of a tunnel.
            (Some(_), Form::Authority) => return Err(Refusal::Bad("CONNECT is not allowed here")),
            (Some(url), Form::Origin | Form::Absolute | Form::Asterisk) => {
                request.write_with_target(url, &mut head);
            }
            (None, Form::Origin) => {
                let destination = &mut self.destination;
                let original = destination.original;
                let is_there = |name: &Name, meant: IpAddr| destination.is(name, meant, machine);
                let authority = Authority::of(request.host(), original, is_there)
                    .ok_or(Refusal::Bad("nothing says which host is meant"))?;
                request.write_prefixed(&format!("http://{authority}"), &mut head);
            }
            (None, Form::Absolute | Form::Authority | Form::Asterisk) => request.write(&mut head),
        }
        Ok(head)
    }

    /// Follows what has come from the proxy, and lets it go on. Returns whether there was something.
    fn edit_answers(&mut self, machine: &mut Machine) -> bool {
        match machine.desk(Side::Upstream) {
            Some(desk)
                if desk.onward.len() < Desk::MOST_ONWARD
                    && self.ending != Some(Ending::Answered) =>
            {
                self.dialogue.answer(&desk.arrived);
                pass(desk)
            }
            Some(_) | None => false,
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.journal.refusal(format_args!("bad request: {refusal}"));
        self.ending = Some(Ending::Pending(refusal));
    }

    /// Tells the client why it is refused, if it is, as soon as nothing is to come before that. Returns
    /// whether it has.
    fn answer(&mut self, machine: &mut Machine) -> bool {
        let Some(Ending::Pending(refusal)) = self.ending else {
            return false;
        };
        match (self.dialogue.turn(), machine.desk(Side::Upstream)) {
            (Turn::Proxys, Some(_)) => false,
            (Turn::Ours, Some(desk)) => {
                desk.onward.extend(refusal.answer().into_bytes());
                self.ending = Some(Ending::Answered);
                true
            }
            // It can be told nothing any more.
            (Turn::Over, _) | (_, None) => {
                machine.give_up(Reason::ProtocolError);
                false
            }
        }
    }

    /// Ends the session once the client has been sent why. It may take a moment to read it.
    fn close_if_told(&mut self, machine: &mut Machine) {
        if let Some(desk) = machine.desk(Side::Upstream) {
            if !desk.onward.is_empty() {
                return;
            }
            // Nobody has asked for it.
            desk.arrived.clear();
            sockets::dismiss(machine.socket(Side::Client));
        }
        if let Some(desk) = machine.desk(Side::Client)
            && !self.dialogue.is_in_body()
        {
            // The proxy misses nothing of it, and need not be reset: it has whole requests.
            desk.arrived.clear();
        }
        machine.give_up(Reason::ProtocolError);
    }
}

/// Lets everything on a desk go on. Returns whether there was something.
fn pass(desk: &mut Desk) -> bool {
    if desk.arrived.is_empty() {
        return false;
    }
    if desk.onward.is_empty() {
        mem::swap(&mut desk.arrived, &mut desk.onward);
    } else {
        desk.onward.append(&mut desk.arrived);
    }
    true
}

/// Where a client meant to go, and which names lead there.
struct Destination<'a> {
    original: Option<SocketAddr>,
    known: VecDeque<(String, bool)>,
    /// That some name does not lead there has been said.
    was_told: bool,
    ends_at: Option<Instant>,
    journal: &'a Journal<'a>,
}

impl Destination<'_> {
    /// Whether a name is that of the address that was meant.
    fn is(&mut self, name: &Name, meant: IpAddr, machine: &Machine) -> bool {
        let name = match name {
            Name::Address(address) => return address.to_canonical() == meant,
            Name::Named(name) => name,
        };
        let mut known = self.known.iter();
        if let Some((_, is_it)) = known.find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            return *is_it;
        }
        let client = machine.socket(Side::Client);
        let latest = Instant::now() + LOOKUP_TIMEOUT;
        let mut vigil = Vigil::over(client, self.ends_at).within(latest);
        // Where the wait was cut short, the machine learns why by itself.
        let found = lookup::addresses(name, 0, &mut vigil).unwrap_or_default();
        let is_it = found.iter().any(|found| found.ip().to_canonical() == meant);
        if !is_it && !mem::replace(&mut self.was_told, true) {
            self.journal.notice(format_args!(
                "the Host field names {name}, which is not at {meant}, where the client meant to \
                 go: the request goes by that address"
            ));
        }
        if self.known.len() >= MOST_KNOWN {
            self.known.pop_front();
        }
        self.known.push_back((name.clone(), is_it));
        is_it
    }
}
