//! Waiting, always with a deadline, for what can be seen.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until there is a value, and fails the test if there is none in time.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Lines that arrive from somewhere, and can be waited for.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    /// Collects the lines of a stream in the background, until its end.
    pub fn of(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let collected = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                let (all, changed) = &*collected.0;
                all.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&line).into_owned());
                changed.notify_all();
            }
        });
        lines
    }

    /// Everything so far.
    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }

    /// The first line that contains the text, when it is there.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_count(text, 1).remove(0)
    }

    /// The lines that contain the text, when there are so many.
    pub fn wait_for_count(&self, text: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let (all, changed) = &*self.0;
        let mut all = all.lock().unwrap();
        loop {
            let found: Vec<String> = all
                .iter()
                .filter(|line| line.contains(text))
                .cloned()
                .collect();
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {count} × '{text}' in {all:#?}"
            );
            all = changed.wait_timeout(all, left).unwrap().0;
        }
    }
}

/// The first line of a log file that contains the text, when it is there.
pub fn wait_for_line(file: &Path, text: &str) -> String {
    eventually(&format!("'{text}' in {}", file.display()), || {
        let all = fs::read_to_string(file).ok()?;
        let mut complete = all.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let line = complete.find(|line| line.contains(text))?;
        Some(line.trim_end().to_owned())
    })
}

/// Waits for a child's end, and returns its exit status.
pub fn end_of(child: &mut Child) -> ExitStatus {
    eventually("the process to end", || child.try_wait().unwrap())
}

/// A stream that fails rather than waits for ever.
pub fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the end of input.
pub fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
