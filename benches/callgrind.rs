//! Instructions by source file, from a profile of valgrind's callgrind.
//!
//! An instruction belongs to a file if the function it is in, or one inlined there, stands in it: so what the
//! optimiser has merged into its caller is still counted where it was written, with all it calls.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// How to get what reads and writes profiles.
pub const INSTALL: &str = "apt-get install valgrind binutils";

/// `valgrind` as it must be called for [`Profile::read`]; the program and its arguments are to follow.
pub fn valgrind(profile: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["-q", "--tool=callgrind", "--dump-instr=yes", "--dump-line=no"]);
    command.args(["--compress-strings=no", "--compress-pos=no"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command
}

/// What one run of a program cost.
#[derive(Debug, Default)]
pub struct Profile {
    /// Instructions.
    pub total: u64,
    /// Of the program itself, by address.
    own: BTreeMap<u64, u64>,
    /// Calls from the program: from where, to which address if within it, and what they cost with all below.
    calls: Vec<(u64, Option<u64>, u64)>,
}

impl Profile {
    /// Reads the profile of a run of `program`.
    ///
    /// # Panics
    /// If there is none, or it is none that callgrind writes.
    pub fn read(path: &Path, program: &Path) -> Self {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("no profile in `{}`: {error}; {INSTALL}", path.display()));
        let program = program.display().to_string();
        let mut profile = Self::default();
        let (mut is_own, mut callee_is_own) = (false, None);
        let mut call = None;
        for line in text.lines() {
            if let Some(object) = line.strip_prefix("ob=") {
                is_own = object == program;
            } else if let Some(object) = line.strip_prefix("cob=") {
                callee_is_own = Some(object == program);
            } else if let Some(words) = line.strip_prefix("calls=") {
                let target = words.split(' ').nth(1).map(address);
                call = Some(target.filter(|_| callee_is_own.take().unwrap_or(is_own)));
            } else if let Some(total) = line.strip_prefix("summary: ") {
                profile.total = total.parse().expect("callgrind sums up");
            } else if line.starts_with("0x") {
                let mut words = line.split(' ');
                let at = words.next().map_or(0, address);
                let cost: u64 = words.next_back().and_then(|word| word.parse().ok()).unwrap_or(0);
                match call.take() {
                    Some(target) if is_own => profile.calls.push((at, target, cost)),
                    None if is_own => *profile.own.entry(at).or_default() += cost,
                    _ => {}
                }
            }
        }
        assert!(
            profile.total > 0 && !profile.own.is_empty(),
            "`{}` is no profile of `{program}`",
            path.display()
        );
        profile
    }

    /// Instructions of what stands in files whose path ends with one of `suffixes`, and of all they call.
    ///
    /// # Panics
    /// If `addr2line` does not work or the program has no debug information.
    pub fn cost_of(&self, files: &Files, suffixes: &[&str]) -> u64 {
        let is_in = |address: u64| files.stands_in(address, suffixes);
        let own: u64 = self.own.iter().filter(|(at, _)| is_in(**at)).map(|(_, cost)| cost).sum();
        let called = self.calls.iter().filter(|(at, target, _)| is_in(*at) && !target.is_some_and(is_in));
        own + called.map(|(.., cost)| cost).sum::<u64>()
    }

    fn addresses(&self) -> impl Iterator<Item = u64> {
        let calls = self.calls.iter().flat_map(|(at, target, _)| [Some(*at), *target]);
        self.own.keys().copied().chain(calls.flatten())
    }
}

fn address(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("callgrind writes addresses in hexadecimal")
}

/// In which files a program's instructions stand, inlined functions and their callers alike.
#[derive(Debug)]
pub struct Files(BTreeMap<u64, String>);

impl Files {
    /// Looks up all addresses of some profiles of one program.
    ///
    /// # Panics
    /// If `addr2line` is missing or the program has no debug information.
    pub fn of(program: &Path, profiles: &[Profile]) -> Self {
        let addresses: BTreeSet<u64> = profiles.iter().flat_map(Profile::addresses).collect();
        let mut child = Command::new("addr2line")
            .args(["--inlines", "--addresses", "--exe"])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start `addr2line`: {error}; {INSTALL}"));
        let mut input = child.stdin.take().expect("stdin was asked for as a pipe");
        let asking = std::thread::spawn(move || {
            addresses.iter().try_for_each(|address| writeln!(input, "{address:#x}"))
        });
        let output = child.wait_with_output().expect("addr2line ends after its input");
        asking.join().expect("the thread only writes").expect("addr2line takes all addresses");
        let mut files = BTreeMap::new();
        let mut nowhere = String::new();
        let mut of = &mut nowhere;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in text.lines() {
            match line.strip_prefix("0x") {
                Some(at) => of = files.entry(address(at)).or_default(),
                None => {
                    of.push_str(line.split(':').next().unwrap_or_default());
                    of.push('\n');
                }
            }
        }
        assert!(
            files.values().any(|files: &String| files.contains(".rs\n")),
            "the program has no debug information"
        );
        Self(files)
    }

    fn stands_in(&self, address: u64, suffixes: &[&str]) -> bool {
        let files = self.0.get(&address).map_or("", String::as_str);
        files.lines().any(|file| suffixes.iter().any(|suffix| file.ends_with(suffix)))
    }
}
