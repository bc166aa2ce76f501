//! Which reply belongs to which command, and what becomes of both.

use std::collections::VecDeque;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::command::{self, Command, Family};
use super::reply::{self, Part, Replies};
use super::without_telnet;

/// The addresses between which a dialogue is.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The client's.
    pub client: IpAddr,
    /// The server's.
    pub server: IpAddr,
    /// Ours, as a 227 is to name it; `None` where the client has reached us by IPv6.
    pub named: Option<Ipv4Addr>,
}

/// The control connection of one client, from the server's greeting on.
#[derive(Debug)]
pub struct Dialogue {
    ends: Ends,
    expected: VecDeque<Expected>,
    replies: Replies,
    /// The client has asked for EPSV ALL, and the server has not been told.
    only_epsv: bool,
    /// A transfer was aborted since it was last certain which replies are to come.
    is_uncertain: bool,
}

/// What is to come from the server, or from us in its place.
#[derive(Debug)]
enum Expected {
    /// So many replies to commands of no consequence.
    Replies(u64),
    Passive(Passive),
    /// The reply to PORT or EPRT.
    Active,
    Auth,
    /// Our own reply to a command that the server does not see.
    Own(String),
}

/// How the client has asked for a listener, and so is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passive {
    /// By PASV: the answer names this address.
    Pasv(Ipv4Addr),
    /// By EPSV: the answer names a port alone.
    Epsv,
}

/// A command that names where the client listens.
#[derive(Debug, PartialEq, Eq)]
pub struct Active {
    /// At which port of its own address.
    pub port: u16,
    /// Whether the server is told by PORT.
    by_port: bool,
    /// What was for Telnet in the line.
    telnet: Vec<u8>,
}

/// What is to become of a client's line.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// The server gets it as it is.
    Pass,
    /// The server gets this instead.
    Instead(Vec<u8>),
    /// The server does not see it: we have [answered](Dialogue::own_answer), for this reason if it is
    /// worth a word.
    Answered(Option<&'static str>),
    /// We are to listen for the server: see [`Dialogue::listening`].
    Listen(Active),
}

/// What is to become of a server's line.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The client gets it as it is.
    Pass,
    /// It is withheld.
    Withheld,
    /// We are to listen for the client, whose connection is for this port of the server's: see
    /// [`Passive::reply`].
    Listen {
        /// How we are to answer.
        asked: Passive,
        /// The server's port.
        port: u16,
    },
    /// It does not say where the server listens: the client gets [`NO_DATA_CONNECTION`].
    Unreadable,
    /// The client gets it as it is, and so does everybody whatever comes behind it.
    Opaque,
}

/// The lowest port that a client may name: no service of its own machine, such as mail, is below.
const LOWEST_PORT: u16 = 1024;

/// As many commands that concern us may wait for their replies.
const MOST_EXPECTED: usize = 16;

/// Our answer where there is nothing to listen with.
pub const NO_DATA_CONNECTION: &str = "425 Can't open a data connection.\r\n";

const NOT_ITS_OWN: &str = "does not name the client's own address and a port of at least 1024";
const HIDDEN: &str = "has another command behind what might be taken for the end of a line";

impl Passive {
    /// The reply that says where we listen, if we do.
    pub fn reply(self, port: Option<u16>) -> String {
        match (self, port) {
            (_, None) => NO_DATA_CONNECTION.to_owned(),
            (Passive::Pasv(address), Some(port)) => reply::reply_to_pasv(address, port),
            (Passive::Epsv, Some(port)) => reply::reply_to_epsv(port),
        }
    }
}

impl Dialogue {
    /// The dialogue that begins with the server's greeting.
    pub fn new(ends: Ends) -> Dialogue {
        Dialogue {
            ends,
            expected: VecDeque::from([Expected::Replies(1)]),
            replies: Replies::default(),
            only_epsv: false,
            is_uncertain: false,
        }
    }

    /// Whether the client's next line is to wait for replies: what comes behind AUTH may be no line.
    pub fn client_is_to_wait(&self) -> bool {
        let counts = |expected: &&Expected| !matches!(expected, Expected::Replies(_));
        self.expected.iter().filter(counts).count() >= MOST_EXPECTED
            || matches!(self.expected.back(), Some(Expected::Auth))
    }

