//! Serving clients: a frame in, a role check, the router, a frame out.
//!
//! One task per connection holds the futures of all its requests, so that requests overlap without a task for each,
//! and everything of a connection goes when it does. The transport reads no further from a connection that has too
//! many requests waiting: the client feels QUIC's flow control instead of a growing queue.

use bytes::Bytes;
use duet_proto::{
    Error, Request, Response, Role,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{ClientConnection, ReplySender};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, timeout_at},
};

use crate::node::Node;

/// The engines keep to a request's deadline themselves. This much later the node answers for them: whatever goes
/// wrong behind the router, a client is not left waiting.
const GRACE: Duration = Duration::from_millis(500);

/// Takes in client connections until the endpoint closes.
pub(crate) async fn accept(node: Node) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "serving a connection failed");
                }
            }
            next = node.endpoint().accept() => match next {
                Some(connection) => drop(connections.spawn(serve(node.clone(), connection))),
                None => return,
            },
        }
    }
}

async fn serve(node: Node, mut connection: ClientConnection) {
    // The transport lets nobody in as a client but those with a client's certificate.
    let Some(role) = connection.identity.role() else { return };
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = waiting.next(), if !waiting.is_empty() => {}
            next = connection.next() => match next {
                Some(request) => waiting.push(answer(&node, role, request.body, request.reply)),
                None => break,
            },
        }
    }
    // The client is gone or has said all it will; what it still waits for is answered.
    while waiting.next().await.is_some() {}
}

async fn answer(node: &Node, role: Role, body: Bytes, reply: ReplySender) {
    let arrived = Instant::now();
    let requests = &node.counters().requests;
    // Borrowed from here on: whatever is handed on by value lies twice in each future that it goes through.
    let (id, asked, response) = match &frame::decode::<RequestFrame>(&body) {
        Ok(RequestFrame { id, timeout_ms, request }) => {
            let asked = requests.asked(request, |name| node.router().view().namespace(name).is_some());
            let wait = Duration::from_millis((*timeout_ms).into()).min(node.config().timing.request);
            node.counters().in_flight.inc();
            let response = perform(node, role, request, arrived, wait).await;
            node.counters().in_flight.dec();
            (*id, asked, response.unwrap_or_else(Response::Error))
        }
        // The frame's length was right, so the next one can be read: this one alone is refused.
        Err(error) => (frame::id_of(&body).unwrap_or_default(), requests.malformed(), Response::Error(error.clone())),
    };
    requests.answered(&asked, &response, arrived.elapsed());
    reply.send(frame::encode(&ResponseFrame { id, response }));
}

async fn perform(
    node: &Node,
    role: Role,
    request: &Request,
    arrived: Instant,
    wait: Duration,
) -> Result<Response, Error> {
    node.admit()?;
    let needed = needed(request);
    if role < needed {
        return Err(Error::Unauthorized { needed, has: role });
    }
    let deadline = arrived + wait;
    let after_ms = wait.as_millis() as u64;
    let late = |writes: bool| match writes {
        true => Error::OutcomeUnknown { why: format!("no outcome within {after_ms} ms") },
        false => Error::TimedOut { after_ms, why: "no answer from the engine".into() },
    };
    let router = node.router();
    match request {
        Request::Topology => Ok(Response::Topology(router.topology())),
        // What is rare is boxed: each request's future has room for the largest of these.
        Request::Status => Ok(Response::Status(Box::new(Box::pin(node.status()).await))),
        Request::Data(data) => {
            let writes = data.op.is_write();
            let called = timeout_at(deadline + GRACE, router.call(data, deadline)).await;
            called.map_err(|_| late(writes))?.map(Response::Data)
        }
        Request::Admin(admin) => {
            let done = Box::pin(router.admin(admin.clone(), deadline));
            timeout_at(deadline + GRACE, done).await.map_err(|_| late(true))?
        }
    }
}

/// Administrators alone read the catalog's own namespace; the router refuses writes to it from anyone.
fn needed(request: &Request) -> Role {
    match request {
        Request::Admin(_) => Role::Admin,
        Request::Data(data) if data.namespace.is_system() => Role::Admin,
        _ => Role::Client,
    }
}
