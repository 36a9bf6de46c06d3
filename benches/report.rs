//! Medians, spread, and the raw record of a run.

use std::{fs, path::Path, process::Command};

/// Prints a line.
#[allow(clippy::print_stdout, reason = "the one place where benches print")]
pub fn say(line: &str) {
    println!("{line}");
}

/// Repeats of one measurement.
#[derive(Clone, Debug, Default)]
pub struct Repeats(Vec<f64>);

impl Repeats {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a repeat.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one, the lower of two; zero of none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
    }

    /// The repeats of `self` over those of `other`, pair by pair: neighbours in time shared their weather.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one / other).collect())
    }

    /// The middle one, by a way to print it.
    pub fn shown_median(&self, show: impl Fn(f64) -> String) -> String {
        if self.0.is_empty() { "-".to_owned() } else { show(self.median()) }
    }

    /// `median (least to most)`, by a way to print one.
    pub fn shown(&self, show: impl Fn(f64) -> String) -> String {
        if self.0.is_empty() {
            return "-".to_owned();
        }
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} ({} to {})", show(self.median()), show(least), show(most))
    }
}

/// A rate a person can read.
pub fn rate(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{:.2}M", value / 1e6),
        _ if value >= 1e4 => format!("{:.0}k", value / 1e3),
        _ if value >= 1e3 => format!("{:.2}k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

/// A number with two digits behind the point.
pub fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

/// A number with one digit behind the point.
pub fn one_digit(value: f64) -> String {
    format!("{value:.1}")
}

/// What a run prints, and keeps if asked to.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// Begins with what the numbers depend on.
    pub fn begin(bench: &str) -> Self {
        let mut report = Self::default();
        let changed = output(
            "git",
            &["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benches/runs"],
        );
        let dirty = if changed.is_empty() { "" } else { " with changes" };
        let commit = output("git", &["rev-parse", "--short", "HEAD"]) + dirty;
        let date = output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]);
        let mut words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
        // Where the report is kept and which build of `cost` this is change no number.
        for name in ["--record", "--build"] {
            if let Some(at) = words.iter().position(|word| word == name) {
                words.drain(at..(at + 2).min(words.len()));
            }
        }
        if !words.is_empty() {
            words.insert(0, " --".to_owned());
        }
        report.line(&format!("# {bench}\n"));
        report.line(&format!(
            "- command: `cargo bench -p interlock-benches --bench {bench}{}`",
            words.join(" ")
        ));
        report.line(&format!("- commit: {commit}, {date}"));
        report.line(&format!("- machine: {}", machine()));
        report.line(&format!("- load average at the start: {}", file("/proc/loadavg")));
        report
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        say(line);
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Writes all of it into `runs/` under this name, if there is one.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn keep(mut self, name: Option<&str>) {
        self.line(&format!("\n- load average at the end: {}", file("/proc/loadavg")));
        let Some(name) = name else { return };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("runs").join(format!("{name}.md"));
        fs::write(&path, &self.text)
            .unwrap_or_else(|error| panic!("cannot write `{}`: {error}", path.display()));
    }
}

fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| line.split(':').nth(1))
        .map(str::trim)
        .collect();
    let model = models.first().copied().unwrap_or("unknown processor");
    format!("{} cores, {model}, {}", models.len(), output("uname", &["-srm"]))
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
