//! What browsers are told and asked: under which names we answer, which pages of others may ask, and headers that keep an
//! answer from being taken for something else.
//!
//! A page of a stranger can send requests here from the browser of somebody who may reach us, under a name of its own that
//! leads here (DNS rebinding) or across origins. Both are refused before anything is looked at.

use std::net::IpAddr;

use actix_web::{
    HttpResponse,
    body::BoxBody,
    dev::ServiceRequest,
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
};

use super::error::ApiError;

/// Methods that pages of others may use.
const CORS_METHODS: &str = "GET, POST, PUT, PATCH, DELETE";

/// Headers that pages of others may send.
const CORS_HEADERS: &str = "authorization, content-type, accept, last-event-id, traceparent";

/// Headers that pages of others may read.
const CORS_EXPOSED: &str = "traceparent, retry-after, www-authenticate, x-interlock-conversation";

/// Seconds for which a browser remembers what it was allowed.
const CORS_MAX_AGE: &str = "600";

/// Seconds for which a browser asks for nothing but TLS: a year.
const HSTS: &str = "max-age=31536000";

/// For answers that are no page: nothing may be loaded from them, and nobody may show them in a frame.
const CSP_DATA: &str = "default-src 'none'; frame-ancestors 'none'";

/// For the interactive documentation, whose style sheets are set by its scripts.
const CSP_DOCS: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What we answer to, and whom.
#[derive(Clone, Debug, Default)]
pub struct Boundary {
    /// Names beside those of the loopback and addresses.
    pub host_names: Vec<String>,
    /// Origins of pages, beside our own, that may ask.
    pub allowed_origins: Vec<String>,
    /// Whether we speak TLS.
    pub tls: bool,
}

/// What was found out about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checked {
    /// The page of another that asks, which is allowed to.
    origin: Option<HeaderValue>,
    /// It came by one of the names that were configured.
    by_name: bool,
}

impl Boundary {
    /// Refuses who calls us by a name that is not ours, or asks from a page that may not.
    pub(super) fn check(&self, request: &ServiceRequest) -> Result<Checked, ApiError> {
        let authority = authority(request).ok_or_else(|| ApiError::UnknownHost(String::new()))?;
        let host = host_of(&authority).to_ascii_lowercase();
        let by_name = self.host_names.iter().any(|name| name.eq_ignore_ascii_case(&host));
        if !by_name && !is_loopback_name(&host) && !is_address(&host) {
            return Err(ApiError::UnknownHost(host));
        }
        let Some(origin) = request.headers().get(header::ORIGIN) else {
            return Ok(Checked { origin: None, by_name });
        };
        let text = origin.to_str().unwrap_or_default();
        let place = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        if place.is_some_and(|place| same_authority(place, &authority, text.starts_with("https://"))) {
            return Ok(Checked { origin: None, by_name });
        }
        if self.allowed_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(text)) {
            return Ok(Checked { origin: Some(origin.clone()), by_name });
        }
        Err(ApiError::ForeignOrigin(text.to_owned()))
    }

    /// Adds what every answer says.
    pub(super) fn dress(&self, headers: &mut HeaderMap, path: &str, checked: &Checked) {
        let csp = if path.starts_with("/docs/") { CSP_DOCS } else { CSP_DATA };
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
            (header::CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
            (header::CONTENT_SECURITY_POLICY, csp),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        // For `localhost` it would hold for every other server of this machine, too.
        if self.tls && checked.by_name {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(HSTS));
        }
        if !self.allowed_origins.is_empty() {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = &checked.origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            let exposed = HeaderValue::from_static(CORS_EXPOSED);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }
}

/// The answer to a browser that asks beforehand whether a page of another may ask; `None` if that is not what it asks.
pub(super) fn preflight(request: &ServiceRequest, checked: &Checked) -> Option<HttpResponse<BoxBody>> {
    let asks = request.method() == Method::OPTIONS
        && checked.origin.is_some()
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    asks.then(|| {
        let mut response = HttpResponse::new(StatusCode::NO_CONTENT);
        let headers: [(HeaderName, &str); 3] = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS),
            (header::ACCESS_CONTROL_MAX_AGE, CORS_MAX_AGE),
        ];
        for (name, value) in headers {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    })
}

