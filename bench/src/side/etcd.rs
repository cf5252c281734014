//! Three nodes of etcd.
//!
//! Its API is gRPC; the four messages that are needed are written down here, from etcd's `rpc.proto`. The crate `etcd-client`
//! has them all, but its build script turns on features of crates that bindgen is built from too, so that RocksDB would be
//! compiled once more for every build with this.

use std::{marker::PhantomData, process::Command};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use duet_tests::process::Port;
use prost::Message;
use tempfile::TempDir;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use super::{server::Server, tell};
use crate::{Failure, Target};

/// Three nodes of etcd on loopback. They end when this is dropped.
pub struct Etcd {
    _servers: Vec<Server>,
    _folder: TempDir,
    _ports: Vec<[Port; 2]>,
    leader: String,
}

impl Etcd {
    /// Starts them, and finds their leader.
    ///
    /// # Errors
    /// If etcd is not installed, or does not become ready.
    pub async fn start() -> Result<Etcd> {
        tell("starting three nodes of etcd …");
        let folder = TempDir::with_prefix("duet-bench-etcd-")?;
        let ports = (0..3).map(|_| Ok([Port::claim()?, Port::claim()?])).collect::<Result<Vec<_>>>()?;
        let url = |port: &Port| format!("http://127.0.0.1:{}", port.number());
        let members = (1..).zip(&ports).map(|(id, [_, peers])| format!("n{id}={}", url(peers)));
        let members = members.collect::<Vec<_>>().join(",");
        let mut servers = Vec::new();
        for (id, [clients, peers]) in (1..).zip(&ports) {
            let (name, clients, peers) = (format!("n{id}"), url(clients), url(peers));
            let mut command = Command::new("etcd");
            command.args(["--name", &name]).arg("--data-dir").arg(folder.path().join(&name));
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &members, "--initial-cluster-state", "new"]);
            command.args(["--logger", "zap", "--log-level", "warn", "--quota-backend-bytes", "8589934592"]);
            let log = folder.path().join(format!("{name}.log"));
            servers.push(Server::start("etcd", "etcd-server", command, log)?);
        }
        let urls: Vec<String> = ports.iter().map(|[clients, _]| url(clients)).collect();
        let mut leader = None;
        for (server, url) in servers.iter_mut().zip(&urls) {
            if server.until(async || leads(url).await).await? {
                leader = Some(url.clone());
            }
        }
        let leader = leader.context("none of the nodes of etcd leads")?;
        Ok(Etcd { _servers: servers, _folder: folder, _ports: ports, leader })
    }

    /// Connections to the leader.
    ///
    /// # Errors
    /// If they cannot be made.
    pub async fn connections(&self, number: usize) -> Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for _ in 0..number {
            connections.push(Connection::open(&self.leader).await?);
        }
        Ok(connections)
    }
}

/// Whether the node there leads; an error while there is no leader.
async fn leads(url: &str) -> Result<bool> {
    let connection = Connection::open(url).await?;
    let status: StatusResponse =
        connection.ask("/etcdserverpb.Maintenance/Status", StatusRequest {}).await.map_err(Failure::from)?;
    ensure!(status.leader != 0, "there is no leader yet");
    Ok(status.header.is_some_and(|header| header.member_id == status.leader))
}

/// A connection to a node of etcd.
#[derive(Clone, Debug)]
pub struct Connection(Grpc<Channel>);

impl Connection {
    async fn open(url: &str) -> Result<Connection> {
        Ok(Connection(Grpc::new(Endpoint::new(url.to_owned())?.connect().await?)))
    }

    async fn ask<Q, A>(&self, path: &'static str, question: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.0.clone();
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(Request::new(question), path, Messages::<Q, A>(PhantomData)).await?.into_inner())
    }
}

impl Target for Connection {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        let _: PutResponse = self.ask("/etcdserverpb.KV/Put", PutRequest { key, value }).await?;
        Ok(())
    }

    /// Linearizable, as etcd's reads are unless they are asked not to be.
    async fn get(&self, key: Bytes) -> Result<bool, Failure> {
        let found: RangeResponse = self.ask("/etcdserverpb.KV/Range", RangeRequest { key }).await?;
        Ok(!found.kvs.is_empty())
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let code = format!("{:?}", status.code()).to_lowercase();
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
                Failure::unknown(code)
            }
            _ => Failure::refused(code),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

/// Protobuf messages over gRPC.
struct Messages<Q, A>(PhantomData<(Q, A)>);

impl<Q: Message + 'static, A: Message + Default + 'static> Codec for Messages<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Messages(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Messages(PhantomData)
    }
}

impl<Q: Message, A> Encoder for Messages<Q, A> {
    type Item = Q;
    type Error = Status;

    fn encode(&mut self, message: Q, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|e| Status::internal(e.to_string()))
    }
}

impl<Q, A: Message + Default> Decoder for Messages<Q, A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        A::decode(buffer).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
