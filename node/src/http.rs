//! The loopback HTTP server: `/healthz`, `/readyz`, `/metrics`.
//!
//! - `/healthz` is 200 while the process does its work: its store takes writes and its engine runs. A supervisor may
//!   restart a node that fails it.
//! - `/readyz` is 200 while the node serves: the catalog has a leader and this node has applied it. A load balancer may
//!   leave out a node that fails it; restarting it would not help.
//! - `/metrics` is Prometheus text.
//!
//! Plain HTTP, so loopback only; the configuration refuses other addresses.

use std::future::Future;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::Node;

/// Serves until `stop` is done.
pub(crate) async fn serve(listener: TcpListener, node: Node, stop: impl Future<Output = ()> + Send + 'static) {
    let routes = Router::new()
        .route("/healthz", get(async |State(node): State<Node>| probe(node.healthy())))
        .route("/readyz", get(async |State(node): State<Node>| probe(node.ready())))
        .route("/metrics", get(metrics))
        .with_state(node);
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

fn probe(state: Result<(), String>) -> Response {
    match state {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(node): State<Node>) -> Response {
    match node.metrics().await {
        Ok(text) => {
            let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
            (StatusCode::OK, kind, text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
