//! The outbox over a real broker, on a storage in memory.

/// Stops, kills, and two processes on one storage.
mod ending;
/// A storage that fails at every step in turn, and for ever.
mod failures;
/// One after the other for each key, and nobody waits for somebody else.
mod order;
/// Each row of the table of outcomes.
mod outcomes;
/// What is accepted and what is refused.
mod puts;
mod stage;