    /// Reads a line of the client's.
    pub fn command(&mut self, line: &[u8]) -> Told {
        if command::hides_another(line) {
            return self.answer("501 A command has to end with CR and LF.\r\n", Some(HIDDEN));
        }
        let (text, telnet) = without_telnet(line);
        let Ends {
            client,
            server,
            named,
        } = self.ends;
        let (client_family, server_family) = (Family::of(client), Family::of(server));
        let instead = |command: &str| Told::Instead([&telnet[..], command.as_bytes()].concat());
        match command::read(&text) {
            Command::Nothing => Told::Pass,
            Command::Other => self.expect(Expected::Replies(1), Told::Pass),
            Command::Abor => {
                self.is_uncertain = true;
                self.expect(Expected::Replies(1), Told::Pass)
            }
            Command::Auth => self.expect(Expected::Auth, Told::Pass),
            Command::Pasv | Command::Port(_) | Command::Eprt(_) if self.only_epsv => {
                self.answer("501 EPSV ALL was asked for.\r\n", None)
            }
            Command::Pasv => match (named, server_family) {
                (None, _) => self.answer("425 PASV is for IPv4: use EPSV.\r\n", None),
                (Some(named), Family::V4) => {
                    self.expect(Expected::Passive(Passive::Pasv(named)), Told::Pass)
                }
                (Some(named), Family::V6) => {
                    let asked = Passive::Pasv(named);
                    self.expect(Expected::Passive(asked), instead("EPSV\r\n"))
                }
            },
            Command::EpsvBy(family) if family != client_family => self.answer_family(),
            Command::Epsv | Command::EpsvBy(_) => {
                let told = match (client_family, server_family) {
                    (Family::V4, Family::V4) | (Family::V6, Family::V6) => Told::Pass,
                    (Family::V4, Family::V6) => instead("EPSV\r\n"),
                    // All servers of IPv4 know that.
                    (Family::V6, Family::V4) => instead("PASV\r\n"),
                };
                self.expect(Expected::Passive(Passive::Epsv), told)
            }
            // It would refuse the PASV by which it is told of an EPSV.
            Command::EpsvAll if (client_family, server_family) == (Family::V6, Family::V4) => {
                self.only_epsv = true;
                self.answer("200 EPSV ALL command successful.\r\n", None)
            }
            Command::EpsvAll => self.expect(Expected::Replies(1), Told::Pass),
            Command::Eprt(at) if Family::of(at.ip()) != client_family => self.answer_family(),
            Command::OtherProtocol => self.answer_family(),
            command @ (Command::Port(at) | Command::Eprt(at)) => {
                if at.ip() != client.to_canonical() || at.port() < LOWEST_PORT {
                    let refusal = "501 Only your own address will do, and a port from 1024 on.\r\n";
                    return self.answer(refusal, Some(NOT_ITS_OWN));
                }
                let was_port = matches!(command, Command::Port(_));
                Told::Listen(Active {
                    port: at.port(),
                    by_port: was_port || client_family == Family::V6,
                    telnet,
                })
            }
            Command::Malformed => self.answer("501 Syntax error in the argument.\r\n", None),
            Command::Long => self.answer("502 Use EPSV or EPRT.\r\n", None),
        }
    }

    /// What the server is told where we listen for it; nothing if we do not, which we have
    /// [answered](Dialogue::own_answer).
    pub fn listening(&mut self, active: Active, at: Option<SocketAddr>) -> Option<Vec<u8>> {
        let Some(at) = at else {
            self.expected
                .push_back(Expected::Own(NO_DATA_CONNECTION.to_owned()));
            return None;
        };
        self.expected.push_back(Expected::Active);
        let command = command::active(at, active.by_port);
        Some([&active.telnet[..], command.as_bytes()].concat())
    }

