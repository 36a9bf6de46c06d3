//! Asking the gateway as a program on the web does.

use reqwest::{Method, blocking::Response};
use serde_json::Value;

use super::runtime::TestRuntime;

/// A token with these scopes, made on the command line.
pub(crate) fn token(runtime: &TestRuntime, name: &str, scopes: &[&str]) -> String {
    let path = runtime.directory.path().join(format!("{name}.token"));
    let mut arguments = vec!["tokens", "issue", name, "--out", path.to_str().unwrap()];
    arguments.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
    let output = runtime.interlock(&arguments);
    assert!(output.status.success(), "{output:?}");
    std::fs::read_to_string(&path).unwrap().trim().to_owned()
}

pub(crate) fn ask(
    runtime: &TestRuntime,
    token: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Response {
    let mut request = runtime.http().request(method, runtime.url(path).unwrap()).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    request.send().unwrap()
}

/// Asks for something that is given.
pub(crate) fn given(
    runtime: &TestRuntime,
    token: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Value {
    let response = ask(runtime, token, method, path, body);
    let (status, text) = (response.status(), response.text().unwrap());
    assert!(status.is_success(), "{path}: {status} {text}");
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

/// Status, code and text of an error.
pub(crate) fn refused(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().unwrap();
    let text = |field: &str| body["error"][field].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("message"))
}
