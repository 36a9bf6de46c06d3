//! Log lines on standard error, printed by a thread of their own.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Sender, bounded};

use crate::cli::ascii;

/// Lines that may wait for standard error. More are counted and left out: a terminal that was paused, or a pipe that
/// nobody empties, must not hold up whoever logs, least of all the supervisor. The store has them all the same.
const LINES_MAX: usize = 1024;

/// Standard error. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    lines: Sender<Printed>,
    left_out: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Printed {
    Line(String),
    /// All before it has been printed.
    Mark(Sender<()>),
}

impl Console {
    pub(super) fn open(mut to: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = bounded(LINES_MAX);
        let console = Self { lines, left_out: Arc::default() };
        let left_out = Arc::clone(&console.left_out);
        // Not joined: what it writes to may take no more for ever. `finish` waits as long as is good.
        thread::Builder::new().name("console".to_owned()).spawn(move || {
            for printed in waiting {
                let count = left_out.swap(0, Ordering::Relaxed);
                if count > 0 {
                    let text = format!(
                        "interlock: {count} lines of the log were not printed, because nobody read standard error\n"
                    );
                    let _ = to.write_all(text.as_bytes());
                }
                // Nobody to tell if standard error is gone.
                match printed {
                    Printed::Line(line) => drop(to.write_all(line.as_bytes())),
                    Printed::Mark(done) => drop(done.try_send(())),
                }
            }
        })?;
        Ok(console)
    }

    /// What one event is written to.
    pub(super) fn event(&self) -> AsciiLines {
        AsciiLines { text: Vec::new(), console: self.clone() }
    }

    fn print(&self, line: &str) {
        if self.lines.try_send(Printed::Line(format!("{line}\n"))).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all that was logged is printed, but not longer than `limit`.
    pub(crate) fn finish(&self, limit: Duration) {
        let (done_in, done) = bounded(1);
        let begun = Instant::now();
        if self.lines.send_timeout(Printed::Mark(done_in), limit).is_ok() {
            let _ = done.recv_timeout(limit.saturating_sub(begun.elapsed()));
        }
    }
}

/// One event on its way to the console: ASCII only.
#[derive(Debug)]
pub(super) struct AsciiLines {
    text: Vec<u8>,
    console: Console,
}

impl Write for AsciiLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AsciiLines {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        for line in text.lines() {
            self.console.print(&ascii(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands over what is written, and takes no more until it may.
    struct Paused(mpsc::Sender<Vec<u8>>, mpsc::Receiver<()>);

    impl Write for Paused {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_console_that_is_not_read_holds_nobody_up_and_says_how_much_it_left_out() {
        let ((written_in, written), (go, gone)) = (mpsc::channel(), mpsc::channel());
        let console = Console::open(Paused(written_in, gone)).unwrap();
        console.print("first");
        assert!(written.recv().unwrap().starts_with(b"first"));
        // Its thread stands; none of these waits.
        let (busy, (done_in, done)) = (console.clone(), mpsc::channel());
        thread::spawn(move || {
            for number in 0..LINES_MAX + 7 {
                busy.print(&number.to_string());
            }
            busy.finish(Duration::from_millis(1));
            done_in.send(()).unwrap();
        });
        done.recv_timeout(Duration::from_secs(20)).expect("nobody is held up");
        drop(go);
        console.finish(Duration::from_secs(20));
        let said: Vec<u8> = written.try_iter().flatten().collect();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(" 7 lines of the log were not printed"), "{said}");
        assert!(said.ends_with(&format!("\n{}\n", LINES_MAX - 1)), "{said}");
    }
}
