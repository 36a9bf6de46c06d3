//! The tokens that were issued, as the key store keeps them: digests, scopes, ends. Each is the way in for one peer, whose rights
//! on the bus stand in the registry as any other's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use interlock_bus::{
    KeyStore, PeerName, Permissions, TopicFilter, crypto,
    envelope::now_ns,
    keys::{Audit, KeyError, audit::Act, private_file},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::access::Scope;

/// Name of the file in the key store.
pub const FILE: &str = "tokens.json";
/// Name of the file that says when each was used.
const USE_FILE: &str = "tokens-use.json";
/// What a token begins with, so that people and scanners of secrets know it for one.
pub const PREFIX: &str = "interlock_";
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Tokens that can be used at the same time. Each request is compared with all of them.
pub const TOKENS_MAX: usize = 256;
/// Tokens that were revoked and are remembered, so that their bearers are told why. Then the oldest is forgotten.
const REVOKED_MAX: usize = 256;

/// In front of the name of the peer that a token stands for.
pub const PEER_PREFIX: &str = "web-";
/// The runtime's own token goes by this name.
const OPERATOR: &str = "operator";

/// What a token is to be good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// What of the interface it opens.
    pub scopes: Vec<Scope>,
    /// What its peer may publish.
    pub publish: Vec<TopicFilter>,
    /// What its peer may subscribe to.
    pub subscribe: Vec<TopicFilter>,
    /// What its peer may request.
    pub request: Vec<TopicFilter>,
}

/// The rights on the bus that grants come to.
pub type Rights = dyn Fn(&PeerName, &Grants) -> Permissions + Send + Sync;

/// The digest of a token, which is not secret, and shown to nobody all the same.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(String);

impl std::fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Digest")
    }
}

impl Digest {
    /// That of this token.
    pub(super) fn of(token: &[u8]) -> Self {
        Self(hexadecimal(&crypto::digest(token)))
    }

    /// Compares in constant time.
    pub(super) fn is(&self, other: &Self) -> bool {
        crypto::equal_in_constant_time(self.0.as_bytes(), other.0.as_bytes())
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One token in the file. Times are Unix milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Whose it is: a name for people, and part of the peer's.
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

    /// The peer that its bearer is on the bus.
    pub fn peer(&self) -> PeerName {
        peer_of(&self.name).expect("the file was checked when it was read")
    }
}

fn peer_of(name: &PeerName) -> Option<PeerName> {
    format!("{PEER_PREFIX}{name}").parse().ok()
}

/// The file's form.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tokens: Vec<TokenRecord>,
}

/// A token as people see it.
#[derive(Clone, Debug)]
pub struct ListedToken {
    /// What the file says.
    pub record: TokenRecord,
    /// When it was last used, as far as the gateway has written it down.
    pub last_used_ms: Option<u64>,
    /// What its peer may do now.
    pub permissions: Permissions,
}

/// Why tokens could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key store.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The name is in use.
    #[error("there is a token `{0}`; `interlock tokens revoke {0}` ends it, or choose another name")]
    Exists(PeerName),
    /// There is none of that name.
    #[error("there is no token `{0}` that can be used; `interlock tokens list` shows those there are")]
    Unknown(PeerName),
    /// The name is too long with what is put in front of it.
    #[error(
        "`{0}` is too long for the name of a token: the peer it stands for would be `{PEER_PREFIX}{0}`, of more than 64 bytes"
    )]
    Name(PeerName),
    /// The name is what refusals call whoever has the token of the file `run/gateway-token`.
    #[error("`{0}` is the name of the runtime's own token; choose another name")]
    Reserved(PeerName),
    /// It would open nothing.
    #[error("a token needs at least one scope: chat, bus, inspect, admin, metrics")]
    NoScope,
    /// Its rights could not be used.
    #[error("rights on the bus are for tokens with the scope `bus`; add it, or leave the rights out")]
    RightsWithoutBus,
    /// Too many.
    #[error("there are {TOKENS_MAX} tokens, which is the limit; revoke one that nobody needs")]
    Full,
}

