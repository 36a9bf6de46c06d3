//! A session: who it is, its subscriptions, and what waits for it.

use super::*;

/// A session, by place and by how often the place was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl SessionId {
    /// No session: where the broker itself is the server or the publisher.
    pub(in crate::broker) const fn nobody() -> Self {
        Self { index: u32::MAX, generation: 0 }
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.index, self.generation)
    }
}

/// How a session speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionKind {
    /// The record protocol over a socket.
    Native,
    /// The record protocol without a socket, in the broker's process.
    Local,
    /// PUB or XPUB.
    StockPublisher,
    /// SUB or XSUB.
    StockSubscriber,
    /// REQ or DEALER.
    StockRequester,
}

/// Who is behind a session.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The registered name.
    pub peer: PeerName,
    /// The key it authenticated with; `None` in the broker's process.
    pub key: Option<PublicKey>,
    /// How it speaks.
    pub kind: SessionKind,
    /// Where it comes from, for the tool.
    pub address: String,
    /// The broker's key that its handshake used; `None` in the broker's process.
    pub server_key: Option<PublicKey>,
    /// What it may do.
    pub permissions: Arc<Permissions>,
}

/// One subscription or served filter of a session.
#[derive(Debug)]
pub(in crate::broker) struct Lane {
    pub(in crate::broker) id: u32,
    pub(in crate::broker) matcher: Matcher,
    pub(in crate::broker) serve: bool,
    /// Its client answers probes.
    pub(in crate::broker) probes: bool,
    pub(in crate::broker) group: Option<String>,
    pub(in crate::broker) queue: SendQueue,
    /// Set while it loses messages.
    pub(in crate::broker) slow: Option<Slow>,
}

impl Lane {
    pub(super) fn new(id: u32, matcher: Matcher, queue: SendQueue) -> Self {
        Self { id, matcher, serve: false, probes: false, group: None, queue, slow: None }
    }
}

impl Lane {
    pub(in crate::broker) fn matches(&self, topic: &TopicName) -> bool {
        self.matcher.matches(topic)
    }
}

/// What a lane matches.
#[derive(Debug)]
pub(in crate::broker) enum Matcher {
    Filter(TopicFilter),
    /// ZeroMQ's byte prefixes, as a set. `$` topics only for prefixes that begin with `$`.
    Prefixes(BTreeSet<Vec<u8>>),
}

impl Matcher {
    pub(in crate::broker) fn matches(&self, topic: &TopicName) -> bool {
        match self {
            Self::Filter(filter) => filter.matches(topic),
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| {
                topic.as_str().as_bytes().starts_with(prefix)
                    && (!topic.is_reserved() || prefix.starts_with(b"$"))
            }),
        }
    }

    /// How many filters or prefixes may match topics that begin with `$`. No other does.
    pub(super) fn reserved(&self) -> usize {
        match self {
            Self::Filter(filter) => usize::from(filter.as_str().starts_with('$')),
            Self::Prefixes(prefixes) => prefixes.iter().filter(|prefix| prefix.starts_with(b"$")).count(),
        }
    }

    /// The matcher as the tool prints it.
    pub(in crate::broker) fn describe(&self) -> String {
        match self {
            Self::Filter(filter) => filter.to_string(),
            Self::Prefixes(prefixes) => {
                let texts: Vec<_> =
                    prefixes.iter().map(|prefix| format!("\"{}\"*", prefix.escape_ascii())).collect();
                texts.join(" ")
            }
        }
    }
}

/// Counters of one session, for the tool.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct SessionCounts {
    /// Messages published and requests sent.
    pub published: u64,
    /// Messages and requests delivered to it.
    pub delivered: u64,
    /// Messages dropped on the way to it.
    pub dropped: u64,
    /// Operations refused to it.
    pub denied: u64,
}

#[derive(Debug)]
pub(in crate::broker) struct Session {
    pub(in crate::broker) info: SessionInfo,
    pub(in crate::broker) program: String,
    pub(in crate::broker) opened_ms: u64,
    pub(in crate::broker) counts: SessionCounts,
    pub(in crate::broker) lanes: Vec<Lane>,
    /// Where the next round over the lanes begins.
    pub(super) next_lane: usize,
    /// It has said a hello that fits, and no goodbye.
    pub(super) greeted: bool,
    pub(super) control: VecDeque<Record>,
    pub(in crate::broker) control_bytes: usize,
    pub(super) replies: VecDeque<Record>,
    pub(super) reply_bytes: usize,
    /// How many of the waiting replies are the end of a request.
    pub(super) ends_waiting: usize,
    pub(super) announced: HashSet<u32>,
    /// The origin of the last delivery, which is among those announced.
    pub(super) last_origin: Option<u32>,
    pub(super) routes: RouteCache,
    /// One of `routes`, that of the last publish.
    pub(super) last_route: Option<Rc<Route>>,
    pub(super) requests_in_flight: usize,
    /// Topics this publisher is held on.
    pub(in crate::broker) held: HashSet<TopicName>,
    /// What is published if it dies.
    pub(super) will: Option<Block>,
    pub(super) is_dirty: bool,
    pub(in crate::broker) is_ending: bool,
}

impl Session {
    /// Whether control records or replies wait, which go before deliveries.
    pub(super) fn has_answers(&self) -> bool {
        !self.control.is_empty() || !self.replies.is_empty()
    }

    /// The lane whose turn it is.
    pub(super) fn next_lane_with_output(&self) -> Option<usize> {
        let lanes = self.lanes.len();
        (0..lanes).map(|step| (self.next_lane + step) % lanes).find(|at| self.lanes[*at].queue.has_output())
    }
}
