//! Memory of large records, used again: the system takes back what a large record leaves and gives it
//! again page by page, which costs more than to encrypt the record.

use std::{
    ops::RangeInclusive,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

/// Buffers that are kept, and their capacities: at most 4 MiB in a process.
const SPARE_BUFFERS_MAX: usize = 8;
const CAPACITIES_KEPT: RangeInclusive<usize> = (32 << 10)..=(512 << 10);

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A growing buffer whose memory is kept for the next one when the last reference to it is gone.
#[derive(Debug, Default)]
pub(crate) struct LargeBuffer(Vec<u8>);

impl LargeBuffer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        if !CAPACITIES_KEPT.contains(&bytes) {
            return Self(Vec::with_capacity(bytes));
        }
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|buffer| buffer.capacity() >= bytes);
        let buffer = found.map(|at| spare.swap_remove(at));
        drop(spare);
        Self(buffer.unwrap_or_else(|| Vec::with_capacity(bytes)))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn extend_from_slice(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    pub(crate) fn freeze(mut self) -> Bytes {
        match CAPACITIES_KEPT.contains(&self.0.capacity()) {
            true => Bytes::from_owner(self),
            false => std::mem::take(&mut self.0).into(),
        }
    }
}

impl AsRef<[u8]> for LargeBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for LargeBuffer {
    fn drop(&mut self) {
        if !CAPACITIES_KEPT.contains(&self.0.capacity()) {
            return;
        }
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BUFFERS_MAX {
            self.0.clear();
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_large_record_leaves_is_used_again_and_little_of_it_is_kept() {
        for _ in 0..3 {
            let held: Vec<Bytes> = (0..3 * SPARE_BUFFERS_MAX)
                .map(|number| {
                    let mut buffer = LargeBuffer::with_capacity(100 << 10);
                    assert_eq!(buffer.len(), 0);
                    buffer.extend_from_slice(&vec![number as u8; 100 << 10]);
                    buffer.freeze()
                })
                .collect();
            assert!(held.iter().enumerate().all(|(number, held)| held[99 << 10] == number as u8));
        }
        drop(LargeBuffer::with_capacity(64 << 20).freeze());
        let spare = SPARE.lock().unwrap();
        assert!((1..=SPARE_BUFFERS_MAX).contains(&spare.len()));
        assert!(spare.iter().all(|buffer| CAPACITIES_KEPT.contains(&buffer.capacity())));
    }
}