/// The tokens of one installation. Changes are made under the key store's lock; a running gateway follows at once.
#[derive(Clone, Debug)]
pub struct TokenStore {
    keys: KeyStore,
}

impl TokenStore {
    /// Those of this key store.
    pub fn new(keys: KeyStore) -> Self {
        Self { keys }
    }

    /// The same tokens, changed because this peer has asked for it.
    #[must_use]
    pub fn asked_by(&self, by: &PeerName) -> Self {
        Self { keys: self.keys.asked_by(by) }
    }

    /// Where they are.
    pub fn path(&self) -> PathBuf {
        self.keys.directory().join(FILE)
    }

    /// Where changes and refusals are written down.
    pub(super) fn audit(&self) -> Audit {
        self.keys.audit()
    }

    /// All of them, the oldest first.
    ///
    /// # Errors
    /// [`KeyError`] of a file that cannot be read or is damaged.
    pub fn load(&self) -> Result<Vec<TokenRecord>, KeyError> {
        load(&self.path())
    }

    /// Makes a token and its peer, who has these rights. The token itself is returned, and kept nowhere.
    ///
    /// # Errors
    /// [`TokenError`]; nothing is left that could be used.
    pub fn issue(
        &self,
        name: &PeerName,
        grants: &Grants,
        rights: &Rights,
        expires_ms: Option<u64>,
    ) -> Result<Zeroizing<String>, TokenError> {
        let peer = peer_of(name).ok_or_else(|| TokenError::Name(name.clone()))?;
        if name.as_str() == OPERATOR {
            return Err(TokenError::Reserved(name.clone()));
        }
        if grants.scopes.is_empty() {
            return Err(TokenError::NoScope);
        }
        let has_rights =
            [&grants.publish, &grants.subscribe, &grants.request].iter().any(|list| !list.is_empty());
        if has_rights && !grants.scopes.contains(&Scope::Bus) {
            return Err(TokenError::RightsWithoutBus);
        }
        refuse_taken(&self.load()?, name)?;
        // The peer first: a crash between the two leaves one that nobody can be, never a token without its limits.
        self.keys.enrol_attached(&peer, &rights(&peer, grants), expires_ms)?;
        let random = Zeroizing::new(crypto::random::<TOKEN_BYTES>());
        let token = Zeroizing::new(format!("{PREFIX}{}", hexadecimal(&*random)));
        let mut scopes = grants.scopes.clone();
        scopes.sort();
        scopes.dedup();
        let listed: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
        let act =
            Act { peer: Some(peer), ..Act::new("token-issue") }.with(format!("scopes {}", listed.join(", ")));
        let record = TokenRecord {
            name: name.clone(),
            digest: Digest::of(token.as_bytes()),
            scopes,
            issued_ms: now_ms(),
            expires_ms,
            revoked_ms: None,
        };
        self.change(act, |tokens| {
            // Somebody may have been quicker.
            refuse_taken(tokens, &record.name)?;
            tokens.retain(|token| token.name != record.name);
            tokens.push(record);
            Ok(())
        })?;
        Ok(token)
    }

    /// Ends a token and its peer. Requests and streams of its bearer end at once.
    ///
    /// # Errors
    /// [`TokenError::Unknown`]; [`KeyError`].
    pub fn revoke(&self, name: &PeerName) -> Result<(), TokenError> {
        let peer = peer_of(name).ok_or_else(|| TokenError::Unknown(name.clone()))?;
        let act = Act { peer: Some(peer.clone()), ..Act::new("token-revoke") };
        self.change(act, |tokens| {
            let unknown = || TokenError::Unknown(name.clone());
            let is_meant = |token: &&mut TokenRecord| token.name == *name && token.revoked_ms.is_none();
            tokens.iter_mut().find(is_meant).ok_or_else(unknown)?.revoked_ms = Some(now_ms());
            Ok(())
        })?;
        match self.keys.revoke(&peer) {
            // Somebody has taken it out of the registry.
            Err(KeyError::UnknownPeer { .. }) => Ok(()),
            revoked => Ok(revoked?),
        }
    }

