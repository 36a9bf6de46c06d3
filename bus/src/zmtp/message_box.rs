//! MESSAGE: the box in which every frame travels after the handshake.
//!
//! On the wire it is an ordinary message frame, never a command frame; whether it is a command, and
//! whether more follows, is said by the flags inside the box. The outer flags are not authenticated
//! and therefore not looked at.

use bytes::{Buf, Bytes, BytesMut};

use super::curve::{ReceiveCounter, SHORT_NONCE_BYTES, SendCounter, short_nonce};
use super::error::ZmtpError;
use super::frame::{FrameFlags, HEADER_BYTES_MAX, encode_header, encode_header_onto};
use crate::crypto::{BoxKey, MAC_BYTES};

const NAME: &[u8; 8] = b"\x07MESSAGE";
const MAC_AT: usize = NAME.len() + SHORT_NONCE_BYTES;
const FLAGS_AT: usize = MAC_AT + MAC_BYTES;
const BODY_AT: usize = FLAGS_AT + 1;

const MORE: u8 = 0x01;
const COMMAND: u8 = 0x02;

/// Bytes that a frame on the wire is longer than its body, without the frame's header.
pub(super) const OVERHEAD_BYTES: usize = BODY_AT;

/// Bytes in front of a body that is to be sealed where it lies.
pub(super) const ROOM_BYTES: usize = HEADER_BYTES_MAX + BODY_AT;

/// Which role's nonces are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    fn sends(self) -> &'static [u8; 16] {
        match self {
            Self::Client => b"CurveZMQMESSAGEC",
            Self::Server => b"CurveZMQMESSAGES",
        }
    }

    fn receives(self) -> &'static [u8; 16] {
        match self {
            Self::Client => Self::Server.sends(),
            Self::Server => Self::Client.sends(),
        }
    }
}

/// Seals and opens the frames of one open session.
#[derive(Debug)]
pub(super) struct MessageBox {
    key: BoxKey,
    side: Side,
    sent: SendCounter,
    received: ReceiveCounter,
}

impl MessageBox {
    pub(super) fn new(key: BoxKey, side: Side, sent: SendCounter, received: ReceiveCounter) -> Self {
        Self { key, side, sent, received }
    }

    /// Appends one frame made of the concatenated `parts`, encrypted where it lies in `output`.
    pub(super) fn seal_onto(
        &mut self,
        flags: FrameFlags,
        parts: &[&[u8]],
        output: &mut Vec<u8>,
    ) -> Result<(), ZmtpError> {
        let counter = self.sent.next()?;
        let body_bytes = BODY_AT + parts.iter().map(|part| part.len()).sum::<usize>();
        output.reserve(HEADER_BYTES_MAX + body_bytes);
        encode_header_onto(FrameFlags::LAST, body_bytes, output);
        let frame_at = output.len();
        output.extend_from_slice(NAME);
        output.extend_from_slice(&counter.to_be_bytes());
        output.extend_from_slice(&[0; MAC_BYTES]);
        output.push(flag_byte(flags));
        for part in parts {
            output.extend_from_slice(part);
        }
        let nonce = short_nonce(self.side.sends(), counter);
        let frame = &mut output[frame_at..];
        let mac = self.key.seal_in_place(&nonce, &mut frame[FLAGS_AT..]);
        frame[MAC_AT..FLAGS_AT].copy_from_slice(&mac);
        Ok(())
    }

