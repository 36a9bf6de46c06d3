//! Who a peer is: the name its keys are registered under.

use std::{fmt, str::FromStr, sync::Arc};

use crate::topic::text_form;

/// Longest peer name in bytes: it stands in every table of the tool.
const PEER_NAME_BYTES_MAX: usize = 64;

/// The registered name of a peer. Keys belong to a name and inherit its rights; several sessions
/// may carry the same name.
///
/// Invariants: 1 to 64 characters of `a-z`, `A-Z`, `0-9`, `-` and `_`, beginning with a letter or a digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(Arc<str>);

/// Why a text is not a [`PeerName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer name `{}` is not allowed; use 1 to 64 characters of a-z, A-Z, 0-9, `-` and `_`, beginning with a letter or a digit", name.escape_debug())]
pub struct PeerNameError {
    name: String,
}

impl PeerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerName {
    type Err = PeerNameError;

    fn from_str(text: &str) -> Result<Self, PeerNameError> {
        let legal = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
        let begins_well = text.starts_with(|character: char| character.is_ascii_alphanumeric());
        if !begins_well || text.len() > PEER_NAME_BYTES_MAX || !text.chars().all(legal) {
            return Err(PeerNameError { name: text.chars().take(2 * PEER_NAME_BYTES_MAX).collect() });
        }
        Ok(Self(text.into()))
    }
}

text_form!(PeerName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_name_is_short_ascii_and_safe_in_a_path() {
        for good in ["gateway", "log-consumer", "a", "0x_1"] {
            assert_eq!(good.parse::<PeerName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a/b", "a b", "..", "\u{e9}", &"x".repeat(65)] {
            assert!(bad.parse::<PeerName>().is_err(), "{bad}");
        }
    }
}
