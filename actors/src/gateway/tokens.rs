//! The tokens that were issued, as the key store keeps them: digests, scopes, ends. Each is the way in for one peer, whose rights
//! on the bus stand in the registry as any other's.

use std::{collections::BTreeMap, path::PathBuf};

pub use interlock_bus::keys::token_file::{PEER_PREFIX, Scope, TokenRecord};
use interlock_bus::{
    KeyStore, PeerName, Permissions, TopicFilter, crypto,
    envelope::now_ns,
    keys::{
        Audit, KeyError, KeyState, Registry, Right,
        audit::Act,
        private_file,
        token_file::{self, Digest, ENDED_MAX, TOKENS_MAX, peer_of, token_of},
    },
};
use zeroize::Zeroizing;

/// Name of the file that says when each was used.
const USE_FILE: &str = "tokens-use.json";
/// What a token begins with, so that people and scanners of secrets know it for one.
pub const PREFIX: &str = "interlock_";
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
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

impl Grants {
    /// Refuses topics of the broker, but where the scopes give them anyway. `#` is none of those.
    fn check_filters(&self) -> Result<(), TokenError> {
        let sees = self.scopes.contains(&Scope::Inspect);
        let given: [(Right, &[TopicFilter], &[&str]); 3] = [
            (Right::Publish, &self.publish, &[]),
            (Right::Subscribe, &self.subscribe, &["$sys/", "$peers/"]),
            (Right::Request, &self.request, &["$sys/broker/"]),
        ];
        for (right, filters, seen) in given {
            let is_given =
                |filter: &TopicFilter| sees && seen.iter().any(|part| filter.as_str().starts_with(part));
            let refused = |filter: &&TopicFilter| filter.as_str().starts_with('$') && !is_given(filter);
            if let Some(filter) = filters.iter().find(refused) {
                return Err(TokenError::OfTheBroker { filter: filter.clone(), right });
            }
        }
        Ok(())
    }
}

