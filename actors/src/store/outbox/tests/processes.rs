//! Several real processes on one outbox, killed and suspended: this test binary, started again as a child.
//!
//! `INTERLOCK_OUTBOX_KILLS=1000 INTERLOCK_OUTBOX_PUTS=5000 cargo test -p interlock-actors outbox` is the soak size.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::Write,
    path::Path,
    str::FromStr,
};

use futures_util::StreamExt;

use super::*;
use crate::store::tests::processes::{Other, random};

/// The size of a soak, from the environment.
fn size(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|size| size.parse().ok()).unwrap_or(otherwise)
}

/// Puts that one child has in hand.
const IN_HAND: usize = 8;

/// What the children do: `outbox-WHAT NUMBER NUMBER`.
pub(in crate::store) fn act(role: &str, place: &Path, say: &dyn Fn(String)) {
    let words: Vec<&str> = role.split(' ').collect();
    let number = |at: usize| words.get(at).and_then(|word| u64::from_str(word).ok()).unwrap_or(0);
    let limits = OutboxLimits { pending_max: number(2), bytes_max: 0, ..roomy() };
    let database = place.join(OUTBOX_FILE);
    let opened = DataKey::load_or_create(&place.join("keys"), &place.join("interlock.db"))
        .and_then(|key| OutboxStore::open(&database, &key, limits, KeepFinished::default()));
    let outbox = match opened {
        Ok(outbox) => outbox,
        Err(error) => return say(format!("failed {error}\n")),
    };
    say("opened\n".to_owned());
    match words[0] {
        "outbox-put" => wait(put_many(&outbox, number(1), say)),
        "outbox-take" => wait(take_all(&outbox, say)),
        "outbox-send" => wait(send(&outbox, place, say)),
        "outbox-steps" => wait(some_steps(&outbox, say)),
        "outbox-hold" => wait(hold(&outbox, say)),
        other => panic!("no role `{other}`"),
    }
    outbox.close();
    say("closed\n".to_owned());
}

/// Puts so many, some at the same time, and says what became of each.
async fn put_many(outbox: &OutboxStore, count: u64, say: &dyn Fn(String)) {
    futures_util::stream::iter(0..count)
        .for_each_concurrent(IN_HAND, |number| async move {
            let message = entry(&format!("payload {number} {}", "x".repeat(random(300) as usize)));
            let id = message.id;
            match outbox.put(message).await {
                Ok(put) => say(format!("stored {id} {}\n", put.number)),
                Err(PutError::Full { current, max }) => say(format!("full {current} {max}\n")),
                Err(error) => say(format!("refused {id} {error}\n")),
            }
        })
        .await;
}

/// Leases and acknowledges whatever is open, without being the sender, until nothing is.
async fn take_all(outbox: &OutboxStore, say: &dyn Fn(String)) {
    let billing = "billing".parse().unwrap();
    loop {
        let open = outbox.open_deliveries(&billing, 0, 64).await.unwrap();
        if open.is_empty() {
            return;
        }
        let leased = outbox.lease(open.into_iter().map(|open| open.id).collect()).await.unwrap();
        let settled = |one: &Leased| Settled { id: one.id.clone(), outcome: Outcome::Acknowledged };
        say(leased.iter().map(|one| format!("took {}\n", one.id.number)).collect());
        outbox.settle(leased.iter().map(settled).collect()).await.unwrap();
    }
}

/// The sender: what it "delivers" it writes down, before it says so to the outbox.
async fn send(outbox: &OutboxStore, place: &Path, say: &dyn Fn(String)) {
    outbox.become_sender().await.unwrap();
    say("sender\n".to_owned());
    let billing = "billing".parse().unwrap();
    let mut effects = fs::OpenOptions::new().create(true).append(true).open(place.join("effects")).unwrap();
    loop {
        let open = outbox.open_deliveries(&billing, 0, 16).await.unwrap();
        let leased = outbox.lease(open.into_iter().map(|open| open.id).collect()).await.unwrap();
        let mut settled = Vec::new();
        for one in leased {
            // One call: a kill leaves a whole line or none.
            let line = format!("{} {} {}\n", one.message, one.id.number, one.attempt);
            effects.write_all(line.as_bytes()).unwrap();
            let outcome = match random(10) {
                0 => retry(0),
                1 => Outcome::Unsent,
                2 => dead("no"),
                _ => Outcome::Acknowledged,
            };
            settled.push(Settled { id: one.id, outcome });
        }
        outbox.settle(settled).await.unwrap();
    }
}

