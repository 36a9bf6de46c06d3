//! What a client reads into: frames are opened where they lie, and messages share that memory with the application.
//! A buffer comes back for the next ones when the last of its messages is gone.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::limits;

/// Bytes of a buffer. One with a larger frame grows to at most four times that.
const BUFFER_BYTES: usize = 256 << 10;
/// The largest that is kept for others.
const BUFFER_BYTES_KEPT: usize = 2 * BUFFER_BYTES;
/// Buffers a process keeps: as much as a subscription has on its way.
const SPARE_BUFFERS_MAX: usize = 16;
/// Less room than this behind what has come, and more is made.
const ROOM_BYTES_MIN: usize = 32 << 10;
/// So little is copied rather than given away with its buffer, which a single message could keep.
const COPIED_BYTES_MAX: usize = 16 << 10;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

const _: () = assert!(
    limits::NATIVE_FRAME_BYTES_MAX + 1024 + ROOM_BYTES_MIN <= BUFFER_BYTES_KEPT,
    "a buffer with the largest frame is kept"
);

/// Bytes that have come, in a buffer with room for more.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// Empty until it is first needed; else its whole length can be written to.
    buffer: Vec<u8>,
    end: usize,
}

impl Intake {
    /// Room for what comes next.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = spare();
        }
        if self.buffer.len() - self.end < ROOM_BYTES_MIN {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// So many bytes have come into the room.
    pub(super) fn came(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// What has come and is not taken.
    pub(super) fn untaken(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.end]
    }

    /// Takes what stands before `until` out as shared memory.
    pub(super) fn take(&mut self, until: usize) -> Bytes {
        if until <= COPIED_BYTES_MAX {
            let taken = Bytes::copy_from_slice(&self.buffer[..until]);
            self.buffer.copy_within(until..self.end, 0);
            self.end -= until;
            return taken;
        }
        let mut rest = Self::default();
        if until < self.end {
            rest.buffer = spare();
            let left = &self.buffer[until..self.end];
            if rest.buffer.len() < left.len() {
                rest.buffer.resize(left.len() + ROOM_BYTES_MIN, 0);
            }
            rest.buffer[..left.len()].copy_from_slice(left);
            rest.end = left.len();
        }
        let taken = std::mem::replace(self, rest);
        Bytes::from_owner(taken).slice(..until)
    }
}

impl AsRef<[u8]> for Intake {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        keep(std::mem::take(&mut self.buffer));
    }
}

fn spare() -> Vec<u8> {
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    // The system gives it page by page, as it is written to.
    spare.unwrap_or_else(|| vec![0; BUFFER_BYTES])
}

fn keep(buffer: Vec<u8>) {
    if !(BUFFER_BYTES..=BUFFER_BYTES_KEPT).contains(&buffer.len()) {
        return;
    }
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if spare.len() < SPARE_BUFFERS_MAX {
        spare.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has `bytes` come, as fast as there is room.
    fn read(intake: &mut Intake, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = intake.room();
            let piece = bytes.len().min(room.len());
            room[..piece].copy_from_slice(&bytes[..piece]);
            intake.came(piece);
            bytes = &bytes[piece..];
        }
    }

    #[test]
    fn what_is_taken_in_pieces_of_any_size_is_what_has_come() {
        let stream: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        let (mut intake, mut sent, mut held) = (Intake::default(), 0, Vec::new());
        while sent < stream.len() {
            let come = (sent * 7919 % 400_000 + 1).min(stream.len() - sent);
            read(&mut intake, &stream[sent..sent + come]);
            sent += come;
            let until = sent * 104_729 % (intake.untaken().len() + 1);
            held.push(intake.take(until));
        }
        let rest = intake.untaken().len();
        held.push(intake.take(rest));
        assert!(held.concat() == stream, "while all of it is held");
    }

    #[test]
    fn memory_comes_back_when_the_last_message_is_gone_and_a_small_message_keeps_none() {
        let mut intake = Intake::default();
        read(&mut intake, &[1; 100]);
        let small = intake.take(100);
        read(&mut intake, &[2; 100_000]);
        let large = intake.take(100_000);
        let address = large.as_ptr();
        let last = large.slice(99_000..);
        drop(large);
        assert!(!SPARE.lock().unwrap().iter().any(|spare| spare.as_ptr() == address));
        assert_eq!((small[99], last[999]), (1, 2));
        drop(last);
        // Another test may have taken it since, or there were enough; it was offered at least.
        assert!(SPARE.lock().unwrap().len() <= SPARE_BUFFERS_MAX);
    }
}
