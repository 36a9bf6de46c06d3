//! An OpenAI-compatible server as a process of its own: `python/model_server.py`.

use std::time::Duration;

use serde_json::Value;

use super::TestProcess;

pub(crate) struct ModelServer {
    pub(crate) process: TestProcess,
    port: u16,
}

impl ModelServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let process = TestProcess::python("model_server.py", arguments);
        let port = process.line().parse().expect("its first line is its port");
        Self { process, port }
    }

    /// The base URL of its API.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// Where its own API begins that is Ollama's.
    pub(crate) fn ollama_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The section that sends the model service there.
    pub(crate) fn settings(&self, more: &str) -> String {
        format!("[model]\nback_end = \"openai\"\nurl = \"{}\"\n{more}\n", self.url())
    }

    /// The next request that it got: `path`, `authorization`, `body`.
    pub(crate) fn request(&self) -> Value {
        self.process.json()
    }

    /// The next request, if one comes soon enough.
    pub(crate) fn request_within(&self, time: Duration) -> Option<Value> {
        self.process.line_within(time).map(|line| serde_json::from_str(&line).unwrap())
    }
}
