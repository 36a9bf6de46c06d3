//! `GET /v1/models`, `GET /v1/models/{id}`: the models of the model service, in OpenAI's form and with more fields.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use interlock_bus::Payload;
use serde::Serialize;
use utoipa::ToSchema;

use super::form::Failure;
use crate::{
    gateway::{
        access::{Access, Scope},
        error::ApiError,
        parameters::Parameters,
        server::Data,
    },
    topics::{self, ModelDescription, ModelHealth, ModelList},
};

/// Who knows the models, in errors.
pub(super) const SERVICE: &str = "model service";

/// How long the model service may take to say which models there are; a remote server may be asked.
const MODELS_TIMEOUT: Duration = Duration::from_secs(10);

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// `list`.
    object: &'static str,
    /// Each model.
    data: Vec<Model>,
    /// The back end of the one that answers whoever names none.
    back_end: String,
    /// What people should know of it, for example that it is no language model.
    notice: Option<String>,
    /// Those that answer in the place of one that cannot, in this order.
    fallback: Vec<String>,
}

/// One model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Model {
    /// What requests call it.
    id: String,
    /// `model`.
    object: &'static str,
    /// 0: nobody says when it was made.
    created: u64,
    /// `interlock`.
    owned_by: &'static str,
    /// Whether it answers whoever names none.
    default: bool,
    /// Its back end.
    back_end: String,
    /// What its server calls it, if that is known.
    model: Option<String>,
    /// Whether it makes embeddings.
    embeddings: bool,
    /// How it was at last contact.
    health: Health,
}

/// How a model was at last contact.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ModelHealth)]
struct Health {
    /// `unknown`, `ok` or `failing`.
    state: String,
    /// Since when, in milliseconds since the Unix epoch.
    since_ms: u64,
    /// Why it is failing.
    reason: Option<String>,
}

impl From<ModelDescription> for Model {
    fn from(model: ModelDescription) -> Self {
        let ModelHealth { state, since_ms, reason } = model.health;
        Self {
            id: model.id,
            object: "model",
            created: 0,
            owned_by: "interlock",
            default: model.default,
            back_end: model.back_end,
            model: model.model,
            embeddings: model.embeddings,
            health: Health { state, since_ms, reason },
        }
    }
}

/// All models, and what people should know of them.
#[utoipa::path(
    get, path = "/v1/models", tag = "openai",
    responses(
        (status = 200, description = "All models", body = Models),
        (status = "4XX", description = "The request is refused", body = Failure),
        (status = "5XX", description = "The model service cannot say", body = Failure),
    )
)]
pub(super) async fn list(
    access: Access,
    shared: Data,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    no_parameters(&request)?;
    let ModelList { back_end, notice, models, fallback } = asked(&shared).await?;
    let data = models.into_iter().map(Model::from).collect();
    Ok(HttpResponse::Ok().json(Models { object: "list", data, back_end, notice, fallback }))
}

/// One model.
#[utoipa::path(
    get, path = "/v1/models/{id}", tag = "openai", params(("id" = String, Path, description = "What requests call it", example = "small-talk")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = "4XX", description = "There is none of this name, or the request is refused", body = Failure),
        (status = "5XX", description = "The model service cannot say", body = Failure),
    )
)]
pub(super) async fn one(
    access: Access,
    shared: Data,
    id: web::Path<String>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    no_parameters(&request)?;
    let models = asked(&shared).await?.models;
    let names: Vec<String> = models.iter().map(|model| format!("`{}`", model.id)).collect();
    match models.into_iter().find(|model| model.id == *id) {
        Some(model) => Ok(HttpResponse::Ok().json(Model::from(model))),
        None => Err(ApiError::Parameter {
            status: StatusCode::NOT_FOUND,
            param: "model".to_owned(),
            code: "model_not_found".to_owned(),
            text: format!("no model `{id}`; there are {}", names.join(", ")),
        }),
    }
}

/// Refuses parameters, but for what OpenAI's client for Azure adds to each request.
fn no_parameters(request: &HttpRequest) -> Result<(), ApiError> {
    let mut parameters = Parameters::of(request)?;
    parameters.one("api-version")?;
    parameters.end()
}

async fn asked(shared: &Data) -> Result<ModelList, ApiError> {
    let topic = topics::topic(topics::MODELS);
    let message = shared
        .client
        .request(&topic, Payload::bytes(Vec::new()), MODELS_TIMEOUT)
        .await
        .map_err(|error| ApiError::of_component(SERVICE, &error))?;
    topics::read(&message).map_err(|error| ApiError::bad_answer(SERVICE, &error))
}
