//! The model service: models by name, each with a bounded line in front of its back end, and those that stand in.
//!
//! [`ServiceConfig`] names the models and their back ends: [`script`], which needs nothing and is no language model,
//! [`openai`], a client for any OpenAI-compatible server (llama.cpp, vLLM and others), or [`ollama`].
//!
//! Reading order: `roster` (who is asked, pure), `line` (who waits, pure), `retry` (who is asked again, pure), `record`
//! (how each fares, pure), `work` (one request on one model), `service` (the actor).

mod back_end;
mod config;
mod error;
mod event_stream;
mod first_model;
mod http;
mod key;
pub mod limits;
mod line;
mod lines;
pub mod ollama;
pub mod openai;
mod record;
mod retry;
mod roster;
pub mod script;
mod service;
#[cfg(test)]
mod test_server;
mod work;

pub use back_end::{Answer, BackEnd, Piece};
pub use config::{BackEndKind, DEFAULT_NAME, ModelConfig, ModelConfigError, NamedModel, ServiceConfig};
pub use error::BackEndError;
pub use service::ModelService;