    /// Appends one frame whose body is what `write` appends, encrypted where it lies; `false` if that
    /// is nothing, and then there is no frame. A body above `limit` is refused. After an error `output`
    /// is as it was.
    pub(super) fn seal_written(
        &mut self,
        flags: FrameFlags,
        limit: usize,
        output: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<bool, ZmtpError> {
        let start = output.len();
        output.extend_from_slice(&[0; ROOM_BYTES]);
        write(output);
        let bytes = output.len() - start - ROOM_BYTES;
        let sealed = match bytes {
            0 => Ok(false),
            _ if bytes > limit => Err(ZmtpError::SendTooLong { bytes, limit }),
            _ => self.sent.next().map(|counter| {
                self.seal_at(flags, counter, start, output);
                true
            }),
        };
        if sealed != Ok(true) {
            output.truncate(start);
        }
        sealed
    }

    /// Makes one frame of `memory`, which is [`ROOM_BYTES`] and then a body. After an error it is as it was.
    pub(super) fn seal_draft(&mut self, flags: FrameFlags, memory: &mut Vec<u8>) -> Result<(), ZmtpError> {
        let counter = self.sent.next()?;
        self.seal_at(flags, counter, 0, memory);
        Ok(())
    }

    /// Seals what stands in `output` from `start` on, behind room for the longest header.
    fn seal_at(&mut self, flags: FrameFlags, counter: u64, start: usize, output: &mut Vec<u8>) {
        let frame = &mut output[start + HEADER_BYTES_MAX..];
        let frame_bytes = frame.len();
        let nonce = short_nonce(self.side.sends(), counter);
        frame[FLAGS_AT] = flag_byte(flags);
        let mac = self.key.seal_in_place(&nonce, &mut frame[FLAGS_AT..]);
        frame[..NAME.len()].copy_from_slice(NAME);
        frame[NAME.len()..MAC_AT].copy_from_slice(&counter.to_be_bytes());
        frame[MAC_AT..FLAGS_AT].copy_from_slice(&mac);
        let (header, header_bytes) = encode_header(FrameFlags::LAST, frame_bytes);
        output[start..start + header_bytes].copy_from_slice(&header[..header_bytes]);
        if header_bytes < HEADER_BYTES_MAX {
            // A short frame, of 255 bytes at most, moves up to its short header.
            output.copy_within(start + HEADER_BYTES_MAX.., start + header_bytes);
            output.truncate(start + header_bytes + frame_bytes);
        }
    }

    /// Opens the body of one frame where it lies, and returns what was in the box without copying.
    pub(super) fn open(&mut self, mut frame: BytesMut) -> Result<(FrameFlags, Bytes), ZmtpError> {
        let flags = self.open_in_place(&mut frame)?;
        frame.advance(BODY_AT);
        Ok((flags, frame.freeze()))
    }

    /// Opens the body of one frame where it lies. What was in the box then begins at [`OVERHEAD_BYTES`].
    pub(super) fn open_in_place(&mut self, frame: &mut [u8]) -> Result<FrameFlags, ZmtpError> {
        let bytes = frame.len();
        let malformed = ZmtpError::Malformed { name: "MESSAGE", bytes, expected: "at least 33" };
        let Some((head, content)) = frame.split_first_chunk_mut::<FLAGS_AT>() else {
            return Err(malformed);
        };
        let Some((name, nonce, mac)) = split_head(head) else { return Err(malformed) };
        if content.is_empty() {
            return Err(malformed);
        }
        if name != NAME {
            let name = name.escape_ascii().to_string();
            return Err(ZmtpError::Unexpected { name, stage: super::Stage::Session });
        }
        let counter = u64::from_be_bytes(*nonce);
        self.received.check_next(counter)?;
        let nonce = short_nonce(self.side.receives(), counter);
        self.key
            .open_in_place(&nonce, mac, content)
            .map_err(|_| ZmtpError::BoxRefused { name: "MESSAGE" })?;
        self.received.advance(counter);
        let flags = content[0];
        if flags & !(MORE | COMMAND) != 0 || flags == MORE | COMMAND {
            return Err(ZmtpError::MessageFlags { flags });
        }
        Ok(FrameFlags { more: flags & MORE != 0, command: flags & COMMAND != 0 })
    }
}

fn flag_byte(flags: FrameFlags) -> u8 {
    (u8::from(flags.more) * MORE) | (u8::from(flags.command) * COMMAND)
}

type Head<'a> = (&'a [u8; 8], &'a [u8; SHORT_NONCE_BYTES], &'a [u8; MAC_BYTES]);

