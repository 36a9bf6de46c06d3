//! Where a broker listens and a client connects.

use std::{fmt, path::PathBuf, str::FromStr};

/// An address of the bus: `tcp://127.0.0.1:5555` or `ipc:///run/user/1000/interlock/bus.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// TCP, by host name or address. Port 0 lets the system choose when listening.
    Tcp {
        /// Host name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix domain socket.
    Ipc(PathBuf),
}

/// Longest path of a Unix domain socket in bytes (`sun_path` of unix(7), less its final zero).
pub const IPC_PATH_BYTES_MAX: usize = 107;

/// Why a text is not an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoint `{text}` {problem}; write `tcp://127.0.0.1:5555` or `ipc:///path/to/bus.sock`")]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refuse = |problem| EndpointError { text: text.to_owned(), problem };
        if let Some(path) = text.strip_prefix("ipc://") {
            if !path.starts_with('/') {
                return Err(refuse("needs an absolute path"));
            }
            if path.len() > IPC_PATH_BYTES_MAX {
                return Err(refuse("has a path of more than 107 bytes"));
            }
            return Ok(Self::Ipc(path.into()));
        }
        let address = text.strip_prefix("tcp://").ok_or_else(|| refuse("has no known transport"))?;
        let (host, port) = address.rsplit_once(':').ok_or_else(|| refuse("has no port"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(refuse("has no host"));
        }
        if host.contains(['*', '/', ' ']) {
            return Err(refuse("has no usable host (all interfaces are `0.0.0.0`)"));
        }
        let port = port.parse().map_err(|_| refuse("has no port between 0 and 65535"))?;
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(formatter, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(formatter, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(formatter, "ipc://{}", path.display()),
        }
    }
}

impl serde::Serialize for Endpoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Endpoint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_back_as_it_was_written() {
        for text in ["tcp://127.0.0.1:5555", "tcp://[::1]:0", "tcp://localhost:65535", "ipc:///run/bus.sock"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_endpoint_says_what_is_wrong_with_it() {
        for (text, problem) in [
            ("udp://a:1", "no known transport"),
            ("tcp://a", "no port"),
            ("tcp://:1", "no host"),
            ("tcp://*:1", "0.0.0.0"),
            ("tcp://a:99999", "between 0 and 65535"),
            ("ipc://relative", "absolute path"),
        ] {
            let message = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(message.contains(problem) && message.contains(text), "{message}");
        }
    }
}
