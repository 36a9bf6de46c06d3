//! A text that is secret in a body: shown to whoever it is for, and never to a log.

use std::fmt;

use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

/// Wiped when dropped, and never shown by `Debug`.
pub(super) struct Secret(Zeroizing<String>);

impl Secret {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
