//! A stream socket of either transport, without waiting.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, ToSocketAddrs},
    path::PathBuf,
};

use mio::{Interest, Registry, Token, event::Source, net};

use crate::endpoint::Endpoint;

/// Where one attempt goes.
#[derive(Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Ipc(PathBuf),
}

/// The addresses of an endpoint. Asking for those of a host name blocks.
pub(super) fn addresses(endpoint: &Endpoint) -> io::Result<Vec<Address>> {
    match endpoint {
        Endpoint::Ipc(path) => Ok(vec![Address::Ipc(path.clone())]),
        Endpoint::Tcp { host, port } => {
            Ok((host.as_str(), *port).to_socket_addrs()?.map(Address::Tcp).collect())
        }
    }
}

/// The socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(net::TcpStream),
    Ipc(net::UnixStream),
}

macro_rules! either {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self {
            Socket::Tcp($stream) => $body,
            Socket::Ipc($stream) => $body,
        }
    };
}

impl Socket {
    /// Begins to connect. [`Socket::connected`] says how it went, once the socket is writable.
    pub(super) fn open(address: &Address, registry: &Registry, token: Token) -> io::Result<Self> {
        let mut socket = match address {
            Address::Tcp(address) => Self::Tcp(net::TcpStream::connect(*address)?),
            Address::Ipc(path) => Self::Ipc(net::UnixStream::connect(path)?),
        };
        let interests = Interest::READABLE | Interest::WRITABLE;
        either!(&mut socket, stream => stream.register(registry, token, interests))?;
        Ok(socket)
    }

    /// Whether the connection stands: `false` while it is being made.
    pub(super) fn connected(&self) -> io::Result<bool> {
        if let Some(error) = either!(self, stream => stream.take_error())? {
            return Err(error);
        }
        let stands = match self {
            Self::Ipc(_) => Ok(()),
            Self::Tcp(stream) => stream.peer_addr().and_then(|_| stream.set_nodelay(true)),
        };
        match stands {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => stream.read(buffer))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => stream.write(bytes))
    }

    /// Says that nothing more will be written.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        either!(self, stream => stream.shutdown(Shutdown::Write))
    }
}
