//! Which answer belongs to which request: what may be read already, and when we may answer ourselves.

use std::collections::VecDeque;

use super::answers::{Answers, Followed};
use super::request::Awaited;
use super::{Refusal, Request, Requests};

/// A client and a proxy, from the first byte on.
#[derive(Debug, Default)]
pub struct Dialogue {
    requests: Requests,
    answers: Answers,
    /// Requests that were passed on, and whose answers have not begun.
    awaited: VecDeque<Awaited>,
}

/// Whether it is our turn to answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The proxy is still to answer requests before it.
    Proxys,
    /// Nothing is to be answered before it.
    Ours,
    /// The proxy has begun to answer the very request, or what it says cannot be told apart.
    Over,
}

/// How many requests may be unanswered: those behind them wait.
const MOST_AWAITED: usize = 256;

impl Dialogue {
    /// Reads what the client says, as [`Requests::read`] does. Where something has to wait for an answer,
    /// nothing is taken.
    pub fn request(
        &mut self,
        bytes: &[u8],
        onward: &mut Vec<u8>,
    ) -> Result<(usize, Option<Request>), Refusal> {
        if self.client_is_to_wait() {
            return Ok((0, None));
        }
        let read = self.requests.read(bytes, onward)?;
        if let (_, Some(request)) = &read {
            self.awaited.push_back(request.awaits);
        }
        Ok(read)
    }

    /// Learns that the last request is not passed on: it is the one that is to be answered by us.
    pub fn withhold(&mut self) {
        self.awaited.pop_back();
        self.requests = Requests::default();
    }

    /// Whether what the client says next cannot be read before something was answered: it may be of
    /// another protocol.
    fn client_is_to_wait(&self) -> bool {
        let waits =
            self.awaited.back() == Some(&Awaited::Upgrade) || self.awaited.len() >= MOST_AWAITED;
        waits && !self.requests.is_in_body() && !self.requests.is_opaque()
    }

    /// Follows what the proxy says, all of which is for the client.
    pub fn answer(&mut self, bytes: &[u8]) {
        if self.requests.is_opaque() {
            return;
        }
        match self.answers.follow(bytes, &mut self.awaited) {
            Followed::On => {}
            Followed::Switched => self.requests.switch(),
        }
    }

    /// Whether all that is said goes through unread.
    pub fn is_opaque(&self) -> bool {
        self.requests.is_opaque()
    }

    /// Whether the client has begun a request's head, and not completed it.
    pub fn is_in_head(&self) -> bool {
        self.requests.is_in_head()
    }

    /// Whether the proxy has got a part of a request.
    pub fn is_in_body(&self) -> bool {
        self.requests.is_in_body()
    }

