//! Ids of messages: UUIDv7 without a system call for each.

use std::cell::Cell;

use uuid::Uuid;

/// Random bits below the version and the variant.
const RANDOM_BITS: u32 = 74;

thread_local! {
    /// Millisecond and random part of the last id of this thread; no id has the last millisecond there is.
    static LAST: Cell<(u64, u128)> = const { Cell::new((u64::MAX, 0)) };
}

/// The id of a message published at `unix_ns`. Within a millisecond the random part of a thread's ids
/// counts up from a random start ("monotonic random", RFC 9562, 6.2), so ids of one thread rise, and
/// those of two threads meet only if their 74 random bits do. They are names, not secrets.
pub(super) fn message_id(unix_ns: u64) -> Uuid {
    let millisecond = unix_ns / 1_000_000;
    let (last, random) = LAST.get();
    let random = match millisecond == last {
        true => random.wrapping_add(1) & ((1 << RANDOM_BITS) - 1),
        false => Uuid::new_v4().as_u128() & ((1 << RANDOM_BITS) - 1) & !(1 << 61),
    };
    LAST.set((millisecond, random));
    let (high, low) = (random >> 62, random & ((1 << 62) - 1));
    Uuid::from_u128(u128::from(millisecond) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_thread_rise_within_a_millisecond_and_across() {
        let ids: Vec<Uuid> =
            (0..3000).map(|step| message_id(1_700_000_000_000_000_000 + step * 1000)).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
        let (seconds, nanoseconds) = ids[0].get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanoseconds), (1_700_000_000, 0));
    }

    #[test]
    fn threads_do_not_share_ids() {
        let here = message_id(0);
        let there = std::thread::spawn(|| message_id(0)).join().unwrap();
        assert_ne!(here, there);
    }
}
