//! How often somebody may ask: by address, by token, and, much harder, with tokens that are none. What cannot be counted is not
//! let through: when the table of addresses is full, all that are new share one allowance.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use governor::{DefaultDirectRateLimiter, Quota, clock::Clock};

use super::error::ApiError;

/// Addresses that are counted one by one, of 200 bytes each. Those that have been silent for a minute make room.
const ADDRESSES_MAX: usize = 4096;

/// How long an address is remembered after its last request: as long as an allowance takes to be whole again.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// How often a full table is searched for room: a flood of addresses must not make each request search it.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

/// How often somebody may ask in a minute.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// With one token.
    pub token: NonZeroU32,
    /// From one address.
    pub address: NonZeroU32,
    /// From one address with tokens that are none.
    pub failures: NonZeroU32,
}

/// Which allowance is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// That of a token.
    Token,
    /// That of an address.
    Address,
    /// That of an address for tokens that are none.
    Failures,
}

impl Limit {
    /// Its name in numbers.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Address => "address",
            Self::Failures => "failures",
        }
    }

    /// Whose it is.
    pub(super) fn of(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Address => "address",
            Self::Failures => "address for tokens that are none",
        }
    }

    /// The setting it comes from.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Token => "gateway.token_rate",
            Self::Address => "gateway.address_rate",
            Self::Failures => "gateway.failure_rate",
        }
    }
}

/// One allowance: so many at once, and as many again within a minute.
#[derive(Debug)]
pub(super) struct Allowance(DefaultDirectRateLimiter);

impl Allowance {
    /// So many a minute.
    pub(super) fn per_minute(rate: NonZeroU32) -> Self {
        Self(DefaultDirectRateLimiter::direct(Quota::per_minute(rate)))
    }

    /// Takes one; refused, with the time until there is one, if there is none.
    pub(super) fn take(&self, limit: Limit) -> Result<(), ApiError> {
        self.0.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(self.0.clock().now());
            let retry_after = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
            ApiError::RateLimited { limit, retry_after }
        })
    }
}

/// What is counted of one address.
#[derive(Debug)]
struct Visitor {
    requests: Allowance,
    failures: Allowance,
    seen: Instant,
}

impl Visitor {
    fn new(rates: &Rates, now: Instant) -> Self {
        let requests = Allowance::per_minute(rates.address);
        Self { requests, failures: Allowance::per_minute(rates.failures), seen: now }
    }
}

/// The allowances of all addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    rates: Rates,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    known: HashMap<IpAddr, Visitor>,
    /// All that found no room.
    others: Visitor,
    searched: Instant,
}

impl Addresses {
    pub(super) fn new(rates: Rates) -> Self {
        let now = Instant::now();
        let table = Table { known: HashMap::new(), others: Visitor::new(&rates, now), searched: now };
        Self { rates, table: Mutex::new(table) }
    }

    /// A request has come from there. One without an address counts with those that found no room.
    pub(super) fn request(&self, address: Option<IpAddr>) -> Result<(), ApiError> {
        self.with(address, Instant::now(), |visitor| visitor.requests.take(Limit::Address))
    }

    /// It had a token that is none.
    pub(super) fn failure(&self, address: Option<IpAddr>) -> Result<(), ApiError> {
        self.with(address, Instant::now(), |visitor| visitor.failures.take(Limit::Failures))
    }

    fn with<T>(&self, address: Option<IpAddr>, now: Instant, ask: impl FnOnce(&Visitor) -> T) -> T {
        // No code that can panic runs under this lock.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(address) = address.map(network) else { return ask(&table.others) };
        if let Some(visitor) = table.known.get_mut(&address) {
            visitor.seen = now;
            return ask(visitor);
        }
        if table.known.len() >= ADDRESSES_MAX && now.duration_since(table.searched) >= SEARCH_EVERY {
            table.searched = now;
            table.known.retain(|_, visitor| now.duration_since(visitor.seen) < FORGET_AFTER);
        }
        if table.known.len() >= ADDRESSES_MAX {
            return ask(&table.others);
        }
        ask(table.known.entry(address).or_insert_with(|| Visitor::new(&self.rates, now)))
    }
}

/// Whom an address stands for: an IPv6 network of 64 bits is one customer's, who has 2^64 addresses to choose from.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => mapped.into(),
            None => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(address: u32, failures: u32) -> Addresses {
        let rate = |rate| NonZeroU32::new(rate).unwrap();
        Addresses::new(Rates { token: rate(1), address: rate(address), failures: rate(failures) })
    }

    fn nth(number: usize) -> Option<IpAddr> {
        let [.., high, middle, low] = number.to_be_bytes();
        Some([10, high, middle, low].into())
    }

    #[test]
    fn an_address_has_its_allowance_and_is_told_when_there_is_more() {
        let addresses = addresses(3, 1);
        for _ in 0..3 {
            addresses.request(nth(1)).unwrap();
        }
        let refused = addresses.request(nth(1)).unwrap_err();
        let ApiError::RateLimited { limit: Limit::Address, retry_after } = refused else {
            panic!("{refused}")
        };
        assert!((1..=20).contains(&retry_after), "{retry_after}");
        addresses.request(nth(2)).unwrap();
        // Failures are counted by themselves.
        addresses.failure(nth(1)).unwrap();
        assert!(matches!(
            addresses.failure(nth(1)),
            Err(ApiError::RateLimited { limit: Limit::Failures, .. })
        ));
    }

    #[test]
    fn a_full_table_lets_nobody_through_uncounted_and_has_room_again_when_others_are_silent() {
        let addresses = addresses(1, 1);
        for number in 0..ADDRESSES_MAX {
            addresses.request(nth(number)).unwrap();
        }
        // One allowance for all that are new, also for those without an address.
        addresses.request(nth(ADDRESSES_MAX)).unwrap();
        assert!(addresses.request(nth(ADDRESSES_MAX + 1)).is_err() && addresses.request(None).is_err());
        assert_eq!(addresses.table.lock().unwrap().known.len(), ADDRESSES_MAX);
        let later = Instant::now() + FORGET_AFTER + SEARCH_EVERY;
        addresses
            .with(nth(ADDRESSES_MAX + 2), later, |visitor| visitor.requests.take(Limit::Address))
            .unwrap();
        assert_eq!(addresses.table.lock().unwrap().known.len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let network = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("::ffff:10.0.0.1"), "10.0.0.1");
    }
}
