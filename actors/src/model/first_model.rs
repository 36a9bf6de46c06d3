//! Which model of a server is asked: the one that is wished for, the configured one, or the first that it lists.

use std::future::Future;

use tokio::sync::Mutex;

use super::error::BackEndError;

/// What is known of a server's models.
#[derive(Debug)]
pub(super) struct FirstModel {
    configured: Option<String>,
    /// The first that the server listed, if none is configured.
    listed: Mutex<Option<String>>,
}

impl FirstModel {
    pub(super) fn new(configured: Option<String>) -> Self {
        Self { configured, listed: Mutex::new(None) }
    }

    /// For people, before anybody was asked.
    pub(super) fn describe(&self) -> &str {
        self.configured.as_deref().unwrap_or("its first model")
    }

    /// The model for a request; `list` asks the server at `url` for its models.
    pub(super) async fn choose(
        &self,
        wished: Option<&String>,
        url: &str,
        list: impl Future<Output = Result<Vec<String>, BackEndError>>,
    ) -> Result<String, BackEndError> {
        if let Some(model) = wished.or(self.configured.as_ref()) {
            return Ok(model.clone());
        }
        let mut first = self.listed.lock().await;
        if first.is_none() {
            *first = list.await?.into_iter().next();
        }
        first.clone().ok_or_else(|| BackEndError::NoModel { url: url.to_owned() })
    }

    /// What the server answered; a model that it does not know any more is forgotten.
    pub(super) async fn heard<T>(&self, answered: Result<T, BackEndError>) -> Result<T, BackEndError> {
        if matches!(answered, Err(BackEndError::ModelUnknown { .. })) {
            *self.listed.lock().await = None;
        }
        answered
    }
}
