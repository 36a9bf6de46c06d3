//! The bytes of one segment file: a header, then frames. Pure: bytes in, bytes out.
//!
//! ```text
//! header  magic 8 | version u16 | zero u16 | segment u64 | stream 16 | CRC-32C of these u32          (40 bytes)
//! frame   mark 4 | length u32 | sequence u64 | CRC-32C u32 | sealed: nonce 24, content, tag 16
//! ```
//!
//! Numbers are little endian. `stream` is random, new for each file, and begins each frame (`mark`): frames are found again
//! behind damage, and those of another file are never taken for ours. The CRC is over stream, length, sequence and sealed
//! bytes; a box that does not open although its CRC is right was changed on purpose, or sealed with another key. Each box is
//! bound to header and sequence (XChaCha20-Poly1305, `crypto::seal_beside`), so no frame can be moved or renumbered.

use interlock_bus::crypto::{self, KEY_BYTES};
use zeroize::Zeroizing;

use super::crc32c::crc32c;

const MAGIC: &[u8; 8] = b"ILJRNL\r\n";
const VERSION: u16 = 1;
/// Bytes of the header of a file.
pub(super) const HEADER_BYTES: usize = 40;
/// Bytes of a frame before its box.
const FRAME_HEADER_BYTES: usize = 20;
/// Bytes that a box is longer than its content.
const BOX_BYTES: usize = crypto::NONCE_BYTES + crypto::MAC_BYTES;
/// Content of one frame. Nothing longer is written; a length above it is damage.
pub(super) const CONTENT_BYTES_MAX: usize = 1 << 20;

/// Seals the frames of one new segment.
pub(super) struct Sealer {
    header: [u8; HEADER_BYTES],
    sequence: u64,
}

impl Sealer {
    pub(super) fn new(segment: u64) -> Self {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[12..20].copy_from_slice(&segment.to_le_bytes());
        header[20..36].copy_from_slice(&crypto::random::<16>());
        let sum = crc32c(&[&header[..36]]);
        header[36..].copy_from_slice(&sum.to_le_bytes());
        Self { header, sequence: 0 }
    }

    pub(super) fn header(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    /// Frames that were sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.sequence
    }

    /// Appends `content` as the next frame. Content above [`CONTENT_BYTES_MAX`] is the caller's mistake.
    pub(super) fn seal_onto(&mut self, key: &[u8; KEY_BYTES], content: &[u8], output: &mut Vec<u8>) {
        assert!(content.len() <= CONTENT_BYTES_MAX, "a frame of {} bytes", content.len());
        self.sequence += 1;
        let sequence = self.sequence.to_le_bytes();
        let sealed = crypto::seal_beside(key, &associated(&self.header, self.sequence), content);
        let length = u32::try_from(sealed.len()).expect("it is at most a megabyte").to_le_bytes();
        let sum = crc32c(&[&self.header[20..36], &length, &sequence, &sealed]);
        output.extend_from_slice(&self.header[20..24]);
        output.extend_from_slice(&length);
        output.extend_from_slice(&sequence);
        output.extend_from_slice(&sum.to_le_bytes());
        output.extend_from_slice(&sealed);
    }
}

fn associated(header: &[u8; HEADER_BYTES], sequence: u64) -> [u8; HEADER_BYTES + 8] {
    let mut associated = [0; HEADER_BYTES + 8];
    associated[..HEADER_BYTES].copy_from_slice(header);
    associated[HEADER_BYTES..].copy_from_slice(&sequence.to_le_bytes());
    associated
}

/// What is wrong with a stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file does not begin like a segment: none of it can be read.
    Header,
    /// The file ends inside a frame: a write that a kill or a power cut ended.
    Torn,
    /// Bytes in the middle are not what was written.
    Damaged,
    /// Whole frames are gone.
    Missing,
    /// The bytes are as somebody wrote them, but not with our key or not for this place.
    Forged,
    /// It opens, but is no record that this version knows.
    Unknown,
}

impl Fault {
    /// In a word or two, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "its header is damaged",
            Self::Torn => "torn at its end",
            Self::Damaged => "damaged",
            Self::Missing => "frames are missing",
            Self::Forged => "changed on purpose, or sealed with another key",
            Self::Unknown => "not a record that this version knows",
        }
    }
}

/// A stretch of a file that is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Where it begins in the file.
    pub offset: usize,
    /// Its length; zero where something is missing.
    pub bytes: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// One frame whose CRC is right.
struct Frame {
    offset: usize,
    end: usize,
    sequence: u64,
}

