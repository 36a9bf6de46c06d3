//! The sockets that accept connections.

use std::{
    fs, io,
    net::ToSocketAddrs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use mio::net::{TcpListener, UnixListener, UnixStream};
use socket2::SockRef;

use super::{BrokerError, connection::Stream};
use crate::{endpoint::Endpoint, limits};

/// One listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    /// The path is removed when the listener is dropped.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds an endpoint. A Unix socket that nobody listens on any more is replaced.
    pub(super) fn bind(endpoint: &Endpoint) -> Result<Self, BrokerError> {
        let refuse = |source| BrokerError::Bind { endpoint: endpoint.clone(), source };
        match endpoint {
            Endpoint::Tcp { host, port } => {
                let mut addresses = (host.as_str(), *port).to_socket_addrs().map_err(refuse)?;
                let address =
                    addresses.next().ok_or_else(|| refuse(io::ErrorKind::AddrNotAvailable.into()))?;
                let listener = TcpListener::bind(address).map_err(refuse)?;
                SockRef::from(&listener).listen(limits::LISTEN_BACKLOG).map_err(refuse)?;
                Ok(Self::Tcp(listener))
            }
            Endpoint::Ipc(path) => {
                remove_stale(path).map_err(refuse)?;
                let listener = UnixListener::bind(path).map_err(refuse)?;
                SockRef::from(&listener).listen(limits::LISTEN_BACKLOG).map_err(refuse)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(refuse)?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it listens, with the port the system chose.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr().ok()?;
                Some(Endpoint::Tcp { host: address.ip().to_string(), port: address.port() })
            }
            Self::Unix(_, path) => Some(Endpoint::Ipc(path.clone())),
        }
    }

    /// The next connection and where it comes from.
    pub(super) fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                // A batch is written whole; waiting for more would only delay it. A connection that is gone
                // already says so when it is read.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), format!("tcp://{address}")))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::Unix(stream), "ipc".to_owned()))
            }
        }
    }

    pub(super) fn source(&mut self) -> &mut dyn mio::event::Source {
        match self {
            Self::Tcp(listener) => listener,
            Self::Unix(listener, _) => listener,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Best effort: a socket file that stays is replaced by the next start.
            let _ = fs::remove_file(path);
        }
    }
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in its place"));
    }
    // Not blocking: a listener that hangs with a full queue is a listener all the same.
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}
