//! The functions of the server: `/cvmfs/<repository>/api/vN.M/<function>/…` and `/api/vN/<function>/…`.
//!
//! One line of [`answer`] for each; a function gets the whole request, so it says itself which methods it takes and
//! what it does with a body.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};

use super::answer::{ResponseBody, error, text};
use super::connection::Shared;
use super::respond::{self, Caching};
use super::route::{ApiCall, percent_decode};
use super::{bundle, notices};

/// How long an order of servers may be kept, in seconds. Source: `cvmfs/webapi/cvmfs_api.py`.
const ORDER_MAX_AGE: u32 = 3600;

/// Answers the request for a function.
pub(super) async fn answer(
    call: ApiCall,
    request: Request<Incoming>,
    client: SocketAddr,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    match (call.repository.as_deref(), call.function.as_str(), call.argument.as_deref()) {
        (Some(_), "geo", Some(argument)) => geo(argument, &request, client, shared, now).await,
        (Some(repository), "bundle", None) => bundle::answer(repository, request, shared, now).await,
        (None, "notifications", Some(function)) => notices::answer(function, request, shared, now).await,
        // Upstream: the same words and lifetime; clients ask the next server.
        _ => bad_request("unrecognized api function", request.method(), now),
    }
}

async fn geo(
    argument: &str,
    request: &Request<Incoming>,
    client: SocketAddr,
    shared: &Shared,
    now: SystemTime,
) -> Response<ResponseBody> {
    let method = request.method();
    if method != Method::GET && method != Method::HEAD {
        return error(StatusCode::METHOD_NOT_ALLOWED, method, now);
    }
    let Some(geo) = shared.geo() else { return bad_request("no geographic database", method, now) };
    let argument = percent_decode(argument).and_then(|bytes| String::from_utf8(bytes).ok());
    let order = match &argument {
        Some(argument) => geo.order(argument, request.headers(), client).await,
        None => Err("malformed geo path"),
    };
    match order {
        Ok(order) => {
            let head = |length, now| {
                respond::content_head(StatusCode::OK, "text/plain", Some(length), Caching::Seconds(ORDER_MAX_AGE), now)
            };
            text(order, head, method, now)
        }
        Err(reason) => bad_request(reason, method, now),
    }
}

/// Refuses the request in the words of the reference; clients ask the next server.
pub(super) fn bad_request(reason: &str, method: &Method, now: SystemTime) -> Response<ResponseBody> {
    text(format!("Bad Request: {reason}\n"), respond::bad_request_head, method, now)
}