/// A few steps of each kind, one after the other, and what became of each.
async fn some_steps(outbox: &OutboxStore, say: &dyn Fn(String)) {
    for _ in 0..3 {
        let message = entry(&"x".repeat(3000));
        let id = message.id;
        say(match outbox.put(message).await {
            Ok(put) => format!("stored {id} {}\n", put.number),
            Err(PutError::Storage(error)) => format!("refused {id} {:?} {error}\n", error.kind),
            Err(error) => format!("failed {error}\n"),
        });
    }
    // What an earlier one had in hand goes first.
    if let Err(error) = outbox.become_sender().await {
        return say(format!("no sender {error}\n"));
    }
    let billing = "billing".parse().unwrap();
    let Ok(open) = outbox.open_deliveries(&billing, 0, 1).await else { return };
    let Ok(leased) = outbox.lease(open.into_iter().map(|open| open.id).collect()).await else { return };
    for one in leased {
        let number = one.id.number;
        match outbox.settle(vec![Settled { id: one.id, outcome: Outcome::Acknowledged }]).await {
            Ok(()) => say(format!("settled {number}\n")),
            Err(error) => say(format!("unsettled {number} {error}\n")),
        }
    }
}

/// The sender that leases something and then does nothing.
async fn hold(outbox: &OutboxStore, say: &dyn Fn(String)) {
    outbox.become_sender().await.unwrap();
    let leased = outbox.lease(vec![id(1, "billing")]).await.unwrap();
    say(format!("holds {}\n", leased.len()));
    std::future::pending::<()>().await;
}

/// Ids that were acknowledged, by what was said.
pub(super) fn stored(said: &[String]) -> impl Iterator<Item = (Uuid, u64)> {
    said.iter().filter_map(|line| {
        let (id, number) = line.strip_prefix("stored ")?.split_once(' ')?;
        Some((id.parse().unwrap(), number.parse().unwrap()))
    })
}

