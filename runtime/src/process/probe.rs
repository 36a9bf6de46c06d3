//! Asking a program's URL whether it is there. The only file that names the HTTP client.

use std::{fmt, str::FromStr, time::Duration};

/// How long one answer may take: as long as the supervisor waits for a sign of life.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A URL that answers with a success, 200 to 299, when all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe(String);

/// Why a URL cannot be asked, or does not answer as it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// A text that is no URL of this kind.
    #[error("`{url}` is no URL to ask; use one like `http://127.0.0.1:8080/health`")]
    Url {
        /// The text.
        url: String,
    },
    /// No answer, or one that is no success.
    #[error("`{url}` does not answer with a success: {source}")]
    Unhealthy {
        /// The URL.
        url: String,
        /// What came instead.
        source: Box<ureq::Error>,
    },
}

impl Probe {
    /// Asks once, for at most a second; the status it answered with.
    ///
    /// # Errors
    /// [`ProbeError::Unhealthy`].
    pub fn ask(&self) -> Result<u16, ProbeError> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_TIMEOUT))
            // Whoever points elsewhere has not said that it is well itself.
            .max_redirects(0)
            .proxy(None)
            .build()
            .into();
        match agent.get(&self.0).call() {
            Ok(answer) if answer.status().is_success() => Ok(answer.status().as_u16()),
            Ok(answer) => Err(self.unhealthy(ureq::Error::StatusCode(answer.status().as_u16()))),
            Err(error) => Err(self.unhealthy(error)),
        }
    }

    fn unhealthy(&self, source: ureq::Error) -> ProbeError {
        ProbeError::Unhealthy { url: self.0.clone(), source: Box::new(source) }
    }
}

impl FromStr for Probe {
    type Err = ProbeError;

    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let host =
            text.strip_prefix("http://").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
        let is_plain = text.chars().all(|character| character.is_ascii_graphic());
        match host {
            Some(host) if is_plain && !host.is_empty() && !host.contains('@') => Ok(Self(text.to_owned())),
            _ => Err(ProbeError::Url { url: text.to_owned() }),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
