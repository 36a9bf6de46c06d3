//! A stream socket of either transport, without waiting.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, ToSocketAddrs},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::PathBuf,
};

use mio::{Interest, Registry, Token, net, unix::SourceFd};

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
        let socket = match address {
            Address::Tcp(address) => Self::Tcp(net::TcpStream::connect(*address)?),
            Address::Ipc(path) => Self::Ipc(net::UnixStream::connect(path)?),
        };
        let interests = Interest::READABLE | Interest::WRITABLE;
        let descriptor = socket.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&descriptor), token, interests)?;
        Ok(socket)
    }

    /// Changes what the client's own thread is woken for, reading and writing. What is so already wakes it at once.
    ///
    /// For neither the socket is taken out: the kernel wakes a thread for each arrival, also one that asked
    /// for urgent data only, and lets it see that there is nothing for it.
    pub(super) fn change_interest(
        &self,
        registry: &Registry,
        token: Token,
        from: (bool, bool),
        to: (bool, bool),
    ) -> io::Result<()> {
        let descriptor = self.as_fd().as_raw_fd();
        let mut source = SourceFd(&descriptor);
        let interests = match to {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => return registry.deregister(&mut source),
        };
        match from {
            (false, false) => registry.register(&mut source, token, interests),
            _ => registry.reregister(&mut source, token, interests),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
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

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        either!(self, stream => (&mut &*stream).read(buffer))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, stream => (&mut &*stream).write(bytes))
    }

    /// Says that nothing more will be written.
    pub(super) fn finish(&self) -> io::Result<()> {
        either!(self, stream => stream.shutdown(Shutdown::Write))
    }

    /// Ends it for all who hold it: the descriptor stays theirs until they let go.
    pub(super) fn shut_down(&self) {
        // It may be over already.
        let _ = either!(self, stream => stream.shutdown(Shutdown::Both));
    }
}