/// The rights on the bus that grants come to.
pub type Rights = dyn Fn(&PeerName, &Grants) -> Permissions + Send + Sync;

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token as people see it.
#[derive(Clone, Debug)]
pub struct ListedToken {
    /// What the file says.
    pub record: TokenRecord,
    /// `active`, `expired` or `revoked`: also by the registry, where its peer is.
    pub state: &'static str,
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
    /// What begins with `$` is the broker's own.
    #[error(
        "a token cannot be given `{filter}` to {}: topics that begin with `$` are the broker's own, and what may be seen of them goes with the scope `inspect`",
        right.as_str()
    )]
    OfTheBroker {
        /// What was wanted.
        filter: TopicFilter,
        /// For which operation.
        right: Right,
    },
    /// Its rights could not be used.
    #[error("rights on the bus are for tokens with the scope `bus`; add it, or leave the rights out")]
    RightsWithoutBus,
    /// The file can be read, so nothing is to be put aside.
    #[error(
        "`tokens.json` is not damaged, so it is left as it is; `interlock tokens revoke NAME` ends one token"
    )]
    Whole,
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
        self.keys.directory().join(token_file::FILE)
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
        self.keys.tokens()
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
        grants.check_filters()?;
        refuse_taken(&self.load()?, name, &self.keys.registry()?)?;
        // The peer first: a crash between the two leaves one that nobody can be, never a token without its limits.
        self.keys.enrol_attached(&peer, &rights(&peer, grants), expires_ms)?;
        let registry = self.keys.registry()?;
        let enrolled_ms = registry.peer(&peer).and_then(|peer| peer.issued_ms).unwrap_or_default();
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
            // A token that is older than its peer is one of before.
            issued_ms: now_ms().max(enrolled_ms),
            expires_ms,
            revoked_ms: None,
        };
        self.change(act, |tokens| {
            // Somebody may have been quicker.
            refuse_taken(tokens, &record.name, &registry)?;
            tokens.retain(|token| token.name != record.name);
            tokens.push(record);
            Ok(())
        })?;
        Ok(token)
    }

    /// Ends a token and its peer. Requests and streams of its bearer end at once. If one of the two files cannot be read, the
    /// token ends in the other alone, which is as good: the gateway lets nobody in who has ended in either. Then the answer is
    /// why the other does not say so.
    ///
    /// # Errors
    /// [`TokenError::Unknown`]; [`KeyError`].
    pub fn revoke(&self, name: &PeerName) -> Result<Option<KeyError>, TokenError> {
        let peer = peer_of(name).ok_or_else(|| TokenError::Unknown(name.clone()))?;
        let act = Act { peer: Some(peer.clone()), ..Act::new("token-revoke") };
        let changed = self.change(act, |tokens| {
            let unknown = || TokenError::Unknown(name.clone());
            let is_meant = |token: &&mut TokenRecord| token.name == *name && token.revoked_ms.is_none();
            tokens.iter_mut().find(is_meant).ok_or_else(unknown)?.revoked_ms = Some(now_ms());
            Ok(())
        });
        let unsaid = match changed {
            Err(TokenError::Keys(error)) if is_unreadable(&error) => Some(error),
            changed => changed.map(|()| None)?,
        };
        match self.keys.revoke(&peer) {
            // The list says so, and the bus ends the session with it.
            Err(error) if unsaid.is_none() && is_unreadable(&error) => Ok(Some(error)),
            // Somebody has taken it out of the registry.
            Err(KeyError::UnknownPeer { .. }) if unsaid.is_none() => Ok(None),
            Err(KeyError::UnknownPeer { .. }) => Err(TokenError::Unknown(name.clone())),
            revoked => Ok(revoked.map(|()| unsaid)?),
        }
    }

    /// Puts a file that cannot be read aside and begins without tokens: the peers of all that were issued are revoked, because
    /// nobody knows any more whose they are. Says where the file is now, and whose rights have ended.
    ///
    /// # Errors
    /// [`TokenError::Whole`]; [`KeyError`].
    pub fn reset(&self) -> Result<(PathBuf, Vec<PeerName>), TokenError> {
        match self.load() {
            Err(error) if is_unreadable(&error) => {}
            tokens => return Err(tokens.map_or_else(TokenError::from, |_| TokenError::Whole)),
        }
        let registry = self.keys.registry()?;
        let is_active = |name: &&PeerName| {
            is_bearer(name) && registry.peer(name).is_some_and(|peer| peer.state == KeyState::Active)
        };
        let peers: Vec<PeerName> =
            registry.peers().map(|(name, _)| name).filter(is_active).cloned().collect();
        // The peers first: a crash between the two leaves a damaged file, and nobody who can come in.
        peers.iter().try_for_each(|peer| self.keys.revoke(peer))?;
        let path = self.path();
        let aside = path.with_file_name(format!("{}.damaged-{}", token_file::FILE, now_ms()));
        let act = Act::new("tokens-reset").with(format!("{} peers revoked", peers.len()));
        self.keys.change(act, || {
            let failed = |source| KeyError::Io { action: "put aside", path: path.clone(), source };
            std::fs::rename(&path, &aside).map_err(failed)
        })?;
        Ok((aside, peers))
    }

    /// All of them as people see them.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn list(&self) -> Result<Vec<ListedToken>, KeyError> {
        let (registry, used, now_ms) = (self.keys.registry()?, self.last_use(), now_ms());
        let listed = |record: TokenRecord| {
            let peer = record.peer();
            let state = if record.is_over_in(&registry) { "revoked" } else { record.state(now_ms) };
            let rights = registry.peer(&peer).map(|peer| (*peer.permissions).clone());
            let last_used_ms = used.get(&record.name).copied().filter(|at_ms| *at_ms >= record.issued_ms);
            ListedToken { last_used_ms, state, permissions: rights.unwrap_or_default(), record }
        };
        Ok(self.load()?.into_iter().map(listed).collect())
    }

    /// The registry, which says which tokens are over, whatever the list says.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(super) fn registry(&self) -> Result<Registry, KeyError> {
        self.keys.registry()
    }

    /// Where the registry is.
    pub(super) fn registry_path(&self) -> PathBuf {
        self.keys.registry_path()
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
        let path = self.use_path();
        let text = serde_json::to_vec_pretty(used)
            .map_err(|error| KeyError::Damaged { path: path.clone(), problem: error.to_string() })?;
        private_file::replace(&path, &text)
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
            let mut tokens = token_file::load(&path)?;
            change(&mut tokens)?;
            forget_oldest(&mut tokens, now_ms());
            Ok(token_file::save(&path, tokens)?)
        })
    }
}

fn refuse_taken(tokens: &[TokenRecord], name: &PeerName, registry: &Registry) -> Result<(), TokenError> {
    let now_ms = now_ms();
    let is_active = |token: &&TokenRecord| token.state(now_ms) == "active" && !token.is_over_in(registry);
    if tokens.iter().filter(is_active).any(|token| token.name == *name) {
        return Err(TokenError::Exists(name.clone()));
    }
    let count = tokens.iter().filter(is_active).count();
    if count >= TOKENS_MAX { Err(TokenError::Full) } else { Ok(()) }
}

/// Of those that cannot be used the youngest stay.
fn forget_oldest(tokens: &mut Vec<TokenRecord>, now_ms: u64) {
    let ended = tokens.iter().filter(|token| token.state(now_ms) != "active").count();
    let mut too_many = ended.saturating_sub(ENDED_MAX);
    tokens.retain(|token| {
        let goes = too_many > 0 && token.state(now_ms) != "active";
        too_many -= usize::from(goes);
        !goes
    });
}

/// Whether the file itself is what is wrong, so that trying again is of no use.
fn is_unreadable(error: &KeyError) -> bool {
    matches!(
        error,
        KeyError::TokensDamaged { .. }
            | KeyError::Damaged { .. }
            | KeyError::Exposed { .. }
            | KeyError::NotOurs { .. }
    )
}

/// Whether this is the peer of a token. Such peers have no credentials.
pub fn is_bearer(name: &PeerName) -> bool {
    token_of(name).is_some()
}

/// Unix time.
pub(super) fn now_ms() -> u64 {
    now_ns() / 1_000_000
}