/// A frame that opened.
pub(super) struct Good {
    pub(super) offset: usize,
    pub(super) bytes: usize,
    pub(super) content: Zeroizing<Vec<u8>>,
}

/// What one file holds.
#[derive(Default)]
pub(super) struct Opened {
    /// The good frames, in order.
    pub(super) good: Vec<Good>,
    /// The stretches that are none.
    pub(super) bad: Vec<Bad>,
}

/// Opens every frame that can be opened.
pub(super) fn open(key: &[u8; KEY_BYTES], segment: u64, file: &[u8]) -> Opened {
    let mut opened = Opened::default();
    let Some(header) = header(segment, file) else {
        // An empty file is one whose maker was killed before it wrote anything.
        if !file.is_empty() {
            opened.bad.push(Bad { offset: 0, bytes: file.len(), fault: Fault::Header });
        }
        return opened;
    };
    let (mut at, mut last) = (HEADER_BYTES, 0);
    while at < file.len() {
        let Some(frame) = next_frame(header, file, at, last) else {
            opened.bad.push(Bad { offset: at, bytes: file.len() - at, fault: Fault::Torn });
            break;
        };
        if frame.offset > at {
            opened.bad.push(Bad { offset: at, bytes: frame.offset - at, fault: Fault::Damaged });
        } else if frame.sequence != last + 1 {
            opened.bad.push(Bad { offset: at, bytes: 0, fault: Fault::Missing });
        }
        let sealed = &file[frame.offset + FRAME_HEADER_BYTES..frame.end];
        let (offset, bytes) = (frame.offset, frame.end - frame.offset);
        match crypto::open_beside(key, &associated(header, frame.sequence), sealed) {
            Ok(content) => opened.good.push(Good { offset, bytes, content }),
            Err(_) => opened.bad.push(Bad { offset, bytes, fault: Fault::Forged }),
        }
        (at, last) = (frame.end, frame.sequence);
    }
    opened
}

/// Frames of a file whose CRC is right, without a key.
pub(super) fn count(segment: u64, file: &[u8]) -> u64 {
    let Some(header) = header(segment, file) else { return 0 };
    let (mut at, mut last, mut frames) = (HEADER_BYTES, 0, 0);
    while let Some(frame) = next_frame(header, file, at, last) {
        (at, last) = (frame.end, frame.sequence);
        frames += 1;
    }
    frames
}

fn header(segment: u64, file: &[u8]) -> Option<&[u8; HEADER_BYTES]> {
    let header: &[u8; HEADER_BYTES] = file.first_chunk()?;
    let sum = u32::from_le_bytes(*header.last_chunk()?);
    let good = header[..8] == *MAGIC
        && header[8..10] == VERSION.to_le_bytes()
        && header[12..20] == segment.to_le_bytes()
        && sum == crc32c(&[&header[..36]]);
    good.then_some(header)
}

/// The first good frame at or behind `at`, whose sequence is above `last`.
fn next_frame(header: &[u8; HEADER_BYTES], file: &[u8], mut at: usize, last: u64) -> Option<Frame> {
    let mark = &header[20..24];
    loop {
        at += file.get(at..)?.windows(4).position(|window| window == mark)?;
        match frame_at(header, file, at) {
            Some(frame) if frame.sequence > last => return Some(frame),
            _ => at += 1,
        }
    }
}

