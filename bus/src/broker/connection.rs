//! One socket: its engine, its buffers, its clocks. Reading and writing, no decisions.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use mio::net::{TcpStream, UnixStream};
use socket2::{SockRef, TcpKeepalive};

use super::{hub::SessionId, read_buffer::ReadBuffer, stock::Stock};
use crate::{
    limits,
    native::{BatchReader, BatchWriter},
    zmtp::Engine,
};

/// Output buffers that are kept for the next connection that writes, and their largest capacity.
const SPARE_OUTPUTS_MAX: usize = 4;
const OUTPUT_BYTES_KEPT_MAX: usize = 2 * limits::WRITE_BUFFER_BYTES;

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

    /// Says that nothing follows; what the peer still sends can be read.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Lets the kernel look whether the peer's machine is there, after `idle` of silence and for `patience` more. A
    /// Unix socket needs none: its end is known when the process ends.
    pub(super) fn keep_alive(&self, idle: Duration, patience: Duration) -> io::Result<()> {
        const LOOKS: u32 = 3;
        let Self::Tcp(stream) = self else { return Ok(()) };
        // The kernel counts in whole seconds.
        let at_least_a_second = |time: Duration| time.max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new()
            .with_time(at_least_a_second(idle))
            .with_interval(at_least_a_second(patience / LOOKS))
            .with_retries(LOOKS);
        SockRef::from(stream).set_tcp_keepalive(&keepalive)
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
    /// The last bytes are going out; then it lingers, or is closed.
    Closing,
    /// Everything is said and our side closed; the peer has a moment to close its own.
    Lingering,
}

/// What a read came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes came; there may be more.
    Some(usize),
    /// Nothing more for now.
    Blocked,
    /// The peer has closed its side.
    Ended,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Counts connections; never used twice.
    pub(super) number: u64,
    pub(super) stream: Stream,
    pub(super) address: String,
    pub(super) engine: Engine,
    /// The beginning of what has not been taken yet; empty between two frames.
    pub(super) input: BytesMut,
    /// In its place, the buffer that a large frame is being read into.
    pub(super) own_buffer: Option<ReadBuffer>,
    pub(super) phase: Phase,
    /// When the present phase began.
    pub(super) since: Instant,
    pub(super) last_read: Instant,
    /// When the frame that is being read began; `None` between frames.
    pub(super) frame_since: Option<Instant>,
    /// Since when the kernel takes nothing; `None` if it does.
    pub(super) blocked_since: Option<Instant>,
    pub(super) pinged: bool,
    pub(super) is_readable: bool,
    /// The peer sends nothing more than what has come already.
    pub(super) is_closed_by_peer: bool,
    /// Whether it waits in the list of connections to be read.
    pub(super) is_listed: bool,
    written: usize,
    /// Stock deliveries that are in the output and not yet in the kernel.
    pub(super) unwritten_deliveries: u64,
    /// Answers to pings, likewise.
    pub(super) unwritten_pongs: u32,
    /// Whether the connection ended with something to say to the peer.
    pub(super) has_last_words: bool,
}

impl Connection {
    pub(super) fn new(number: u64, stream: Stream, address: String, engine: Engine, now: Instant) -> Self {
        Self {
            number,
            stream,
            address,
            engine,
            input: BytesMut::new(),
            own_buffer: None,
            phase: Phase::Handshaking,
            since: now,
            last_read: now,
            frame_since: None,
            blocked_since: None,
            pinged: false,
            is_readable: false,
            is_closed_by_peer: false,
            is_listed: false,
            written: 0,
            unwritten_deliveries: 0,
            unwritten_pongs: 0,
            has_last_words: false,
        }
    }

    /// Reads once into `buffer`.
    pub(super) fn read(&mut self, buffer: &mut [u8], now: Instant) -> io::Result<ReadOutcome> {
        let outcome = match self.stream.read(buffer) {
            Ok(0) => ReadOutcome::Ended,
            Ok(bytes) => ReadOutcome::Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Blocked,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => ReadOutcome::Some(0),
            Err(error) => return Err(error),
        };
        if matches!(outcome, ReadOutcome::Some(bytes) if bytes > 0) {
            self.last_read = now;
            self.pinged = false;
        }
        Ok(outcome)
    }

    /// Keeps the beginning of a frame until the rest has come. Whoever keeps nothing has no buffer.
    pub(super) fn keep(&mut self, beginning: &[u8]) {
        match beginning {
            [] => self.input = BytesMut::new(),
            _ => self.input.extend_from_slice(beginning),
        }
    }

    /// Bytes of the frame that `untaken` is the beginning of; zero if it is empty.
    pub(super) fn frame_bytes(&self, untaken: &[u8]) -> usize {
        match self.engine.missing(untaken) {
            0 => 0,
            missing => untaken.len() + missing,
        }
    }

    /// Notes since when a frame has been coming in, after the engine has taken what it could. Whoever
    /// finished one (`took_any`) has begun the next only now.
    pub(super) fn note_frame(&mut self, took_any: bool, now: Instant) {
        let inside = self.engine.missing(&self.input) > 0;
        self.note_inside(inside, took_any, now);
    }

    /// The same for what lies in a buffer.
    pub(super) fn note_frame_of(&mut self, untaken: &[u8], took_any: bool, now: Instant) {
        let inside = self.engine.missing(untaken) > 0;
        self.note_inside(inside, took_any, now);
    }

    fn note_inside(&mut self, inside: bool, took_any: bool, now: Instant) {
        self.frame_since = inside.then(|| self.frame_since.filter(|_| !took_any).unwrap_or(now));
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
        if output.capacity() > OUTPUT_BYTES_KEPT_MAX {
            *output = Vec::new();
        }
        Ok(true)
    }

    /// Lends a connection that has nothing to write a buffer of others, if it has none of its own.
    pub(super) fn lend_output(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.engine.output().capacity() == 0
            && let Some(buffer) = spare.pop()
        {
            *self.engine.output() = buffer;
        }
    }

    /// Takes the buffer of a connection that has nothing to write; a few are kept for others.
    pub(super) fn release_idle_output(&mut self, spare: &mut Vec<Vec<u8>>) {
        if self.engine.output().is_empty() {
            let buffer = std::mem::take(self.engine.output());
            if buffer.capacity() > 0 && spare.len() < SPARE_OUTPUTS_MAX {
                spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_looks_for_peers_that_know_no_ping() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::Tcp(stream);
        stream.keep_alive(limits::PING_INTERVAL, limits::PING_TIMEOUT).unwrap();
        let Stream::Tcp(stream) = &stream else { unreachable!("it was just made") };
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), limits::PING_INTERVAL);
        assert_eq!(socket.tcp_keepalive_interval().unwrap() * 3, limits::PING_TIMEOUT);
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(Stream::Unix(unix).keep_alive(limits::PING_INTERVAL, limits::PING_TIMEOUT).is_ok());
    }
}
