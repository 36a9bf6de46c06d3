//! Somebody on the path between a client and the broker: sees every byte, and may change, keep, repeat,
//! swap, cut and add frames. It holds no key.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex},
    thread,
};

use interlock_bus::Endpoint;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    ToBroker,
    ToClient,
}

/// What becomes of one piece of the stream: the pieces that are sent instead.
pub(crate) enum Passed {
    Pieces(Vec<Vec<u8>>),
    /// These, and then the end of the connection.
    LastPieces(Vec<Vec<u8>>),
    /// To the one who sent it.
    Back(Vec<u8>),
}

/// Called for every piece: the greeting is number 0 of its way, frames follow.
pub(crate) type Tamper = dyn FnMut(Way, usize, Vec<u8>) -> Passed + Send;

/// Called for every connection.
type MakeTamper = dyn FnMut() -> Box<Tamper> + Send;

/// All bytes of one way and connection.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) way: Way,
    pub(crate) pieces: Vec<Vec<u8>>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn clone(&self) -> Self {
        match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
        }
    }

    fn close(&self) {
        // It may have been closed by its other end.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
    }
}

/// A proxy in front of one endpoint of a broker.
pub(crate) struct WireProxy {
    /// Where clients connect to instead.
    pub(crate) endpoint: Endpoint,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    /// Made anew for every connection.
    tamper: Arc<Mutex<Box<MakeTamper>>>,
    _directory: Option<tempfile::TempDir>,
}

impl WireProxy {
    /// A proxy that passes everything on until [`WireProxy::tamper_with`] says otherwise.
    pub(crate) fn start(target: &Endpoint) -> Self {
        let (recorded, target) = (Arc::new(Mutex::new(Vec::new())), target.clone());
        let honest = || -> Box<Tamper> { Box::new(|_, _, piece| Passed::Pieces(vec![piece])) };
        let tamper: Arc<Mutex<Box<MakeTamper>>> = Arc::new(Mutex::new(Box::new(honest)));
        let serve = {
            let (recorded, tamper, target) = (Arc::clone(&recorded), Arc::clone(&tamper), target.clone());
            move |client: Stream| {
                let broker = match &target {
                    Endpoint::Tcp { host, port } => {
                        let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
                        stream.set_nodelay(true).unwrap();
                        Stream::Tcp(stream)
                    }
                    Endpoint::Ipc(path) => Stream::Unix(UnixStream::connect(path).unwrap()),
                };
                let tamper = Arc::new(Mutex::new((tamper.lock().unwrap())()));
                for (way, from, to) in
                    [(Way::ToBroker, client.clone(), broker.clone()), (Way::ToClient, broker, client)]
                {
                    let (tamper, recorded) = (Arc::clone(&tamper), Arc::clone(&recorded));
                    let slot = {
                        let mut recorded = recorded.lock().unwrap();
                        recorded.push(Recorded { way, pieces: Vec::new() });
                        recorded.len() - 1
                    };
                    thread::spawn(move || relay(way, from, to, &tamper, &recorded, slot));
                }
            }
        };
        let (endpoint, directory) = match target {
            Endpoint::Tcp { .. } => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let endpoint = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
                thread::spawn(move || {
                    listener.incoming().flatten().for_each(|stream| {
                        stream.set_nodelay(true).unwrap();
                        serve(Stream::Tcp(stream));
                    })
                });
                (endpoint, None)
            }
            Endpoint::Ipc(_) => {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("proxy.sock");
                let listener = UnixListener::bind(&path).unwrap();
                thread::spawn(move || {
                    listener.incoming().flatten().for_each(|stream| serve(Stream::Unix(stream)));
                });
                (Endpoint::Ipc(path), Some(directory))
            }
        };
        Self { endpoint, recorded, tamper, _directory: directory }
    }

    /// What is done to the connections to come.
    pub(crate) fn tamper_with(&self, make: impl FnMut() -> Box<Tamper> + Send + 'static) {
        *self.tamper.lock().unwrap() = Box::new(make);
    }

    /// Everything that has passed, as it was sent.
    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap().clone()
    }
}

fn relay(
    way: Way,
    mut from: Stream,
    mut to: Stream,
    tamper: &Mutex<Box<Tamper>>,
    recorded: &Mutex<Vec<Recorded>>,
    slot: usize,
) {
    let (mut input, mut number) = (Vec::new(), 0);
    let mut buffer = vec![0; 65_536];
    'connection: loop {
        while let Some(bytes) = piece_bytes(&input, number) {
            let piece: Vec<u8> = input.drain(..bytes).collect();
            recorded.lock().unwrap()[slot].pieces.push(piece.clone());
            let passed = (tamper.lock().unwrap())(way, number, piece);
            number += 1;
            let (pieces, is_last) = match passed {
                Passed::Pieces(pieces) => (pieces, false),
                Passed::LastPieces(pieces) => (pieces, true),
                Passed::Back(piece) => {
                    if from.write_all(&piece).is_err() {
                        break 'connection;
                    }
                    (Vec::new(), false)
                }
            };
            if pieces.iter().any(|piece| to.write_all(piece).is_err()) || is_last {
                break 'connection;
            }
        }
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(bytes) => input.extend_from_slice(&buffer[..bytes]),
        }
    }
    from.close();
    to.close();
}

/// Bytes of the piece that `input` begins with, if it is there as a whole. The greeting comes in two
/// steps that wait for each other, so it is two pieces: 12 bytes and 52.
fn piece_bytes(input: &[u8], number: usize) -> Option<usize> {
    let bytes = match number {
        0 => 12,
        1 => 52,
        _ => match input {
            [flags, rest @ ..] if flags & 2 != 0 => 9 + u64::from_be_bytes(*rest.first_chunk()?) as usize,
            [_, bytes, ..] => 2 + usize::from(*bytes),
            _ => return None,
        },
    };
    (input.len() >= bytes).then_some(bytes)
}

/// The number of the first frame: what comes before it is the greeting.
pub(crate) const FIRST_FRAME: usize = 2;