    /// All of them as people see them.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn list(&self) -> Result<Vec<ListedToken>, KeyError> {
        let (registry, used) = (self.keys.registry()?, self.last_use());
        let listed = |record: TokenRecord| {
            let rights = registry.peer(&record.peer()).map(|peer| (*peer.permissions).clone());
            let last_used_ms = used.get(&record.name).copied().filter(|at_ms| *at_ms >= record.issued_ms);
            ListedToken { last_used_ms, permissions: rights.unwrap_or_default(), record }
        };
        Ok(self.load()?.into_iter().map(listed).collect())
    }

    /// When each was last used; nothing, if that cannot be read: no rule depends on it.
    pub(super) fn last_use(&self) -> BTreeMap<PeerName, u64> {
        let text = private_file::read_text(&self.use_path()).ok();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Writes that down.
    ///
    /// # Errors
    /// [`KeyError::Io`].
    pub(super) fn save_last_use(&self, used: &BTreeMap<PeerName, u64>) -> Result<(), KeyError> {
        private_file::replace(&self.use_path(), &json(used, &self.use_path())?)
    }

    fn use_path(&self) -> PathBuf {
        self.keys.directory().join(USE_FILE)
    }

    fn change(
        &self,
        act: Act,
        change: impl FnOnce(&mut Vec<TokenRecord>) -> Result<(), TokenError>,
    ) -> Result<(), TokenError> {
        let path = self.path();
        self.keys.change(act, || {
            let mut tokens = load(&path)?;
            change(&mut tokens)?;
            forget_oldest(&mut tokens, now_ms());
            Ok(private_file::replace(&path, &json(&File { tokens }, &path)?)?)
        })
    }
}

fn refuse_taken(tokens: &[TokenRecord], name: &PeerName) -> Result<(), TokenError> {
    let now_ms = now_ms();
    let is_active = |token: &&TokenRecord| token.state(now_ms) == "active";
    if tokens.iter().filter(is_active).any(|token| token.name == *name) {
        return Err(TokenError::Exists(name.clone()));
    }
    let count = tokens.iter().filter(is_active).count();
    if count >= TOKENS_MAX { Err(TokenError::Full) } else { Ok(()) }
}

/// Of those that cannot be used the youngest stay.
fn forget_oldest(tokens: &mut Vec<TokenRecord>, now_ms: u64) {
    let ended = tokens.iter().filter(|token| token.state(now_ms) != "active").count();
    let mut too_many = ended.saturating_sub(REVOKED_MAX);
    tokens.retain(|token| {
        let goes = too_many > 0 && token.state(now_ms) != "active";
        too_many -= usize::from(goes);
        !goes
    });
}

fn json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, KeyError> {
    let damaged =
        |error: serde_json::Error| KeyError::Damaged { path: path.to_owned(), problem: error.to_string() };
    let mut text = serde_json::to_vec_pretty(value).map_err(damaged)?;
    text.push(b'\n');
    Ok(text)
}

fn load(path: &Path) -> Result<Vec<TokenRecord>, KeyError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let damaged = |problem: String| KeyError::Damaged { path: path.to_owned(), problem };
    // Nothing in it is secret, so the parser's whole message may be shown.
    let file: File =
        serde_json::from_str(&private_file::read_text(path)?).map_err(|error| damaged(error.to_string()))?;
    let mut names = std::collections::HashSet::new();
    for token in &file.tokens {
        let is_digest = token.digest.0.len() == 2 * crypto::DIGEST_BYTES
            && token.digest.0.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_digest {
            return Err(damaged(format!("`digest` of `{}` is none", token.name)));
        }
        if peer_of(&token.name).is_none() || !names.insert(&token.name) {
            return Err(damaged(format!("the name `{}` is there twice, or too long", token.name)));
        }
    }
    if file.tokens.len() > TOKENS_MAX + REVOKED_MAX {
        return Err(damaged(format!("it has more than {} tokens", TOKENS_MAX + REVOKED_MAX)));
    }
    Ok(file.tokens)
}

/// Whether this is the peer of a token. Such peers have no credentials.
pub fn is_bearer(name: &PeerName) -> bool {
    name.as_str().starts_with(PEER_PREFIX)
}

/// Unix time.
pub(super) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}
