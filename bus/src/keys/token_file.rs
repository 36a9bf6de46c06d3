//! The tokens of the gateway, as the key store keeps them in `tokens.json`: digests, scopes, ends. The gateway lets their
//! bearers in; `interlock check` and `bus doctor` look whether the file can be read.

use std::{collections::HashSet, fmt, path::Path, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};

use super::{KeyError, KeyState, KeyStore, Registry, private_file};
use crate::{crypto, peer::PeerName};

/// Name of the file in the key store.
pub const FILE: &str = "tokens.json";
/// Tokens that can be used at the same time. Each request is compared with all of them.
pub const TOKENS_MAX: usize = 256;
/// Tokens that have ended and are remembered, so that their bearers are told why. Then the oldest is forgotten.
pub const ENDED_MAX: usize = 256;
/// In front of the name of the peer that a token stands for.
pub const PEER_PREFIX: &str = "web-";

/// What a token is good for. Each is given by itself: none holds another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Conversations, the OpenAI routes, models.
    Chat,
    /// Publish, subscribe, request, the socket, within the rights of the token's peer.
    Bus,
    /// Reading what goes on: topics, peers, refusals, logs, status.
    Inspect,
    /// Every order that can be given.
    Admin,
    /// The numbers at `/metrics`.
    Metrics,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Bus, Self::Inspect, Self::Admin, Self::Metrics];

    /// Its name in commands, files and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Bus => "bus",
            Self::Inspect => "inspect",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is no scope; there are chat, bus, inspect, admin and metrics"))
    }
}

/// The digest of a token, which is not secret, and shown to nobody all the same.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Digest(String);

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Digest")
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 2 * crypto::DIGEST_BYTES || !text.bytes().all(is_digit) {
            let digits = 2 * crypto::DIGEST_BYTES;
            return Err(D::Error::custom(format!("`digest` is none; it has {digits} hexadecimal digits")));
        }
        Ok(Self(text))
    }
}

impl Digest {
    /// That of this token.
    pub fn of(token: &[u8]) -> Self {
        Self(crypto::digest(token).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Compares in constant time.
    pub fn is(&self, other: &Self) -> bool {
        crypto::equal_in_constant_time(self.0.as_bytes(), other.0.as_bytes())
    }
}

/// One token in the file. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Whose it is: a name for people, and part of the peer's.
    #[serde(deserialize_with = "name_of_token")]
    pub name: PeerName,
    /// What is kept of it.
    pub digest: Digest,
    /// What it opens.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub issued_ms: u64,
    /// When it ends; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was revoked; `None` if it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

impl TokenRecord {
    /// Whether it can be used, or why not, in one word.
    pub fn state(&self, now_ms: u64) -> &'static str {
        match (self.revoked_ms, self.expires_ms) {
            (Some(_), _) => "revoked",
            (None, Some(end_ms)) if end_ms <= now_ms => "expired",
            _ => "active",
        }
    }

    /// Whether the registry knows better than the list: its peer was revoked there, or enrolled anew since, for a later token
    /// of the same name. A list that was put back by hand brings no token back.
    pub fn is_over_in(&self, registry: &Registry) -> bool {
        registry.peer(&self.peer()).is_some_and(|peer| {
            peer.state == KeyState::Revoked
                || peer.issued_ms.is_some_and(|issued_ms| issued_ms > self.issued_ms)
        })
    }

    /// The peer that its bearer is on the bus.
    pub fn peer(&self) -> PeerName {
        peer_of(&self.name).expect("the name was checked when the file was read or the token was made")
    }
}

/// The peer that the bearer of a token of this name is on the bus; `None` if its name would be too long.
pub fn peer_of(token: &PeerName) -> Option<PeerName> {
    format!("{PEER_PREFIX}{token}").parse().ok()
}

/// The name of the token whose bearer this peer is; `None` if it is the peer of none. Such peers have no credentials.
pub fn token_of(peer: &PeerName) -> Option<&str> {
    peer.as_str().strip_prefix(PEER_PREFIX).filter(|name| !name.is_empty())
}

fn name_of_token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerName, D::Error> {
    let name = PeerName::deserialize(deserializer)?;
    let is_long = || D::Error::custom(format!("the name `{name}` is too long for a token"));
    peer_of(&name).ok_or_else(is_long)?;
    Ok(name)
}

/// The file's form.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    #[serde(deserialize_with = "tokens")]
    tokens: Vec<TokenRecord>,
}

