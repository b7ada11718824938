//! A tonic router on a listener of ours, until told to stop.
//!
//! Tonic's own answers are corrected: what is not gRPC by its content type gets HTTP's 415, as the gRPC protocol over
//! HTTP/2 has it; a message above the bound is RESOURCE_EXHAUSTED, not OUT_OF_RANGE; and bytes that are no protobuf
//! message (or text that is not UTF-8) are INVALID_ARGUMENT, not INTERNAL.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{Either, MapOk, Ready, ready};
use futures_util::{Stream, TryFutureExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::server::Router;
use tower::{Layer, Service};

use super::gate::Gate;
use super::status;
use crate::net::{Listen, Wire};

/// Idle time after which a client's connection is pinged, and how long the answer may take: a half-open connection is
/// gone within 20 s.
pub const PING: Duration = Duration::from_secs(10);

/// Streams on one connection. A session stream carries any number of sessions; this bounds unary calls in flight.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 4_096;

/// Bytes of a request's headers.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// How long accepting rests after an error, such as a process out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How much may be under way to this node on one connection, in bytes. h2 cuts off a connection whose small messages
/// lie unread and would have been worth half of this in frames of 256 bytes, taking them for a flood: enough for one on
/// each stream.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 256 * STREAMS_PER_CONNECTION_MAX;

/// A tonic server with our limits.
pub fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// Serves until `stop`; connections that are open then get no more than the caller's patience.
pub async fn run<L>(
    router: Router<L>,
    port: Box<dyn Listen>,
    gate: Arc<Gate>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    L: Layer<tonic::service::Routes> + Clone + Send + 'static,
    L::Service:
        Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    let incoming = connections(port, gate);
    router.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }).await
}

fn connections(port: Box<dyn Listen>, gate: Arc<Gate>) -> impl Stream<Item = std::io::Result<Wire>> {
    stream::unfold((port, gate), |(mut port, gate)| async move {
        loop {
            match port.accept().await {
                Ok(wire) => {
                    if let Some(wire) = gate.admit(wire) {
                        return Some((Ok(wire), (port, gate)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Corrects tonic's own answers.
#[derive(Clone, Copy)]
pub struct Corrected;

impl<S> Layer<S> for Corrected {
    type Service = CorrectedService<S>;

    fn layer(&self, inner: S) -> CorrectedService<S> {
        CorrectedService(inner)
    }
}

/// What [`Corrected`] makes of a service.
#[derive(Clone)]
pub struct CorrectedService<S>(S);

impl<S> Service<Request<Body>> for CorrectedService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, MapOk<S::Future, Correction>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            return Either::Left(ready(Ok(no_grpc())));
        }
        Either::Right(self.0.call(request).map_ok(corrected))
    }
}

type Correction = fn(Response<Body>) -> Response<Body>;

fn corrected(mut response: Response<Body>) -> Response<Body> {
    correct(response.headers_mut());
    response
}

/// `application/grpc`, and what may follow it: `+proto`, `;…`.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let after = kind.strip_prefix("application/grpc");
    after.is_some_and(|after| after.is_empty() || after.starts_with(['+', ';']))
}

fn no_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// How tonic's messages begin when the client's bytes are at fault, percent-encoded as they travel.
const NO_MESSAGE: [&str; 2] = [
    "failed%20to%20decode%20Protobuf",
    "protocol%20error:%20received%20message%20with%20invalid%20compression",
];

fn correct(headers: &mut HeaderMap) {
    let code = headers.get("grpc-status").and_then(|code| code.to_str().ok());
    let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    let better = match code {
        Some("11") => status::too_large(),
        Some("13") if NO_MESSAGE.iter().any(|start| message.starts_with(start)) => status::invalid(
            "the request is not the protobuf message that the method takes, or its text is not UTF-8",
        ),
        _ => return,
    };
    let mut corrected = HeaderMap::new();
    if better.add_header(&mut corrected).is_ok() {
        let name_and_value = corrected.iter().map(|(name, value)| (name.clone(), value.clone()));
        name_and_value.for_each(|(name, value): (_, HeaderValue)| drop(headers.insert(name, value)));
    }
}
