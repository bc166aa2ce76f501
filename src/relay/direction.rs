//! One way through the relay.

use std::time::Instant;

use super::Engine;
use super::buffer::Buffer;
use super::pace::Pace;

/// How far a direction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The source may send more.
    Open,
    /// The source has ended; the rest is being delivered.
    Draining,
    /// Everything was delivered, and the sink was told that it is all.
    Done,
    /// The sink is gone: there is nobody to deliver to.
    Dropped,
}

/// One way through the relay, so that one side's end of data never cuts the other side short
/// (half-close, RFC 9293 §3.6.1).
pub(super) struct Direction {
    pub(super) state: State,
    pub(super) buffer: Buffer,
    /// Since when the sink takes no more, if it does not.
    pub(super) blocked: Option<Instant>,
    pub(super) delivered: u64,
    /// What holds it back on purpose, if anything does. Apart: few sessions have one.
    pub(super) pace: Option<Box<Pace>>,
}

impl Direction {
    pub(super) fn new(buffer: Buffer) -> Direction {
        Direction {
            state: State::Open,
            buffer,
            blocked: None,
            delivered: 0,
            pace: None,
        }
    }

    /// Has the direction held back from now on; nothing is on its way. It may hold so many bytes at most.
    pub(super) fn keep_pace(&mut self, pace: Box<Pace>, engine: Engine, most: usize, now: Instant) {
        // A pipe is full by slots, and has room again only when it is empty.
        let engine = if pace.delays() { Engine::Copy } else { engine };
        self.buffer = Buffer::new(engine, pace.buffer_size(most), now);
        self.pace = Some(pace);
    }

    /// Whether to look for something to read.
    pub(super) fn is_open_for_more(&self) -> bool {
        let may_read = || self.pace.as_ref().is_none_or(|pace| pace.may_read());
        self.state == State::Open && self.buffer.has_room() && may_read()
    }

    /// How much may be read now.
    pub(super) fn may_read_now(&self, now: Instant) -> usize {
        if self.state != State::Open || !self.buffer.has_room() {
            return 0;
        }
        let pace = self.pace.as_ref();
        pace.map_or(usize::MAX, |pace| pace.may_read_now(now))
    }

    pub(super) fn has_read(&mut self, count: usize, now: Instant) {
        if let Some(pace) = &mut self.pace {
            pace.has_read(count, now);
        }
    }

    /// How much of what was read may be written now.
    pub(super) fn may_write(&mut self, now: Instant) -> usize {
        let pace = self.pace.as_mut();
        let most = pace.map_or(usize::MAX, |pace| pace.may_write(now));
        self.buffer.held().min(most)
    }

    pub(super) fn has_written(&mut self, count: usize) {
        self.delivered += count as u64;
        if let Some(pace) = &mut self.pace {
            pace.has_written(count);
            if pace.delays() {
                self.buffer.close_up();
            }
        }
    }

    /// Notes that there is nobody to deliver to any more.
    pub(super) fn drop_rest(&mut self) {
        self.state = State::Dropped;
        self.blocked = None;
        self.buffer.clear();
        if let Some(pace) = &mut self.pace {
            pace.clear();
        }
    }
}
