use reqwest::{
    Method,
    blocking::{RequestBuilder, Response},
};
use serde_json::Value;

use crate::harness::runtime::TestRuntime;

fn request(runtime: &TestRuntime, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = runtime.http().request(method, runtime.url(path).unwrap());
    let with = |request: RequestBuilder, (name, value): &(&str, &str)| request.header(*name, *value);
    headers.iter().fold(request, with).send().unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().unwrap();
    (status, body["error"]["code"].as_str().unwrap().to_owned())
}

/// Paths of every kind: pages, what needs no token, what does, and what is not there.
const PATHS: [&str; 6] = ["/", "/health/live", "/v1/status", "/v1/conversations", "/metrics", "/nowhere"];

#[test]
fn every_answer_says_that_it_is_what_it_is_and_may_not_be_framed_or_kept() {
    let runtime = TestRuntime::start();
    let bearer = format!("Bearer {}", runtime.token().unwrap());
    for path in PATHS {
        for headers in [&[][..], &[("Authorization", bearer.as_str())]] {
            let response = request(&runtime, Method::GET, path, headers);
            assert_eq!(header(&response, "x-content-type-options"), "nosniff", "{path}");
            assert_eq!(header(&response, "referrer-policy"), "no-referrer", "{path}");
            assert!(
                header(&response, "content-security-policy").contains("frame-ancestors 'none'"),
                "{path}"
            );
            let kept = if path == "/" { "no-cache" } else { "no-store" };
            assert_eq!(header(&response, "cache-control"), kept, "{path}");
            assert_eq!(header(&response, "access-control-allow-origin"), "", "{path}");
            assert_eq!(header(&response, "strict-transport-security"), "", "{path}: it is no TLS");
        }
    }
}

#[test]
pub(crate) fn a_request_by_a_name_that_is_not_ours_is_refused_whatever_it_asks_for() {
    let runtime = TestRuntime::start_with("host_names = [\"bus.example\"]\n");
    let bearer = format!("Bearer {}", runtime.token().unwrap());
    for path in PATHS {
        for host in ["evil.example", "127.0.0.1.evil.example:80"] {
            let headers = [("Host", host), ("Authorization", bearer.as_str())];
            let response = request(&runtime, Method::GET, path, &headers);
            assert_eq!(code(response), (421, "unknown_host".to_owned()), "{path} {host}");
        }
    }
    for host in ["localhost:80", "127.0.0.1", "[::1]:1", "Bus.Example"] {
        let headers = [("Host", host), ("Authorization", bearer.as_str())];
        assert_eq!(request(&runtime, Method::GET, "/v1/status", &headers).status(), 200, "{host}");
    }
}

#[test]
pub(crate) fn only_pages_that_were_allowed_may_ask_from_elsewhere() {
    let runtime = TestRuntime::start_with("allowed_origins = [\"https://app.example\"]\n");
    let bearer = format!("Bearer {}", runtime.token().unwrap());
    let own = runtime.url("").unwrap();
    for origin in ["https://evil.example", "null", "http://localhost:1", "https://app.example.evil"] {
        for path in PATHS {
            let headers = [("Origin", origin), ("Authorization", bearer.as_str())];
            let response = request(&runtime, Method::GET, path, &headers);
            assert_eq!(header(&response, "access-control-allow-origin"), "");
            assert_eq!(code(response), (403, "foreign_origin".to_owned()), "{path} {origin}");
        }
        let asks = [("Origin", origin), ("Access-Control-Request-Method", "POST")];
        assert_eq!(code(request(&runtime, Method::OPTIONS, "/v1/chat", &asks)).0, 403);
    }
    let allowed = [("Origin", "https://app.example"), ("Authorization", bearer.as_str())];
    let response = request(&runtime, Method::GET, "/v1/status", &allowed);
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "access-control-allow-origin"), "https://app.example");
    assert!(header(&response, "vary").contains("Origin"));
    assert_eq!(header(&response, "access-control-allow-credentials"), "");
    // What the browser asks beforehand needs no token, and gives nothing away.
    let asks = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST")];
    let response = request(&runtime, Method::OPTIONS, "/v1/chat", &asks);
    assert_eq!(response.status(), 204);
    assert!(header(&response, "access-control-allow-methods").contains("POST"));
    assert!(header(&response, "access-control-allow-headers").contains("authorization"));
    // Allowed to ask is not allowed to have.
    let response = request(&runtime, Method::GET, "/v1/status", &[("Origin", "https://app.example")]);
    assert_eq!(code(response).0, 401);
    // Our own page sends its origin, too.
    let headers = [("Origin", own.as_str()), ("Authorization", bearer.as_str())];
    assert_eq!(request(&runtime, Method::GET, "/v1/status", &headers).status(), 200);
}
