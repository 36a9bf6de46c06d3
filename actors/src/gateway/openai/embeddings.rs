//! `POST /v1/embeddings`: vectors of texts, as numbers or in base64, which OpenAI's clients ask for unless told otherwise.

use actix_web::{HttpRequest, HttpResponse, web};
use base64::{Engine, engine::general_purpose::STANDARD};
use interlock_bus::Payload;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    form::{self, Failure},
    models::SERVICE,
    request::{self, nothing_more, refuse},
};
use crate::{
    gateway::{
        access::{Access, Scope},
        body,
        error::ApiError,
        hangup::Hangup,
        server::Data,
    },
    topics::{self, Embeddings, EmbeddingsRequest},
};

/// Body of `POST /v1/embeddings`.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Asked {
    /// Which model; left out, the first that makes embeddings.
    model: Option<String>,
    /// A text, or a list of texts.
    #[schema(value_type = request::Texts, example = "hello")]
    input: Value,
    /// `float` (numbers) or `base64` (numbers of 32 bits, least significant byte first).
    #[schema(pattern = "^(float|base64)$")]
    encoding_format: Option<String>,
    /// Length of the vectors, where the model can choose.
    #[schema(minimum = 1)]
    dimensions: Option<u32>,
    /// Who asks, for the log.
    user: Option<String>,
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
struct Answer {
    /// `list`.
    object: &'static str,
    /// One for each text, in their order.
    data: Vec<Embedding>,
    /// Which model made them.
    model: String,
    /// Left out where the back end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

/// The vector of one text.
#[derive(Debug, Serialize, ToSchema)]
struct Embedding {
    /// `embedding`.
    object: &'static str,
    /// Which text.
    index: usize,
    /// The vector.
    embedding: Vector,
}

/// A vector.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    /// As numbers.
    Float(Vec<f32>),
    /// As numbers of 32 bits, least significant byte first, in base64.
    Base64(String),
}

/// Tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EmbeddingsUsage)]
struct Usage {
    /// Read.
    prompt_tokens: u32,
    /// The same.
    total_tokens: u32,
}

/// Makes vectors of texts.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "openai", request_body = Asked,
    responses(
        (status = 200, description = "The vectors", body = Answer),
        (status = "4XX", description = "The request is refused", body = Failure),
        (status = "5XX", description = "It cannot be answered", body = Failure),
    ),
    // The built-in script makes none.
    extensions(("x-example-status" = json!(400)))
)]
pub(super) async fn embeddings(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Chat)?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let asked: Asked = request::json(&bytes)?;
    drop(bytes);
    nothing_more(&asked.rest, "")?;
    let in_base64 = match asked.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let text = format!("`encoding_format` is `{other}`; allowed are `float` and `base64`");
            return Err(refuse("encoding_format", "invalid_value", text));
        }
    };
    if asked.dimensions == Some(0) {
        return Err(refuse(
            "dimensions",
            "invalid_value",
            "`dimensions` is 0; allowed is 1 and more".to_owned(),
        ));
    }
    let inputs = texts(asked.input)?;
    tracing::debug!(
        model = asked.model,
        asker = asked.user,
        texts = inputs.len(),
        "embeddings are asked for"
    );
    let _permit = shared.stream_permit()?;
    let wanted = EmbeddingsRequest { model: asked.model, inputs, dimensions: asked.dimensions };
    let payload = Payload::encode(&wanted).map_err(|error| ApiError::unsendable(&error))?;
    drop(wanted);
    let topic = topics::topic(topics::EMBEDDINGS);
    let hangup = Hangup::of(&request);
    let answered = hangup.during(shared.client.request(&topic, payload, shared.options.turn_timeout));
    let reply = answered.await?.map_err(|error| form::of_turn(ApiError::of_component(SERVICE, &error)))?;
    let made: Embeddings = topics::read(&reply).map_err(|error| ApiError::bad_answer(SERVICE, &error))?;
    Ok(HttpResponse::Ok().json(answer(made, in_base64)))
}

/// The texts of `input`.
fn texts(input: Value) -> Result<Vec<String>, ApiError> {
    let refuse = |text: &str| Err(refuse("input", "invalid_value", text.to_owned()));
    let texts = match input {
        Value::String(text) => vec![text],
        Value::Array(items) => {
            let is_tokens = |item: &Value| item.is_number() || item.is_array();
            if items.iter().any(is_tokens) {
                return refuse(
                    "`input` holds tokens; send the texts themselves, each model has tokens of its own",
                );
            }
            let text = |item| match item {
                Value::String(text) => Some(text),
                _ => None,
            };
            match items.into_iter().map(text).collect::<Option<Vec<_>>>() {
                Some(texts) => texts,
                None => return refuse("`input` holds something that is no text"),
            }
        }
        _ => return refuse("`input` is neither a text nor a list of texts"),
    };
    match texts.iter().all(|text| !text.is_empty()) && !texts.is_empty() {
        true => Ok(texts),
        false => refuse("`input` is empty, or holds an empty text, which has no vector"),
    }
}

fn answer(made: Embeddings, in_base64: bool) -> Answer {
    let vector = |numbers: Vec<f32>| match in_base64 {
        false => Vector::Float(numbers),
        true => {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    };
    let data = made.vectors.into_iter().enumerate().map(|(index, numbers)| Embedding {
        object: "embedding",
        index,
        embedding: vector(numbers),
    });
    let usage = made.prompt_tokens.map(|tokens| Usage { prompt_tokens: tokens, total_tokens: tokens });
    Answer { object: "list", data: data.collect(), model: made.model, usage }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vector_is_the_same_in_both_forms() {
        let made =
            || Embeddings { vectors: vec![vec![0.5, -1.0]], model: "m".to_owned(), ..Embeddings::default() };
        let shown = |in_base64| serde_json::to_value(answer(made(), in_base64)).unwrap();
        assert_eq!(shown(false)["data"][0]["embedding"], json!([0.5, -1.0]));
        assert_eq!(shown(true)["data"][0]["embedding"], "AAAAPwAAgL8=");
        assert!(shown(true).get("usage").is_none());
    }

    #[test]
    fn texts_are_taken_and_everything_else_is_refused() {
        assert_eq!(texts(json!("a")).unwrap(), ["a"]);
        assert_eq!(texts(json!(["a", "b"])).unwrap(), ["a", "b"]);
        for (bad, says) in [
            (json!([1, 2]), "tokens"),
            (json!([[1], [2]]), "tokens"),
            (json!(["a", null]), "no text"),
            (json!({}), "neither"),
            (json!(""), "empty"),
            (json!([]), "empty"),
            (json!(["a", ""]), "empty"),
        ] {
            let error = texts(bad.clone()).unwrap_err();
            assert!(matches!(&error, ApiError::Parameter { param, .. } if param == "input"), "{error:?}");
            assert!(error.to_string().contains(says), "{bad}: {error}");
        }
    }
}
