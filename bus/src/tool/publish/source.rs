//! Where the payloads come from.

use std::{
    fs::File,
    io::{BufRead, Read},
    path::Path,
};

use super::{Arguments, template::Template};
use crate::{
    envelope::{ContentType, Payload},
    exit::Exit,
    limits,
    tool::Failure,
};

/// One payload again and again, or the lines of standard input.
pub(super) struct Source {
    kind: Kind,
    template: bool,
    is_json: bool,
}

enum Kind {
    Same { bytes: Vec<u8>, count: u64 },
    Lines,
}

impl Source {
    /// Reads what there is to be read before anybody is connected to.
    pub(super) fn of(arguments: &Arguments) -> Result<Self, Failure> {
        let (template, is_json) = (arguments.template, arguments.json_payload);
        if arguments.lines {
            return Ok(Self { kind: Kind::Lines, template, is_json });
        }
        let bytes = match (&arguments.file, arguments.payload.as_deref()) {
            (Some(path), _) => file(path)?,
            (None, argument) => given(argument)?,
        };
        // A template is JSON when it is filled in.
        if !template {
            check_json(&bytes, is_json)?;
        }
        Ok(Self { kind: Kind::Same { bytes, count: arguments.count }, template, is_json })
    }

    /// The payload of message `number`, counting from 1; `None` after the last one.
    pub(super) fn next(&mut self, number: u64) -> Result<Option<Payload>, Failure> {
        let bytes = match &self.kind {
            Kind::Same { count, .. } if number > *count => return Ok(None),
            Kind::Same { bytes, .. } => bytes.clone(),
            Kind::Lines => match line()? {
                Some(line) => line,
                None => return Ok(None),
            },
        };
        let bytes = match (self.template, String::from_utf8(bytes)) {
            (true, Ok(text)) => Template::read(&text)?.fill(number).into_bytes(),
            (true, Err(_)) => {
                return Err(Failure::new(Exit::Misuse, "a template is text, and this payload is not UTF-8"));
            }
            (false, Ok(text)) => text.into_bytes(),
            (false, Err(error)) => error.into_bytes(),
        };
        judged(bytes, self.is_json).map(Some)
    }
}

/// The payload of an argument. Text if it is UTF-8, else bytes.
pub(in super::super) fn payload(argument: Option<&str>, is_json: bool) -> Result<Payload, Failure> {
    judged(given(argument)?, is_json)
}

fn judged(bytes: Vec<u8>, is_json: bool) -> Result<Payload, Failure> {
    check_json(&bytes, is_json)?;
    if is_json {
        return Ok(Payload { content_type: ContentType::Json, ..Payload::bytes(bytes) });
    }
    Ok(match String::from_utf8(bytes) {
        Ok(text) => Payload::text(text),
        Err(error) => Payload::bytes(error.into_bytes()),
    })
}

fn check_json(bytes: &[u8], is_json: bool) -> Result<(), Failure> {
    if is_json {
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
            .map_err(|error| Failure::new(Exit::Misuse, format!("payload is not JSON: {error}")))?;
    }
    Ok(())
}

/// What an argument names: itself, or with `-` standard input.
fn given(argument: Option<&str>) -> Result<Vec<u8>, Failure> {
    match argument {
        None => Ok(Vec::new()),
        Some("-") => read(std::io::stdin().lock(), "standard input"),
        Some(text) => Ok(text.as_bytes().to_vec()),
    }
}

fn file(path: &Path) -> Result<Vec<u8>, Failure> {
    let name = format!("`{}`", path.display());
    let file = File::open(path).map_err(|error| unreadable(&name, &error))?;
    read(file, &name)
}

/// At most a byte more than a payload may have, so that its size is refused as any other.
fn read(from: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = limits::PAYLOAD_BYTES_MAX as u64 + 1;
    from.take(limit).read_to_end(&mut bytes).map_err(|error| unreadable(name, &error))?;
    Ok(bytes)
}

/// The next line of standard input, without its end; `None` at the end.
fn line() -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let limit = limits::PAYLOAD_BYTES_MAX as u64 + 1;
    let read = std::io::stdin().lock().take(limit).read_until(b'\n', &mut line);
    read.map_err(|error| unreadable("standard input", &error))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Some(line))
}

fn unreadable(name: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::of_io(error), format!("cannot read the payload from {name}: {error}"))
}
