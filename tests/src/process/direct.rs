//! A line to one node, without the client library's routing and retries: what that very node says.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use duet_proto::{
    Answer, Consistency, DataRequest, Epoch, Error, Mutation, NamespaceName, NodeStatus, Op, Outcome, Request,
    Response, Stamp,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{Connection, Connector, Tls, Udp};
use tokio::{sync::mpsc, time::timeout};

use super::PATIENCE;

/// What a node answers to an operation on data.
pub type Answered = Result<Answer, Error>;

/// A connection to one node.
pub struct Direct {
    connection: Connection,
    answers: mpsc::Receiver<Bytes>,
    last: u64,
}

impl Direct {
    /// Connects to the node that listens at `address`.
    ///
    /// # Errors
    /// If it cannot be reached, or either side refuses the other.
    pub async fn connect(address: &str, tls: Tls) -> Result<Direct> {
        let connection = Connector::new(tls, Arc::new(Udp)).connect(address, None).await?;
        let answers = connection.incoming().context("a new connection has its answers")?;
        Ok(Direct { connection, answers, last: 0 })
    }

    /// The connection itself.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request and waits for its answer. The node is asked to wait no longer than `patience`.
    ///
    /// # Errors
    /// If the connection ends, or nothing comes at all.
    pub async fn ask(&mut self, request: Request, patience: Duration) -> Result<Response> {
        let id = self.send(request, patience)?;
        self.answer(id).await
    }

    /// Sends a request. Returns its id.
    ///
    /// # Errors
    /// If the connection has ended.
    pub fn send(&mut self, request: Request, patience: Duration) -> Result<u64> {
        self.last += 1;
        let timeout_ms = u32::try_from(patience.as_millis())?;
        self.connection.send(frame::encode(&RequestFrame { id: self.last, timeout_ms, request }))?;
        Ok(self.last)
    }

    /// Waits for the answer to a request. Answers to others that come before it are dropped.
    ///
    /// # Errors
    /// As [`Direct::ask`].
    pub async fn answer(&mut self, id: u64) -> Result<Response> {
        loop {
            match timeout(PATIENCE, self.answers.recv()).await {
                Ok(Some(body)) => {
                    let frame: ResponseFrame = frame::decode(&body)?;
                    if frame.id == id {
                        return Ok(frame.response);
                    }
                }
                Ok(None) => bail!("the connection ended: {}", self.connection.closed().await),
                Err(_) => bail!("no answer to request {id}"),
            }
        }
    }

    /// An operation on data.
    ///
    /// # Errors
    /// If there is no answer; what the node refuses is in the inner result.
    pub async fn data(&mut self, namespace: &str, op: Op, consistency: Consistency) -> Result<Answered> {
        let namespace = NamespaceName::new(namespace)?;
        let request =
            DataRequest { namespace, epoch: Epoch::default(), op, attempt: None, tokens: Vec::new(), consistency };
        match self.ask(Request::Data(request), PATIENCE / 4).await? {
            Response::Data(answer) => Ok(Ok(answer)),
            Response::Error(error) => Ok(Err(error)),
            other => bail!("not an answer to an operation on data: {other:?}"),
        }
    }

    /// Writes a value.
    ///
    /// # Errors
    /// As [`Direct::data`].
    pub async fn put(&mut self, namespace: &str, key: &str, value: impl Into<Bytes>) -> Result<Answered> {
        let mutation = Mutation::put(key.to_owned(), value);
        self.data(namespace, Op::Write { mutation }, Consistency::Linearizable).await
    }

    /// Writes many values, up to `window` of them in flight.
    ///
    /// # Errors
    /// If the node refuses one, or does not answer.
    pub async fn pour(
        &mut self,
        namespace: &str,
        writes: impl Iterator<Item = (String, Bytes)>,
        window: usize,
    ) -> Result<()> {
        let namespace = NamespaceName::new(namespace)?;
        let mut open = 0;
        for (key, value) in writes {
            if open == window {
                self.poured().await?;
                open -= 1;
            }
            let op = Op::Write { mutation: Mutation::put(key, value) };
            let consistency = Consistency::Local;
            let request = DataRequest {
                namespace: namespace.clone(),
                epoch: Epoch::default(),
                op,
                attempt: None,
                tokens: Vec::new(),
                consistency,
            };
            self.send(Request::Data(request), PATIENCE)?;
            open += 1;
        }
        for _ in 0..open {
            self.poured().await?;
        }
        Ok(())
    }

    async fn poured(&mut self) -> Result<()> {
        match timeout(PATIENCE, self.answers.recv()).await {
            Ok(Some(body)) => match frame::decode::<ResponseFrame>(&body)?.response {
                Response::Data(Answer { outcome: Outcome::Written(_), .. }) => Ok(()),
                other => bail!("not written: {other:?}"),
            },
            Ok(None) => bail!("the connection ended: {}", self.connection.closed().await),
            Err(_) => bail!("no answer to a write"),
        }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// As [`Direct::data`].
    pub async fn get(
        &mut self,
        namespace: &str,
        key: &str,
        consistency: Consistency,
    ) -> Result<Result<Option<(Stamp, Bytes)>, Error>> {
        let key = Bytes::from(key.to_owned());
        match self.data(namespace, Op::Get { key }, consistency).await? {
            Ok(Answer { outcome: Outcome::Value(found), .. }) => Ok(Ok(found)),
            Ok(other) => bail!("not an answer to a get: {other:?}"),
            Err(error) => Ok(Err(error)),
        }
    }

    /// What the node says of itself.
    ///
    /// # Errors
    /// If it does not.
    pub async fn status(&mut self) -> Result<NodeStatus> {
        match self.ask(Request::Status, PATIENCE / 4).await? {
            Response::Status(status) => Ok(*status),
            other => bail!("not a status: {other:?}"),
        }
    }
}
