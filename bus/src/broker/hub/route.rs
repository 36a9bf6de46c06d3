//! Routes: where a topic goes from one publisher, cached until something changes.

use super::*;

/// Where a topic goes, from one session. Valid for one generation of routes.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) generation: u64,
    pub(super) topic: TopicName,
    pub(super) statistics: TopicId,
    /// The publisher's number; zero if it may not publish.
    pub(super) origin: u32,
    pub(super) may_publish: bool,
    pub(super) targets: Vec<Target>,
    pub(super) groups: Vec<Vec<Target>>,
    /// Rows of subscribers that ask for the topic and may not have it.
    pub(super) denied: Vec<RowId>,
    /// The row of this publisher and topic without a subscriber.
    pub(super) nobody: RowId,
}

#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) session: SessionId,
    pub(super) lane: u32,
    pub(super) subscriptions: SubscriptionIds,
    pub(super) row: RowId,
}

/// Topics that nobody but the broker publishes.
pub(in crate::broker) fn is_brokers_own(topic: &TopicName) -> bool {
    ["$sys", "$peers"].iter().any(|own| topic.as_str().split('/').next() == Some(own))
}

/// Whether a peer with these rights may publish a topic.
pub(in crate::broker) fn may_publish(permissions: &Permissions, topic: &TopicName) -> bool {
    !is_brokers_own(topic) && permissions.permit(Right::Publish, topic)
}

/// Where a session's messages went, for the next ones on the same topics. Emptied when it is full: a route is quickly
/// found again, and whoever uses more topics in turn than fit would gain nothing from keeping some.
#[derive(Debug, Default)]
pub(super) struct RouteCache {
    routes: HashMap<Bytes, Rc<Route>>,
    /// What the routes lead to, in all.
    targets: usize,
}

impl RouteCache {
    fn get(&self, topic: &[u8]) -> Option<&Rc<Route>> {
        self.routes.get(topic)
    }

    fn put(&mut self, route: &Rc<Route>) {
        if self.routes.len() >= limits::ROUTES_CACHED_MAX || self.targets >= limits::ROUTE_TARGETS_CACHED_MAX
        {
            *self = Self::default();
        }
        self.targets += route.leads_to();
        let topic = Bytes::copy_from_slice(route.topic.as_str().as_bytes());
        if let Some(old) = self.routes.insert(topic, Rc::clone(route)) {
            self.targets -= old.leads_to();
        }
    }
}

impl Route {
    /// Rows and targets, which are what it is large by.
    fn leads_to(&self) -> usize {
        self.targets.len() + self.denied.len() + self.groups.iter().map(Vec::len).sum::<usize>()
    }
}

impl Hub {
    pub(super) fn route(
        &mut self,
        id: SessionId,
        topic: &[u8],
    ) -> Result<Rc<Route>, crate::topic::TopicError> {
        let generation = self.route_generation + self.ledger.evictions() + self.statistics.evictions();
        if let Some(session) = self.session_mut(id) {
            // Most messages go where the one before them went.
            let is_same = |route: &&Rc<Route>| {
                route.generation == generation && route.topic.as_str().as_bytes() == topic
            };
            if let Some(route) = session.last_route.as_ref().filter(is_same) {
                return Ok(Rc::clone(route));
            }
            if let Some(route) = session.routes.get(topic).filter(is_same) {
                session.last_route = Some(Rc::clone(route));
                return Ok(Rc::clone(route));
            }
        }
        let route = Rc::new(self.build_route(Some(id), TopicName::from_bytes(topic)?));
        if let Some(session) = self.session_mut(id) {
            session.routes.put(&route);
            session.last_route = Some(Rc::clone(&route));
        }
        Ok(route)
    }

