//! One socket: its engine, its buffers, its clocks. Reading and writing, no decisions.

use std::{
    io::{self, Read, Write},
    time::Instant,
};

use bytes::BytesMut;
use mio::net::{TcpStream, UnixStream};

use super::{hub::SessionId, stock::Stock};
use crate::{
    limits,
    native::{BatchReader, BatchWriter},
    zmtp::Engine,
};

/// Bytes read at once: grows while reads fill it, shrinks when they do not.
const READ_BYTES: std::ops::RangeInclusive<usize> = 4 << 10..=256 << 10;

/// The socket of either transport.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn source(&mut self) -> &mut dyn mio::event::Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }
}

/// What a session speaks above ZMTP.
#[derive(Debug)]
pub(super) enum Speech {
    Native { reader: Box<BatchReader>, writer: BatchWriter },
    Stock(Stock),
}

/// How far a connection has come.
#[derive(Debug)]
pub(super) enum Phase {
    Handshaking,
    Open {
        session: SessionId,
        speech: Speech,
    },
    /// The last bytes are going out; then the socket is closed.
    Closing,
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// There may be more.
    Some,
    /// Nothing more for now.
    Blocked,
    /// The peer has closed its side.
    Ended,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) address: String,
    pub(super) engine: Engine,
    pub(super) input: BytesMut,
    pub(super) phase: Phase,
    pub(super) opened: Instant,
    pub(super) last_read: Instant,
    /// When the frame that is being read began; `None` between frames.
    pub(super) frame_since: Option<Instant>,
    /// Since when the kernel takes nothing; `None` if it does.
    pub(super) blocked_since: Option<Instant>,
    pub(super) pinged: bool,
    pub(super) is_readable: bool,
    /// Whether it waits in the list of connections to be read.
    pub(super) is_listed: bool,
    read_bytes: usize,
    written: usize,
    /// Stock deliveries that are in the output and not yet in the kernel.
    pub(super) unwritten_deliveries: u64,
}

impl Connection {
    pub(super) fn new(stream: Stream, address: String, engine: Engine, now: Instant) -> Self {
        Self {
            stream,
            address,
            engine,
            input: BytesMut::new(),
            phase: Phase::Handshaking,
            opened: now,
            last_read: now,
            frame_since: None,
            blocked_since: None,
            pinged: false,
            is_readable: false,
            is_listed: false,
            read_bytes: *READ_BYTES.start(),
            written: 0,
            unwritten_deliveries: 0,
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self, now: Instant) -> io::Result<ReadOutcome> {
        let have = self.input.len();
        // A frame that is announced may be read whole; the engine has checked its size.
        let want = self.read_bytes.max(self.engine.missing(&self.input).min(limits::WRITE_BUFFER_BYTES * 4));
        self.input.resize(have + want, 0);
        let read = self.stream.read(&mut self.input[have..]);
        self.input.truncate(have + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(ReadOutcome::Ended),
            Ok(bytes) => {
                self.last_read = now;
                self.pinged = false;
                let (smallest, largest) = READ_BYTES.into_inner();
                self.read_bytes = match bytes {
                    _ if bytes == want => (self.read_bytes * 2).min(largest),
                    _ if bytes < self.read_bytes / 4 => (self.read_bytes / 2).max(smallest),
                    _ => self.read_bytes,
                };
                Ok(ReadOutcome::Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.release_idle_input();
                Ok(ReadOutcome::Blocked)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(ReadOutcome::Some),
            Err(error) => Err(error),
        }
    }

    /// An idle connection keeps no buffer.
    fn release_idle_input(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
    }

    /// Notes whether a frame has begun, after the engine has taken what it could.
    pub(super) fn note_frame(&mut self, now: Instant) {
        let inside = self.engine.missing(&self.input) > 0;
        self.frame_since = inside.then(|| self.frame_since.unwrap_or(now));
    }

    /// Bytes that wait for the kernel.
    pub(super) fn unwritten(&mut self) -> usize {
        self.engine.output().len() - self.written
    }

    /// Writes what the kernel takes; `true` if nothing is left.
    pub(super) fn write(&mut self, now: Instant) -> io::Result<bool> {
        while self.written < self.engine.output().len() {
            let output = std::mem::take(self.engine.output());
            let wrote = self.stream.write(&output[self.written..]);
            *self.engine.output() = output;
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    self.written += bytes;
                    self.blocked_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked_since.get_or_insert(now);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.written = 0;
        let output = self.engine.output();
        output.clear();
        if output.capacity() > limits::WRITE_BUFFER_BYTES * 2 {
            *output = Vec::new();
        }
        Ok(true)
    }

    /// Frees the write buffer of a connection that has nothing to say.
    pub(super) fn release_idle_output(&mut self) {
        if self.engine.output().is_empty() {
            *self.engine.output() = Vec::new();
        }
    }
}
