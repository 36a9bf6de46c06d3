//! Whether a client is still there, seen from beside its connection.
//!
//! actix-web notices a closed connection only when it writes to it, and then twice: what a model writes meanwhile is
//! for nobody. The kernel knows at once. A client that closes its sending side counts as gone, as it does for other
//! servers: it cannot take back what it asked, and nobody else does that.

use std::{future::pending, net::Shutdown, sync::Arc};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use socket2::{SockRef, Socket};
use tokio::io::Interest;

use super::error::ApiError;
use crate::topics::code;

/// A second handle of a client's connection. Nothing is read from it or written to it.
#[derive(Clone, Debug)]
pub(super) struct Hangup(Option<Arc<Socket>>);

/// Remembers a new connection for the requests that come over it.
pub(super) fn remember(stream: &TcpStream, extensions: &mut Extensions) {
    if let Ok(socket) = SockRef::from(stream).try_clone() {
        extensions.insert(Hangup(Some(Arc::new(socket))));
    }
}

impl Hangup {
    /// That of the connection of `request`.
    pub(super) fn of(request: &HttpRequest) -> Self {
        request.conn_data::<Self>().cloned().unwrap_or(Self(None))
    }

    /// What `work` comes to, unless the client goes before: then it is dropped, which cancels what was asked on the bus.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            output = work => Ok(output),
            // Nobody hears this.
            () = self.wait() => Err(ApiError::refused(400, code::CANCELLED, "the client has gone away")),
        }
    }

    /// Ends the connection, whatever is still to be said on it.
    pub(super) fn end(&self) {
        if let Some(socket) = &self.0 {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Returns when the client has closed its connection; never where that cannot be known.
    pub(super) async fn wait(&self) {
        let Some(socket) = &self.0 else { return pending().await };
        // A handle of its own, because a socket is watched once by each; it shares the other's being non-blocking.
        let watched = socket.try_clone().map(std::net::TcpStream::from).and_then(TcpStream::from_std);
        let Ok(watched) = watched else { return pending().await };
        loop {
            match watched.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => return,
                Ok(_) => {}
                Err(_) => return pending().await,
            }
            // It sent more: that is for whoever reads the connection. From here on only what is new is told.
            let _ = watched.try_io(Interest::READABLE, || {
                Err::<(), _>(std::io::Error::from(std::io::ErrorKind::WouldBlock))
            });
        }
    }
}