    /// Reads a line of the server's. To be asked for our [own answers](Dialogue::own_answer) before and
    /// behind it.
    pub fn reply(&mut self, line: &[u8]) -> Heard {
        let (text, _) = without_telnet(line);
        match self.replies.read(&text) {
            // Only its last line has the code that we answer with.
            Part::Text(Some(227 | 229)) if self.expected_passive().is_some() => Heard::Withheld,
            Part::Text(_) | Part::Last(100..=199) => Heard::Pass,
            Part::Last(code @ (227 | 229)) => match self.take_passive() {
                Some(asked) => {
                    let port = match code {
                        227 => reply::port_in_227(&text),
                        _ => reply::port_in_229(&text),
                    };
                    port.map_or(Heard::Unreadable, |port| Heard::Listen { asked, port })
                }
                None => self.take_reply(code),
            },
            Part::Last(code) => self.take_reply(code),
        }
    }

    /// Whether an answer of ours waits for replies of which some may never come: a server that is told to
    /// abort a transfer need not have one for each command (pure-ftpd 1.0.50 has none).
    pub fn waits_in_vain(&self) -> bool {
        let is_own = |expected: &Expected| matches!(expected, Expected::Own(_));
        self.is_uncertain && !self.replies.is_within_one() && self.expected.iter().any(is_own)
    }

    /// Learns that the server says no more. To be told while something [waits](Dialogue::waits_in_vain).
    pub fn has_waited(&mut self) {
        self.is_uncertain = false;
        while let Some(Expected::Replies(_)) = self.expected.front() {
            self.expected.pop_front();
        }
    }

    /// Our own answer whose turn has come, if one's has.
    pub fn own_answer(&mut self) -> Option<String> {
        if self.replies.is_within_one() {
            return None;
        }
        if let Some(Expected::Own(answer)) = self.expected.front_mut() {
            let answer = mem::take(answer);
            self.expected.pop_front();
            return Some(answer);
        }
        None
    }

    fn expect(&mut self, expected: Expected, told: Told) -> Told {
        match (self.expected.back_mut(), expected) {
            (Some(Expected::Replies(count)), Expected::Replies(more)) => *count += more,
            (_, expected) => self.expected.push_back(expected),
        }
        told
    }

    fn answer(&mut self, answer: &str, why: Option<&'static str>) -> Told {
        self.expect(Expected::Own(answer.to_owned()), Told::Answered(why))
    }

    /// Says which protocol there is: the one by which the client has come.
    fn answer_family(&mut self) -> Told {
        let number = Family::of(self.ends.client).number();
        let answer = format!("522 Network protocol not supported, use ({number})\r\n");
        self.answer(&answer, None)
    }

    fn expected_passive(&self) -> Option<usize> {
        let is_passive = |expected: &Expected| matches!(expected, Expected::Passive(_));
        self.expected.iter().position(is_passive)
    }

    /// Takes the first PASV or EPSV that waits for its reply. Where others wait in front of it, the server
    /// has left their replies out.
    fn take_passive(&mut self) -> Option<Passive> {
        let at = self.expected_passive()?;
        let Some(Expected::Passive(asked)) = self.expected.remove(at) else {
            return None;
        };
        let behind = self.expected.split_off(at);
        self.expected
            .retain(|expected| matches!(expected, Expected::Own(_)));
        self.expected.extend(behind);
        self.is_uncertain = false;
        Some(asked)
    }

