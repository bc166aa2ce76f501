//! What is on its way in one direction: in memory, in a pipe or on a desk, never in two of them.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

use super::Desk;
use super::Engine;
use super::course::{Clocks, Course, Read, SMALL, Way};
use super::memory::Memory;
use super::pipe::Pipe;

/// Bytes that were read from a source and not yet written to a sink.
pub(super) struct Buffer {
    course: Course,
    memory: Memory,
    pipe: Option<Pipe>,
    /// Where everything lies if it is edited.
    desk: Option<Box<Desk>>,
    /// When each was last made, or had much on its way.
    memory_used: Instant,
    pipe_used: Instant,
    /// Whether the last read has emptied the source.
    emptied: bool,
    /// The read that has filled it, if the sink took what was read before at once.
    read: Option<Read>,
    /// How much has been read since the course was told.
    moved: u64,
}

/// What reading from a source has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// So many bytes; whether there are likely to be more.
    Some { count: usize, more: bool },
    /// Nothing for now.
    Nothing,
    /// The end of input.
    End,
}

/// What has failed when reading has.
#[derive(Debug)]
pub(super) enum Failure {
    /// The source: it has broken off.
    Source,
    /// We, for want of memory.
    Ours,
}

impl From<Errno> for Failure {
    fn from(_: Errno) -> Failure {
        Failure::Source
    }
}

fn clocks() -> Clocks {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Clocks {
        now: Instant::now(),
        // This clock is always there.
        used: used.map_or(Duration::ZERO, Duration::from),
    }
}

impl Filled {
    /// So many bytes, where there was room for so many. What was not filled has emptied the
    /// source: poll(2) will tell when to go on.
    pub(super) fn some(count: usize, room: usize) -> Filled {
        Filled::Some {
            count,
            more: count >= room,
        }
    }
}

/// How long large memory and a pipe are kept that nobody needs.
const KEPT: Duration = match cfg!(test) {
    false => Duration::from_secs(1),
    // So that a test sees many come and go.
    true => Duration::from_millis(20),
};

impl Buffer {
    /// A buffer for at most so many bytes. It takes nothing before it is needed.
    pub(super) fn new(engine: Engine, most: usize, now: Instant) -> Buffer {
        Buffer {
            course: Course::new(engine, most),
            memory: Memory::default(),
            pipe: None,
            desk: (engine == Engine::Edited).then(Box::default),
            memory_used: now,
            pipe_used: now,
            emptied: true,
            read: None,
            moved: 0,
        }
    }

    /// The pipe, if bytes are on their way through it.
    fn filled_pipe(&self) -> Option<&Pipe> {
        self.pipe.as_ref().filter(|pipe| !pipe.is_empty())
    }

    /// Whether it can take more.
    pub(super) fn has_room(&self) -> bool {
        if let Some(desk) = &self.desk {
            return desk.has_room();
        }
        match self.filled_pipe() {
            Some(pipe) => pipe.room() > 0,
            None => self.memory.is_empty() || self.memory.room() > 0,
        }
    }

    /// Whether everything has been written to the sink.
    pub(super) fn is_empty(&self) -> bool {
        self.desk.as_ref().is_none_or(|desk| desk.is_empty())
            && self.memory.is_empty()
            && self.filled_pipe().is_none()
    }

    /// What is edited, if it is.
    pub(super) fn desk(&mut self) -> Option<&mut Desk> {
        self.desk.as_deref_mut()
    }

    /// How many bytes are still to be written to the sink, as they are.
    pub(super) fn held(&self) -> usize {
        if let Some(desk) = &self.desk {
            return desk.onward.len();
        }
        self.filled_pipe()
            .map_or(self.memory.held(), |pipe| pipe.held())
    }

    /// Has its room where the next read needs it, although something may be left.
    pub(super) fn close_up(&mut self) {
        self.memory.close_up();
    }

    /// Reads at most so much, once, from a source that does not block; there must be room.
    pub(super) fn fill(
        &mut self,
        source: BorrowedFd,
        most: usize,
        now: Instant,
    ) -> Result<Filled, Failure> {
        if let Some(desk) = &mut self.desk {
            return Ok(desk.fill(source, most)?);
        }
        let was_empty = self.is_empty();
        if was_empty {
            self.prepare(now).map_err(|_| Failure::Ours)?;
        }
        let splices = if was_empty {
            matches!(self.course.way(), Way::Splice(_))
        } else {
            self.memory.is_empty()
        };
        let filled = match &mut self.pipe {
            Some(pipe) if splices => match pipe.fill(source, most)? {
                Some(filled) => filled,
                None => self.fill_beside_pipe(source, most, now)?,
            },
            _ => self.memory.fill(source, most)?,
        };
        let after_empty = std::mem::replace(&mut self.emptied, true);
        if let Filled::Some { count, more } = filled {
            // A read that was not to bring more says nothing of the source.
            self.read = (was_empty && count < most).then_some(Read { count, after_empty });
            self.moved += count as u64;
            self.emptied = !more;
            if count > SMALL {
                if self.memory.is_empty() {
                    self.pipe_used = now;
                } else {
                    self.memory_used = now;
                }
            }
        }
        Ok(filled)
    }

