//! The control connection: what its lines are turned into on their way.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Parties;
use super::data::Data;
use crate::config::service::Ftp;
use crate::log::Journal;
use crate::protocol::ftp::{
    Dialogue, Ends, FirstLine, Heard, LONGEST_LINE, NO_DATA_CONNECTION, Told, first_line,
};
use crate::relay::{Desk, Machine, Ready, Side};
use crate::terms::escape::brief;

/// The control connection of a session.
pub(super) struct Control {
    /// What it is about, as long as it can be read.
    dialogue: Option<Dialogue>,
    /// When a line last came, of either side.
    last_line: Instant,
}

/// How long our own answers wait for a server that may have nothing more to say.
const PATIENCE: Duration = Duration::from_secs(2);

impl Control {
    pub(super) fn new(parties: &Parties, plan: &Ftp) -> Control {
        let reached = match parties.reached.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let named = parties.client.is_ipv4().then_some(plan.address.or(reached));
        Control {
            dialogue: Some(Dialogue::new(Ends {
                client: parties.client.ip(),
                server: parties.server.ip(),
                named: named.flatten(),
            })),
            last_line: Instant::now(),
        }
    }

    /// When something is due, if nothing comes until then.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        let waits = self.dialogue.as_ref().is_some_and(Dialogue::waits_in_vain);
        waits.then(|| self.last_line + PATIENCE)
    }

    /// Turns what has arrived into what goes on, and has it sent. A sentence says why that cannot be.
    pub(super) fn edit(
        &mut self,
        machine: &mut Machine,
        data: &mut Data,
        now: Instant,
        journal: &Journal,
    ) -> Option<String> {
        if self.wakes_at().is_some_and(|at| at <= now)
            && let Some(dialogue) = &mut self.dialogue
        {
            dialogue.has_waited();
        }
        loop {
            let commands = self.edit_commands(machine, data);
            let replies = self.edit_replies(machine, data, now, journal);
            if commands == Ok(true) || replies == Ok(true) {
                self.last_line = now;
            }
            // Also to pass on an end of input that nothing is left in front of.
            machine.advance([Ready::default(); 2], now, None);
            match (commands, replies) {
                (Ok(false), Ok(false)) => return None,
                (Ok(_), Ok(_)) => {}
                (Err(wrong), _) | (_, Err(wrong)) => return Some(wrong),
            }
        }
    }

    /// Edits what has come from the client. Returns whether there was something to do.
    fn edit_commands(&mut self, machine: &mut Machine, data: &mut Data) -> Result<bool, String> {
        let has_ended = machine.has_ended(Side::Client);
        let Some(desk) = machine.desk(Side::Client) else {
            return Ok(false);
        };
        let mut taken = 0;
        while desk.onward.len() < Desk::MOST_ONWARD {
            let rest = &desk.arrived[taken..];
            let Some(dialogue) = &mut self.dialogue else {
                desk.onward.extend_from_slice(rest);
                taken = desk.arrived.len();
                break;
            };
            if dialogue.client_is_to_wait() {
                break;
            }
            let Some(line) = next_line(rest, has_ended, "client")? else {
                break;
            };
            match dialogue.command(line) {
                Told::Pass => desk.onward.extend_from_slice(line),
                Told::Instead(command) => desk.onward.extend(command),
                Told::Listen(active) => {
                    let at = data.listen_for_server(active.port);
                    desk.onward
                        .extend(dialogue.listening(active, at).unwrap_or_default());
                }
                Told::Answered(None) => {}
                Told::Answered(Some(why)) => {
                    let command = brief(line.trim_ascii());
                    data.notice(format_args!("refused: '{command}' {why}"));
                }
            }
            taken += line.len();
        }
        desk.arrived.drain(..taken);
        Ok(taken > 0)
    }

    /// The same of what has come from the server, and of what we answer in its place.
    fn edit_replies(
        &mut self,
        machine: &mut Machine,
        data: &mut Data,
        now: Instant,
        journal: &Journal,
    ) -> Result<bool, String> {
        let has_ended = machine.has_ended(Side::Upstream);
        let Some(desk) = machine.desk(Side::Upstream) else {
            return Ok(false);
        };
        if !desk.arrived.is_empty() {
            // What it has connected for before it said so is to come first.
            data.accept(now);
        }
        let before = desk.onward.len();
        let mut taken = 0;
        while desk.onward.len() < Desk::MOST_ONWARD && !data.is_reaching_the_client() {
            let rest = &desk.arrived[taken..];
            let Some(dialogue) = &mut self.dialogue else {
                desk.onward.extend_from_slice(rest);
                taken = desk.arrived.len();
                break;
            };
            while let Some(answer) = dialogue.own_answer() {
                desk.onward.extend(answer.into_bytes());
            }
            let Some(line) = next_line(rest, has_ended, "server")? else {
                break;
            };
            match dialogue.reply(line) {
                Heard::Pass => desk.onward.extend_from_slice(line),
                Heard::Withheld => {}
                Heard::Listen { asked, port } => {
                    let port = data.listen_for_client(port);
                    desk.onward.extend(asked.reply(port).into_bytes());
                }
                Heard::Unreadable => {
                    let reply = brief(line.trim_ascii());
                    data.notice(format_args!(
                        "'{reply}' does not say where the server listens"
                    ));
                    desk.onward.extend(NO_DATA_CONNECTION.bytes());
                }
                Heard::Opaque => {
                    journal.notice(
                        "AUTH was accepted: the control connection cannot be read any more, \
                         and further data connections are not followed",
                    );
                    desk.onward.extend_from_slice(line);
                    self.dialogue = None;
                }
            }
            taken += line.len();
        }
        desk.arrived.drain(..taken);
        Ok(taken > 0 || desk.onward.len() > before)
    }
}

/// The line that bytes begin with, if it is whole, or no more will come.
fn next_line<'a>(bytes: &'a [u8], has_ended: bool, side: &str) -> Result<Option<&'a [u8]>, String> {
    match first_line(bytes) {
        FirstLine::Whole(length) => Ok(Some(&bytes[..length])),
        FirstLine::Part if has_ended && !bytes.is_empty() => Ok(Some(bytes)),
        FirstLine::Part => Ok(None),
        FirstLine::TooLong => Err(format!(
            "a line of the {side}'s is longer than {LONGEST_LINE} bytes: this is not FTP"
        )),
    }
}
