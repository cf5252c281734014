//! Nodes that do what a script tells them, on a simulated network: real QUIC and TLS, no engine.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_docs)]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use duet_client::{Builder, Client, ClientError, Namespace, Options, Tls};
use duet_proto::{
    Admin, Answer, Boot, ClusterName, DataRequest, Epoch, Error, Hlc, Meta, Mode, NamespaceId, NamespaceInfo,
    NamespaceName, NodeId, NodeInfo, Op, Outcome, Phase, QuorumView, Request, Response, Role, Stamp, Topology,
    frame::{self, RequestFrame, ResponseFrame},
};
use duet_transport::{
    CertificateAuthority, ClientConnection, Config, Endpoint, Identity, Limits, Validity, sim::SimNet,
};

const PORT: u16 = 7000;

/// What a node does with a request.
pub enum Act {
    Answer(Response),
    /// Nothing, for ever.
    Silence,
    /// Breaks the connection.
    Break,
    /// Answers after a while.
    Late(Duration, Response),
}

type Desk = dyn FnMut(u32, &Admin) -> Response + Send;

type Script = dyn FnMut(u32, &DataRequest) -> Act + Send;

/// A namespace: its name, mode, members and leader.
type Space = (String, Mode, Vec<u32>, Option<u32>);

/// What the nodes share with the test.
pub struct Stage {
    /// What they do with requests for data. Topology and status are always answered.
    script: Box<Script>,
    /// Every request for data: the node, and what it was.
    pub seen: Vec<(u32, DataRequest)>,
    pub modes: Vec<Space>,
    pub version: u64,
    /// The epoch of every namespace.
    pub epoch: u32,
    /// What they answer to administration.
    pub admin: Box<Desk>,
}

pub struct Fake {
    pub net: SimNet,
    pub nodes: u32,
    ca: CertificateAuthority,
    stage: Arc<Mutex<Stage>>,
    endpoints: Vec<Arc<Endpoint>>,
}

pub fn name() -> NamespaceName {
    NamespaceName::new("orders").unwrap()
}

pub fn ip(node: u32) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, node as u8).into()
}

pub fn address(node: u32) -> String {
    SocketAddr::new(ip(node), PORT).to_string()
}

pub fn stamp(hlc: u64) -> Stamp {
    Stamp { epoch: Epoch(1), hlc: Hlc(hlc), node: NodeId(1) }
}

pub fn meta(position: u64) -> Meta {
    Meta { epoch: Epoch(1), position, leader: None, token: None }
}

pub fn written(position: u64) -> Act {
    data(Outcome::Written(stamp(position)), meta(position))
}

pub fn data(outcome: Outcome, meta: Meta) -> Act {
    Act::Answer(Response::Data(Answer { outcome, meta }))
}

pub fn fails(error: Error) -> Act {
    Act::Answer(Response::Error(error))
}

pub fn no_quorum() -> Error {
    Error::NoQuorum { namespace: name(), seen: QuorumView::default() }
}

/// What a usual node does: writes at rising positions, an empty store.
pub fn usual() -> impl FnMut(u32, &DataRequest) -> Act + Send {
    let mut position = 0;
    move |_, request| {
        position += 1;
        match &request.op {
            Op::Get { .. } => data(Outcome::Value(None), meta(position)),
            Op::Scan { .. } => data(Outcome::Page { entries: vec![], next: None }, meta(position)),
            _ => written(position),
        }
    }
}

impl Fake {
    /// `nodes` nodes that hold the strong namespace `orders`, led by node 1, and do as the script says.
    pub fn new(nodes: u32, script: impl FnMut(u32, &DataRequest) -> Act + Send + 'static) -> Fake {
        let members: Vec<u32> = (1..=nodes).collect();
        let stage = Stage {
            script: Box::new(script),
            seen: Vec::new(),
            modes: vec![("orders".into(), Mode::Strong, members, Some(1))],
            version: 1,
            epoch: 1,
            admin: Box::new(|_, _| Response::Done),
        };
        let cluster = ClusterName::new("c1").unwrap();
        let ca = CertificateAuthority::from_seed(&cluster, 1).unwrap();
        let mut fake = Fake { net: SimNet::new(1), nodes, ca, stage: Arc::new(stage.into()), endpoints: Vec::new() };
        (1..=nodes).for_each(|node| fake.start(node));
        fake
    }

