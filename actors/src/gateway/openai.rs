//! The API that OpenAI's clients speak: chat, models, embeddings, and errors in their form.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/chat/completions` | a turn of the conversation engine, whole or as events |
//! | `GET /v1/models`, `GET /v1/models/{id}` | the models of the model service |
//! | `POST /v1/embeddings` | vectors of texts |
//!
//! A chat goes the way of every turn, over the bus: gateway, conversation engine, model service. The messages of the
//! request are its history. It is seen on the turn topics, and kept if the request names a conversation (`metadata` or
//! `X-Interlock-Conversation`) or says `store`. What is asked for and not supported is refused, never passed over.

mod chat;
mod chunk;
mod embeddings;
mod form;
mod models;
mod request;

use actix_web::web;

use super::server::resource;

pub(super) use {chat::last_event, form::body as error_body};

/// Whether errors on `path` have OpenAI's form.
pub(super) fn is_path(path: &str) -> bool {
    matches!(path, "/v1/chat/completions" | "/v1/models" | "/v1/embeddings")
        || path.starts_with("/v1/models/")
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/chat/completions", "POST").route(web::post().to(chat::completions)))
        .service(resource("/v1/embeddings", "POST").route(web::post().to(embeddings::embeddings)))
        .service(resource("/v1/models", "GET").route(web::get().to(models::list)))
        .service(resource("/v1/models/{id:.+}", "GET").route(web::get().to(models::one)));
}

/// The part of the interface's description that is here.
#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    paths(chat::completions, embeddings::embeddings, models::list, models::one),
    components(schemas(form::Failure, chunk::Chunk))
)]
pub(super) struct Api;
