//! Who is not let in, and how they are told. Every refusal leaves the endpoint serving.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Intruder, World, address, cluster, echo, framed, ip, soon};
use duet_proto::{
    NodeId,
    frame::{ALPN_CLIENT, ALPN_PEER, Hello, VERSION, encode},
};
use duet_transport::{
    CertificateAuthority, Config, ConnectError, Connector, Identity, Refusal, StartError, Validity,
};
use serde::Serialize;

#[derive(Serialize)]
struct PeerHello {
    version: u32,
    node: u32,
}

fn hello(version: u32) -> Vec<u8> {
    framed(&encode(&Hello { version })).to_vec()
}

fn peer_hello(version: u32, node: u32) -> Vec<u8> {
    framed(&encode(&PeerHello { version, node })).to_vec()
}

#[tokio::test(start_paused = true)]
async fn each_intruder_is_told_why() {
    let mut world = World::new(1);
    let node = Arc::new(world.node(1));
    echo(&node);
    let stranger = CertificateAuthority::from_seed(&cluster(), 99).unwrap().issue(
        &Identity::node(cluster(), NodeId(2)),
        Validity::CENTURY,
        &[],
    );
    let stranger = Some(stranger.unwrap());
    let forge = |uri| Some(world.forge(uri, Validity::CENTURY));
    let client = || forge("duet://c1/client/app");
    let peer = || forge("duet://c1/node/2");
    let old = Some(world.forge("duet://c1/node/2", Validity { from: 1_000_000_000, until: 1_000_000_001 }));
    let garbage = framed(b"\xff\xff\xff\xff\xff\xff").to_vec();
    let huge = u32::MAX.to_le_bytes().to_vec();
    let no_lane = framed(&[9]).to_vec();
    let huge_in_lane = [framed(&[0]).to_vec(), huge.clone()].concat();
    let none = Vec::new;
    let cases = [
        ("no certificate", None, ALPN_PEER, none(), none(), Refusal::NoCertificate),
        ("other authority", stranger, ALPN_PEER, none(), none(), Refusal::UnknownAuthority),
        ("expired", old, ALPN_PEER, none(), none(), Refusal::Expired),
        ("other cluster", forge("duet://c2/node/2"), ALPN_PEER, none(), none(), Refusal::WrongCluster),
        ("other cluster's client", forge("duet://c2/client/a"), ALPN_CLIENT, none(), none(), Refusal::WrongCluster),
        ("no identity", forge("https://example.org/"), ALPN_PEER, none(), none(), Refusal::NoIdentity),
        ("a client as peer", client(), ALPN_PEER, none(), none(), Refusal::WrongRole),
        ("a node as client", peer(), ALPN_CLIENT, none(), none(), Refusal::WrongRole),
        ("unknown protocol", client(), b"h3", none(), none(), Refusal::Handshake),
        ("silence", client(), ALPN_CLIENT, none(), none(), Refusal::Timeout),
        ("another's id", peer(), ALPN_PEER, peer_hello(VERSION, 3), none(), Refusal::ClaimedId),
        ("our own id", forge("duet://c1/node/1"), ALPN_PEER, peer_hello(VERSION, 1), none(), Refusal::ClaimedId),
        ("client of the future", client(), ALPN_CLIENT, hello(VERSION + 1), none(), Refusal::Version),
        ("peer of the future", peer(), ALPN_PEER, peer_hello(VERSION + 1, 2), none(), Refusal::Version),
        ("client's garbage", client(), ALPN_CLIENT, garbage.clone(), none(), Refusal::Malformed),
        ("peer's garbage", peer(), ALPN_PEER, garbage, none(), Refusal::Malformed),
        ("huge greeting", client(), ALPN_CLIENT, huge.clone(), none(), Refusal::TooLarge),
        ("huge frame", client(), ALPN_CLIENT, [hello(VERSION), huge.clone()].concat(), none(), Refusal::TooLarge),
        ("huge frame on its own", client(), ALPN_CLIENT, hello(VERSION), huge, Refusal::TooLarge),
        ("unknown lane", peer(), ALPN_PEER, peer_hello(VERSION, 2), no_lane, Refusal::Malformed),
        ("huge frame in a lane", peer(), ALPN_PEER, peer_hello(VERSION, 2), huge_in_lane, Refusal::TooLarge),
    ];
    for (what, certificate, alpn, first, then, expected) in cases {
        let before = node.stats().refusals.get(&expected).copied().unwrap_or(0);
        let intruder = Intruder::new(world.net.host(ip(66)), alpn, certificate.as_ref());
        let seen = soon(what, intruder.say(address(1), &first, &then)).await;
        assert_eq!(seen, Some(expected), "{what}");
        common::until(what, || node.stats().refusals.get(&expected).copied().unwrap_or(0) == before + 1).await;
    }
    let connection = world.client(7).connect(&address(1).to_string(), Some(NodeId(1))).await.unwrap();
    let mut answers = connection.incoming().unwrap();
    connection.send("still here".into()).unwrap();
    assert_eq!(soon("an answer", answers.recv()).await.unwrap(), "still here");
    assert_eq!(node.peers().connected(), []);
}

#[tokio::test(start_paused = true)]
async fn a_client_checks_its_node() {
    let mut world = World::new(1);
    let _node = world.node(1);
    let to = address(1).to_string();
    let client = world.client(7);
    match client.connect(&to, Some(NodeId(2))).await {
        Err(ConnectError::WrongServer { expected, found, .. }) => {
            assert_eq!((expected.as_str(), found.node_id()), ("duet://c1/node/2", Some(NodeId(1))));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.connect("10.0.0.9:7000", None).await, Err(ConnectError::Unreachable { .. })));
    assert!(matches!(client.connect("nowhere", None).await, Err(ConnectError::Address { .. })));
    // The same name, another authority.
    let ours = std::mem::replace(&mut world.ca, CertificateAuthority::from_seed(&cluster(), 99).unwrap());
    let stranger = world.client(8);
    let refused = stranger.connect(&to, None).await;
    assert!(matches!(refused, Err(ConnectError::Refused { refusal: Refusal::UnknownAuthority, .. })), "{refused:?}");
    // The right authority, another cluster.
    world.ca = ours;
    let forged = world.forge("duet://c2/client/app", Validity::CENTURY);
    let tls =
        duet_transport::Tls::from_pem(world.ca.cert().as_bytes(), forged.cert.as_bytes(), forged.key.as_bytes());
    let abroad = Connector::new(tls.unwrap(), Arc::new(world.net.host(ip(9))));
    assert!(matches!(abroad.connect(&to, None).await, Err(ConnectError::WrongServer { .. })));
    // A node's certificate does not make a client.
    let tls = world.tls(&Identity::node(cluster(), NodeId(3)));
    let node = Connector::new(tls, Arc::new(world.net.host(ip(3))));
    let refused = node.connect(&to, None).await;
    assert!(matches!(refused, Err(ConnectError::Refused { refusal: Refusal::WrongRole, .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_needs_its_own_certificate() {
    let mut world = World::new(1);
    let node = |id| Identity::node(cluster(), NodeId(id));
    let client: Identity = "duet://c1/client/app".parse().unwrap();
    for (me, certificate) in [(node(1), node(2)), (client.clone(), client)] {
        let started = duet_transport::Endpoint::start(Config {
            me,
            listen: address(1),
            tls: world.tls(&certificate),
            limits: world.limits,
            rng_seed: Some(1),
            network: Arc::new(world.net.host(ip(1))),
        });
        assert!(matches!(started, Err(StartError::Identity { .. } | StartError::NotANode(_))), "{started:?}");
    }
}
