//! How long messages took from their publisher to the broker.
//!
//! A publisher writes into the header when it published. Of each batch of one topic the broker looks at the first message,
//! the one that waited longest for its batch to go, and compares that time with its own clock at the begin of the turn in
//! which it reads. What has no header, as from a stock socket, has no delay; nor has a message whose publisher's clock is
//! ahead by more than [`AHEAD_NS`], which would only hide those that are late.

/// A message that was read in a turn of the broker may have been published since that turn began, which is the time it is
/// compared with; this much later it is the clocks that differ.
const AHEAD_NS: u64 = 1_000_000_000;

/// The delay of a message, in nanoseconds; `None` if there is none to speak of.
pub(super) fn delay_ns(published_at_ns: Option<u64>, now_ns: u64) -> Option<u64> {
    let published_at_ns = published_at_ns?;
    match published_at_ns <= now_ns.saturating_add(AHEAD_NS) {
        true => Some(now_ns.saturating_sub(published_at_ns)),
        false => None,
    }
}

/// What is known of one topic and a second, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Of the messages that were looked at, in microseconds.
    pub mean_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

/// Delays of a second that is not over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delays {
    looked_at: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Delays {
    pub(super) fn add(&mut self, delay_ns: u64) {
        self.looked_at += 1;
        self.sum_ns = self.sum_ns.saturating_add(delay_ns);
        self.max_ns = self.max_ns.max(delay_ns);
    }

    pub(super) fn so_far(&self) -> Option<Delay> {
        let mean_ns = self.sum_ns.checked_div(self.looked_at)?;
        Some(Delay { mean_us: mean_ns / 1000, max_us: self.max_ns / 1000 })
    }
}

/// A number of microseconds in two bytes: 11 significant bits and how far they are shifted, so that it is exact up to
/// 2 ms, and within 0.05 % up to an hour and beyond, where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short(u16);

impl Short {
    const SIGNIFICANT_BITS: u32 = 11;
    const NONE: Self = Self(u16::MAX);
    /// The largest: one less than what stands for none.
    const MOST: Self = Self(u16::MAX - 1);

    /// The nearest.
    fn of(microseconds: u64) -> Self {
        let bits = u64::BITS - microseconds.leading_zeros();
        let shift = bits.saturating_sub(Self::SIGNIFICANT_BITS);
        let rounded = microseconds.saturating_add((1 << shift) / 2) >> shift;
        // Rounded up to one bit more, it has none of them set but that: the same as half of it, shifted by one more.
        let (shift, rounded) = match rounded >> Self::SIGNIFICANT_BITS {
            0 => (shift, rounded),
            _ => (shift + 1, rounded / 2),
        };
        let short = (shift << Self::SIGNIFICANT_BITS) | rounded as u32;
        u16::try_from(short).map_or(Self::MOST, |short| Self(short.min(Self::MOST.0)))
    }

    fn microseconds(self) -> u64 {
        u64::from(self.0 & ((1 << Self::SIGNIFICANT_BITS) - 1)) << (self.0 >> Self::SIGNIFICANT_BITS)
    }
}

/// A [`Delay`], or none, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortDelay {
    mean: Short,
    max: Short,
}

impl From<Option<Delay>> for ShortDelay {
    fn from(delay: Option<Delay>) -> Self {
        match delay {
            Some(Delay { mean_us, max_us }) => Self { mean: Short::of(mean_us), max: Short::of(max_us) },
            None => Self { mean: Short::NONE, max: Short::NONE },
        }
    }
}

impl From<ShortDelay> for Option<Delay> {
    fn from(ShortDelay { mean, max }: ShortDelay) -> Self {
        (mean != Short::NONE).then(|| Delay { mean_us: mean.microseconds(), max_us: max.microseconds() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_a_delay_unless_it_has_no_time_or_comes_from_the_future() {
        const NOW_NS: u64 = 1_000_000_000_000_000_000;
        assert_eq!(delay_ns(Some(NOW_NS - 5), NOW_NS), Some(5));
        assert_eq!(delay_ns(Some(NOW_NS + AHEAD_NS), NOW_NS), Some(0), "read in a turn that began before it");
        assert_eq!(delay_ns(Some(NOW_NS + AHEAD_NS + 1), NOW_NS), None);
        assert_eq!(delay_ns(None, NOW_NS), None);
        assert_eq!(delay_ns(Some(u64::MAX), NOW_NS), None);
    }

    #[test]
    fn a_second_has_the_mean_and_the_longest_of_what_was_looked_at() {
        let mut delays = Delays::default();
        assert_eq!(delays.so_far(), None);
        [1_000_000, 3_000_000, 500].into_iter().for_each(|delay_ns| delays.add(delay_ns));
        assert_eq!(delays.so_far(), Some(Delay { mean_us: 1333, max_us: 3000 }));
        delays.add(u64::MAX);
        assert!(delays.so_far().is_some_and(|delay| delay.max_us == u64::MAX / 1000));
    }

    proptest! {
        #[test]
        fn two_bytes_hold_a_time_within_half_a_thousandth(microseconds in prop_oneof![0..3000u64, 0..7_200_000_000u64, any::<u64>()]) {
            let kept = Short::of(microseconds).microseconds();
            let most = Short::MOST.microseconds();
            prop_assert!(most > 3_600_000_000);
            if microseconds <= 2047 {
                prop_assert_eq!(kept, microseconds);
            } else if microseconds > most {
                prop_assert_eq!(kept, most);
            } else {
                prop_assert!(kept.abs_diff(microseconds) <= microseconds / 2000, "{kept}");
            }
            let delay = Delay { mean_us: kept, max_us: kept };
            prop_assert_eq!(Option::<Delay>::from(ShortDelay::from(Some(delay))), Some(delay));
        }
    }

    #[test]
    fn no_delay_stays_none() {
        assert_eq!(Option::<Delay>::from(ShortDelay::from(None)), None);
    }
}