    fn tls(&mut self, identity: &Identity) -> Tls {
        let issued = self.ca.issue(identity, Validity::CENTURY, &[]).unwrap();
        Tls::from_pem(self.ca.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes()).unwrap()
    }

    fn start(&mut self, node: u32) {
        let me = Identity::node(self.ca.cluster().clone(), NodeId(node));
        let tls = self.tls(&me);
        let endpoint = Endpoint::start(Config {
            me,
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
            tls,
            limits: Limits::default(),
            rng_seed: Some(u64::from(node)),
            network: Arc::new(self.net.host(ip(node))),
        });
        let endpoint = Arc::new(endpoint.unwrap());
        self.endpoints.push(endpoint.clone());
        let (stage, nodes) = (self.stage.clone(), self.nodes);
        tokio::spawn(async move {
            while let Some(client) = endpoint.accept().await {
                tokio::spawn(serve(node, nodes, client, stage.clone()));
            }
        });
    }

    pub fn stage<T>(&self, f: impl FnOnce(&mut Stage) -> T) -> T {
        f(&mut self.stage.lock().unwrap())
    }

    pub fn script(&self, script: impl FnMut(u32, &DataRequest) -> Act + Send + 'static) {
        self.stage(|stage| stage.script = Box::new(script));
    }

    /// Which nodes were asked for data, in order; forgets them.
    pub fn asked(&self) -> Vec<u32> {
        self.requests().into_iter().map(|(node, _)| node).collect()
    }

    pub fn requests(&self) -> Vec<(u32, DataRequest)> {
        self.stage(|stage| std::mem::take(&mut stage.seen))
    }

    pub fn builder(&mut self, endpoints: &[u32], options: Options) -> Builder {
        let me = Identity::client(self.ca.cluster().clone(), "app", Role::Admin).unwrap();
        let tls = self.tls(&me);
        Client::builder()
            .endpoints(endpoints.iter().map(|node| address(*node)))
            .tls(tls)
            .network(Arc::new(self.net.host(ip(100))))
            .seed(7)
            .options(options)
    }

    pub async fn client(&mut self) -> Client {
        self.builder(&[1], Options::default()).connect().await.unwrap()
    }

    pub async fn orders(&mut self) -> Namespace {
        self.client().await.namespace("orders").unwrap()
    }
}

fn topology(me: u32, nodes: u32, stage: &Stage) -> Topology {
    let node = |id| NodeInfo { id: NodeId(id), address: address(id), boot: Boot(1) };
    let namespace = |(at, (name, mode, members, leader)): (usize, &Space)| NamespaceInfo {
        id: NamespaceId(at as u64 + 1),
        name: NamespaceName::new(name).unwrap(),
        mode: *mode,
        epoch: Epoch(stage.epoch),
        phase: Phase::Stable,
        members: members.iter().map(|id| NodeId(*id)).collect(),
        copies: 1,
        leader: leader.map(NodeId),
    };
    Topology {
        cluster: ClusterName::new("c1").unwrap(),
        me: NodeId(me),
        nodes: (1..=nodes).map(node).collect(),
        namespaces: stage.modes.iter().enumerate().map(namespace).collect(),
        version: stage.version,
    }
}

async fn serve(node: u32, nodes: u32, mut client: ClientConnection, stage: Arc<Mutex<Stage>>) {
    let mut silent = Vec::new();
    while let Some(incoming) = client.next().await {
        let RequestFrame { id, request, .. } = frame::decode(&incoming.body).unwrap();
        let act = {
            let mut stage = stage.lock().unwrap();
            match request {
                Request::Topology => Act::Answer(Response::Topology(topology(node, nodes, &stage))),
                Request::Data(data) => {
                    let act = (stage.script)(node, &data);
                    stage.seen.push((node, data));
                    act
                }
                Request::Admin(admin) => Act::Answer((stage.admin)(node, &admin)),
                Request::Status => Act::Answer(Response::Done),
            }
        };
        let answer = |response| frame::encode(&ResponseFrame { id, response });
        match act {
            Act::Answer(response) => incoming.reply.send(answer(response)),
            Act::Silence => silent.push(incoming.reply),
            Act::Break => return,
            Act::Late(after, response) => {
                let body = answer(response);
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    incoming.reply.send(body);
                });
            }
        }
    }
}

/// The cluster's error that a call ended with.
pub fn cluster<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Error {
    match result {
        Err(ClientError::Cluster(error)) => error,
        other => panic!("no error of the cluster: {other:?}"),
    }
}