/// Reads them one by one, so that what is wrong with one is told with its line.
fn tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TokenRecord>, D::Error> {
    struct Tokens;
    impl<'de> Visitor<'de> for Tokens {
        type Value = Vec<TokenRecord>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of tokens")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
            let (mut tokens, mut names) = (Vec::<TokenRecord>::new(), HashSet::new());
            while let Some(token) = sequence.next_element::<TokenRecord>()? {
                if !names.insert(token.name.clone()) {
                    return Err(A::Error::custom(format!("the name `{}` is there twice", token.name)));
                }
                if tokens.len() >= TOKENS_MAX + ENDED_MAX {
                    let text = format!("it has more than {} tokens", TOKENS_MAX + ENDED_MAX);
                    return Err(A::Error::custom(text));
                }
                tokens.push(token);
            }
            Ok(tokens)
        }
    }
    deserializer.deserialize_seq(Tokens)
}

/// Reads the tokens of this file; there are none if it is not there.
///
/// # Errors
/// [`KeyError::TokensDamaged`] with line and column; [`KeyError`] of a file that cannot be read.
pub fn load(path: &Path) -> Result<Vec<TokenRecord>, KeyError> {
    let text = match private_file::read_text(path) {
        Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        Err(KeyError::Damaged { path, problem }) => return Err(KeyError::TokensDamaged { path, problem }),
        text => text?,
    };
    // Nothing in it is secret, so the parser's whole message may be shown.
    let damaged = |error: serde_json::Error| KeyError::TokensDamaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    Ok(serde_json::from_str::<TokenFile>(&text).map_err(damaged)?.tokens)
}

/// Writes the tokens.
///
/// # Errors
/// [`KeyError::Io`].
pub fn save(path: &Path, tokens: Vec<TokenRecord>) -> Result<(), KeyError> {
    let unwritable =
        |error: serde_json::Error| KeyError::Damaged { path: path.to_owned(), problem: error.to_string() };
    let mut text = serde_json::to_vec_pretty(&TokenFile { tokens }).map_err(unwritable)?;
    text.push(b'\n');
    private_file::replace(path, &text)
}

impl KeyStore {
    /// The tokens of the gateway, the oldest first.
    ///
    /// # Errors
    /// [`KeyError::TokensDamaged`]; [`KeyError`] of a file that cannot be read.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, KeyError> {
        load(&self.directory().join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_told_with_line_column_and_way_out_and_never_taken_for_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        assert!(load(&path).unwrap().is_empty());
        let digest = Digest::of(b"x");
        let token = |name: &str, scope: &str, digest: &str| {
            format!(r#"{{"name":"{name}","digest":"{digest}","scopes":["{scope}"],"issued_ms":1}}"#)
        };
        let whole = |tokens: &[String]| format!("{{\n\"tokens\": [\n{}\n]}}", tokens.join(",\n"));
        let ada = token("ada", "chat", &digest.0);
        private_file::replace(&path, whole(std::slice::from_ref(&ada)).as_bytes()).unwrap();
        let read = load(&path).unwrap();
        assert!(read[0].digest.is(&digest) && read[0].peer().as_str() == "web-ada");
        let long = "x".repeat(61);
        for (text, says, line) in [
            (String::new(), "EOF", "line 1"),
            ("{\"tokens\":".to_owned(), "EOF", "line 1"),
            (whole(&[token("ada", "all", &digest.0)]), "`all`", "line 3"),
            (whole(&[ada.clone(), token("bob", "chat", "0g")]), "`digest`", "line 4"),
            // The parser tells where the list ends.
            (whole(&[ada.clone(), ada.clone()]), "`ada` is there twice", "line 5"),
            (whole(&[token(&long, "chat", &digest.0)]), "too long", "line 3"),
            (whole(&[token("a b", "chat", &digest.0)]), "a b", "line 3"),
        ] {
            private_file::replace(&path, text.as_bytes()).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, KeyError::TokensDamaged { .. }), "{error:?}");
            let error = error.to_string();
            for part in [says, line, "column", "tokens.json", "interlock tokens reset"] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
        // No text at all.
        private_file::replace(&path, &[0xff, 0xfe]).unwrap();
        assert!(matches!(load(&path), Err(KeyError::TokensDamaged { .. })));
    }
}
