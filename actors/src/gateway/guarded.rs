//! The body of a streamed answer, which ends when the token of whoever asked for it does: whatever the handler does.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    HttpResponse,
    body::{BodySize, BoxBody, MessageBody},
    http::{StatusCode, header},
};
use bytes::Bytes;

use super::{access::Access, error::ApiError, openai};

/// Close code of a socket whose token has ended.
const SOCKET_TOKEN_ENDED: u16 = 4401;

/// How a stream says its last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Server-sent events.
    Events,
    /// The same as OpenAI's clients read them.
    OpenAi,
    /// Frames of a WebSocket.
    Socket,
    /// Plain text.
    Text,
    /// Nothing can be said: the connection breaks, so that nobody takes what came for the whole.
    Other,
}

impl Form {
    fn of<B>(response: &HttpResponse<B>, path: &str) -> Self {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Self::Socket;
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        match content_type.unwrap_or_default() {
            text if text.starts_with("text/event-stream") && openai::is_path(path) => Self::OpenAi,
            text if text.starts_with("text/event-stream") => Self::Events,
            text if text.starts_with("text/plain") => Self::Text,
            _ => Self::Other,
        }
    }

    fn last_words(self, error: &ApiError) -> Option<Bytes> {
        match self {
            Self::Events => Some(format!("event: error\ndata: {}\n\n", error.content()).into()),
            Self::OpenAi => Some(openai::last_event(error).into()),
            Self::Socket => {
                let mut reason = error.code().to_owned();
                // A control frame holds 125 bytes.
                reason.truncate(100);
                let mut frame = vec![0x88, u8::try_from(reason.len() + 2).unwrap_or(2)];
                frame.extend(SOCKET_TOKEN_ENDED.to_be_bytes());
                frame.extend(reason.as_bytes());
                Some(frame.into())
            }
            Self::Text => Some(format!("\nerror ({}): {error}\n", error.code()).into()),
            Self::Other => None,
        }
    }
}

/// `response`, whose body ends with the token if it is a stream.
pub(super) fn guard(response: HttpResponse<BoxBody>, path: &str, access: &Access) -> HttpResponse<BoxBody> {
    if !matches!(response.body().size(), BodySize::Stream) {
        return response;
    }
    let form = Form::of(&response, path);
    let over = Box::pin(access.over());
    let access = access.clone();
    response.map_body(|_, inner| BoxBody::new(Guarded { inner, access, over, form, is_over: false }))
}

/// A body that is cut off.
struct Guarded {
    inner: BoxBody,
    access: Access,
    over: Pin<Box<dyn Future<Output = ApiError>>>,
    form: Form,
    is_over: bool,
}

impl MessageBody for Guarded {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        self.inner.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_next(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(piece) if !self.access.is_over() => return Poll::Ready(piece),
            _ => {}
        }
        let Poll::Ready(error) = self.over.as_mut().poll(context) else { return Poll::Pending };
        self.is_over = true;
        // Whoever fills it notices that nobody takes anything any more.
        self.inner = BoxBody::new(());
        let words = self.form.last_words(&error);
        Poll::Ready(Some(words.ok_or_else(|| error.to_string().into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_says_why_it_ends_in_its_own_form() {
        let error = ApiError::TokenRevoked { bearer: "ada".to_owned() };
        let words = |form: Form| form.last_words(&error);
        let event = String::from_utf8(words(Form::Events).unwrap().to_vec()).unwrap();
        assert!(
            event.starts_with("event: error\ndata: {\"code\":\"token_revoked\"") && event.ends_with("\n\n")
        );
        // No name, or OpenAI's clients pass over it; and nothing that says that all is there.
        let event = String::from_utf8(words(Form::OpenAi).unwrap().to_vec()).unwrap();
        assert!(event.starts_with("data: {\"error\":{\"message\":") && event.ends_with("\n\n"), "{event}");
        let frame = words(Form::Socket).unwrap();
        assert_eq!((frame[0], usize::from(frame[1])), (0x88, frame.len() - 2));
        assert_eq!(&frame[2..4], 4401u16.to_be_bytes());
        assert_eq!(&frame[4..], b"token_revoked");
        assert!(words(Form::Other).is_none());
    }
}