    /// Takes whatever command this code is the reply to.
    fn take_reply(&mut self, code: u16) -> Heard {
        match self.expected.front_mut() {
            Some(Expected::Replies(count)) if *count > 1 => *count -= 1,
            // What ends a transfer is no reply to what prepares the next: some servers have two for ABOR.
            Some(Expected::Passive(_) | Expected::Active) if matches!(code, 225 | 226 | 250) => {}
            Some(Expected::Auth) => {
                self.expected.pop_front();
                if code == 234 {
                    return Heard::Opaque;
                }
            }
            Some(Expected::Replies(_) | Expected::Passive(_) | Expected::Active) => {
                self.expected.pop_front();
            }
            Some(Expected::Own(_)) | None => {}
        }
        Heard::Pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(client: &str, server: &str) -> Dialogue {
        let client: IpAddr = client.parse().unwrap();
        let mut dialogue = Dialogue::new(Ends {
            client,
            server: server.parse().unwrap(),
            named: client.is_ipv4().then_some(Ipv4Addr::new(192, 0, 2, 9)),
        });
        assert_eq!(dialogue.reply(b"220 ready\r\n"), Heard::Pass);
        dialogue
    }

    const V4: &str = "192.0.2.1";
    const V6: &str = "2001:db8::1";

    fn instead(command: &str) -> Told {
        Told::Instead(command.as_bytes().to_vec())
    }

    #[track_caller]
    fn assert_answered(dialogue: &mut Dialogue, line: &str, code: &str) {
        let told = dialogue.command(line.as_bytes());
        assert!(matches!(told, Told::Answered(_)), "{line}: {told:?}");
        let answer = dialogue.own_answer().unwrap();
        assert!(
            answer.starts_with(code) && answer.ends_with("\r\n"),
            "{line}: {answer}"
        );
    }

    #[test]
    fn pasv_and_epsv_are_translated_where_the_families_differ() {
        let pasv = "227 (198,51,100,1,4,1)\r\n";
        let epsv = "229 (|||1025|)\r\n";
        let named = Passive::Pasv(Ipv4Addr::new(192, 0, 2, 9));
        for (client, server, line, expected, reply, asked) in [
            (V4, V4, "PASV\r\n", Told::Pass, pasv, named),
            (V4, V4, "EPSV 1\r\n", Told::Pass, epsv, Passive::Epsv),
            (V6, V6, "EPSV 2\r\n", Told::Pass, epsv, Passive::Epsv),
            (V4, V6, "PASV\r\n", instead("EPSV\r\n"), epsv, named),
            (
                V4,
                V6,
                "EPSV 1\r\n",
                instead("EPSV\r\n"),
                epsv,
                Passive::Epsv,
            ),
            (
                V6,
                V4,
                "EPSV 2\r\n",
                instead("PASV\r\n"),
                pasv,
                Passive::Epsv,
            ),
            (V6, V4, "EPSV\r\n", instead("PASV\r\n"), pasv, Passive::Epsv),
        ] {
            let mut dialogue = dialogue(client, server);
            assert_eq!(dialogue.command(line.as_bytes()), expected, "{line}");
            let heard = dialogue.reply(reply.as_bytes());
            assert_eq!(heard, Heard::Listen { asked, port: 1025 }, "{line}");
            // It was one reply to one command.
            assert_eq!(dialogue.reply(reply.as_bytes()), Heard::Pass);
        }
        assert_answered(&mut dialogue(V6, V6), "PASV\r\n", "425 ");
        assert_answered(
            &mut dialogue(V4, V4),
            "EPSV 2\r\n",
            "522 Network protocol not supported, use (1)",
        );
        assert_answered(
            &mut dialogue(V6, V4),
            "EPSV 1\r\n",
            "522 Network protocol not supported, use (2)",
        );
        assert_answered(&mut dialogue(V4, V4), "EPSV 7\r\n", "522 ");
        assert_answered(&mut dialogue(V4, V4), "EPSV x\r\n", "501 ");
    }

    #[test]
    fn epsv_all_is_the_servers_to_keep_unless_it_is_told_of_no_epsv() {
        for (client, server) in [(V4, V4), (V6, V6), (V4, V6)] {
            assert_eq!(
                dialogue(client, server).command(b"EPSV ALL\r\n"),
                Told::Pass
            );
        }
        let mut dialogue = dialogue(V6, V4);
        assert_answered(&mut dialogue, "EPSV ALL\r\n", "200 ");
        assert_answered(&mut dialogue, "EPRT |2|2001:db8::1|1025|\r\n", "501 ");
        assert_eq!(dialogue.command(b"EPSV\r\n"), instead("PASV\r\n"));
    }

    #[test]
    fn port_and_eprt_are_translated_and_name_our_listener() {
        for (client, server, line, ours, expected) in [
            (
                V4,
                V4,
                "PORT 192,0,2,1,4,1",
                "192.0.2.8:2000",
                "PORT 192,0,2,8,7,208\r\n",
            ),
            (
                V4,
                V4,
                "EPRT |1|192.0.2.1|1025|",
                "192.0.2.8:2000",
                "EPRT |1|192.0.2.8|2000|\r\n",
            ),
            (
                V4,
                V6,
                "PORT 192,0,2,1,4,1",
                "[2001:db8::8]:2000",
                "EPRT |2|2001:db8::8|2000|\r\n",
            ),
            (
                V6,
                V4,
                "EPRT |2|2001:db8::1|1025|",
                "192.0.2.8:2000",
                "PORT 192,0,2,8,7,208\r\n",
            ),
            (
                V6,
                V6,
                "EPRT |2|2001:DB8:0::1|1025|",
                "[2001:db8::8]:2000",
                "EPRT |2|2001:db8::8|2000|\r\n",
            ),
        ] {
            let mut dialogue = dialogue(client, server);
            let Told::Listen(active) = dialogue.command(line.as_bytes()) else {
                panic!("{line}");
            };
            assert_eq!(active.port, 1025, "{line}");
            let told = dialogue.listening(active, Some(ours.parse().unwrap()));
            assert_eq!(told.as_deref(), Some(expected.as_bytes()), "{line}");
        }
    }

    #[test]
    fn no_address_but_the_clients_own_gets_through() {
        for line in [
            "PORT 198,51,100,7,4,1\r\n",
            "PORT 127,0,0,1,4,1\r\n",
            "PORT 192,0,2,1,0,25\r\n",
            "PORT 192,0,2,1,3,255\r\n",
            "PORT 192,0,2,1\r\n",
            "EPRT |1|198.51.100.7|1025|\r\n",
            "EPRT |1|192.0.2.1|1023|\r\n",
            "NOOP\rPORT 198,51,100,7,4,1\r\n",
        ] {
            assert_answered(&mut dialogue(V4, V4), line, "501 ");
        }
        assert_answered(
            &mut dialogue(V4, V4),
            "EPRT |2|2001:db8::1|1025|\r\n",
            "522 ",
        );
        assert_answered(&mut dialogue(V4, V4), "EPRT |9|x|1025|\r\n", "522 ");
        assert_answered(&mut dialogue(V4, V4), "LPRT 4,4,1,2,3,4,2,5,6\r\n", "502 ");
        assert_answered(&mut dialogue(V6, V6), "PORT 192,0,2,1,4,1\r\n", "501 ");
    }

    #[test]
    fn own_answers_come_between_those_of_the_server() {
        let mut dialogue = dialogue(V4, V4);
        for line in [&b"NOOP\r\n"[..], b"HELP\r\n"] {
            assert_eq!(dialogue.command(line), Told::Pass);
        }
        let told = dialogue.command(b"PORT 127,0,0,1,0,1\r\n");
        assert_eq!(told, Told::Answered(Some(NOT_ITS_OWN)));
        assert_eq!(dialogue.command(b"NOOP\r\n"), Told::Pass);
        for line in ["200 ok\r\n", "214-help\r\n", "200 text\r\n"] {
            assert_eq!(dialogue.own_answer(), None, "{line}");
            assert_eq!(dialogue.reply(line.as_bytes()), Heard::Pass);
        }
        assert_eq!(dialogue.own_answer(), None);
        assert_eq!(dialogue.reply(b"214 end\r\n"), Heard::Pass);
        assert!(
            dialogue
                .own_answer()
                .is_some_and(|answer| answer.starts_with("501 "))
        );
        assert_eq!(dialogue.own_answer(), None);
    }

    #[test]
    fn an_own_answer_waits_for_the_greeting() {
        let named = None;
        let [client, server] = [V4, V4].map(|address| address.parse().unwrap());
        let mut dialogue = Dialogue::new(Ends {
            client,
            server,
            named,
        });
        dialogue.command(b"PORT 127,0,0,1,0,1\r\n");
        for line in ["120 soon\r\n", "220-welcome\r\n", "220 ready\r\n"] {
            assert_eq!(dialogue.own_answer(), None, "{line}");
            assert_eq!(dialogue.reply(line.as_bytes()), Heard::Pass);
        }
        assert!(dialogue.own_answer().is_some());
    }

    #[test]
    fn what_a_server_leaves_out_or_has_twice_does_not_hide_where_it_listens() {
        let asked = Passive::Pasv(Ipv4Addr::new(192, 0, 2, 9));
        let mut dialogue = dialogue(V4, V4);
        for line in [&b"RETR a\r\n"[..], b"ABOR\r\n", b"PASV\r\n"] {
            assert_eq!(dialogue.command(line), Told::Pass);
        }
        for line in [
            "426 aborted\r\n",
            "226 done\r\n",
            "225 done\r\n",
            "227-I\r\n",
        ] {
            let heard = dialogue.reply(line.as_bytes());
            let is_first = line.contains('-');
            assert_eq!(heard == Heard::Withheld, is_first, "{line}");
        }
        let heard = dialogue.reply(b"227 (1,2,3,4,4,1)\r\n");
        assert_eq!(heard, Heard::Listen { asked, port: 1025 });
        for line in [&b"RETR a\r\n"[..], b"ABOR\r\n", b"LPRT\r\n", b"PASV\r\n"] {
            dialogue.command(line);
        }
        assert_eq!(dialogue.reply(b"226 aborted\r\n"), Heard::Pass);
        let heard = dialogue.reply(b"227 (1,2,3,4,4,1)\r\n");
        assert_eq!(heard, Heard::Listen { asked, port: 1025 });
        assert!(dialogue.own_answer().is_some());
        // Nobody has asked.
        assert_eq!(dialogue.reply(b"227 (1,2,3,4,4,1)\r\n"), Heard::Pass);
    }

    #[test]
    fn behind_abor_an_own_answer_does_not_wait_for_ever() {
        let mut dialogue = dialogue(V4, V4);
        for line in [&b"RETR a\r\n"[..], b"ABOR\r\n", b"EPSV 2\r\n", b"NOOP\r\n"] {
            assert!(!dialogue.waits_in_vain());
            dialogue.command(line);
            if line.starts_with(b"EPSV") {
                assert!(dialogue.waits_in_vain());
                assert_eq!(dialogue.own_answer(), None);
                dialogue.has_waited();
                assert!(dialogue.own_answer().is_some());
            }
        }
        dialogue.command(b"EPSV 2\r\n");
        assert!(!dialogue.waits_in_vain());
        assert_eq!(dialogue.own_answer(), None);
        assert_eq!(dialogue.reply(b"200 ok\r\n"), Heard::Pass);
        assert!(dialogue.own_answer().is_some());
    }

    #[test]
    fn a_refusal_to_listen_passes_and_one_that_cannot_be_read_does_not() {
        let mut dialogue = dialogue(V4, V4);
        dialogue.command(b"EPSV\r\n");
        assert_eq!(dialogue.reply(b"500 what?\r\n"), Heard::Pass);
        dialogue.command(b"PASV\r\n");
        assert_eq!(dialogue.reply(b"227 somewhere\r\n"), Heard::Unreadable);
    }

    #[test]
    fn behind_auth_nothing_is_read_until_the_server_has_said_no() {
        let mut dialogue = dialogue(V4, V4);
        for (reply, expected) in [("534 no\r\n", Heard::Pass), ("234 yes\r\n", Heard::Opaque)] {
            assert!(!dialogue.client_is_to_wait());
            assert_eq!(dialogue.command(b"AUTH TLS\r\n"), Told::Pass);
            assert!(dialogue.client_is_to_wait());
            assert_eq!(dialogue.reply(reply.as_bytes()), expected);
        }
    }

    #[test]
    fn only_so_many_commands_wait_for_replies() {
        let mut dialogue = dialogue(V4, V4);
        for _ in 0..MOST_EXPECTED {
            assert!(!dialogue.client_is_to_wait());
            dialogue.command(b"NOOP\r\n");
            dialogue.command(b"NOOP\r\n");
            dialogue.command(b"PASV\r\n");
        }
        assert!(dialogue.client_is_to_wait());
        assert!(dialogue.expected.len() <= 2 * MOST_EXPECTED);
    }

    #[test]
    fn telnets_commands_stay_in_front_of_what_we_write() {
        let mut dialogue = dialogue(V4, V6);
        let told = dialogue.command(b"\xff\xf4\xff\xf2PASV\r\n");
        assert_eq!(told, Told::Instead(b"\xff\xf4\xff\xf2EPSV\r\n".to_vec()));
        assert_eq!(dialogue.command(b"\xff\xf4\xff\xf2ABOR\r\n"), Told::Pass);
    }
}
