//! A source of random numbers that a seed names, and the environment that names the seed.

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

    pub(crate) fn bytes(&mut self, bytes_max: u64) -> Vec<u8> {
        let length = self.below(bytes_max);
        (0..length).map(|_| self.roll() as u8).collect()
    }
}

/// A number from the environment.
pub(crate) fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("it is a number"))
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