#[test]
fn six_processes_at_once_accept_exactly_as_many_as_may_be() {
    let place = Place::new();
    let each = size("INTERLOCK_OUTBOX_PUTS", 300) as u64;
    let max = each * 2;
    let mut others: Vec<Other> =
        (0..6).map(|_| Other::start(&format!("outbox-put {each} {max}"), &place)).collect();
    others.iter_mut().for_each(Other::release);
    let (mut numbers, mut full) = (BTreeSet::new(), 0);
    for other in &mut others {
        let said = other.said();
        assert!(said.contains(&"closed".to_owned()), "{:?}", said.last());
        full += said.iter().filter(|line| **line == format!("full {max} {max}")).count() as u64;
        numbers.extend(stored(&said).map(|(_, number)| number));
    }
    assert_eq!((numbers.len() as u64, full), (max, each * 6 - max));
    assert_eq!(numbers.last(), Some(&max), "a number was given in vain");
    place.check_outbox();

    // Room is found again at once.
    let outbox = place.outbox_with(OutboxLimits { pending_max: max, ..roomy() });
    lease(&outbox, &[(1, "billing")]);
    settle(&outbox, (1, "billing"), Outcome::Acknowledged);
    let began = Instant::now();
    put(&outbox, entry("room"));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn six_processes_that_lease_at_once_have_each_delivery_once() {
    let place = Place::new();
    let outbox = place.outbox_with(OutboxLimits { pending_max: 0, ..roomy() });
    let all = size("INTERLOCK_OUTBOX_PUTS", 300) as u64 * 2;
    wait(futures_util::stream::iter(0..all).for_each_concurrent(64, |_| async {
        outbox.put(entry("x")).await.unwrap();
    }));
    let mut others: Vec<Other> = (0..6).map(|_| Other::start("outbox-take", &place)).collect();
    others.iter_mut().for_each(Other::release);
    let mut taken: Vec<u64> = Vec::new();
    for other in &mut others {
        let said = other.said();
        assert!(said.contains(&"closed".to_owned()), "{:?}", said.last());
        taken.extend(said.iter().filter_map(|line| line.strip_prefix("took ")?.parse::<u64>().ok()));
    }
    taken.sort_unstable();
    assert_eq!(taken, (1..=all).collect::<Vec<_>>());
    assert_eq!(wait(outbox.standing()).unwrap(), desk::Standing::default());
    place.check_outbox();
}

#[test]
fn what_was_acknowledged_to_a_killed_process_is_there_and_each_delivery_is_in_one_state() {
    let place = Place::new();
    let role = |number: usize| if number < 2 { "outbox-put 1000000 0" } else { "outbox-send" };
    let mut others: Vec<Other> = (0..3).map(|number| Other::start(role(number), &place)).collect();
    others.iter_mut().for_each(Other::release);
    let mut acknowledged: Vec<(Uuid, u64)> = Vec::new();
    let kills = size("INTERLOCK_OUTBOX_KILLS", 20);
    let mut hear = |said: Vec<String>| {
        acknowledged.extend(stored(&said));
        let wrong = said.iter().find(|line| line.starts_with("failed") || line.starts_with("refused"));
        assert_eq!(wrong, None, "an error reached a caller");
    };
    for kill in 1..=kills {
        let number = random(3) as usize;
        // It has at least begun.
        while !matches!(others[number].line().as_str(), "opened" | "sender" | "") {}
        // Not waiting for anything: the instant of the kill is what is being varied.
        std::thread::sleep(Duration::from_micros(random(30_000)));
        others[number].kill();
        hear(others[number].said());
        others[number] = Other::start(role(number), &place);
        others[number].release();
        if kill % 100 == 0 {
            place.check_outbox_in_use();
        }
    }
    for other in &mut others {
        other.kill();
        hear(other.said());
    }
    place.check_outbox();
    let found = place.desk().list(&DeliveryFilter::default()).unwrap();
    let by_id: BTreeMap<Uuid, &desk::Delivery> = found.iter().map(|one| (one.id, one)).collect();
    assert_eq!(by_id.len(), found.len(), "a message is there twice");
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|(id, number)| by_id.get(id).is_none_or(|found| found.number != *number))
        .collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged messages are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    assert!(!acknowledged.is_empty());

    // What is acknowledged was delivered before; what was delivered counts as an attempt.
    let effects = fs::read_to_string(place.directory.path().join("effects")).unwrap_or_default();
    let mut delivered: HashSet<Uuid> = HashSet::new();
    for line in effects.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        delivered.insert(line.split(' ').next().unwrap().parse().unwrap());
    }
    for one in &found {
        if one.state == DeliveryState::Acknowledged {
            assert!(delivered.contains(&one.id), "acknowledged and never delivered: {one:?}");
        }
    }
    let report = format!(
        "{kills} kills, {} messages acknowledged, {} deliveries, {} delivered\n",
        acknowledged.len(),
        found.len(),
        delivered.len()
    );
    std::io::stdout().write_all(report.as_bytes()).unwrap();
}

#[test]
fn a_suspended_sender_keeps_its_lock_and_a_killed_one_gives_up_its_leases_at_once() {
    use nix::{sys::signal, unistd::Pid};
    let place = Place::new();
    let outbox = place.outbox();
    put(&outbox, entry("x"));
    let mut other = Other::start("outbox-hold", &place);
    other.release();
    while other.line() != "holds 1" {}
    signal::kill(Pid::from_raw(other.id().cast_signed()), signal::Signal::SIGSTOP).unwrap();
    let mut becoming = Box::pin(outbox.become_sender());
    wait(async {
        let soon = tokio::time::timeout(Duration::from_millis(300), &mut becoming).await;
        assert!(soon.is_err(), "two senders at once");
    });
    assert!(lease(&outbox, &[(1, "billing")]).is_empty(), "it is leased to the suspended one");
    put(&outbox, entry("others may put"));
    other.kill();
    let began = Instant::now();
    assert_eq!(wait(becoming).unwrap(), 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(lease(&outbox, &[(1, "billing")])[0].attempt, 2);
    place.check_outbox();
}