/// The name and port by which we were called.
fn authority(request: &ServiceRequest) -> Option<String> {
    let mut hosts = request.headers().get_all(header::HOST);
    let from_uri = request.uri().authority().map(ToString::to_string);
    match (hosts.next(), hosts.next(), from_uri) {
        // Two of them may be read differently by whoever is in between.
        (Some(_), Some(_), _) => None,
        (Some(host), None, _) => host.to_str().ok().filter(|host| !host.is_empty()).map(str::to_owned),
        (None, _, from_uri) => from_uri,
    }
}

/// A name or address without its port, and without the brackets of IPv6.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn is_loopback_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

/// No name leads astray that is none.
fn is_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}

/// Whether an origin is the page that we ourselves serve. A port that is not said is the scheme's.
fn same_authority(origin: &str, authority: &str, https: bool) -> bool {
    let whole = |text: &str| {
        let (host, after) = text.split_at(text.rfind(']').map_or(0, |end| end + 1));
        let has_port = after.contains(':');
        let port = if https { ":443" } else { ":80" };
        format!("{host}{after}{}", if has_port { "" } else { port }).to_ascii_lowercase()
    };
    whole(origin) == whole(authority)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn boundary() -> Boundary {
        Boundary {
            host_names: vec!["bus.example".to_owned()],
            allowed_origins: vec!["https://app.example".to_owned()],
            tls: true,
        }
    }

    fn check(headers: &[(&str, &str)]) -> Result<Checked, ApiError> {
        let mut request = TestRequest::get().uri("/v1/status");
        for (name, value) in headers {
            request = request.append_header((*name, *value));
        }
        boundary().check(&request.to_srv_request())
    }

    #[test]
    fn names_of_the_loopback_addresses_and_those_that_were_configured_are_ours() {
        for host in [
            "localhost",
            "LOCALHOST:8771",
            "a.localhost:1",
            "127.0.0.1:8771",
            "[::1]:8771",
            "192.168.1.5",
            "Bus.Example",
            "bus.example:443",
            "localhost.",
        ] {
            check(&[("Host", host)]).unwrap_or_else(|error| panic!("{host}: {error}"));
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "bus.example.evil",
            "127.0.0.1.evil",
            "",
            "notlocalhost",
        ] {
            let refused = check(&[("Host", host)]).unwrap_err();
            assert!(matches!(refused, ApiError::UnknownHost(_)), "{host}");
        }
        assert!(check(&[]).is_err() && check(&[("Host", "localhost"), ("Host", "localhost")]).is_err());
    }

    #[test]
    fn only_our_own_page_and_those_that_were_allowed_may_ask() {
        let origin = |origin: &str| check(&[("Host", "localhost:8771"), ("Origin", origin)]);
        assert_eq!(origin("http://localhost:8771").unwrap().origin, None);
        assert_eq!(origin("https://app.example").unwrap().origin.unwrap(), "https://app.example");
        for foreign in [
            "null",
            "http://localhost",
            "http://localhost:1",
            "https://evil.example",
            "https://app.example.evil",
            "",
        ] {
            let refused = origin(foreign).unwrap_err();
            assert!(matches!(refused, ApiError::ForeignOrigin(_)), "{foreign}");
        }
        let own = |host: &str, origin: &str| check(&[("Host", host), ("Origin", origin)]).is_ok();
        assert!(own("bus.example", "https://bus.example") && own("bus.example:443", "https://bus.example"));
        assert!(own("[::1]:80", "http://[::1]") && own("[::1]", "http://[::1]:80"));
        assert!(!own("bus.example:80", "https://bus.example"));
    }

    #[test]
    fn every_answer_says_what_it_is_and_a_page_keeps_what_it_says_itself() {
        let checked = check(&[("Host", "bus.example"), ("Origin", "https://app.example")]).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        boundary().dress(&mut headers, "/v1/status", &checked);
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert_eq!(value("cache-control"), "no-cache");
        assert_eq!(value("x-content-type-options"), "nosniff");
        assert!(value("content-security-policy").contains("frame-ancestors 'none'"));
        assert_eq!(value("strict-transport-security"), HSTS);
        assert_eq!((value("access-control-allow-origin"), value("vary")), ("https://app.example", "Origin"));
        let mut headers = HeaderMap::new();
        boundary().dress(&mut headers, "/", &check(&[("Host", "localhost")]).unwrap());
        assert!(!headers.contains_key("strict-transport-security") && headers.contains_key("vary"));
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
}
