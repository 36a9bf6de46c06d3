//! Credentials: all a client needs to reach its broker, in one file.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::{KeyError, private_file};
use crate::{
    crypto::{KeyPair, PublicKey, SecretKey},
    endpoint::Endpoint,
    peer::PeerName,
};

/// A peer's name, its key pair, the broker's public key and where the broker listens. The tool,
/// Rust clients and clients in other languages take the file as it is.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The name the key is registered under.
    pub name: PeerName,
    /// The peer's long-term keys.
    pub keys: KeyPair,
    /// The broker's long-term public key.
    pub broker: PublicKey,
    /// Where the broker listens, best first.
    pub endpoints: Vec<Endpoint>,
    /// The file they were read from or written to; `None` if they exist in memory only. A client keeps
    /// a new key of the broker there.
    pub file: Option<PathBuf>,
}

/// The file's form. Keys are Z85 (ZeroMQ RFC 32).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: PeerName,
    public_key: String,
    secret_key: Zeroizing<String>,
    broker_key: String,
    endpoints: Vec<Endpoint>,
}

impl Credentials {
    /// Reads a credentials file that nobody else can read.
    ///
    /// # Errors
    /// Those of [`private_file::read`]; [`KeyError::Damaged`] naming the line and the key, never a value.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let credentials = Self::from_toml(&private_file::read_text(path)?, path)?;
        Ok(Self { file: Some(path.to_owned()), ..credentials })
    }

    /// Refuses to write credentials of `name` over anything but credentials of the same peer.
    ///
    /// # Errors
    /// [`KeyError::OtherFile`].
    pub fn check_place(name: &PeerName, path: &Path) -> Result<(), KeyError> {
        let is_free = match Self::load(path) {
            Ok(present) => present.name == *name,
            Err(KeyError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            Err(_) => false,
        };
        if is_free { Ok(()) } else { Err(KeyError::OtherFile { name: name.clone(), path: path.to_owned() }) }
    }

    /// Reads credentials from text; `origin` is named in errors.
    ///
    /// # Errors
    /// [`KeyError::Damaged`].
    pub fn from_toml(text: &str, origin: &Path) -> Result<Self, KeyError> {
        let file = toml::from_str(text).map_err(|error| KeyError::Damaged {
            path: origin.to_owned(),
            problem: parse_problem(text, &error),
        })?;
        Self::from_file(&file, origin)
    }

    /// Reads credentials from an enrolment line.
    ///
    /// # Errors
    /// [`KeyError::Damaged`], without a word of the line.
    pub fn from_line(text: &str) -> Result<Self, KeyError> {
        let origin = Path::new("the enrolment line");
        let file = serde_json::from_str(text).map_err(|error| KeyError::Damaged {
            path: origin.to_owned(),
            problem: format!(
                "it is not one that `interlock keys issue --print` prints (column {}; the text is not shown, it may hold a \
                 key)",
                error.column()
            ),
        })?;
        Self::from_file(&file, origin)
    }

    fn from_file(file: &File, origin: &Path) -> Result<Self, KeyError> {
        let damaged = |problem: String| KeyError::Damaged { path: origin.to_owned(), problem };
        let key = |name: &str, text: &str| {
            text.parse::<PublicKey>()
                .map_err(|_| damaged(format!("`{name}` is not a key of 40 Z85 characters")))
        };
        let public = key("public_key", &file.public_key)?;
        let broker = key("broker_key", &file.broker_key)?;
        let secret = SecretKey::from_z85(&file.secret_key)
            .map_err(|_| damaged("`secret_key` is not a key of 40 Z85 characters".to_owned()))?;
        let keys = KeyPair::from_secret(secret);
        if keys.public != public {
            return Err(damaged("`secret_key` does not belong to `public_key`".to_owned()));
        }
        if file.endpoints.is_empty() {
            return Err(damaged(
                "`endpoints` is empty; name at least one, for example `tcp://127.0.0.1:5555`".to_owned(),
            ));
        }
        Ok(Self { name: file.name.clone(), keys, broker, endpoints: file.endpoints.clone(), file: None })
    }

    /// The same on one line, for [`Credentials::from_line`]. It contains the secret key.
    pub fn to_line(&self) -> Zeroizing<String> {
        // Names, keys and endpoints have neither quotes nor backslashes, so that JSON takes them as they are, but for a
        // path, which may have anything.
        let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        let endpoints = serde_json::Value::from(endpoints).to_string();
        let secret = self.keys.secret.expose_z85();
        // Its whole length from the start: what grows leaves copies.
        let mut line = Zeroizing::new(String::with_capacity(512 + endpoints.len()));
        let parts = [
            ("{\"name\":\"", self.name.as_str()),
            ("\",\"public_key\":\"", &self.keys.public.to_string()),
            ("\",\"secret_key\":\"", &secret),
            ("\",\"broker_key\":\"", &self.broker.to_string()),
            ("\",\"endpoints\":", &endpoints),
            ("}", ""),
        ];
        for (before, value) in parts {
            line.push_str(before);
            line.push_str(value);
        }
        line
    }

    /// The file's text. It contains the secret key.
    pub fn to_toml(&self) -> Zeroizing<String> {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let endpoints: Vec<String> =
            self.endpoints.iter().map(|endpoint| quoted(&endpoint.to_string())).collect();
        let (name, endpoints) = (&self.name, endpoints.join(", "));
        // Its whole length from the start, and the secret straight into it: what grows or is put together leaves copies.
        // Z85 has no character that TOML would want escaped.
        let mut text = Zeroizing::new(String::with_capacity(768 + endpoints.len()));
        text.push_str(&format!(
            "# Credentials of the Interlock peer `{name}`. Whoever can read this file can act as it.\n\
             name = \"{name}\"\npublic_key = \"{}\"\nsecret_key = \"",
            self.keys.public
        ));
        text.push_str(&self.keys.secret.expose_z85());
        text.push_str(&format!("\"\nbroker_key = \"{}\"\nendpoints = [{endpoints}]\n", self.broker));
        text
    }

    /// Writes the file, readable by its owner only.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        private_file::replace(path, self.to_toml().as_bytes())
    }

    /// Takes over a new key of the broker, and writes it to the file these credentials came from. `false`
    /// if there is none, or if it has become somebody else's.
    ///
    /// # Errors
    /// The file cannot be read or written. The key is taken over all the same.
    pub fn learn_broker_key(&mut self, key: PublicKey) -> Result<bool, KeyError> {
        self.broker = key;
        let Some(path) = &self.file else { return Ok(false) };
        let mut stored = Self::load(path)?;
        if stored.keys.public != self.keys.public {
            return Ok(false);
        }
        if stored.broker != key {
            stored.broker = key;
            stored.save(path)?;
        }
        Ok(true)
    }

    /// Where the credentials of `name` are in a key store.
    pub fn path_in(directory: &Path, name: &PeerName) -> PathBuf {
        directory.join(format!("{name}.toml"))
    }
}

