//! Asking a person for a passphrase: nothing that is typed is shown, and the terminal is put back whatever happens.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
};

use interlock_actors::store::passphrase::{BYTES_MAX, Passphrase, PassphraseError, Prompt};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal},
        signalfd::{SfdFlags, SignalFd},
        termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios},
    },
};
use zeroize::Zeroizing;

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];
const ERASE_LINE: u8 = 0x15;

/// How to ask at the terminal, if standard input is one.
pub(super) fn prompt() -> Option<Prompt> {
    io::stdin().is_terminal().then_some(ask as Prompt)
}

/// What ends a process from outside. Kept back while the terminal is silent, which would stay so.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The terminal as it was; restored when dropped. So are the signals, of which one that came meanwhile then does what it
/// does.
struct Silenced {
    before: Termios,
    mask: SigSet,
    /// Readable when one of [`ENDING`] is kept back.
    ended: SignalFd,
}

impl Silenced {
    /// Character by character, unseen, and without signals of the keyboard: one of those would end the process and leave
    /// the terminal silent.
    fn begin() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin().as_fd())?;
        // Blocked in this thread: those that ask have no other one that could take them.
        let ending: SigSet = ENDING.into_iter().collect();
        let mask = ending.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let ended = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC).inspect_err(|_error| {
            let _ = mask.thread_set_mask();
        })?;
        // From here on dropping it puts everything back.
        let silenced = Self { before: before.clone(), mask, ended };
        let mut silent = before.clone();
        silent.local_flags &=
            !(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        silent.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        silent.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // What was typed before the question was not meant for it.
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSAFLUSH, &silent)?;
        Ok(silenced)
    }

    /// Waits for what is typed. `UnexpectedEof` if the process is to end.
    fn wait(&self) -> io::Result<()> {
        let stdin = io::stdin();
        let mut waiting = [
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
                Ok(_) if waiting[1].any() == Some(true) => return Err(cancelled()),
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl Drop for Silenced {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
        // The newline that was not shown.
        let _ = io::stderr().write_all(b"\n");
        // A signal that was kept back ends the process here.
        let _ = self.mask.thread_set_mask();
    }
}

fn ask(question: &str) -> Result<Passphrase, PassphraseError> {
    let typed = secret_line(question, BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => PassphraseError::Cancelled,
        _ => PassphraseError::Terminal(error),
    })?;
    Passphrase::new(typed, "the terminal")
}

/// Asks for one line that nobody is to see, of at most so many bytes; one more is kept of a longer one. Whoever does not
/// want to say it ends it with Ctrl-C or Ctrl-D (`UnexpectedEof`).
pub(super) fn secret_line(question: &str, bytes_max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let silenced = Silenced::begin()?;
    let mut err = io::stderr();
    // Standard output may be data.
    err.write_all(super::ascii(question).as_bytes()).and_then(|()| err.flush())?;
    // Unbuffered and byte by byte, so that no copy is left in a buffer nobody wipes.
    let terminal = io::stdin().as_fd().try_clone_to_owned().map(std::fs::File::from)?;
    let typed = read_line(Patient { terminal, silenced: &silenced }, bytes_max);
    drop(silenced);
    typed
}

/// A terminal whose reads end when the process is to.
struct Patient<'a> {
    terminal: std::fs::File,
    silenced: &'a Silenced,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.silenced.wait()?;
        self.terminal.read(buffer)
    }
}

fn cancelled() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "nothing was typed")
}

/// What is typed up to the end of the line.
fn read_line(mut terminal: impl Read, bytes_max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(bytes_max + 1));
    let mut byte = Zeroizing::new([0; 1]);
    loop {
        match terminal.read(byte.as_mut_slice()) {
            Ok(0) => return Err(cancelled()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(line),
            INTERRUPT => return Err(cancelled()),
            END if line.is_empty() => return Err(cancelled()),
            ERASE_LINE => line.clear(),
            key if BACKSPACE.contains(&key) => {
                // A whole character, whatever its bytes.
                while line.pop().is_some_and(|last| last & 0xc0 == 0x80) {}
            }
            // One too many is enough to refuse it.
            key if line.len() <= bytes_max => line.push(key),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_as_people_expect() {
        let line = |typed: &[u8]| {
            read_line(typed, BYTES_MAX).map(|line| String::from_utf8(line.to_vec()).unwrap()).ok()
        };
        assert_eq!(line(b"abc\rdef"), Some("abc".to_owned()));
        assert_eq!(line(b"abX\x7fc\n"), Some("abc".to_owned()));
        assert_eq!(line("ab\u{20ac}\u{8}c\n".as_bytes()), Some("abc".to_owned()));
        assert_eq!(line(b"wrong\x15right\n"), Some("right".to_owned()));
        assert_eq!(line(b"abc\x03"), None);
        assert_eq!(line(b"\x04"), None);
        assert_eq!(line(b"abc"), None, "the terminal went away in the middle");
        assert_eq!(line(&[vec![b'x'; 3000], vec![b'\n']].concat()).unwrap().len(), BYTES_MAX + 1);
    }
}
