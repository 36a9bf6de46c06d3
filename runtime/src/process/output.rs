//! What a program writes becomes log events, one per line.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
};

use interlock_bus::PeerName;
use tracing::Level;

/// Bytes of one line; a longer one is logged in pieces.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// Bytes of a line in which its level is looked for.
const LEVEL_WITHIN_BYTES: usize = 80;

/// One of a program's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The last line of a program's standard error: often why it ended.
#[derive(Debug)]
pub(super) struct LastLine(pub(super) String);

/// Reads a stream to its end.
pub(super) fn capture(
    program: &PeerName,
    stream: Stream,
    pipe: File,
    mut on_line: impl FnMut(&str),
) -> Option<LastLine> {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    let mut last = None;
    loop {
        bytes.clear();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
            Ok(0) => return last.map(LastLine),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%program, stream = stream.as_str(), %error, "its output cannot be read any more");
                return last.map(LastLine);
            }
        }
        let text = printable(&bytes);
        if text.is_empty() {
            continue;
        }
        log(program, stream, &text);
        on_line(&text);
        if stream == Stream::Stderr {
            last = Some(text);
        }
    }
}

/// Text without line end and control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean = |character: char| if character.is_control() && character != '\t' { '?' } else { character };
    text.trim_end().chars().map(clean).collect()
}

fn log(program: &PeerName, stream: Stream, text: &str) {
    let stream_name = stream.as_str();
    // The level of an event is part of its static description: one line each.
    match level(stream, text) {
        Level::ERROR => {
            tracing::error!(target: "interlock::program", component = %program, %program, stream = stream_name, "{text}")
        }
        Level::WARN => {
            tracing::warn!(target: "interlock::program", component = %program, %program, stream = stream_name, "{text}")
        }
        Level::INFO => {
            tracing::info!(target: "interlock::program", component = %program, %program, stream = stream_name, "{text}")
        }
        Level::DEBUG => {
            tracing::debug!(target: "interlock::program", component = %program, %program, stream = stream_name, "{text}")
        }
        Level::TRACE => {
            tracing::trace!(target: "interlock::program", component = %program, %program, stream = stream_name, "{text}")
        }
    }
}

/// The first level word near the beginning of a line; without one, standard error warns and standard output informs.
fn level(stream: Stream, text: &str) -> Level {
    let head = &text[..text.floor_char_boundary(LEVEL_WITHIN_BYTES)];
    let words = head.split(|character: char| !character.is_ascii_alphabetic());
    let named = words.filter_map(|word| match word {
        "ERROR" | "error" | "CRITICAL" | "critical" | "FATAL" | "fatal" | "panicked" | "Traceback" => {
            Some(Level::ERROR)
        }
        "WARN" | "warn" | "WARNING" | "warning" => Some(Level::WARN),
        "INFO" | "info" | "NOTICE" | "notice" => Some(Level::INFO),
        "DEBUG" | "debug" => Some(Level::DEBUG),
        "TRACE" | "trace" => Some(Level::TRACE),
        _ => None,
    });
    let unnamed = match stream {
        Stream::Stdout => Level::INFO,
        Stream::Stderr => Level::WARN,
    };
    named.into_iter().next().unwrap_or(unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_of_a_line_is_found_in_the_usual_places() {
        let of = |text| level(Stream::Stdout, text);
        assert_eq!(of("2026-11-21 02:32:40,123 WARNING root: slow"), Level::WARN);
        assert_eq!(of("[ERROR] no such file"), Level::ERROR);
        assert_eq!(of(r#"{"level":"debug","message":"x"}"#), Level::DEBUG);
        assert_eq!(of("Traceback (most recent call last):"), Level::ERROR);
        assert_eq!(of("hello"), Level::INFO);
        assert_eq!(level(Stream::Stderr, "hello"), Level::WARN);
        assert_eq!(of("information and errors are different words"), Level::INFO);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(printable(b"a\x1b[31mred\x07\xff\r\n"), "a?[31mred?\u{fffd}");
    }

    #[test]
    fn a_line_without_end_is_read_in_bounded_pieces() {
        let (read, mut write) = std::io::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            std::io::Write::write_all(&mut write, &[b'x'; 20_000]).unwrap();
        });
        let mut lengths = Vec::new();
        let pipe = File::from(std::os::fd::OwnedFd::from(read));
        let last = capture(&"noisy".parse().unwrap(), Stream::Stderr, pipe, |line| lengths.push(line.len()));
        writer.join().unwrap();
        assert_eq!(lengths, [8192, 8192, 3616]);
        assert_eq!(last.unwrap().0.len(), 3616);
    }
}
