//! The memory that sockets are read into. All connections share a few of them; one that is in the
//! middle of a large frame keeps its own until the frame is whole.

use crate::limits;

/// Bytes of one: what a turn gives to one connection, and the longest beginning of a frame before it.
const READ_BUFFER_BYTES: usize = limits::READ_TURN_BYTES + limits::NATIVE_FRAME_BYTES_MAX + 128;
/// Less room than this behind what is not taken yet, and that is moved to the front.
const ROOM_BYTES_MIN: usize = 64 << 10;

/// Bytes that have come, and room for more.
#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: Box<[u8]>,
    /// Where the bytes that nobody has taken yet begin, and end.
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; READ_BUFFER_BYTES].into(), start: 0, end: 0 }
    }

    /// What has come and is not taken.
    pub(super) fn untaken(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.start += bytes;
        debug_assert!(self.start <= self.end, "no more is taken than has come");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for what comes next.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.end < ROOM_BYTES_MIN {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes have come into the room.
    pub(super) fn came(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Puts back the beginning of a frame that was kept elsewhere.
    pub(super) fn begin_with(&mut self, kept: &[u8]) {
        self.bytes[..kept.len()].copy_from_slice(kept);
        (self.start, self.end) = (0, kept.len());
    }

    /// Whether it can hold as much from where the untaken bytes begin.
    pub(super) fn can_hold(&self, bytes: usize) -> bool {
        bytes <= self.bytes.len() - ROOM_BYTES_MIN
    }
}
