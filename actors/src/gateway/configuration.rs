//! `/v1/admin/configuration`: every setting and where its value comes from, as `interlock config show`, and what a changed
//! configuration would come to, as `interlock check`.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use super::{
    access::{Access, Scope},
    body,
    error::ApiError,
    keys::ask,
    parameters::Parameters,
    server::{Data, resource},
};

/// The operations of this module.
#[derive(OpenApi)]
#[openapi(paths(show, check))]
pub(super) struct Api;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(resource("/v1/admin/configuration", "GET").route(web::get().to(show)))
        .service(resource("/v1/admin/configuration/check", "POST").route(web::post().to(check)));
}

/// A setting.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct HeldSetting {
    /// Its value.
    value: Value,
    /// `default`, file and line, a variable, or a flag.
    origin: String,
}

/// Everything that is set, as `interlock config show --json`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Configuration {
    /// The configuration file, if there is one.
    file: Option<String>,
    /// By `section.key`.
    settings: BTreeMap<String, HeldSetting>,
    /// The programs that are run. Their environments are hidden, and their arguments from whoever has not the scope `admin`.
    #[schema(value_type = Vec<Object>)]
    programs: Vec<Value>,
}

/// A mistake.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfigurationProblem {
    /// The line of the text it stands on, counted from 1; null if it is on none.
    line: Option<u64>,
    /// The key, `section.key`; empty if it belongs to none.
    key: String,
    /// What is wrong, and what is allowed.
    text: String,
    /// Where the value comes from, if that is not the text: a variable or a flag of the runtime.
    origin: Option<String>,
}

/// A setting that would change.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfigurationChange {
    key: String,
    from: String,
    to: String,
}

/// What a reload would come to with it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ConfigurationReload {
    /// What would be in force.
    changed: Vec<ConfigurationChange>,
    /// Components that would be restarted for it.
    restarted: Vec<String>,
    /// What would wait for the next start.
    next_start: Vec<String>,
}

/// What there is to say of a configuration.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CheckedConfiguration {
    valid: bool,
    /// Every mistake, in the order of the lines.
    problems: Vec<ConfigurationProblem>,
    /// What is allowed and probably not meant.
    warnings: Vec<String>,
    /// Settings that differ from their defaults; null if it has mistakes, as the next two.
    changed: Option<u64>,
    /// Programs in it.
    programs: Option<u64>,
    /// What would be different from now.
    reload: Option<ConfigurationReload>,
}

/// Shows every setting that is in force, and where its value comes from.
#[utoipa::path(
    get, path = "/v1/admin/configuration", tag = "admin", responses((status = 200, body = Configuration))
)]
async fn show(access: Access, shared: Data, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Inspect)?;
    Parameters::of(&request)?.end()?;
    let with_arguments = access.require(Scope::Admin).is_ok();
    let shown = ask(&shared, move |steward| Ok(steward.configuration(with_arguments))).await?;
    Ok(HttpResponse::Ok().json(shown))
}

/// Judges the text of a configuration file, and says what a reload would come to with it. Nothing is changed, and no file that
/// it names is read: those are looked at by `interlock check`, by the reload and by the start.
#[utoipa::path(
    post, path = "/v1/admin/configuration/check", tag = "admin",
    request_body(content = String, content_type = "application/toml", description = "The text of the file", example = "[logs]\nlevel = \"debug\"\n"),
    responses((status = 200, body = CheckedConfiguration))
)]
async fn check(
    access: Access,
    shared: Data,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    access.require(Scope::Admin)?;
    Parameters::of(&request)?.end()?;
    let bytes = body::read(&request, payload, &shared.options).await?;
    let text = String::from_utf8(bytes.to_vec()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ApiError::BadRequest(format!(
            "the body is not UTF-8 text after byte {at}; send the text of a configuration file"
        ))
    })?;
    Ok(HttpResponse::Ok().json(ask(&shared, move |steward| Ok(steward.check_configuration(&text))).await?))
}
