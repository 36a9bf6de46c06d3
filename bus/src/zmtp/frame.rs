//! Frames: a byte of flags, one or eight bytes of size, the body. ZMTP RFC 23, "Framing".

use super::error::{Stage, ZmtpError};

const MORE: u8 = 0x01;
const LONG: u8 = 0x02;
const COMMAND: u8 = 0x04;

/// Bytes of a frame's flags and size, at most.
pub(super) const HEADER_BYTES_MAX: usize = 9;

/// What one frame is. The default is the last frame of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameFlags {
    /// Another frame of the same message follows.
    pub more: bool,
    /// The frame is a command of the protocol, not part of a message.
    pub command: bool,
}

impl FrameFlags {
    /// The last, or the only, frame of a message.
    pub const LAST: Self = Self { more: false, command: false };
    /// A frame after which another one of the same message follows.
    pub const MORE: Self = Self { more: true, command: false };
    /// A command, for example SUBSCRIBE or PING.
    pub const COMMAND: Self = Self { more: false, command: true };
}

/// The parsed beginning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: FrameFlags,
    /// Bytes of the header itself.
    pub(super) bytes: usize,
    pub(super) body_bytes: usize,
}

impl Header {
    /// Reads a header, or `None` if it has not come whole. The size is checked against `limit`
    /// here, before anything could be allocated for the body.
    pub(super) fn parse(input: &[u8], limit: usize, stage: Stage) -> Result<Option<Self>, ZmtpError> {
        let Some(&flags) = input.first() else { return Ok(None) };
        let (more, command) = (flags & MORE != 0, flags & COMMAND != 0);
        if flags & !(MORE | LONG | COMMAND) != 0 || (more && command) {
            return Err(ZmtpError::FrameFlags { flags });
        }
        let (announced, bytes) = if flags & LONG == 0 {
            let Some(&size) = input.get(1) else { return Ok(None) };
            (u64::from(size), 2)
        } else {
            let Some(size) = input[1..].first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*size), HEADER_BYTES_MAX)
        };
        let body_bytes = usize::try_from(announced)
            .ok()
            .filter(|body_bytes| *body_bytes <= limit)
            .ok_or(ZmtpError::FrameTooLong { bytes: announced, limit, stage })?;
        Ok(Some(Self { flags: FrameFlags { more, command }, bytes, body_bytes }))
    }
}

/// Appends the header of a frame whose body has `body_bytes`.
pub(super) fn encode_header_onto(flags: FrameFlags, body_bytes: usize, output: &mut Vec<u8>) {
    let (header, header_bytes) = encode_header(flags, body_bytes);
    output.extend_from_slice(&header[..header_bytes]);
}

/// The header of a frame whose body has `body_bytes`, and how many bytes of the array it takes.
pub(super) fn encode_header(flags: FrameFlags, body_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let bits = (u8::from(flags.more) * MORE) | (u8::from(flags.command) * COMMAND);
    let mut header = [0; HEADER_BYTES_MAX];
    match u8::try_from(body_bytes) {
        Ok(short) => {
            (header[0], header[1]) = (bits, short);
            (header, 2)
        }
        Err(_) => {
            header[0] = bits | LONG;
            header[1..].copy_from_slice(&(body_bytes as u64).to_be_bytes());
            (header, HEADER_BYTES_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &[u8], limit: usize) -> Result<Option<Header>, ZmtpError> {
        Header::parse(input, limit, Stage::Session)
    }

    #[test]
    fn headers_read_back_short_and_long_and_wait_for_their_last_byte() {
        for flags in [FrameFlags::LAST, FrameFlags::MORE, FrameFlags::COMMAND] {
            for body_bytes in [0, 1, 255, 256, 65_536, 1 << 33] {
                let mut bytes = Vec::new();
                encode_header_onto(flags, body_bytes, &mut bytes);
                assert_eq!(bytes.len(), if body_bytes < 256 { 2 } else { 9 });
                for end in 0..bytes.len() {
                    assert_eq!(parse(&bytes[..end], usize::MAX), Ok(None));
                }
                let header = Header { flags, bytes: bytes.len(), body_bytes };
                assert_eq!(parse(&bytes, usize::MAX), Ok(Some(header)));
            }
        }
    }

    #[test]
    fn a_size_above_the_limit_is_refused_from_the_header_alone() {
        let error = |bytes, limit| ZmtpError::FrameTooLong { bytes, limit, stage: Stage::Session };
        assert_eq!(parse(&[0, 11], 10), Err(error(11, 10)));
        assert!(parse(&[0, 10], 10).is_ok());
        let huge = [&[2][..], &[0xff; 8]].concat();
        assert_eq!(parse(&huge, 1 << 40), Err(error(u64::MAX, 1 << 40)));
    }

    #[test]
    fn reserved_bits_and_a_command_with_more_are_refused() {
        for flags in (8..=255).chain([5, 7]) {
            assert_eq!(parse(&[flags, 0], 10), Err(ZmtpError::FrameFlags { flags }));
        }
    }
}
