//! Commands: a length byte, a name, data. Those of a session travel inside boxes; ERROR, before
//! READY, in clear text.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::error::{Stage, ZmtpError};
use super::frame::{FrameFlags, encode_header_onto};

/// ZMTP 3.1 allows a PING to carry so much, and PONG returns it.
const PING_CONTEXT_BYTES_MAX: usize = 16;
const PING_FORM: &str = "a TTL of 2 bytes and a context of at most 16";
const ERROR_REASON_BYTES_MAX: usize = 255;

/// A command of an open session. ZMTP RFC 37, "Traffic".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The peer wants messages that begin with these bytes.
    Subscribe(Bytes),
    /// The peer takes one such wish back.
    Cancel(Bytes),
    /// The peer wants a PONG.
    Ping {
        /// After how long a silence the peer may close; zero means never. Tenths of a second on the wire.
        ttl: Duration,
        /// To be returned; at most 16 bytes.
        context: Bytes,
    },
    /// The answer to a PING.
    Pong {
        /// As it was sent.
        context: Bytes,
    },
    /// The peer gives up.
    Error {
        /// Printable text.
        reason: String,
    },
    /// Any other; readers skip it.
    Unknown {
        /// Its name, unprintable bytes escaped.
        name: String,
    },
}

impl Command {
    /// Reads the body of a frame that [`EngineEvent::Frame`](super::EngineEvent) called a command.
    ///
    /// # Errors
    /// [`ZmtpError`]: its name or a field is cut short or impossible.
    pub fn parse(body: &Bytes) -> Result<Self, ZmtpError> {
        let (name, data) = split_name(body)?;
        let data = body.slice_ref(data);
        Ok(match name {
            b"SUBSCRIBE" => Self::Subscribe(data),
            b"CANCEL" => Self::Cancel(data),
            b"PING" => parse_ping(&data)?,
            b"PONG" if data.len() <= PING_CONTEXT_BYTES_MAX => Self::Pong { context: data },
            b"PONG" => {
                let (bytes, expected) = (data.len(), "a context of at most 16");
                return Err(ZmtpError::Malformed { name: "PONG", bytes, expected });
            }
            b"ERROR" => Self::Error { reason: parse_error_reason(&data)? },
            other => Self::Unknown { name: other.escape_ascii().to_string() },
        })
    }

    /// The body of a frame to be sent with [`FrameFlags::COMMAND`].
    ///
    /// A context longer than 16 bytes, a reason longer than 255 and a TTL above 6553 s are cut.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Subscribe(prefix) => named(b"SUBSCRIBE", &[prefix]),
            Self::Cancel(prefix) => named(b"CANCEL", &[prefix]),
            Self::Ping { ttl, context } => {
                let tenths = u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX);
                named(b"PING", &[&tenths.to_be_bytes(), cut(context, PING_CONTEXT_BYTES_MAX)])
            }
            Self::Pong { context } => named(b"PONG", &[cut(context, PING_CONTEXT_BYTES_MAX)]),
            Self::Error { reason } => encode_error(reason),
            Self::Unknown { name } => named(cut(name.as_bytes(), 255), &[]),
        }
    }
}

/// What the reason of a clear-text ERROR means. Anybody on the path can forge one: a hint, no proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `300`: the server cannot decide now; try again.
    Temporary,
    /// `400`: the client's key is unknown, revoked, or has no rights.
    KeyRefused,
    /// `500`: the client holds a wrong key of the server.
    ServerKeyWrong,
    /// Any other text.
    Other,
}

impl Refusal {
    /// Reads the reason of [`EngineEvent::PeerError`](super::EngineEvent).
    pub fn from_reason(reason: &str) -> Self {
        match reason {
            "300" => Self::Temporary,
            "400" => Self::KeyRefused,
            "500" => Self::ServerKeyWrong,
            _ => Self::Other,
        }
    }

    /// The reason to send. libzmq reports these three to its user, and no other.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Temporary => "300",
            Self::KeyRefused | Self::Other => "400",
            Self::ServerKeyWrong => "500",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Temporary => "the server cannot decide now",
            Self::KeyRefused => "the server refuses this key",
            Self::ServerKeyWrong => "the server has another key than the one expected",
            Self::Other => "the server refuses",
        })
    }
}

/// Name and data of any command.
pub(super) fn split_name(body: &[u8]) -> Result<(&[u8], &[u8]), ZmtpError> {
    let malformed = ZmtpError::Malformed {
        name: "command",
        bytes: body.len(),
        expected: "a length, a name of that length and data",
    };
    match body.split_first() {
        Some((&name_bytes, rest)) if name_bytes > 0 => {
            rest.split_at_checked(usize::from(name_bytes)).ok_or(malformed)
        }
        _ => Err(malformed),
    }
}

