//! The first 64 bytes of each side: signature, version, mechanism.

use std::fmt;

use super::error::ZmtpError;

/// Bytes of a greeting.
pub(super) const GREETING_BYTES: usize = 64;

const SIGNATURE_BYTES: usize = 10;
const VERSION_AT: usize = 10;
const MECHANISM_AT: usize = 12;
const AS_SERVER_AT: usize = 32;
const MECHANISM: &[u8; 20] = b"CURVE\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A version of ZMTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 3 is the oldest that has security.
    pub major: u8,
    /// From 3.1 on a subscription is a command; before that it is a message.
    pub minor: u8,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Bytes that show a side's version; the first part of a greeting, sent at once.
pub(super) const VERSION_SHOWN_BYTES: usize = MECHANISM_AT;
/// Bytes that show a side's mechanism.
pub(super) const MECHANISM_SHOWN_BYTES: usize = AS_SERVER_AT;

/// Our own greeting. libzmq sends as-server 0 in both roles and reads it in neither.
pub(super) fn encode(as_server: bool) -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[SIGNATURE_BYTES - 1] = 0x7f;
    greeting[VERSION_AT] = 3;
    greeting[VERSION_AT + 1] = 1;
    greeting[MECHANISM_AT..AS_SERVER_AT].copy_from_slice(MECHANISM);
    greeting[AS_SERVER_AT] = u8::from(as_server);
    greeting
}

/// Reads a peer's greeting as far as it has come. `None` means that more bytes are needed; what is
/// wrong is said at the first byte that shows it, since older peers wait instead of sending more.
pub(super) fn parse(input: &[u8]) -> Result<Option<Version>, ZmtpError> {
    let signed = match input {
        [] => true,
        [first] => *first == 0xff,
        [first, ..] if input.len() < SIGNATURE_BYTES => *first == 0xff,
        [first, ..] => *first == 0xff && input[SIGNATURE_BYTES - 1] & 1 == 1,
    };
    if !signed {
        let first_bytes = input[..input.len().min(SIGNATURE_BYTES)].to_vec();
        return Err(ZmtpError::NotZmtp { first_bytes });
    }
    let Some(&major) = input.get(VERSION_AT) else { return Ok(None) };
    if major < 3 {
        return Err(ZmtpError::VersionTooOld { version: Version { major, minor: 0 } });
    }
    let Some(mechanism) = input.get(MECHANISM_AT..AS_SERVER_AT) else { return Ok(None) };
    if mechanism != MECHANISM {
        let name = mechanism.split(|byte| *byte == 0).next().unwrap_or_default();
        return Err(ZmtpError::MechanismMismatch { mechanism: name.escape_ascii().to_string() });
    }
    if input.len() < GREETING_BYTES {
        return Ok(None);
    }
    Ok(Some(Version { major, minor: input[VERSION_AT + 1] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mechanism(name: &[u8]) -> [u8; GREETING_BYTES] {
        let mut greeting = encode(false);
        greeting[MECHANISM_AT..AS_SERVER_AT].fill(0);
        greeting[MECHANISM_AT..MECHANISM_AT + name.len()].copy_from_slice(name);
        greeting
    }

    #[test]
    fn a_greeting_is_complete_at_its_64th_byte_and_not_before() {
        let greeting = encode(true);
        for end in 0..GREETING_BYTES {
            assert_eq!(parse(&greeting[..end]), Ok(None), "at {end}");
        }
        assert_eq!(parse(&greeting), Ok(Some(Version { major: 3, minor: 1 })));
    }

    #[test]
    fn other_mechanisms_are_refused_by_name() {
        for (sent, named) in [
            (&b"NULL"[..], "NULL"),
            (b"PLAIN", "PLAIN"),
            (b"", ""),
            (b"\x1b[2J", "\\x1b[2J"),
            (b"CURVEX", "CURVEX"),
        ] {
            let mechanism = named.to_owned();
            assert_eq!(parse(&with_mechanism(sent)), Err(ZmtpError::MechanismMismatch { mechanism }));
        }
    }

    #[test]
    fn older_versions_and_other_protocols_are_named_at_the_first_byte_that_shows_them() {
        let first_bytes = b"GET / HTTP".to_vec();
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Err(ZmtpError::NotZmtp { first_bytes }));
        assert_eq!(parse(b"G"), Err(ZmtpError::NotZmtp { first_bytes: b"G".to_vec() }));
        assert!(matches!(parse(&[0xff; 9]), Ok(None)));
        assert!(matches!(parse(b"\xff\0\0\0\0\0\0\0\x01\0"), Err(ZmtpError::NotZmtp { .. })));
        let version = Version { major: 1, minor: 0 };
        assert_eq!(parse(b"\xff\0\0\0\0\0\0\0\x01\x7f\x01"), Err(ZmtpError::VersionTooOld { version }));
    }
}
