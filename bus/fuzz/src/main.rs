//! Runs one of the targets in `bus/src/fuzzing.rs` under libFuzzer: the one that
//! `INTERLOCK_FUZZ_TARGET` names.

#![no_main]

use std::sync::OnceLock;

use interlock_bus::fuzzing::{TARGETS, Target};

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("INTERLOCK_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        let found = TARGETS.iter().find(|(candidate, _)| *candidate == name);
        found.unwrap_or_else(|| panic!("`INTERLOCK_FUZZ_TARGET` must be one of {names:?}")).1
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| chosen()(data));