fn frame_at(header: &[u8; HEADER_BYTES], file: &[u8], offset: usize) -> Option<Frame> {
    let head: &[u8; FRAME_HEADER_BYTES] = file.get(offset..)?.first_chunk()?;
    let (length, sequence): (&[u8; 4], &[u8; 8]) = (head[4..].first_chunk()?, head[8..].first_chunk()?);
    let bytes = u32::from_le_bytes(*length) as usize;
    if !(BOX_BYTES..=BOX_BYTES + CONTENT_BYTES_MAX).contains(&bytes) {
        return None;
    }
    let end = offset + FRAME_HEADER_BYTES + bytes;
    let sealed = file.get(offset + FRAME_HEADER_BYTES..end)?;
    let sum = u32::from_le_bytes(*head.last_chunk()?);
    let good = sum == crc32c(&[&header[20..36], length, sequence, sealed]);
    good.then_some(Frame { offset, end, sequence: u64::from_le_bytes(*sequence) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

    /// A segment with these contents, and where each frame begins.
    fn segment(contents: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let mut sealer = Sealer::new(5);
        let mut file = sealer.header().to_vec();
        let mut offsets = Vec::new();
        for content in contents {
            offsets.push(file.len());
            sealer.seal_onto(&KEY, content, &mut file);
        }
        offsets.push(file.len());
        (file, offsets)
    }

    fn contents(opened: &Opened) -> Vec<Vec<u8>> {
        opened.good.iter().map(|good| good.content.to_vec()).collect()
    }

    fn some() -> Vec<Vec<u8>> {
        (0..5).map(|number| format!("content {number}").into_bytes()).collect()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_of_it_is_in_the_file() {
        let (file, _) = segment(&some());
        let opened = open(&KEY, 5, &file);
        assert_eq!((contents(&opened), opened.bad, count(5, &file)), (some(), vec![], 5));
        assert!(!file.windows(7).any(|window| window == b"content"));
    }

    #[test]
    fn a_file_cut_anywhere_gives_the_frames_before_the_cut_and_names_the_torn_one() {
        let (file, offsets) = segment(&some());
        for cut in HEADER_BYTES..file.len() {
            let opened = open(&KEY, 5, &file[..cut]);
            let whole = offsets.iter().filter(|offset| **offset <= cut).count() - 1;
            assert_eq!(contents(&opened), some()[..whole]);
            let torn = Bad { offset: offsets[whole], bytes: cut - offsets[whole], fault: Fault::Torn };
            assert_eq!(opened.bad, if torn.bytes > 0 { vec![torn] } else { vec![] });
        }
    }

    #[test]
    fn a_frame_that_somebody_changed_and_summed_again_is_told_from_damage() {
        let (mut file, offsets) = segment(&some());
        let frame = offsets[2]..offsets[3];
        file[frame.end - 1] ^= 1;
        assert_eq!(open(&KEY, 5, &file).bad[0].fault, Fault::Damaged);
        let (head, sealed) =
            (file[frame.clone()][4..16].to_vec(), file[frame.start + 20..frame.end].to_vec());
        let sum = crc32c(&[&file[20..36], &head, &sealed]);
        file[frame.start + 16..frame.start + 20].copy_from_slice(&sum.to_le_bytes());
        let opened = open(&KEY, 5, &file);
        assert_eq!(opened.bad, [Bad { offset: frame.start, bytes: frame.len(), fault: Fault::Forged }]);
        assert_eq!(opened.good.len(), 4);
    }

    #[test]
    fn frames_cut_out_moved_or_of_another_file_are_noticed() {
        let (file, offsets) = segment(&some());
        let cut = [&file[..offsets[1]], &file[offsets[2]..]].concat();
        let opened = open(&KEY, 5, &cut);
        assert_eq!(opened.bad, [Bad { offset: offsets[1], bytes: 0, fault: Fault::Missing }]);
        assert_eq!(opened.good.len(), 4);
        let swapped =
            [&file[..offsets[1]], &file[offsets[2]..offsets[3]], &file[offsets[1]..offsets[2]]].concat();
        assert_eq!(open(&KEY, 5, &swapped).good.len(), 2);
        let (other, _) = segment(&some());
        let mixed = [&file[..offsets[1]], &other[offsets[1]..]].concat();
        assert_eq!(open(&KEY, 5, &mixed).good.len(), 1);
        assert_eq!(open(&KEY, 6, &file).bad[0].fault, Fault::Header);
        assert!(open(&[8; KEY_BYTES], 5, &file).bad.iter().all(|bad| bad.fault == Fault::Forged));
    }

    proptest! {
        #[test]
        fn bytes_from_outside_never_panic(file in prop::collection::vec(any::<u8>(), 0..500)) {
            let opened = open(&KEY, 5, &file);
            prop_assert!(opened.good.is_empty());
        }

        /// Whatever stretch is overwritten: the frames outside are read, in order, and nothing else.
        #[test]
        fn frames_before_and_behind_damage_are_read(from in 0..1000usize, bytes in 1..300usize, with in any::<u8>()) {
            let (file, offsets) = segment(&some());
            let from = HEADER_BYTES + from % (file.len() - HEADER_BYTES);
            let to = (from + bytes).min(file.len());
            let mut damaged = file.clone();
            damaged[from..to].fill(with);
            let untouched = |number: &usize| damaged[offsets[*number]..offsets[number + 1]] == file[offsets[*number]..offsets[number + 1]];
            let expected: Vec<_> = (0..5).filter(untouched).map(|number| some()[number].clone()).collect();
            let opened = open(&KEY, 5, &damaged);
            prop_assert_eq!(contents(&opened), expected.clone());
            prop_assert_eq!(opened.bad.is_empty(), expected.len() == 5);
            prop_assert_eq!(count(5, &damaged), expected.len() as u64);
        }
    }
}
