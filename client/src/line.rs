//! One connection to a node, and the requests on it that wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use duet_proto::{
    Error, NodeId, Response,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{Connection, NotSent};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// How long a silent node stays suspect: longer than the transport keeps a dead connection, so that by then it is either
/// closed or deserves another chance.
const SUSPECT: Duration = Duration::from_secs(6);

/// Answers taken from the transport at a time.
const BATCH: usize = 64;

/// The connection ended before the answer came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost;

/// What a request ends with.
pub(crate) type Reply = Result<Response, Lost>;

/// A connection to a node. Many requests at once; one task hands out the answers.
#[derive(Debug)]
pub(crate) struct Line {
    connection: Connection,
    waiting: Arc<Waiting>,
    /// The node at the other end, as its certificate says.
    pub(crate) node: NodeId,
    /// Where that is.
    pub(crate) address: Arc<str>,
}

#[derive(Debug, Default)]
struct Waiting {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    last: u64,
    open: BTreeMap<u64, oneshot::Sender<Reply>>,
    ended: bool,
    /// A request has waited too long and no answer has come since.
    suspect_until: Option<Instant>,
}

impl Waiting {
    fn with<T>(&self, f: impl FnOnce(&mut Slots) -> T) -> T {
        f(&mut self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives an answer to the one that asked, if it still waits. `false`: it cannot be told who did.
    fn hand_out(&self, body: &[u8]) -> bool {
        let (id, response) = match frame::decode::<ResponseFrame>(body) {
            Ok(frame) => (frame.id, frame.response),
            // The one that asked learns of it; if that cannot be told, all do, with the end of the connection.
            Err(error) => match frame::id_of(body) {
                Some(id) => (id, Response::Error(unreadable(&error))),
                None => return false,
            },
        };
        let answer = self.with(|slots| {
            slots.suspect_until = None;
            slots.open.remove(&id)
        });
        if let Some(answer) = answer {
            answer.send(Ok(response)).ok();
        }
        true
    }
}

/// A request that waits. Dropping it forgets the request; a late answer is then dropped too.
#[derive(Debug)]
pub(crate) struct Asked {
    id: u64,
    waiting: Arc<Waiting>,
    pub(crate) reply: oneshot::Receiver<Reply>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.waiting.with(|slots| slots.open.remove(&self.id));
    }
}

impl Line {
    /// Begins to hand out what `connection` receives.
    pub(crate) fn start(connection: Connection, node: NodeId, address: Arc<str>) -> Line {
        let waiting: Arc<Waiting> = Arc::default();
        match connection.incoming() {
            Some(incoming) => drop(tokio::spawn(receive(incoming, waiting.clone()))),
            None => waiting.with(|slots| slots.ended = true),
        }
        Line { connection, waiting, node, address }
    }

    /// Sends a request, under an id of this connection's own.
    ///
    /// # Errors
    /// [`NotSent`]: it was not sent and never will be.
    pub(crate) fn ask(&self, frame: &mut RequestFrame) -> Result<Asked, NotSent> {
        let (answer, reply) = oneshot::channel();
        let id = self.waiting.with(|slots| {
            if slots.ended {
                return Err(NotSent::Closed);
            }
            slots.last += 1;
            slots.open.insert(slots.last, answer);
            Ok(slots.last)
        })?;
        let asked = Asked { id, waiting: self.waiting.clone(), reply };
        frame.id = id;
        self.connection.send(frame::encode(frame))?;
        Ok(asked)
    }

    /// Whether it is of no more use.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed() || self.waiting.with(|slots| slots.ended)
    }

    /// Sends no more requests; the answers to those that were sent still come.
    pub(crate) fn leave(&self) {
        self.connection.leave();
    }

    /// Notes that a request has waited too long; the next answer clears it.
    pub(crate) fn suspect(&self) {
        self.waiting.with(|slots| slots.suspect_until = Some(Instant::now() + SUSPECT));
    }

    /// Whether a request has waited too long since the last answer.
    pub(crate) fn is_suspect(&self) -> bool {
        self.waiting.with(|slots| slots.suspect_until).is_some_and(|until| until > Instant::now())
    }
}

/// Hands out answers until the connection ends, then tells those who still wait.
async fn receive(mut incoming: mpsc::Receiver<Bytes>, waiting: Arc<Waiting>) {
    let mut bodies = Vec::with_capacity(BATCH);
    while incoming.recv_many(&mut bodies, BATCH).await > 0 {
        if !bodies.drain(..).all(|body| waiting.hand_out(&body)) {
            break;
        }
    }
    let left = waiting.with(|slots| {
        slots.ended = true;
        std::mem::take(&mut slots.open)
    });
    for answer in left.into_values() {
        answer.send(Err(Lost)).ok();
    }
}

/// What was asked may have been done.
fn unreadable(error: &Error) -> Error {
    Error::OutcomeUnknown { why: format!("the answer cannot be read: {error}") }
}
