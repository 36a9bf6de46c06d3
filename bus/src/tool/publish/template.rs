//! Payloads with places that are filled in anew for each message.

use uuid::Uuid;

use crate::{crypto, envelope::now_ns, exit::Exit, tool::Failure};

/// What stands in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Count,
    Time,
    UnixMs,
    Uuid,
    Random,
}

impl Word {
    const ALL: [(&str, Self); 5] = [
        ("count", Self::Count),
        ("time", Self::Time),
        ("unix_ms", Self::UnixMs),
        ("uuid", Self::Uuid),
        ("random", Self::Random),
    ];

    fn value(self, number: u64) -> String {
        match self {
            Self::Count => number.to_string(),
            Self::Time => jiff::Timestamp::now().to_string(),
            Self::UnixMs => (now_ns() / 1_000_000).to_string(),
            Self::Uuid => Uuid::now_v7().to_string(),
            Self::Random => u64::from_le_bytes(crypto::random()).to_string(),
        }
    }
}

/// A text, and the places in it.
pub(super) struct Template<'a> {
    /// Each with the text in front of it.
    places: Vec<(&'a str, Word)>,
    rest: &'a str,
}

impl<'a> Template<'a> {
    /// Reads one. Two braces that hold no word are refused: they would be sent as they are, unseen.
    pub(super) fn read(text: &'a str) -> Result<Self, Failure> {
        let (mut places, mut rest) = (Vec::new(), text);
        while let Some((before, behind)) = rest.split_once("{{") {
            let (name, after) = behind.split_once("}}").unwrap_or((behind, ""));
            let Some((_, word)) = Word::ALL.iter().find(|(known, _)| *known == name.trim()) else {
                let known: Vec<String> =
                    Word::ALL.iter().map(|(name, _)| format!("{{{{{name}}}}}")).collect();
                let name = name.chars().take(40).collect::<String>();
                let text = format!("the template has `{{{{{name}`, which is none of {}", known.join(", "));
                return Err(Failure::new(Exit::Misuse, text));
            };
            places.push((before, *word));
            rest = after;
        }
        Ok(Self { places, rest })
    }

    /// The text for message `number`.
    pub(super) fn fill(&self, number: u64) -> String {
        let mut filled = String::new();
        for (before, word) in &self.places {
            filled.push_str(before);
            filled.push_str(&word.value(number));
        }
        filled + self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_in_and_unknown_ones_refused() {
        let fill = |text: &str, number| Template::read(text).map(|template| template.fill(number)).ok();
        assert_eq!(fill("a{{count}}b{{ count }}", 7).as_deref(), Some("a7b7"));
        assert_eq!(fill("{\"a\":{}}", 1).as_deref(), Some("{\"a\":{}}"));
        let filled = fill("{{uuid}} {{random}} {{time}} {{unix_ms}}", 1).unwrap();
        assert_ne!(fill("{{uuid}} {{random}} {{time}} {{unix_ms}}", 1).unwrap(), filled);
        let parts: Vec<&str> = filled.split(' ').collect();
        assert!(parts[0].parse::<Uuid>().is_ok() && parts[1].parse::<u64>().is_ok());
        assert!(parts[2].parse::<jiff::Timestamp>().is_ok() && parts[3].parse::<u64>().is_ok());
        assert_eq!([fill("{{cuont}}", 1), fill("{{count", 1)], [None, Some("1".to_owned())]);
    }
}