/// A parser's error without the text it quotes, which may be a secret.
pub(super) fn parse_problem(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message();
    let names_fields_only = ["missing field", "unknown field"].iter().any(|known| message.starts_with(known));
    if names_fields_only || (line > 0 && !message.contains("key") && !message.contains("invalid")) {
        format!("line {line}: {message}")
    } else {
        format!("line {line}: not the expected TOML (the text is not shown, it may hold a key)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Credentials {
        Credentials {
            name: "operator".parse().unwrap(),
            keys: KeyPair::generate(),
            broker: KeyPair::generate().public,
            endpoints: vec!["ipc:///run/bus.sock".parse().unwrap(), "tcp://127.0.0.1:5555".parse().unwrap()],
            file: None,
        }
    }

    #[test]
    fn credentials_are_written_over_credentials_of_the_same_peer_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("somewhere");
        let credentials = sample();
        let other = "other".parse().unwrap();
        Credentials::check_place(&other, &path).unwrap();
        credentials.save(&path).unwrap();
        Credentials::check_place(&credentials.name, &path).unwrap();
        let refused = Credentials::check_place(&other, &path).unwrap_err();
        assert!(matches!(refused, KeyError::OtherFile { .. }), "{refused}");
        std::fs::write(&path, "precious").unwrap();
        assert!(Credentials::check_place(&credentials.name, &path).is_err());
        assert!(Credentials::check_place(&credentials.name, directory.path()).is_err());
    }

    #[test]
    fn credentials_read_back_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.toml");
        let credentials = sample();
        credentials.save(&path).unwrap();
        let back = Credentials::load(&path).unwrap();
        assert_eq!(back.name, credentials.name);
        assert_eq!(back.keys.public, credentials.keys.public);
        assert_eq!(back.broker, credentials.broker);
        assert_eq!(back.endpoints, credentials.endpoints);
    }

    #[test]
    fn an_enrolment_line_is_one_line_reads_back_and_a_damaged_one_is_not_repeated() {
        let credentials = sample();
        let line = credentials.to_line();
        assert!(!line.contains('\n') && line.capacity() < 1024);
        let back = Credentials::from_line(&line).unwrap();
        assert_eq!(
            (back.name, back.keys, back.broker),
            (credentials.name, credentials.keys.clone(), credentials.broker)
        );
        assert_eq!(back.endpoints, credentials.endpoints);
        let secret = credentials.keys.secret.expose_z85();
        for damaged in [&line[1..], &line[..60], &line.replace("name", "nome"), ""] {
            let error = Credentials::from_line(damaged).unwrap_err().to_string();
            assert!(error.contains("issue --print") && !error.contains(&secret[..8]), "{error}");
        }
    }

    #[test]
    fn a_new_key_of_the_broker_is_kept_in_the_file_of_the_same_peer_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.toml");
        sample().save(&path).unwrap();
        let mut held = Credentials::load(&path).unwrap();
        let (next, later) = (KeyPair::generate().public, KeyPair::generate().public);
        assert!(held.learn_broker_key(next).unwrap());
        assert_eq!((held.broker, Credentials::load(&path).unwrap().broker), (next, next));
        // Another peer's credentials stand there now.
        sample().save(&path).unwrap();
        assert!(!held.learn_broker_key(later).unwrap());
        assert_ne!(Credentials::load(&path).unwrap().broker, later);
        std::fs::remove_file(&path).unwrap();
        assert!(held.learn_broker_key(next).is_err());
        assert_eq!(held.broker, next);
    }

    #[test]
    fn damaged_credentials_name_the_place_and_never_the_secret() {
        let credentials = sample();
        let text = credentials.to_toml();
        let secret = credentials.keys.secret.expose_z85();
        let damages = [
            text.replace("secret_key = ", "secret_key "),
            text.replace(&*secret, &secret[..39]),
            text.replace("secret_key", "secret"),
            text.replace("endpoints", "endpoint"),
            text.replace(&credentials.keys.public.to_string(), &KeyPair::generate().public.to_string()),
        ];
        for damaged in damages {
            let message =
                Credentials::from_toml(&damaged, Path::new("operator.toml")).unwrap_err().to_string();
            assert!(message.contains("operator.toml"), "{message}");
            assert!(!message.contains(&secret[..20]), "{message}");
        }
        assert!(!format!("{credentials:?}").contains(&**secret));
    }
}
