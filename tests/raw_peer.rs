//! A peer that a test drives byte by byte: the wire's own engine over a blocking socket, with no
//! client logic above it. For what no honest client does.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use interlock_bus::{
    Credentials, Endpoint,
    native::{BatchReader, BatchWriter, Record},
    zmtp::{ClientConfig, Engine, EngineEvent, FrameFlags, Metadata, SocketType, X_INTERLOCK},
};

use crate::harness::DEADLINE;

/// A socket of either transport.
pub(crate) enum RawStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl RawStream {
    /// Connects, with a deadline on every later read and write.
    pub(crate) fn connect(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.set_write_timeout(Some(DEADLINE)).unwrap();
                stream.set_nodelay(true).unwrap();
                Self::Tcp(stream)
            }
            Endpoint::Ipc(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                stream.set_write_timeout(Some(DEADLINE)).unwrap();
                Self::Unix(stream)
            }
        }
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout)).unwrap();
                stream.set_write_timeout(Some(timeout)).unwrap();
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout)).unwrap();
                stream.set_write_timeout(Some(timeout)).unwrap();
            }
        }
    }

    /// Reads to the end, however it comes, or until the deadline; `true` if the end came.
    pub(crate) fn reads_to_the_end(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }
}

impl Read for RawStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for RawStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An authenticated session without any manners.
pub(crate) struct RawPeer {
    pub(crate) stream: RawStream,
    pub(crate) engine: Engine,
    input: BytesMut,
    reader: BatchReader,
    records: std::collections::VecDeque<Record>,
}

/// The engine of a client with these credentials.
pub(crate) fn engine(credentials: &Credentials, socket_type: SocketType, native: bool) -> Engine {
    let mut metadata = Metadata::new(&socket_type);
    if native {
        metadata = metadata.with(X_INTERLOCK, "1").unwrap();
    }
    Engine::client(ClientConfig::new(credentials.keys.clone(), credentials.broker, metadata))
}

impl RawPeer {
    /// Finishes the handshake, or says what the broker said instead.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        credentials: &Credentials,
        socket_type: SocketType,
        native: bool,
    ) -> Result<Self, String> {
        let engine = engine(credentials, socket_type, native);
        let stream = RawStream::connect(endpoint);
        let (reader, records) = Default::default();
        let mut peer = Self { stream, engine, input: BytesMut::new(), reader, records };
        match peer.next_event().map_err(|error| error.to_string())? {
            EngineEvent::Ready { .. } => Ok(peer),
            EngineEvent::PeerError { reason } => Err(reason),
            other => panic!("{other:?} came in the handshake"),
        }
    }

    /// A native session that has said hello and been answered.
    pub(crate) fn native(endpoint: &Endpoint, credentials: &Credentials) -> Self {
        let mut peer = Self::connect(endpoint, credentials, SocketType::Dealer, true).unwrap();
        peer.send_record(&Record::Hello {
            major: 1,
            minor: 0,
            program: "raw".to_owned(),
            peer: String::new(),
            epoch: [0; 16],
        })
        .unwrap();
        let Record::Hello { .. } = peer.record().unwrap() else { panic!("hello is answered by hello") };
        peer
    }

    /// Writes what the engine has to say.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(self.engine.output());
        self.stream.write_all(&output)
    }

    pub(crate) fn next_event(&mut self) -> io::Result<EngineEvent> {
        loop {
            let polled = self.engine.poll(&mut self.input);
            self.flush()?;
            match polled {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.input.extend_from_slice(&buffer[..bytes]),
            }
        }
    }

    pub(crate) fn send_frame(&mut self, body: &[u8], flags: FrameFlags) -> io::Result<()> {
        self.engine.send(&[body], flags).map_err(io::Error::other)?;
        self.flush()
    }

    pub(crate) fn send_record(&mut self, record: &Record) -> io::Result<()> {
        let mut batch = Vec::new();
        BatchWriter::default().put(record, &mut batch);
        self.send_frame(&batch, FrameFlags::LAST)
    }

    /// The next frame that is no command.
    pub(crate) fn frame(&mut self) -> io::Result<(Bytes, bool)> {
        loop {
            if let EngineEvent::Frame { body, more, command: false } = self.next_event()? {
                return Ok((body, more));
            }
        }
    }

    /// The next record of a native session.
    pub(crate) fn record(&mut self) -> io::Result<Record> {
        loop {
            if let Some(record) = self.records.pop_front() {
                return Ok(record);
            }
            let (body, _) = self.frame()?;
            self.reader.begin(body);
            while let Some(record) = self.reader.next_record().unwrap() {
                self.records.push_back(record);
            }
        }
    }

    /// The next record that `wanted` says yes to.
    pub(crate) fn record_where(&mut self, wanted: impl Fn(&Record) -> bool) -> io::Result<Record> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let record = self.record()?;
            if wanted(&record) {
                return Ok(record);
            }
            assert!(Instant::now() < deadline, "the record did not come");
        }
    }
}