    /// Whether we may answer the request that is being read, which the proxy has perhaps got a part of.
    pub fn turn(&self) -> Turn {
        let in_part = usize::from(self.is_in_body());
        if matches!(self.answers, Answers::Endless) || self.awaited.len() < in_part {
            Turn::Over
        } else if self.awaited.len() > in_part {
            Turn::Proxys
        } else if self.answers.is_between() {
            Turn::Ours
        } else if in_part == 0 || !matches!(self.answers, Answers::Head(_)) {
            // What is being answered came before it.
            Turn::Proxys
        } else {
            Turn::Over
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Has as much read as can be. Returns how much.
    fn say(dialogue: &mut Dialogue, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut taken = 0;
        loop {
            let (count, _) = dialogue.request(&bytes[taken..], &mut Vec::new())?;
            taken += count;
            if count == 0 {
                return Ok(taken);
            }
        }
    }

    #[test]
    fn what_follows_an_upgrade_waits_for_its_answer() {
        for (answer, opaque) in [
            (OK, false),
            (&b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..], true),
        ] {
            let mut dialogue = Dialogue::default();
            let said = [GET, UPGRADE, GET].concat();
            let first = GET.len() + UPGRADE.len();
            assert_eq!(say(&mut dialogue, &said), Ok(first));
            dialogue.answer(OK);
            assert_eq!(say(&mut dialogue, &said[first..]), Ok(0));
            dialogue.answer(answer);
            assert_eq!(dialogue.is_opaque(), opaque);
            assert_eq!(say(&mut dialogue, &said[first..]), Ok(GET.len()));
            assert!(!dialogue.is_in_head());
        }
    }

    #[test]
    fn the_body_of_an_upgrade_request_does_not_wait() {
        let mut dialogue = Dialogue::default();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: b\r\nContent-Length: 3\r\n\r\n";
        let said = [&head[..], b"abc", GET].concat();
        assert_eq!(say(&mut dialogue, &said), Ok(head.len() + 3));
    }

    #[test]
    fn an_empty_line_behind_a_body_begins_no_request() {
        let mut dialogue = Dialogue::default();
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        say(&mut dialogue, &[post, &b"\r\n"[..]].concat()).unwrap();
        assert!(!dialogue.is_in_head());
        say(&mut dialogue, b"G").unwrap();
        assert!(dialogue.is_in_head());
    }

    #[test]
    fn no_more_than_so_many_requests_wait_for_their_answers() {
        let mut dialogue = Dialogue::default();
        let said = GET.repeat(MOST_AWAITED + 9);
        assert_eq!(say(&mut dialogue, &said), Ok(MOST_AWAITED * GET.len()));
        dialogue.answer(OK);
        assert_eq!(say(&mut dialogue, &said), Ok(GET.len()));
    }

    #[test]
    fn our_own_answer_keeps_its_place() {
        let mut dialogue = Dialogue::default();
        assert_eq!(dialogue.turn(), Turn::Ours);
        say(&mut dialogue, &[GET, GET].concat()).unwrap();
        assert!(say(&mut dialogue, b"\0").is_err());
        assert_eq!(dialogue.turn(), Turn::Proxys);
        dialogue.answer(OK);
        assert_eq!(dialogue.turn(), Turn::Proxys);
        dialogue.answer(&OK[..OK.len() - 1]);
        assert_eq!(dialogue.turn(), Turn::Proxys);
        dialogue.answer(b"k");
        assert_eq!(dialogue.turn(), Turn::Ours);
        dialogue.answer(b"HTTP/1.0 200 OK\r\n\r\n");
        assert_eq!(dialogue.turn(), Turn::Over);
    }

    #[test]
    fn a_request_that_is_withheld_is_ours_to_answer_whatever_it_was() {
        let put = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
        for withheld in [GET, UPGRADE, put, b"CONNECT a:1 HTTP/1.0\r\n\r\n"] {
            let mut dialogue = Dialogue::default();
            say(&mut dialogue, &[GET, withheld].concat()).unwrap();
            dialogue.withhold();
            assert_eq!(dialogue.turn(), Turn::Proxys);
            dialogue.answer(OK);
            assert_eq!(dialogue.turn(), Turn::Ours);
        }
    }

    #[test]
    fn a_request_that_was_passed_on_in_part_is_answered_once() {
        let put = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let begin = |answered: &[u8]| {
            let mut dialogue = Dialogue::default();
            say(&mut dialogue, &[GET, put, b"1\r\na"].concat()).unwrap();
            dialogue.answer(answered);
            assert!(say(&mut dialogue, b"b").is_err());
            dialogue.turn()
        };
        assert_eq!(begin(b""), Turn::Proxys);
        assert_eq!(begin(&OK[..OK.len() - 1]), Turn::Proxys);
        assert_eq!(begin(OK), Turn::Ours);
        assert_eq!(
            begin(&[OK, b"HTTP/1.1 100 Continue\r\n\r\n"].concat()),
            Turn::Ours
        );
        assert_eq!(begin(&[OK, b"HTT"].concat()), Turn::Over);
        assert_eq!(
            begin(&[OK, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n"].concat()),
            Turn::Over
        );
        assert_eq!(begin(&[OK, OK].concat()), Turn::Over);
    }
}
