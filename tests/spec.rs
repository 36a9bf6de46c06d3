//! The specification of Interlock: one test binary, one module per chapter.

#![allow(
    clippy::unwrap_used,
    reason = "every function here belongs to a test, also those without the attribute"
)]

mod broker_process;
mod harness;
mod raw_peer;
mod wire_proxy;

/// Which keys may connect, and what every refusal looks like from both sides.
mod authentication;
/// Backups: what is in them, who opens them, what is refused, and what a kill leaves.
mod backup;
/// A broker that is killed under load and started again.
mod broker_restart;
/// `bus top` on a terminal: what people see and type, and how the terminal is left.
mod bus_top;
/// What breaks from outside: random kills and suspensions while people talk, no room, a taken port, a jumping clock.
mod chaos;
/// Every verb of both programs from their command tables: help, pages, completions.
mod command_line;
/// What people ask of a running tree and order: `ps`, `explain`, `plan`, `critical-path`, `start`, `stop`, `restart`.
mod component_orders;
/// The console in Chromium: a person logs in, talks, sees it in topics and messages, kills an actor, searches logs.
mod console;
/// `interlock db`: many processes at once, kills, each kind of damage, and what is made where nothing is.
mod database;
/// Programs in `examples/`, as a reader would run them.
mod examples;
/// What both programs end with, and that help and README say so.
mod exit_codes;
/// Names, origins and headers: what a browser of somebody who may come in cannot be made to do.
mod gateway_boundary;
/// How often somebody may ask the gateway, and how large and slow a request may be.
mod gateway_limits;
/// The numbers for Prometheus, read by its own parser and compared with what the tools say.
mod gateway_metrics;
/// TLS at the gateway, seen by another TLS client, and files that it refuses.
mod gateway_tls;
/// Who may come in through the gateway: tokens, what each opens, until when, and how it is taken away.
mod gateway_tokens;
/// Groups of actors: restarted together, given up together, ended together.
mod groups;
/// README and guide: their transcripts, in real terminals.
mod guide;
/// What no honest client sends, and what it must not cost the others.
mod hostile_input;
/// A new key of the broker: who learns it, until when the old one works, and what a kill leaves behind.
mod key_rotation;
/// What `interlock keys` shows and changes: ends of keys, new keys of peers, their last use, enrolment, copies.
mod keys;
/// Random traffic between real processes, judged by the ledger and by what each party counted.
mod ledger_oracle;
/// The journal of the log: what finds no way to the store for long, and kills meanwhile.
mod log_journal;
/// Which log records are kept, of whom and for how long it was ordered.
mod log_levels;
/// Log records: found by everything that can be asked for, followed, exported, kept and deleted as told.
mod log_queries;
/// Ten thousand races from the first log call to the encrypted store, with kills meanwhile.
mod log_races;
mod log_traces;
/// The main job on the real binary: a conversation, its history, the tools, starting and stopping.
mod main_job;
/// Somebody on the path who holds no key: what each manipulation comes to, on both sides.
mod man_in_the_middle;
/// Memory of the broker under a flood, and after a very large message.
mod memory;
/// The native client over the encrypted socket and inside the broker's process.
mod native_client;
/// Programs that wait for others: for their start, readiness, health, end, or a line of them.
mod needs;
/// A text that is logged and said again and again: which files can be read for it.
mod never_plaintext;
/// A capture of the wire: what anybody on the path can read.
mod nothing_readable;
/// A server of a language model that refuses, dies and hangs.
mod openai;
/// OpenAI's own Python package against the gateway, unchanged.
mod openai_api;
/// Models by name: who answers, who stands in for whom, and what is told of it.
mod openai_models;
/// A thousand chats at once.
mod openai_streams;
/// Durable delivery: kills, stops, dead letters, and what people see and do about them.
mod outbox;
/// Durable delivery while it is restarted, finds no room, and cannot write.
mod outbox_faults;
/// What was accepted is acted upon once and in order, whoever is killed when.
mod outbox_kills;
/// Subscribers that do not read: what each policy loses, what is said of it, and who else notices.
mod overflow;
/// The data key under a passphrase: who needs it, where it comes from, and what a kill leaves.
mod passphrase;
/// What DESIGN.md promises and has no chapter of its own: versions, presence, groups, last values, losses told.
mod promises;
/// The Python module that people copy.
mod python_module;
/// Waiting for subscribers, probes, publishers that wait for their consumers.
mod readiness;
/// Recordings: killed, ended, replayed, and read by the tools of others.
mod recordings;
/// Edits of `authorized.toml` while the broker runs: at once, as a whole, and felt by nobody else.
mod registry_edits;
/// A configuration that changes while the runtime runs.
mod reload;
/// Keys stay out of what is shown, said and dumped.
mod secrets;
/// Answering requests by commands: what is left of them, and how it ends.
mod serving;
/// Every key of the configuration and the test that sees its effect.
mod settings;
/// A disk that is really full.
mod small_disk;
/// Every socket type of ZeroMQ: what it means here, or how it is refused.
mod socket_table;
/// Ten thousand ways to start broker, consumer and publisher at once, and to kill one of them meanwhile.
mod startup_races;
/// Unmodified ZeroMQ sockets (pyzmq) against the broker.
mod stock_sockets;
/// How a run ends: at whatever moment it is asked, within its phases, with which exit code.
mod stopping;
/// Actors that fail: what their senders and requesters see.
mod supervision;
/// Who is suspended: programs and guardians are replaced, and who asks a suspended runtime is told.
mod suspended;
/// What the runtime says on standard error: each thing once.
mod told_once;
/// What still runs and yet does not do its work: programs cut off from the bus, a supervisor that stands still.
mod watching;
/// Backups over HTTP: made, verified, restored by the binary, given up; passphrases that nobody tells.
mod web_admin_backups;
/// Keys over HTTP: issued, shown, replaced, revoked, and who may not.
mod web_admin_keys;
/// Database and configuration over HTTP: shown and checked as on the command line, and not touched.
mod web_admin_state;
/// The gateway as programs on the web use it: its own description, the bus, the socket, conversations.
mod web_api;
/// What a client leaves to be published when it dies.
mod wills;
