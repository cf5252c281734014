//! Requests and answers: many at once, big ones, slow readers, ends.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{World, address, cluster, echo, soon, until};
use duet_proto::{NodeId, Role, limits::INLINE_VALUE};
use duet_transport::{
    CertificateAuthority, ClientConnection, Config, Connection, Connector, Endpoint, Identity, Limits, NotSent,
    Refusal, Tls, Udp, Validity,
};

async fn pair(world: &mut World) -> (Endpoint, ClientConnection, Connection) {
    let node = world.node(1);
    let client = world.client(7);
    let to = address(1).to_string();
    let (connection, served) =
        soon("a connection", async { tokio::join!(client.connect(&to, None), node.accept()) }).await;
    (node, served.unwrap(), connection.unwrap())
}

fn body(id: u32, size: usize) -> Bytes {
    let mut body = id.to_le_bytes().to_vec();
    body.resize(size.max(4), id as u8);
    body.into()
}

fn id(body: &Bytes) -> u32 {
    let id = u32::from_le_bytes(*body.first_chunk().unwrap());
    assert!(body[4..].iter().all(|byte| *byte == id as u8), "a body that is not what was sent");
    id
}

async fn exchange(connection: &Connection, sizes: impl Iterator<Item = usize>) {
    let mut answers = connection.incoming().unwrap();
    let mut waiting = BTreeSet::new();
    for (number, size) in (0u32..).zip(sizes) {
        let body = body(number, size);
        while let Err(NotSent::Full) = connection.send(body.clone()) {
            let answer = soon("an answer", answers.recv()).await.expect("the connection stays");
            assert!(waiting.remove(&id(&answer)));
        }
        waiting.insert(number);
    }
    while !waiting.is_empty() {
        let Some(answer) = soon("an answer", answers.recv()).await else { panic!("{:?}", connection.closed().await) };
        assert!(waiting.remove(&id(&answer)));
    }
}

#[tokio::test(start_paused = true)]
async fn thousands_of_requests_share_a_connection() {
    let mut world = World::new(1);
    let node = Arc::new(world.node(1));
    echo(&node);
    let connection = world.client(7).connect(&address(1).to_string(), None).await.unwrap();
    exchange(&connection, (0..20_000).map(|n| if n % 1000 == 7 { INLINE_VALUE + n } else { n % 700 })).await;
    assert_eq!(node.stats().requests, 20_000);
    assert_eq!(node.stats().clients, 1);
    drop(connection);
    until("the client is gone", || node.stats().clients == 0).await;
    let packets = world.net.packets();
    assert!(packets < 20_000, "{packets} packets: frames must share them");
}

#[tokio::test(start_paused = true)]
async fn the_largest_frames_pass() {
    let mut world = World::new(1);
    let node = Arc::new(world.node(1));
    echo(&node);
    let connection = world.client(7).connect(&address(1).to_string(), None).await.unwrap();
    let largest = duet_proto::limits::CLIENT_FRAME;
    exchange(&connection, [largest, INLINE_VALUE, INLINE_VALUE + 1, largest].into_iter()).await;
}