/// Name, nonce and authenticator.
fn split_head(head: &[u8; FLAGS_AT]) -> Option<Head<'_>> {
    let (name, rest) = head.split_first_chunk()?;
    let (nonce, mac) = rest.split_first_chunk()?;
    Some((name, nonce, mac.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (MessageBox, MessageBox) {
        let side = |side| {
            let key = BoxKey::from_bytes([9; 32]);
            MessageBox::new(key, side, SendCounter::default(), ReceiveCounter::default())
        };
        (side(Side::Client), side(Side::Server))
    }

    fn sealed(sender: &mut MessageBox, flags: FrameFlags, parts: &[&[u8]]) -> BytesMut {
        let mut output = Vec::new();
        sender.seal_onto(flags, parts, &mut output).unwrap();
        let header_bytes = if output[0] & 2 == 0 { 2 } else { HEADER_BYTES_MAX };
        assert_eq!(output[0] & !2, 0, "MESSAGE travels in plain message frames");
        BytesMut::from(&output[header_bytes..])
    }

    #[test]
    fn frames_open_with_their_flags_and_their_parts_joined() {
        let (mut client, mut server) = pair();
        for flags in [FrameFlags::LAST, FrameFlags::MORE, FrameFlags::COMMAND] {
            let frame = sealed(&mut client, flags, &[b"ab", b"", b"c"]);
            assert_eq!(server.open(frame), Ok((flags, Bytes::from_static(b"abc"))));
            let frame = sealed(&mut server, flags, &[]);
            assert_eq!(client.open(frame), Ok((flags, Bytes::new())));
        }
    }

    #[test]
    fn a_body_written_in_place_gives_the_same_frame_as_one_of_parts() {
        let ((mut parts, _), (mut written, _)) = (pair(), pair());
        for bytes in [1, 2, 221, 222, 223, 300, 70_000] {
            let body = vec![bytes as u8; bytes];
            let (mut expected, mut output) = (b"before".to_vec(), b"before".to_vec());
            parts.seal_onto(FrameFlags::MORE, &[&body], &mut expected).unwrap();
            let write = |out: &mut Vec<u8>| out.extend_from_slice(&body);
            assert_eq!(written.seal_written(FrameFlags::MORE, bytes, &mut output, write), Ok(true));
            assert_eq!(output, expected, "{bytes} bytes");
            let (mut expected, mut draft) = (Vec::new(), [&[0; ROOM_BYTES], &body[..]].concat());
            parts.seal_onto(FrameFlags::LAST, &[&body], &mut expected).unwrap();
            written.seal_draft(FrameFlags::LAST, &mut draft).unwrap();
            assert_eq!(draft, expected, "a draft of {bytes} bytes");
        }
        let mut output = b"before".to_vec();
        assert_eq!(written.seal_written(FrameFlags::LAST, 10, &mut output, |_| {}), Ok(false));
        let too_long = written.seal_written(FrameFlags::LAST, 10, &mut output, |out| out.resize(200, 0));
        assert!(matches!(too_long, Err(ZmtpError::SendTooLong { limit: 10, .. })), "{too_long:?}");
        assert_eq!(output, b"before");
    }

    #[test]
    fn a_repeated_and_an_older_frame_are_refused_with_both_nonces() {
        let (mut client, mut server) = pair();
        let first = sealed(&mut client, FrameFlags::LAST, &[b"1"]);
        let second = sealed(&mut client, FrameFlags::LAST, &[b"2"]);
        server.open(first.clone()).unwrap();
        server.open(second.clone()).unwrap();
        for (frame, nonce) in [(second, 2), (first, 1)] {
            assert_eq!(server.open(frame), Err(ZmtpError::NonceNotIncreasing { nonce, last: 2 }));
        }
    }

    #[test]
    fn a_frame_whose_predecessor_was_taken_away_is_refused() {
        let (mut client, mut server) = pair();
        let _lost = sealed(&mut client, FrameFlags::LAST, &[b"1"]);
        let second = sealed(&mut client, FrameFlags::LAST, &[b"2"]);
        assert_eq!(server.open(second), Err(ZmtpError::NonceSkipped { nonce: 2, last: 0 }));
    }

    #[test]
    fn a_frame_is_refused_by_its_own_sender_and_when_any_byte_changes() {
        let (mut client, mut server) = pair();
        let frame = sealed(&mut client, FrameFlags::LAST, &[b"body"]);
        let reflected = client.open(frame.clone());
        assert_eq!(reflected, Err(ZmtpError::BoxRefused { name: "MESSAGE" }));
        for at in 0..frame.len() {
            let mut changed = frame.clone();
            changed[at] ^= 0x40;
            assert!(server.open(changed).is_err(), "byte {at}");
        }
        for end in 0..frame.len() {
            assert!(server.open(BytesMut::from(&frame[..end])).is_err(), "cut at {end}");
        }
        assert!(server.open(frame).is_ok(), "refused frames must leave no trace");
    }

    #[test]
    fn reserved_flags_inside_the_box_are_refused() {
        let (client, mut server) = pair();
        for (counter, flags) in [3, 4, 0x80].into_iter().enumerate() {
            let counter = counter as u64 + 1;
            let mut frame = BytesMut::from(&NAME[..]);
            frame.extend_from_slice(&counter.to_be_bytes());
            let mut content = Vec::new();
            let nonce = short_nonce(Side::Client.sends(), counter);
            client.key.seal_onto(&nonce, &[&[flags]], &mut content);
            frame.extend_from_slice(&content);
            assert_eq!(server.open(frame), Err(ZmtpError::MessageFlags { flags }));
        }
    }

    #[test]
    fn nonces_end_instead_of_starting_again() {
        let (mut client, _) = pair();
        client.sent = SendCounter::at(u64::MAX);
        let mut output = Vec::new();
        let sent = client.seal_onto(FrameFlags::LAST, &[], &mut output);
        assert_eq!((sent, output.len()), (Err(ZmtpError::NoncesUsedUp), 0));
    }
}
