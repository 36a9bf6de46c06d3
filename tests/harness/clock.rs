//! A wall clock that jumps, for one program and whatever it starts: `c/clock_jump.c`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

pub(crate) struct Clock {
    library: PathBuf,
    jump: PathBuf,
    _place: tempfile::TempDir,
}

impl Clock {
    /// One that is right.
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let [library, jump] = ["clock_jump.so", "jump"].map(|name| place.path().join(name));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/clock_jump.c");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
        assert!(built.unwrap().success());
        let clock = Self { library, jump, _place: place };
        clock.jump(0);
        clock
    }

    /// Wrong by so many seconds from now on.
    pub(crate) fn jump(&self, seconds: i64) {
        std::fs::write(&self.jump, seconds.to_string()).unwrap();
    }

    /// What a program needs to go by it.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.library.clone()), ("CLOCK_JUMP", self.jump.clone())]
    }
}
