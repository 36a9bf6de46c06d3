//! What the model service says of its models, and what goes in and out for embeddings.

use serde::{Deserialize, Serialize};

/// A model that was asked and did not begin to answer, so that another one was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Its configured name.
    pub model: String,
    /// Why, for programs: a code from [`code`](super::code).
    pub code: String,
    /// Why, for people.
    pub text: String,
}

/// Reply to [`MODELS`](super::MODELS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// The back end of the model that answers whoever names none: `script`, `openai` or `ollama`.
    pub back_end: String,
    /// What people should know of it, for example that it is no language model.
    pub notice: Option<String>,
    /// All models.
    pub models: Vec<ModelDescription>,
    /// Names of those that answer in the place of one that cannot, in this order.
    pub fallback: Vec<String>,
}

/// One model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDescription {
    /// What requests call it.
    pub id: String,
    /// Whether it answers when the request names none.
    pub default: bool,
    /// Its back end.
    pub back_end: String,
    /// What its server calls it, if that is configured.
    pub model: Option<String>,
    /// Whether it makes embeddings.
    pub embeddings: bool,
    /// How it was at last contact.
    pub health: ModelHealth,
}

/// How a model was at last contact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHealth {
    /// `unknown` before the first contact, then `ok` or `failing`.
    pub state: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Why it is failing.
    pub reason: Option<String>,
}

/// Payload of [`EMBEDDINGS`](super::EMBEDDINGS).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingsRequest {
    /// Which model; `None` takes the first that makes embeddings.
    #[serde(default)]
    pub model: Option<String>,
    /// The texts.
    pub inputs: Vec<String>,
    /// Length of the vectors, where the model can choose.
    #[serde(default)]
    pub dimensions: Option<u32>,
}

/// Reply to [`EMBEDDINGS`](super::EMBEDDINGS). No other model ever stands in: vectors of two models cannot be compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// The configured name of the model.
    pub name: String,
    /// What its back end calls it.
    pub model: String,
    /// Which back end.
    pub back_end: String,
    /// One vector for each text, in their order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens read, where the back end counts them.
    pub prompt_tokens: Option<u32>,
}

/// Reply to [`MODEL_STATISTICS`](super::MODEL_STATISTICS). Counts begin with the incarnation of the model service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelStatistics {
    /// Of each configured model, in their order.
    pub models: Vec<ModelFigures>,
}

/// How one model fares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelFigures {
    /// Its configured name.
    pub name: String,
    /// Its back end.
    pub back_end: String,
    /// How it was at last contact.
    pub health: ModelHealth,
    /// Requests that run now.
    pub running: u64,
    /// At most so many do.
    pub running_max: u64,
    /// Requests that wait for their turn.
    pub waiting: u64,
    /// At most so many do; a further one is refused.
    pub waiting_max: u64,
    /// Requests that came to their end, embeddings included.
    pub finished: u64,
    /// Requests that ended in an error of the back end or of the request.
    pub failed: u64,
    /// Requests that their requesters cancelled.
    pub cancelled: u64,
    /// Requests that found no place to wait.
    pub refused: u64,
    /// Times that the server was asked again before it had begun to answer.
    pub retries: u64,
    /// Requests that went on to another model because this one did not begin to answer.
    pub passed_on: u64,
    /// Requests that this model answered in the place of another.
    pub stood_in: u64,
    /// Tokens read, where the back end counts them.
    pub prompt_tokens: u64,
    /// Tokens written, where the back end counts them, or else pieces.
    pub completion_tokens: u64,
    /// Seconds from the arrival of a request to the first piece of its answer.
    pub first_token_s: Distribution,
    /// Tokens a second from the first piece to the last.
    pub tokens_per_s: Distribution,
    /// Seconds that requests waited for their turn.
    pub waited_s: Distribution,
}

/// How values are distributed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// Half of them are at most this, as far as the buckets tell.
    pub p50: Option<f64>,
    /// 99 of 100 are at most this, as far as the buckets tell.
    pub p99: Option<f64>,
    /// Upper bounds, rising, and how many values are at most that; those above the last one are in `count` only.
    pub buckets: Vec<Bucket>,
}

/// How many values do not exceed a bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// The bound.
    pub at_most: f64,
    /// How many values.
    pub count: u64,
}