    pub(super) fn build_route(&mut self, from: Option<SessionId>, topic: TopicName) -> Route {
        let publisher = from.and_then(|id| self.info(id)).map_or(&self.broker, |info| &info.peer).clone();
        let may_publish = match from.and_then(|id| self.info(id)) {
            Some(info) => may_publish(&info.permissions, &topic),
            None => true,
        };
        let mut targets = Vec::new();
        let mut groups: HashMap<(String, String), Vec<Target>> = HashMap::new();
        let (mut denied, mut denied_stock) = (Vec::new(), Vec::new());
        // Most of the bus's own events have nobody who asks for them: then there is nothing to look for.
        let sessions: Vec<SessionId> = match topic.is_reserved() && self.reserved_matchers == 0 {
            true => Vec::new(),
            false => self.each_session().map(|(id, _)| id).collect(),
        };
        for session_id in sessions {
            let Some(session) = self.session(session_id) else { continue };
            let matching = || session.lanes.iter().filter(|lane| !lane.serve && lane.matcher.matches(&topic));
            if matching().next().is_none() {
                continue;
            }
            let subscriber = session.info.peer.clone();
            let is_stock = session.info.kind == SessionKind::StockSubscriber;
            let permitted = session.info.permissions.permit(Right::Subscribe, &topic);
            let plain: SubscriptionIds =
                matching().filter(|lane| lane.group.is_none()).map(|lane| lane.id).collect();
            let grouped: Vec<_> = matching()
                .filter_map(|lane| Some(((lane.group.clone()?, lane.matcher.describe()), lane.id)))
                .collect();
            let key = RowKey {
                publisher: Some(publisher.clone()),
                topic: Some(topic.clone()),
                subscriber: Some(subscriber),
            };
            let row = self.ledger.row(key);
            if !permitted {
                denied.push(row);
                if is_stock {
                    denied_stock.push(session_id);
                }
                continue;
            }
            for named in plain.chunks(batch::SUBSCRIPTIONS_NAMED_MAX) {
                let subscriptions = SubscriptionIds::from_slice(named);
                targets.push(Target { session: session_id, lane: named[0], subscriptions, row });
            }
            for (group, lane) in grouped {
                let subscriptions = SubscriptionIds::from_slice(&[lane]);
                groups.entry(group).or_default().push(Target {
                    session: session_id,
                    lane,
                    subscriptions,
                    row,
                });
            }
        }
        let statistics = self.statistics.topic(&topic, self.now_ms);
        if may_publish {
            let origin = self.origin(&publisher);
            self.statistics.published_by(statistics, origin);
        }
        let nobody = self.ledger.row(RowKey {
            publisher: Some(publisher),
            topic: Some(topic.clone()),
            subscriber: None,
        });
        if may_publish && !topic.is_reserved() {
            denied_stock.into_iter().for_each(|subscriber| self.note_denied_delivery(subscriber, &topic));
        }
        // Read last: making rows above may have evicted one, which shifts the generation.
        let generation = self.route_generation + self.ledger.evictions() + self.statistics.evictions();
        let groups = groups.into_values().collect();
        let origin = match from {
            Some(id) if may_publish => self.origin_of(id),
            _ => 0,
        };
        Route { generation, topic, statistics, origin, may_publish, targets, groups, denied, nobody }
    }

    /// Says once that a stock subscriber's prefix reaches a topic it may not have: no record of its
    /// protocol could tell it. How many messages it did not get is in the ledger.
    fn note_denied_delivery(&mut self, subscriber: SessionId, topic: &TopicName) {
        let code = "not_permitted";
        let Some(peer) = self.info(subscriber).map(|info| info.peer.clone()) else { return };
        if !self.denials.knows(&peer, Operation::Subscribe, code, topic.as_str()) {
            let text = format!("`{peer}` may not subscribe `{topic}`, which one of its prefixes reaches");
            self.note_denial(subscriber, Operation::Subscribe, code, topic.as_str(), &text);
        }
    }

    /// Who has this number.
    pub(in crate::broker) fn peer_of_origin(&self, origin: u32) -> Option<&PeerName> {
        self.origins.get(origin as usize)
    }

    pub(super) fn origin_of(&mut self, id: SessionId) -> u32 {
        let peer = self.info(id).map(|info| info.peer.clone());
        peer.map_or(0, |peer| self.origin(&peer))
    }

    pub(super) fn origin(&mut self, peer: &PeerName) -> u32 {
        if let Some(origin) = self.origin_index.get(peer) {
            return *origin;
        }
        self.origins.push(peer.clone());
        let origin = self.origins.len() as u32 - 1;
        self.origin_index.insert(peer.clone(), origin);
        origin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_routes_is_bounded_by_topics_and_by_what_they_lead_to() {
        let mut hub = Hub::new("broker".parse().unwrap(), 1);
        let mut route = |name: String, targets| {
            let mut route = hub.build_route(None, name.parse().unwrap());
            let (session, row) = (SessionId::nobody(), route.nobody);
            route.targets =
                vec![Target { session, lane: 1, subscriptions: SubscriptionIds::default(), row }; targets];
            Rc::new(route)
        };
        let mut cache = RouteCache::default();
        (0..limits::ROUTES_CACHED_MAX).for_each(|number| cache.put(&route(format!("a/{number}"), 1)));
        (0..9).for_each(|_| cache.put(&route("a/0".to_owned(), 1)));
        assert!(cache.get(b"a/0").is_some());
        assert!(cache.routes.len() <= limits::ROUTES_CACHED_MAX && cache.targets == cache.routes.len());

        let many = limits::ROUTE_TARGETS_CACHED_MAX / 2 + 1;
        (0..3).for_each(|number| cache.put(&route(format!("b/{number}"), many)));
        assert_eq!((cache.routes.len(), cache.targets), (1, many), "the third began anew");
        assert!(cache.get(b"b/2").is_some());
    }
}
