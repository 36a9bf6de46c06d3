//! The model service: a bounded queue in front of one back end.
//!
//! [`ModelConfig`] chooses the back end: [`script`], which needs nothing and is no language model,
//! or [`openai`], a client for any OpenAI-compatible server (Ollama, llama.cpp, vLLM and others).

mod back_end;
mod config;
mod event_stream;
pub mod limits;
pub mod openai;
pub mod script;
mod service;

pub use back_end::{Answer, BackEnd, BackEndError, Piece};
pub use config::{BackEndKind, ModelConfig, ModelConfigError};
pub use service::ModelService;
