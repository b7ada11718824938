//! A tonic router on a listener of ours, until told to stop.
//!
//! Two of tonic's own answers are corrected on the way out: a message above the bound is RESOURCE_EXHAUSTED, not
//! OUT_OF_RANGE, and bytes that are no protobuf message (or text that is not UTF-8) are INVALID_ARGUMENT, not INTERNAL.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::server::Router;
use tower::util::MapResponseLayer;
use tower::{Layer, Service};

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
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    L: Layer<tonic::service::Routes> + Clone + Send + 'static,
    L::Service:
        Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    <L::Service as Service<Request<Body>>>::Future: Send + 'static,
{
    let incoming = connections(port);
    router.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await }).await
}

fn connections(port: Box<dyn Listen>) -> impl Stream<Item = std::io::Result<Wire>> {
    stream::unfold(port, |mut port| async move {
        loop {
            match port.accept().await {
                Ok(wire) => return Some((Ok(wire), port)),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Corrects tonic's own statuses on the public port.
pub fn corrected() -> MapResponseLayer<fn(Response<Body>) -> Response<Body>> {
    MapResponseLayer::new(|mut response| {
        correct(response.headers_mut());
        response
    })
}

fn correct(headers: &mut HeaderMap) {
    let code = headers.get("grpc-status").and_then(|code| code.to_str().ok());
    let message = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    let better = match code {
        Some("11") => status::too_large(),
        Some("13")
            if message.starts_with("failed%20to%20decode%20Protobuf")
                || message.starts_with("failed to decode Protobuf") =>
        {
            status::invalid(
                "the request is not the protobuf message that the method takes, or its text is not UTF-8",
            )
        }
        _ => return,
    };
    let mut corrected = HeaderMap::new();
    if better.add_header(&mut corrected).is_ok() {
        let name_and_value = corrected.iter().map(|(name, value)| (name.clone(), value.clone()));
        name_and_value.for_each(|(name, value): (_, HeaderValue)| drop(headers.insert(name, value)));
    }
}
