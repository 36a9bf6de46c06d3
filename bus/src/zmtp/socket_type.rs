//! The socket types of ZeroMQ, as announced in the handshake.

use std::fmt;

/// The type of socket at one end of a connection. Names: ZMTP RFC 23, "The Socket-Type Property".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketType {
    /// Sends, filtered by subscriptions.
    Pub,
    /// Receives what it subscribed to.
    Sub,
    /// A PUB that can read subscriptions.
    Xpub,
    /// A SUB whose subscriptions are messages.
    Xsub,
    /// Asks, one question at a time.
    Req,
    /// Answers, one question at a time.
    Rep,
    /// Asks or answers without waiting.
    Dealer,
    /// Addresses many peers.
    Router,
    /// Hands out work.
    Push,
    /// Takes work.
    Pull,
    /// One to one.
    Pair,
    /// Any other name, for example the draft types of libzmq.
    Other(String),
}

const NAMES: [(&str, SocketType, SocketType); 11] = [
    ("PUB", SocketType::Pub, SocketType::Sub),
    ("SUB", SocketType::Sub, SocketType::Pub),
    ("XPUB", SocketType::Xpub, SocketType::Xsub),
    ("XSUB", SocketType::Xsub, SocketType::Xpub),
    ("REQ", SocketType::Req, SocketType::Router),
    ("REP", SocketType::Rep, SocketType::Dealer),
    ("DEALER", SocketType::Dealer, SocketType::Router),
    ("ROUTER", SocketType::Router, SocketType::Dealer),
    ("PUSH", SocketType::Push, SocketType::Pull),
    ("PULL", SocketType::Pull, SocketType::Push),
    ("PAIR", SocketType::Pair, SocketType::Pair),
];

impl SocketType {
    /// Reads a name as it stands in the metadata. Unknown names are kept.
    pub fn from_name(name: &str) -> Self {
        match NAMES.iter().find(|(known, ..)| *known == name) {
            Some((_, socket_type, _)) => socket_type.clone(),
            None => Self::Other(name.to_owned()),
        }
    }

    /// The name as it stands in the metadata.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => NAMES
                .iter()
                .find(|(_, socket_type, _)| socket_type == known)
                .map(|(name, ..)| *name)
                .expect("every variant but Other has a row in NAMES"),
        }
    }

    /// The type that a peer of this type accepts at the other end. A type of unknown name is
    /// answered with itself.
    pub fn complement(&self) -> Self {
        NAMES
            .iter()
            .find(|(_, socket_type, _)| socket_type == self)
            .map_or_else(|| self.clone(), |(.., complement)| complement.clone())
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_reads_back_and_its_complement_is_known() {
        for (name, socket_type, complement) in &NAMES {
            assert_eq!(SocketType::from_name(name), *socket_type);
            assert_eq!(socket_type.to_string(), *name);
            assert_eq!(socket_type.complement(), *complement);
        }
        let draft = SocketType::from_name("RADIO");
        assert_eq!(draft, SocketType::Other("RADIO".to_owned()));
        assert_eq!((draft.name(), draft.complement()), ("RADIO", draft.clone()));
    }
}
