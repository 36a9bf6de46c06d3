//! The console: a page of a few files, built in, no build step, no outside resource.

use std::future::ready;

use actix_web::{HttpResponse, http::header, web};

use super::server::resource;

/// Only our own files, only our own server: no inline code, no frames.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// One file of the page.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

/// A script of the page, below `/console/`.
macro_rules! script {
    ($name:literal) => {
        File {
            path: concat!("/console/", $name),
            content_type: "text/javascript; charset=utf-8",
            text: include_str!(concat!("page/", $name)),
        }
    };
}

/// All of them.
pub(super) static FILES: [File; 19] = [
    File { path: "/", content_type: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    File {
        path: "/console/console.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("page/console.css"),
    },
    script!("api.js"),
    script!("dom.js"),
    script!("format.js"),
    script!("problem.js"),
    script!("poll.js"),
    script!("badge.js"),
    script!("spark.js"),
    script!("table.js"),
    script!("main.js"),
    script!("chat.js"),
    script!("start.js"),
    script!("topics.js"),
    script!("messages.js"),
    script!("actors.js"),
    script!("logs.js"),
    script!("peers.js"),
    script!("letters.js"),
];

pub(super) fn routes(config: &mut web::ServiceConfig) {
    for file in &FILES {
        config.service(resource(file.path, "GET").route(web::get().to(move || ready(file.response()))));
    }
}

impl File {
    fn response(&self) -> HttpResponse {
        HttpResponse::Ok()
            .insert_header((header::CONTENT_TYPE, self.content_type))
            .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            .insert_header((header::REFERRER_POLICY, "no-referrer"))
            .insert_header((header::CACHE_CONTROL, "no-cache"))
            .body(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_ascii_and_asks_nobody_else() {
        for file in &FILES {
            assert!(file.text.is_ascii(), "{}", file.path);
            assert!(!file.text.contains("http://") && !file.text.contains("https://"), "{}", file.path);
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_served() {
        let names = |text: &'static str, before: &'static str| {
            text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned)
        };
        for file in &FILES {
            let own = names(file.text, "=\"/console/").chain(names(file.text, "from \"./"));
            for name in own {
                let path = format!("/console/{name}");
                assert!(FILES.iter().any(|file| file.path == path), "{} names {path}", file.path);
            }
        }
        assert!(FILES[0].text.contains("=\"/console/main.js\""));
    }
}
