//! Which path is answered by what.

use std::{any::Any, net::TcpListener, time::Duration};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer, dev::Server, middleware::from_fn, rt::net::TcpStream, web,
};
use socket2::SockRef;

use super::{
    Shared, admin, admit::admit, backups, bus, configuration, conversations, database, document,
    error::ApiError, hangup, health, keys, logs, metrics, openai, outbox, page, socket, token_routes, turn,
};
use crate::topics::ConversationId;

/// Connections of one worker; further ones wait in the kernel.
const CONNECTIONS_PER_WORKER_MAX: usize = 1024;

/// How long an idle connection is kept for the next request.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long a connection that is being closed may take.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type Data = web::Data<Shared>;

/// A server on `listener`. It answers as soon as it is polled.
pub(super) fn build(listener: TcpListener, shared: web::Data<Shared>) -> std::io::Result<Server> {
    let options = shared.options.clone();
    let write_timeout = options.write_timeout;
    let tls =
        options.tls.as_ref().map(|tls| tls.server_config()).transpose().map_err(std::io::Error::other)?;
    let server =
        HttpServer::new(move || App::new().wrap(from_fn(admit)).app_data(shared.clone()).configure(routes))
            .workers(options.workers)
            .max_connections(CONNECTIONS_PER_WORKER_MAX)
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(options.head_timeout)
            .client_disconnect_timeout(DISCONNECT_TIMEOUT)
            .shutdown_timeout(DISCONNECT_TIMEOUT.as_secs())
            .disable_signals()
            .on_connect(move |connection: &dyn Any, extensions| {
                // The kernel closes a connection whose client takes nothing for so long; actix has no such limit.
                let secured =
                    connection.downcast_ref::<TlsStream<TcpStream>>().map(|stream| stream.get_ref().0);
                if let Some(stream) = connection.downcast_ref::<TcpStream>().or(secured) {
                    hangup::remember(stream, extensions);
                    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(write_timeout));
                }
            })
            .tls_handshake_timeout(options.head_timeout);
    Ok(match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls)?.run(),
        None => server.listen(listener)?.run(),
    })
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .configure(page::routes)
        .configure(health::routes)
        .configure(conversations::routes)
        .configure(turn::routes)
        .configure(openai::routes)
        .configure(bus::routes)
        .configure(document::routes)
        .configure(admin::routes)
        .configure(logs::routes)
        .configure(outbox::routes)
        .configure(socket::routes)
        .configure(token_routes::routes)
        .configure(keys::routes)
        .configure(backups::routes)
        .configure(database::routes)
        .configure(configuration::routes)
        .configure(metrics::routes)
        .default_service(web::to(|request: HttpRequest| async move {
            HttpResponse::from_error(ApiError::UnknownPath(request.path().to_owned()))
        }));
}

#[cfg(test)]
thread_local! {
    /// What [`resource`] has made on this thread, for the comparison with the document.
    pub(super) static REGISTERED: std::cell::RefCell<Vec<(String, &'static str)>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// `path`, to which routes are added; every other method than those of `allowed` is refused.
pub(super) fn resource(path: &str, allowed: &'static str) -> actix_web::Resource {
    #[cfg(test)]
    REGISTERED.with_borrow_mut(|registered| registered.push((path.to_owned(), allowed)));
    web::resource(path).default_service(web::to(move |request: HttpRequest| async move {
        let (method, path) = (request.method().to_string(), request.path().to_owned());
        // `HEAD` goes with `GET` (`admit.rs`).
        let allowed = allowed.replace("GET", "GET, HEAD");
        Err::<HttpResponse, _>(ApiError::Method { method, path, allowed })
    }))
}

/// The id of a conversation in a path.
pub(super) fn id_of(text: &str) -> Result<ConversationId, ApiError> {
    text.parse::<ConversationId>().map_err(|error| ApiError::BadRequest(error.to_string()))
}
