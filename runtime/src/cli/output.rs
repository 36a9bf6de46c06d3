//! The only printer: data on standard output, messages on standard error, ASCII only, quiet on a broken pipe.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use crate::exit::Exit;

/// Why a command ended early.
#[derive(Debug)]
pub struct CliError {
    exit: Exit,
    /// Empty if nobody is there to read it.
    text: String,
}

impl CliError {
    /// An error with its exit code: lower case, value in backticks, no full stop.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Standard output and standard error of one command.
#[derive(Debug)]
pub struct Output {
    color: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { color: false }
    }

    /// Colours, if wanted, possible, and not forbidden by `NO_COLOR`.
    pub(super) fn use_color(&mut self, wanted: bool) {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        self.color = wanted && !forbidden && self.is_terminal();
    }

    /// Whether a person reads standard output.
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Prints data, one line.
    ///
    /// # Errors
    /// Nobody reads any more ([`Exit::Done`], without a message), or the disk is full.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        let written = out
            .write_all(ascii(text).as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        written.map_err(unwritten)
    }

    /// Prints data as it stands: what we made ourselves, for another program.
    pub(super) fn bytes(&mut self, text: &str) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(unwritten)
    }

    /// Prints several lines of data.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn lines(&mut self, text: &str) -> Result<(), CliError> {
        text.lines().try_for_each(|line| self.line(line))
    }

    /// Says something to whoever runs the command.
    pub fn say(&mut self, text: &str) {
        for line in text.lines() {
            // Nobody to tell if standard error is gone.
            let _ = writeln!(io::stderr().lock(), "interlock: {}", ascii(line));
        }
    }

    /// Shows this in place of what was shown here before, if a person looks at standard error; `None` takes it away.
    pub(super) fn bar(&mut self, text: Option<&str>) {
        let mut err = io::stderr().lock();
        if err.is_terminal() {
            // Nobody to tell if standard error is gone.
            let _ = write!(err, "\r{}\u{1b}[K", ascii(text.unwrap_or_default())).and_then(|()| err.flush());
        }
    }

    /// Says something from wherever there is no [`Output`]: a last word.
    pub(crate) fn quick(text: &str) {
        Self::new().say(text);
    }

    /// `text` in the colour of this SGR code, if there are colours.
    pub fn colored(&self, code: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Says why a command ended.
    pub(super) fn fail(&mut self, error: &CliError) -> Exit {
        self.say(&error.text);
        error.exit
    }
}

/// Why something was not written to standard output. That nobody reads it is no failure.
pub(super) fn unwritten(error: io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::new(Exit::Done, ""),
        _ => CliError::new(Exit::of_io(&error), format!("cannot write to standard output: {error}")),
    }
}

/// What clap has to say: help and version on standard output, mistakes on standard error. Without colours, which clap would
/// write into a pipe, too, if some variable asks for them.
pub(super) fn usage(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    let text = text.trim_end();
    if error.use_stderr() {
        // Nobody to tell if standard error is gone.
        let _ = writeln!(io::stderr().lock(), "interlock: {}", text.trim_start_matches("error: "));
        return Exit::Misuse;
    }
    let mut output = Output::new();
    match output.bytes(&format!("{text}\n")) {
        Ok(()) => Exit::Done,
        Err(error) => output.fail(&error),
    }
}

/// `text` without a character that a console may not know: others become `\u{..}`. Tabs and our own
/// colours stay.
pub fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' '..='~' | '\t' | '\u{1b}' => out.push(character),
            '\n' => out.push_str("\\n"),
            _ => {
                let _ = write!(out, "{}", character.escape_default());
            }
        }
    }
    out
}

/// A value as JSON on one line, with every character beyond ASCII written as JSON writes it.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, CliError> {
    let text =
        serde_json::to_string(value).map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            ' '..='~' => out.push(character),
            // Control characters are escaped already, all but this one and those beyond ASCII.
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    Ok(out)
}

/// A table with aligned columns; the last one is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| ascii(cell).len()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{:<width$}  ", ascii(cell));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_ascii() {
        let text = ascii("gr\u{fc}n \u{1f600}\u{7}\r");
        assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text}");
        assert_eq!(text, "gr\\u{fc}n \\u{1f600}\\u{7}\\r");
    }

    #[test]
    fn json_is_ascii_and_still_says_the_same() {
        let value = "gr\u{fc}n \u{1f600} \u{7f}\u{1b}\n\"";
        let text = json(&value).unwrap();
        assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let rows =
            [["NAME", "STATE"], ["log-consumer", "running"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "NAME          STATE\nlog-consumer  running\n");
    }
}
