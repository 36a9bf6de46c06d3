//! A source of random numbers that a seed names, and the environment that names the seed.

use std::{thread, time::Duration};

/// splitmix64, public domain constants.
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub(crate) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Another source, that this one names.
    pub(crate) fn another(&mut self) -> Self {
        Self(self.roll())
    }

    /// The delay before a step of a race: none, a few turns of the scheduler, or some milliseconds.
    pub(crate) fn delay(&mut self) {
        match self.below(4) {
            0 => {}
            1 => (0..self.below(50)).for_each(|_| thread::yield_now()),
            _ => thread::sleep(Duration::from_micros(self.below(12_000))),
        }
    }

    pub(crate) fn bytes(&mut self, bytes_max: u64) -> Vec<u8> {
        let length = self.below(bytes_max);
        (0..length).map(|_| self.roll() as u8).collect()
    }
}

/// A number from the environment.
pub(crate) fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("it is a number"))
}

/// How long a round of a race may take that should take some tens of milliseconds: the machine may be busy, a client that
/// was refused a few times in a row backs off for seconds, and a soak, of as many rounds as `variable` says, may be stopped
/// for minutes.
pub(crate) fn round_deadline(variable: &str) -> Duration {
    let is_soak = environment(variable).is_some_and(|races| races >= 1000);
    Duration::from_secs(if is_soak { 900 } else { 60 })
}

/// The seed of a randomised test: `INTERLOCK_SEED`, or a new one. It is printed, for whoever reads a failure.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = environment("INTERLOCK_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    #[allow(clippy::print_stdout, reason = "whoever reads a failure needs the seed")]
    {
        println!("{test}: INTERLOCK_SEED={seed}");
    }
    seed
}
