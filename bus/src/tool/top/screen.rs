//! The terminal: taken as a whole, and given back as it was, however this ends.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam_channel::Sender;
use crossterm::{
    cursor::{Hide, Show},
    event::{self, KeyCode, KeyEventKind, KeyModifiers},
    execute,
    style::ResetColor,
    terminal::{self, EnterAlternateScreen, LeaveAlternateScreen},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::{Terminal, backend::CrosstermBackend};

use super::{
    Workers,
    draw::{Seen, Theme, draw},
    model::{Event, Key, Model},
};
use crate::{exit::Exit, tool::Failure};

/// Whether the terminal is taken.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);
/// How long the keyboard is waited for before it is looked whether to end.
const KEYBOARD_WAIT: Duration = Duration::from_millis(100);

/// A terminal that shows a model. Dropping it gives the terminal back.
pub(super) struct Screen<'a> {
    terminal: Terminal<CrosstermBackend<Whole<'a>>>,
}

/// Writes whole pictures: what was begun when somebody panicked never reaches the terminal, which was given back by then.
struct Whole<'a> {
    writer: &'a mut (dyn Write + Send),
    begun: Vec<u8>,
}

impl Write for Whole<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.writer.write_all(&self.begun);
        self.begun.clear();
        written.and_then(|()| self.writer.flush())
    }
}

impl fmt::Debug for Screen<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Screen").finish_non_exhaustive()
    }
}

/// Whether there is a terminal that can be drawn on.
pub(super) fn check() -> Result<(), Failure> {
    let misuse = |what: &str| {
        let text = format!(
            "{what}, so there is nothing to draw on; `bus top --once` prints one table, with --json for programs"
        );
        Err(Failure::new(Exit::Misuse, text))
    };
    if !io::stdout().is_terminal() {
        return misuse("standard output is no terminal");
    }
    if !io::stdin().is_terminal() {
        return misuse("standard input is no terminal");
    }
    match std::env::var("TERM").unwrap_or_default().as_str() {
        "" => misuse("TERM is not set"),
        "dumb" => misuse("TERM is `dumb`"),
        _ => Ok(()),
    }
}

/// Whether nobody minds colours (no-color.org).
pub(super) fn has_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Gives the terminal back, if it is taken: from anywhere, at any time, as often as anybody likes.
pub(super) fn restore() {
    if !IS_TAKEN.swap(false, Ordering::AcqRel) {
        return;
    }
    // Past the lock of standard output: a thread that panics may have it.
    let mut bytes = Vec::new();
    if execute!(bytes, ResetColor, Show, LeaveAlternateScreen).is_ok() {
        let _ = nix::unistd::write(io::stdout().as_fd(), &bytes);
    }
    let _ = terminal::disable_raw_mode();
}

impl<'a> Screen<'a> {
    /// Takes the terminal.
    pub(super) fn take(writer: &'a mut (dyn Write + Send)) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            restore();
            Failure::new(Exit::of_io(&error), format!("cannot draw on the terminal: {error}"))
        };
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
        IS_TAKEN.store(true, Ordering::Release);
        terminal::enable_raw_mode().map_err(failed)?;
        let mut backend = CrosstermBackend::new(Whole { writer, begun: Vec::new() });
        execute!(backend, EnterAlternateScreen, Hide).map_err(failed)?;
        Ok(Self { terminal: Terminal::new(backend).map_err(failed)? })
    }

    pub(super) fn draw(&mut self, model: &Model, theme: Theme) -> Result<Seen, Failure> {
        let mut seen = Seen::default();
        let drawn = self.terminal.draw(|frame| seen = draw(frame, model, theme));
        drawn.map_err(|error| Failure::of_output(&error))?;
        Ok(seen)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        restore();
    }
}

/// Starts the thread that reads keys.
pub(super) fn read_keys(workers: &Workers) -> io::Result<JoinHandle<()>> {
    let workers = workers.clone();
    thread::Builder::new().name("bus-top-keys".to_owned()).spawn(move || {
        let _guard = workers.guard("bus-top-keys");
        while !workers.is_ending() && is_there() {
            if pass_on(&workers.events).is_err() {
                break;
            }
        }
        let _ = workers.events.send(Event::End);
    })
}

/// Waits a while for the keyboard; `false` if the terminal has gone, which the event reader would spin on.
fn is_there() -> bool {
    let stdin = io::stdin();
    let mut ends = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let wait = PollTimeout::try_from(KEYBOARD_WAIT).unwrap_or(PollTimeout::ZERO);
    match poll(&mut ends, wait) {
        // A signal, for example that the size has changed.
        Err(nix::errno::Errno::EINTR) => true,
        Err(_) => false,
        Ok(_) => {
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
            !ends[0].revents().is_some_and(|has| has.intersects(gone))
        }
    }
}

/// Hands on what was typed until now. The error is the end.
fn pass_on(events: &Sender<Event>) -> Result<(), ()> {
    while event::poll(Duration::ZERO).map_err(drop)? {
        let event = match event::read().map_err(drop)? {
            event::Event::Key(key) if key.kind != KeyEventKind::Release => key_of(key).map(Event::Key),
            event::Event::Resize(..) => Some(Event::Resized),
            _ => None,
        };
        if let Some(event) = event {
            events.send(event).map_err(drop)?;
        }
    }
    Ok(())
}

fn key_of(key: event::KeyEvent) -> Option<Key> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'C')).then_some(Key::Interrupt);
    }
    Some(match key.code {
        KeyCode::Char(character) => Key::Char(character),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
