//! The gateway's port: reserved before anything else starts, opened when the gateway is started, which is last.
//!
//! A bound socket that does not listen answers nobody, but a second instance, or another program, is found at once
//! and not when everything else runs already. (Two that only reserved it meet at `open`.) The port outlives incarnations of the gateway: connections that come
//! while it restarts wait.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds for us.
const BACKLOG: i32 = 256;

/// A port that is ours.
#[derive(Debug)]
pub struct Port {
    socket: Socket,
    address: SocketAddr,
}

/// Why a port cannot be ours.
#[derive(Debug, thiserror::Error)]
#[error("the gateway cannot listen on `{address}`: {}; free port {}, or choose another with `gateway.listen`", reason(source), address.port())]
pub struct PortError {
    /// The address.
    pub address: SocketAddr,
    /// The system's reason.
    pub source: io::Error,
}

fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "another process listens there".to_owned(),
        _ => source.to_string(),
    }
}

impl Port {
    /// Reserves `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// [`PortError`], naming the port and the key to change.
    pub fn reserve(address: SocketAddr) -> Result<Self, PortError> {
        let bind = |address: SocketAddr| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // Without it a restart would have to wait for connections of the former instance to be forgotten.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            io::Result::Ok((socket, bound))
        };
        let reserve = || {
            let (socket, bound) = bind(address)?;
            if address.port() != 0 {
                return Ok(Self { socket, address: bound });
            }
            // Linux takes a port that it chose itself away from a socket that stops listening, but not one that was asked
            // for; two that do not listen may share it for a moment.
            let (socket, bound) = bind(bound)?;
            Ok(Self { socket, address: bound })
        };
        reserve().map_err(|source| PortError { address, source })
    }

    /// Its address, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to listen, or goes on.
    pub(super) fn open(&self) -> Result<TcpListener, PortError> {
        let refuse = |source: io::Error| PortError { address: self.address, source };
        self.socket.listen(BACKLOG).map_err(refuse)?;
        Ok(self.socket.try_clone().map_err(refuse)?.into())
    }

    /// Stops listening, until it is opened again. It stays ours.
    pub(super) fn close(&self) {
        // Fails only if it does not listen.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_the_key_to_change() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let message = Port::reserve(address).unwrap_err().to_string();
        for part in [
            &address.to_string(),
            &format!("free port {}", address.port()),
            "another process",
            "`gateway.listen`",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_reserved_port_answers_nobody_until_it_is_opened_and_can_be_opened_again() {
        let port = Port::reserve("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(std::net::TcpStream::connect(port.address()).is_err());
        let listener = port.open().unwrap();
        std::net::TcpStream::connect(port.address()).unwrap();
        drop(listener);
        std::net::TcpStream::connect(port.address()).unwrap();
        port.close();
        assert!(std::net::TcpStream::connect(port.address()).is_err());
        let listener = port.open().unwrap();
        assert_eq!(listener.local_addr().unwrap(), port.address());
        std::net::TcpStream::connect(port.address()).unwrap();
    }
}