#[tokio::test]
async fn real_sockets_do_the_same() {
    let mut ca = CertificateAuthority::generate(&cluster(), Validity::days(1)).unwrap();
    let mut tls = |identity: &Identity| {
        let issued = ca.issue(identity, Validity::days(1), &[]).unwrap();
        Tls::from_pem(ca.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes()).unwrap()
    };
    let me = Identity::node(cluster(), NodeId(1));
    let node = Endpoint::start(Config {
        tls: tls(&me),
        me,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        limits: Limits::default(),
        rng_seed: None,
        network: Arc::new(Udp),
    });
    let node = Arc::new(node.unwrap());
    echo(&node);
    let client = Identity::client(cluster(), "app", Role::Client).unwrap();
    let connector = Connector::new(tls(&client), Arc::new(Udp));
    let to = node.local_addr().unwrap().to_string();
    let connection = soon("a connection", connector.connect(&to, Some(NodeId(1)))).await.unwrap();
    exchange(&connection, (0..5000).map(|n| if n % 500 == 7 { 300_000 } else { n % 700 })).await;
    node.shutdown().await;
    assert_eq!(soon("the end", connection.closed()).await.refusal, Some(Refusal::Stopping));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_read() {
    let mut world = World::new(1);
    world.limits.answers = 1 << 20;
    let (node, mut served, connection) = pair(&mut world).await;
    let mut sent = 0u32;
    // Answers of 60 kB that the client does not take: its own queue, the windows and the node's bound fill up.
    let serving = tokio::spawn(async move {
        while let Some(request) = served.next().await {
            request.reply.send(body(id(&request.body), 60_000));
        }
    });
    let answers = connection.incoming().unwrap();
    for _ in 0..20_000 {
        connection.send(body(sent, 500)).unwrap();
        sent += 1;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let taken = node.stats().requests;
    assert!(taken < u64::from(sent), "the node took all {sent} requests of a client that reads no answer");
    assert!(node.stats().refusals.is_empty(), "to be slow is no crime: {:?}", node.stats().refusals);
    let mut answers = answers;
    for _ in 0..sent {
        soon("an answer", answers.recv()).await.expect("the connection stays");
    }
    drop(connection);
    soon("the end", serving).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_under_way_are_bounded() {
    let mut world = World::new(1);
    world.limits.in_flight = 10;
    let (_node, mut served, connection) = pair(&mut world).await;
    let mut answers = connection.incoming().unwrap();
    for number in 0..25 {
        connection.send(body(number, 10)).unwrap();
    }
    let mut held = Vec::new();
    while let Ok(request) = tokio::time::timeout(Duration::from_secs(1), served.next()).await {
        held.push(request.unwrap());
    }
    assert_eq!(held.len(), 10);
    // An answer, or none, makes room for one more.
    let first = held.swap_remove(0);
    first.reply.send(first.body);
    assert_eq!(id(&soon("an answer", answers.recv()).await.unwrap()), 0);
    soon("an eleventh", served.next()).await.unwrap();
    drop(held);
    soon("a twelfth", served.next()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn too_many_answers_end_the_connection() {
    let mut world = World::new(1);
    world.limits.answers_hard = 1 << 20;
    let (node, mut served, connection) = pair(&mut world).await;
    let mut held = Vec::new();
    for number in 0..100 {
        connection.send(body(number, 10)).unwrap();
        held.push(soon("a request", served.next()).await.unwrap());
    }
    held.into_iter().for_each(|request| request.reply.send(body(0, 1 << 20)));
    assert_eq!(soon("the end", connection.closed()).await.refusal, Some(Refusal::TooSlow));
    assert_eq!(node.stats().refusals.get(&Refusal::TooSlow), Some(&1));
    assert_eq!(connection.send(body(1, 1)), Err(NotSent::Closed));
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_is_paid_before_the_end() {
    let mut world = World::new(1);
    let (_node, mut served, connection) = pair(&mut world).await;
    let mut answers = connection.incoming().unwrap();
    connection.send(body(1, 10)).unwrap();
    connection.send(body(2, 10)).unwrap();
    let held = [soon("a request", served.next()).await.unwrap(), soon("another", served.next()).await.unwrap()];
    drop(served);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let [small, big] = held;
    small.reply.send(body(1, 10));
    big.reply.send(body(2, 1 << 20));
    let mut seen = [soon("one", answers.recv()).await.unwrap(), soon("two", answers.recv()).await.unwrap()];
    seen.sort_by_key(Bytes::len);
    assert_eq!(seen.each_ref().map(Bytes::len), [10, 1 << 20]);
    assert_eq!(soon("the end", connection.closed()).await.refusal, Some(Refusal::Done));
    assert_eq!(soon("the end", answers.recv()).await, None);
}

#[tokio::test(start_paused = true)]
async fn connections_end_of_old_age_and_can_be_made_anew() {
    let mut world = World::new(1);
    world.limits.max_age = Duration::from_secs(100);
    let node = Arc::new(world.node(1));
    echo(&node);
    let client = world.client(7);
    let connection = client.connect(&address(1).to_string(), None).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(105), connection.closed()).await.unwrap();
    assert_eq!(ended.refusal, Some(Refusal::Aged));
    let connection = client.connect(&address(1).to_string(), None).await.unwrap();
    exchange(&connection, [10].into_iter()).await;
}

#[tokio::test(start_paused = true)]
async fn connections_are_counted_and_bounded() {
    let mut world = World::new(1);
    world.limits.client_connections = 2;
    let node = Arc::new(world.node(1));
    echo(&node);
    let client = world.client(7);
    let to = address(1).to_string();
    let first = client.connect(&to, None).await.unwrap();
    let _second = client.connect(&to, None).await.unwrap();
    let third = client.connect(&to, None).await;
    assert!(
        matches!(third, Err(duet_transport::ConnectError::Refused { refusal: Refusal::TooMany, .. })),
        "{third:?}"
    );
    drop(first);
    until("a place is free", || node.stats().clients == 1).await;
    client.connect(&to, None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_vanishes_is_noticed() {
    let mut world = World::new(1);
    let (_node, _served, connection) = pair(&mut world).await;
    world.net.crash(common::ip(1));
    let ended = soon("the end", connection.closed()).await;
    assert_eq!(ended.refusal, None, "{ended}");
    assert_eq!(connection.send(body(1, 1)), Err(NotSent::Closed));
}

/// One that has started anew says that it does not know the connection; nothing waits until it is idle for too long.
#[tokio::test(start_paused = true)]
async fn a_node_that_starts_anew_ends_connections_from_before() {
    let mut world = World::new(1);
    let tls = world.tls(&Identity::node(common::cluster(), NodeId(1)));
    let node = world.node_with(1, tls.clone());
    let connection = world.client(2).connect(&common::address(1).to_string(), None).await.unwrap();
    world.net.crash(common::ip(1));
    drop(node);
    let _node = world.node_with(1, tls);
    connection.send(body(1, 1)).unwrap();
    let ended = soon("the end", connection.closed()).await;
    assert_eq!((ended.refusal, ended.why.as_str()), (None, "reset by peer"));
}