/// Checks that a frame of the handshake is the command `name` and returns what follows the name.
/// An ERROR comes out as the other side of the result, with its reason.
pub(super) fn expect<'a>(
    name: &'static str,
    body: &'a mut [u8],
    stage: Stage,
) -> Result<Result<&'a mut [u8], String>, ZmtpError> {
    let (found, data) = split_name(body)?;
    if found == b"ERROR" {
        return parse_error_reason(data).map(Err);
    }
    if found != name.as_bytes() {
        let name = cut(found, 32).escape_ascii().to_string();
        return Err(ZmtpError::Unexpected { name, stage });
    }
    let data_at = body.len() - data.len();
    Ok(Ok(&mut body[data_at..]))
}

/// Appends a whole frame with an ERROR in clear text.
pub(super) fn encode_error_frame_onto(reason: &str, output: &mut Vec<u8>) {
    let body = encode_error(reason);
    encode_header_onto(FrameFlags::COMMAND, body.len(), output);
    output.extend_from_slice(&body);
}

fn encode_error(reason: &str) -> Vec<u8> {
    let reason = cut(reason.as_bytes(), ERROR_REASON_BYTES_MAX);
    let reason_bytes = u8::try_from(reason.len()).expect("cut to 255 bytes above");
    named(b"ERROR", &[&[reason_bytes], reason])
}

fn parse_error_reason(data: &[u8]) -> Result<String, ZmtpError> {
    match data.split_first() {
        Some((&reason_bytes, reason)) if reason.len() == usize::from(reason_bytes) => {
            Ok(reason.escape_ascii().to_string())
        }
        _ => Err(ZmtpError::Malformed {
            name: "ERROR",
            bytes: data.len(),
            expected: "a length and a reason of that length",
        }),
    }
}

fn parse_ping(data: &Bytes) -> Result<Command, ZmtpError> {
    match data.first_chunk::<2>() {
        Some(tenths) if data.len() <= 2 + PING_CONTEXT_BYTES_MAX => Ok(Command::Ping {
            ttl: Duration::from_millis(100 * u64::from(u16::from_be_bytes(*tenths))),
            context: data.slice(2..),
        }),
        _ => Err(ZmtpError::Malformed { name: "PING", bytes: data.len(), expected: PING_FORM }),
    }
}

fn named(name: &[u8], data: &[&[u8]]) -> Vec<u8> {
    let name_bytes = u8::try_from(name.len()).expect("callers pass a name of at most 255 bytes");
    let mut body = vec![name_bytes];
    body.extend_from_slice(name);
    data.iter().for_each(|part| body.extend_from_slice(part));
    body
}

fn cut(bytes: &[u8], bytes_max: usize) -> &[u8] {
    &bytes[..bytes.len().min(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &'static [u8]) -> Result<Command, ZmtpError> {
        Command::parse(&Bytes::from_static(body))
    }

    #[test]
    fn commands_have_the_bytes_of_the_rfc_and_read_back() {
        let context = Bytes::from_static(b"ctx");
        for (command, body) in [
            (Command::Subscribe(Bytes::from_static(b"a/")), &b"\x09SUBSCRIBEa/"[..]),
            (Command::Subscribe(Bytes::new()), b"\x09SUBSCRIBE"),
            (Command::Cancel(Bytes::from_static(b"a/")), b"\x06CANCELa/"),
            (
                Command::Ping { ttl: Duration::from_secs(30), context: context.clone() },
                b"\x04PING\x01\x2cctx",
            ),
            (Command::Pong { context }, b"\x04PONGctx"),
            (Command::Error { reason: "400".to_owned() }, b"\x05ERROR\x03400"),
            (Command::Unknown { name: "NEW".to_owned() }, b"\x03NEW"),
        ] {
            assert_eq!(command.encode(), body);
            assert_eq!(Command::parse(&Bytes::from_static(body)), Ok(command));
        }
    }

    #[test]
    fn malformed_commands_are_refused() {
        for body in [
            &b""[..],
            b"\0",
            b"\x05PING",
            b"\x04PING\0",
            b"\x04PING\0\x01seventeen-bytes-17",
            b"\x04PONGseventeen-bytes-17",
            b"\x05ERROR",
            b"\x05ERROR\x04400",
            b"\x05ERROR\x02400",
        ] {
            assert!(matches!(parse(body), Err(ZmtpError::Malformed { .. })), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn a_reason_cannot_control_a_terminal() {
        let reason = "\\x1b[2J".to_owned();
        assert_eq!(parse(b"\x05ERROR\x04\x1b[2J"), Ok(Command::Error { reason }));
    }
}
