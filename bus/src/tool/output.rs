//! The only printer: data to standard output, `bus: ...` messages to standard error.
//!
//! Whatever comes from others is made harmless first: control characters are always escaped, and
//! other characters beyond ASCII unless the locale says UTF-8.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use serde_json::Value;

use super::failure::Failure;

/// Where a verb prints.
pub struct Output {
    data: Box<dyn Write + Send>,
    messages: Box<dyn Write + Send>,
    is_json: bool,
    harmless: Harmless,
    /// Whether somebody reads the messages as they come.
    is_watched: bool,
}

/// What may be shown of texts that come from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Harmless {
    ascii_only: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Output").field("is_json", &self.is_json).finish_non_exhaustive()
    }
}

impl Output {
    /// Standard output and standard error, in the locale of the environment.
    pub fn of_process() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        let mut output = Self::new(Box::new(io::stdout()), Box::new(io::stderr()));
        output.harmless.ascii_only = !is_utf8;
        output.is_watched = io::stderr().is_terminal();
        output
    }

    /// Any two writers; ASCII only.
    pub fn new(data: Box<dyn Write + Send>, messages: Box<dyn Write + Send>) -> Self {
        Self { data, messages, is_json: false, harmless: Harmless { ascii_only: true }, is_watched: false }
    }

    pub(super) fn set_json(&mut self, is_json: bool) {
        self.is_json = is_json;
    }

    pub(super) fn is_json(&self) -> bool {
        self.is_json
    }

    /// A line of data as it stands; the caller has made it harmless.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Bytes of data, with nothing added.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.data.write_all(bytes).and_then(|()| self.data.flush());
        written.map_err(|error| Failure::of_output(&error))
    }

    /// A line of JSON, ASCII only.
    pub(super) fn json(&mut self, value: &Value) -> Result<(), Failure> {
        let line = escape_json(&value.to_string());
        self.line(&line)
    }

    /// A message for people. A closed standard error is nobody's loss.
    pub(super) fn note(&mut self, message: &str) {
        let message: Vec<String> = message.lines().map(|line| self.harmless(line)).collect();
        let _ = writeln!(self.messages, "bus: {}", message.join("\n"));
    }

    /// A message that only helps whoever sits in front of it; a script does not see it.
    pub(super) fn hint(&mut self, message: &str) {
        if self.is_watched {
            self.note(message);
        }
    }

    /// `text` on one line, without what could control a terminal.
    pub(super) fn harmless(&self, text: &str) -> String {
        self.harmless.show(text)
    }

    /// How [`Output::harmless`] does it, for whoever draws instead of printing.
    pub(super) fn harmless_texts(&self) -> Harmless {
        self.harmless
    }

    /// Standard output, for whoever draws on a terminal.
    pub(super) fn screen(&mut self) -> &mut (dyn Write + Send) {
        &mut *self.data
    }
}

impl Harmless {
    /// ASCII only.
    #[cfg(test)]
    pub(super) fn ascii() -> Self {
        Self { ascii_only: true }
    }

    /// Whether other characters than ASCII cannot be shown.
    pub(super) fn is_ascii(self) -> bool {
        self.ascii_only
    }

    /// `text` on one line, without what could control a terminal.
    pub(super) fn show(self, text: &str) -> String {
        let is_fine = |character: char| match character {
            ' '..='~' => true,
            _ => !self.ascii_only && !character.is_control() && !is_invisible(character),
        };
        let mut harmless = String::with_capacity(text.len());
        for character in text.chars() {
            if is_fine(character) {
                harmless.push(character);
            } else {
                harmless.extend(character.escape_default());
            }
        }
        harmless
    }
}

/// Characters that change how their neighbours are shown.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Valid JSON has non-ASCII characters in texts only, where `\u` escapes mean the same.
fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() && character != '\u{7f}' {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_others_controls_the_terminal() {
        let mut output = Output::new(Box::new(io::sink()), Box::new(io::sink()));
        assert_eq!(output.harmless("a\x1b[31mb\u{e4}\n"), "a\\u{1b}[31mb\\u{e4}\\n");
        output.harmless.ascii_only = false;
        assert_eq!(output.harmless("a\x1b[31mb\u{e4}\u{202e}"), "a\\u{1b}[31mb\u{e4}\\u{202e}");
    }

    #[test]
    fn json_is_ascii_and_means_the_same() {
        let value = serde_json::json!({ "k\u{e4}": "\u{1f600}\x7f\x1b" });
        let escaped = escape_json(&value.to_string());
        assert!(escaped.bytes().all(|byte| (b' '..0x7f).contains(&byte)), "{escaped}");
        assert_eq!(serde_json::from_str::<Value>(&escaped).unwrap(), value);
    }
}
