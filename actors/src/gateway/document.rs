//! What the interface is, as OpenAPI 3.1, out of the types and handlers themselves; and a page that shows it.
//!
//! Each module describes its own operations in an `Api`; here they are put together. A test compares what is described with
//! what is registered, and another one calls each operation.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use actix_web::{
    HttpResponse,
    http::header::{self, HeaderName},
    web,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        Content, Ref, RefOr, Response,
        path::Operation,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::Config;

use super::{
    admin, backups, bus, configuration, conversations, database, error::ApiError, health, keys, logs,
    metrics, openai, outbox, server::resource, socket, token_routes,
};

/// The page runs its own files and asks this server. It sets styles on elements.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The name of the one way to say who asks.
const TOKEN: &str = "token";

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/openapi.json", "GET").route(web::get().to(openapi)))
        .service(resource("/docs", "GET").route(web::get().to(to_page)))
        .service(resource("/docs/{file:.*}", "GET").route(web::get().to(page)));
}

/// Why a request was not answered.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Error {
    error: ErrorContent,
}

/// What is wrong.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct ErrorContent {
    /// A word for programs.
    code: Option<String>,
    /// A sentence for people: what is wrong, and the way out.
    message: String,
}

/// The whole interface.
#[derive(OpenApi)]
#[openapi(
    info(title = "Interlock", description = "Conversations, the message bus, and the runtime, over HTTP. `HEAD` is answered wherever `GET` is."),
    paths(openapi),
    components(schemas(Error)),
    modifiers(&TokenAndErrors),
    tags(
        (name = "conversations", description = "Talking, and what was said"),
        (name = "bus", description = "What flows on the bus, and publishing, asking and subscribing with the rights of the token's peer"),
        (name = "logs", description = "The log"),
        (name = "admin", description = "Orders to the runtime"),
        (name = "about", description = "What this is"),
    )
)]
struct Whole;

/// What the modules say of themselves.
fn apis() -> Vec<utoipa::openapi::OpenApi> {
    vec![
        health::Api::openapi(),
        conversations::Api::openapi(),
        openai::Api::openapi(),
        bus::Api::openapi(),
        socket::Api::openapi(),
        logs::Api::openapi(),
        admin::Api::openapi(),
        outbox::Api::openapi(),
        token_routes::Api::openapi(),
        keys::Api::openapi(),
        backups::Api::openapi(),
        database::Api::openapi(),
        configuration::Api::openapi(),
        metrics::Api::openapi(),
    ]
}

/// What every operation has: the token, unless it says that it needs none, and errors in one form.
struct TokenAndErrors;

impl Modify for TokenAndErrors {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        apis().into_iter().for_each(|api| document.merge(api));
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme));
        document.security = Some(vec![SecurityRequirement::new(TOKEN, Vec::<String>::new())]);
        for (path, item) in &mut document.paths.paths {
            let methods = ["get", "put", "post", "delete", "patch"];
            let operations =
                [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
            for (method, operation) in methods.into_iter().zip(operations) {
                if let Some(operation) = operation {
                    // Handlers of two modules may have the same name.
                    operation.operation_id = Some(operation_id(method, path));
                    add_error(operation);
                }
            }
        }
    }
}

/// `get_v1_conversations_id`: what client generators name a function after.
fn operation_id(method: &str, path: &str) -> String {
    let words =
        path.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(method).chain(words).collect::<Vec<_>>().join("_")
}

fn add_error(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = "Done".to_owned();
        }
    }
    let mut response = Response::new("Why the request was not answered");
    let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Error"))));
    response.content.insert("application/json".to_owned(), RefOr::T(content));
    operation.responses.responses.entry("default".to_owned()).or_insert(RefOr::T(response));
}

/// The document as JSON.
fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        // It is made of texts, lists and maps by text, which are always JSON.
        let mut document = serde_json::to_value(Whole::openapi()).unwrap_or_default();
        bound_unsigned(&mut document);
        document.to_string()
    })
}

/// Says of numbers without a sign how large they may be. They come described as signed ones of the same width, of which
/// half of what we take and give would be none.
fn bound_unsigned(value: &mut Value) {
    if value["minimum"].as_u64().is_some() {
        let bounds = match value["format"].as_str() {
            Some("int32") => Some(("uint32", u64::from(u32::MAX))),
            Some("int64") => Some(("uint64", u64::MAX)),
            _ => None,
        };
        if let Some((format, maximum)) = bounds {
            value["format"] = format.into();
            if value["maximum"].is_null() {
                value["maximum"] = maximum.into();
            }
        }
    }
    match value {
        Value::Array(values) => values.iter_mut().for_each(bound_unsigned),
        Value::Object(values) => values.values_mut().for_each(bound_unsigned),
        _ => {}
    }
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "about", security(()),
    responses((status = 200, body = serde_json::Value))
)]
async fn openapi() -> HttpResponse {
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "application/json")).body(text())
}

/// Leads to the page, whose files are named from there.
async fn to_page() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "/docs/")).finish()
}

/// A file of the page that shows the document.
async fn page(file: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let config = Config::from("/openapi.json").try_it_out_enabled(true).validator_url("none");
    let found = utoipa_swagger_ui::serve(&file, Arc::new(config));
    let found = found.map_err(|error| ApiError::refused(500, "documentation", error.to_string()))?;
    let Some(found) = found else { return Err(ApiError::UnknownPath(format!("/docs/{file}"))) };
    let bytes = match found.bytes {
        Cow::Borrowed(bytes) => web::Bytes::from(bytes.to_vec()),
        Cow::Owned(bytes) => web::Bytes::from(bytes),
    };
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let mut response = HttpResponse::Ok();
    headers.into_iter().for_each(|header| {
        response.insert_header(header);
    });
    Ok(response.insert_header((header::CONTENT_TYPE, found.content_type)).body(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use actix_web::App;

    use super::{
        super::{page::FILES, server},
        *,
    };

    /// Every method and path of the server, as the document writes them.
    fn registered() -> BTreeSet<String> {
        drop(App::new().configure(server::routes));
        let registered = server::REGISTERED.take();
        let is_file = |path: &str| path.starts_with("/docs") || FILES.iter().any(|file| file.path == path);
        let operations = registered.iter().filter(|(path, _)| !is_file(path)).flat_map(|(path, methods)| {
            // A part may have a pattern behind its name.
            let path = path.replace(":.*}", "}").replace(":.+}", "}");
            methods.split(", ").map(move |method| format!("{method} {path}"))
        });
        operations.collect()
    }

    #[test]
    fn what_is_described_is_what_is_registered() {
        let document: Value = serde_json::from_str(text()).unwrap();
        let paths = document["paths"].as_object().unwrap().iter();
        let described = paths.flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        assert_eq!(described.collect::<BTreeSet<_>>(), registered());
    }

    #[test]
    fn a_number_without_a_sign_may_be_as_large_as_it_can() {
        let document: Value = serde_json::from_str(text()).unwrap();
        let since = &document["components"]["schemas"]["NewLevel"]["properties"]["for_ms"];
        assert_eq!((&since["format"], &since["maximum"]), (&"uint64".into(), &u64::MAX.into()), "{since}");
    }

    #[test]
    fn no_two_modules_describe_different_things_under_one_name() {
        let mut known = std::collections::BTreeMap::new();
        for api in apis() {
            let schemas = api.components.map(|components| components.schemas).unwrap_or_default();
            for (name, schema) in schemas {
                let schema = serde_json::to_value(schema).unwrap();
                let before = known.insert(name.clone(), schema.clone());
                assert!(before.is_none_or(|before| before == schema), "{name}");
            }
        }
    }
}