    /// Has what the next read needs, as it is empty.
    fn prepare(&mut self, now: Instant) -> nix::Result<()> {
        let moved = std::mem::take(&mut self.moved);
        if moved > 0 && self.course.learn(moved, self.read.take(), clocks) {
            match self.course.way() {
                Way::Copy(_) => self.pipe = None,
                Way::Splice(_) => self.memory = Memory::default(),
            }
        }
        if let Way::Splice(size) = self.course.way()
            && self.pipe.is_none()
        {
            match Pipe::new(size) {
                Ok(pipe) => {
                    self.pipe = Some(pipe);
                    self.pipe_used = now;
                }
                Err(_) => self.course.without_pipe(),
            }
        }
        if let Way::Copy(size) = self.course.way() {
            if size <= SMALL {
                self.pipe = None;
            }
            if self.have_memory(size, now).is_err() {
                // What bulk data would be better with is not to be had: messages need less.
                self.course.start_small();
                self.have_memory(SMALL, now)?;
            }
        }
        Ok(())
    }

    /// Has memory of at least this size, and none that is larger than messages need for messages.
    fn have_memory(&mut self, size: usize, now: Instant) -> nix::Result<()> {
        let held = self.memory.size();
        if held < size || (size <= SMALL && held > SMALL) {
            match Memory::new(size) {
                Ok(memory) => self.memory = memory,
                // What there is does as well.
                Err(_) if held > 0 => {}
                Err(errno) => return Err(errno),
            }
            self.memory_used = now;
        }
        Ok(())
    }

    /// Copies what the empty pipe does not take: urgent data perhaps.
    fn fill_beside_pipe(
        &mut self,
        source: BorrowedFd,
        most: usize,
        now: Instant,
    ) -> Result<Filled, Failure> {
        if self.memory.size() == 0 {
            self.have_memory(SMALL, now).map_err(|_| Failure::Ours)?;
        }
        let filled = self.memory.fill(source, most)?;
        if let Filled::Some { .. } = filled {
            self.course.beside_pipe();
        }
        Ok(filled)
    }

    /// Writes at most so much, once, to a sink that does not block. Returns how many bytes it took, 0 if
    /// it takes none now.
    pub(super) fn drain(&mut self, sink: BorrowedFd, most: usize) -> nix::Result<usize> {
        let drained = match (&mut self.desk, &mut self.pipe) {
            (Some(desk), _) => desk.drain(sink, most),
            (None, Some(pipe)) if !pipe.is_empty() => pipe.drain(sink, most),
            (None, _) => self.memory.drain(sink, most),
        };
        if !self.is_empty() {
            // What comes next has waited for the sink: that says nothing of the source.
            self.read = None;
        }
        match drained {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            drained => drained,
        }
    }

    /// The last `count` bytes read, where they can be seen.
    pub(super) fn newest(&self, count: usize) -> &[u8] {
        match &self.desk {
            Some(desk) => desk.newest(count),
            None => self.memory.newest(count),
        }
    }

    /// Learns that the sink has let it wait.
    pub(super) fn slow_down(&mut self) {
        self.course.slow_down();
    }

    /// When there is something to give back, if nothing happens.
    pub(super) fn gives_back_at(&self) -> Option<Instant> {
        let memory = self.idle_memory().then_some(self.memory_used);
        let pipe = self.idle_pipe().then_some(self.pipe_used);
        let oldest = memory.into_iter().chain(pipe).min();
        oldest.map(|used| used + KEPT)
    }

    fn idle_memory(&self) -> bool {
        self.memory.size() > SMALL && self.memory.is_empty()
    }

    fn idle_pipe(&self) -> bool {
        self.pipe.as_ref().is_some_and(Pipe::is_empty)
    }

    /// Drops what is on its way, and whatever held it.
    pub(super) fn clear(&mut self) {
        self.memory = Memory::default();
        self.pipe = None;
        if let Some(desk) = &mut self.desk {
            **desk = Desk::default();
        }
    }

    /// Gives back what is larger than messages need, and has been of no use for a while.
    pub(super) fn give_back(&mut self, now: Instant) {
        let is_over = |used: Instant| now.saturating_duration_since(used) >= KEPT;
        if self.idle_memory() && is_over(self.memory_used) {
            self.memory = Memory::default();
            if matches!(self.course.way(), Way::Copy(_)) {
                self.course.start_small();
            }
        }
        if self.idle_pipe() && is_over(self.pipe_used) {
            self.pipe = None;
            if matches!(self.course.way(), Way::Splice(_)) {
                self.course.start_small();
            }
        }
    }
}
