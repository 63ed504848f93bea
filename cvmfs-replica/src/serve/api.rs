//! The functions of the server: `/cvmfs/<repository>/api/vN.M/<function>/…` and `/api/vN/<function>/…`.
//!
//! One line of [`answer`] for each; a function gets the whole request, so it says itself which methods it takes and
//! what it does with a body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::{Request, Response};

use super::answer::{ResponseBody, text};
use super::bundle;
use super::connection::Shared;
use super::respond;
use super::route::ApiCall;

/// Answers the request for a function.
pub(super) async fn answer(
    call: ApiCall,
    request: Request<Incoming>,
    _client: SocketAddr,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    match (call.repository.as_deref(), call.function.as_str(), call.argument.as_deref()) {
        (Some(_), "geo", Some(_)) => {
            text("Bad Request: no geographic database\n", respond::bad_request_head, request.method(), now)
        }
        (Some(repository), "bundle", None) => bundle::answer(repository, request, shared, now).await,
        // Upstream: the same words and lifetime; clients ask the next server.
        _ => text("Bad Request: unrecognized api function\n", respond::bad_request_head, request.method(), now),
    }
}
