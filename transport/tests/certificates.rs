//! Certificates that change while connections last: renewed, issued by another authority, revoked.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use common::{World, address, cluster, echo, soon, until};
use duet_proto::{NodeId, Role};
use duet_transport::{
    CertificateAuthority, ConnectError, Connection, Endpoint, Identity, Issued, Lane, Refusal, Revoked, StartError,
    Tls, TlsError, Validity,
};
use tokio::{sync::mpsc::Receiver, time::Instant};

const AGE: Duration = Duration::from_secs(60);

fn all_connected(nodes: &[Arc<Endpoint>]) -> bool {
    nodes.iter().all(|node| node.peers().connected().len() == nodes.len() - 1)
}

async fn nodes(world: &mut World, count: u8) -> Vec<Arc<Endpoint>> {
    world.limits.max_age = AGE;
    let nodes: Vec<_> = world.nodes(count).into_iter().map(Arc::new).collect();
    nodes.iter().for_each(echo);
    until("all are connected", || all_connected(&nodes)).await;
    nodes
}

fn node(id: u8) -> Identity {
    Identity::node(cluster(), NodeId(id.into()))
}

fn app() -> Identity {
    Identity::client(cluster(), "app", Role::Client).unwrap()
}

fn set(bundle: &str, issued: &Issued) -> Tls {
    Tls::from_pem(bundle.as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes()).unwrap()
}

fn issue(ca: &mut CertificateAuthority, whom: &Identity) -> Issued {
    ca.issue(whom, Validity::CENTURY, &[]).unwrap()
}

/// A line that moves to a new connection when it is asked to, as clients do.
struct Line {
    connector: duet_transport::Connector,
    now: Connection,
    answers: Receiver<Bytes>,
    /// Connections that were left, until their answers have come.
    left: Vec<(Connection, Receiver<Bytes>)>,
    moves: u32,
}

impl Line {
    async fn new(connector: duet_transport::Connector) -> Line {
        let now = soon("a connection", connector.connect(&address(1).to_string(), None)).await.unwrap();
        let answers = now.incoming().unwrap();
        Line { connector, now, answers, left: Vec::new(), moves: 0 }
    }

    async fn send(&mut self, body: Bytes) {
        if *self.now.goodbye().borrow() {
            let fresh = Line::new(self.connector.clone()).await;
            // As late as can be: what is sent right before we leave must arrive, too.
            self.now.send(body).unwrap();
            self.now.leave();
            let old =
                (std::mem::replace(&mut self.now, fresh.now), std::mem::replace(&mut self.answers, fresh.answers));
            self.left.push(old);
            self.moves += 1;
        } else {
            self.now.send(body).unwrap();
        }
    }
}

fn number(body: &Bytes) -> u32 {
    u32::from_le_bytes(*body.first_chunk().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_client_moves_on_and_loses_nothing() {
    let mut world = World::new(1);
    let nodes = nodes(&mut world, 1).await;
    let mut line = Line::new(world.client(7)).await;
    let mut waiting = BTreeSet::new();
    let began = Instant::now();
    for n in 0u32.. {
        if line.moves == 4 {
            break;
        }
        assert!(began.elapsed() < AGE * 5, "it was asked to leave only {} times", line.moves);
        let mut body = n.to_le_bytes().to_vec();
        body.resize(if n % 3 == 0 { 300_000 } else { 100 }, 0);
        line.send(body.into()).await;
        waiting.insert(n);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let Line { now, answers, mut left, .. } = line;
    left.push((now, answers));
    for (connection, mut answers) in left {
        while !waiting.is_empty() {
            match tokio::time::timeout(Duration::from_secs(1), answers.recv()).await {
                Ok(Some(answer)) => assert!(waiting.remove(&number(&answer))),
                _ => break,
            }
        }
        drop(connection);
    }
    assert_eq!(waiting, BTreeSet::new(), "requests without an answer");
    assert_eq!(nodes[0].stats().refusals.get(&Refusal::Aged), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_pauses_is_cut_off_all_the_same() {
    let mut world = World::new(1);
    let _nodes = nodes(&mut world, 1).await;
    let connection = world.client(7).connect(&address(1).to_string(), None).await.unwrap();
    let mut answers = connection.incoming().unwrap();
    let began = Instant::now();
    let reading = tokio::spawn(async move { while answers.recv().await.is_some() {} });
    while connection.send(Bytes::from_static(&[7; 500])).is_ok() {
        assert!(began.elapsed() < AGE * 2, "it is still served");
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    soon("the end", reading).await.unwrap();
    assert!(began.elapsed() <= AGE + Duration::from_secs(3), "{:?}", began.elapsed());
    let ended = connection.closed().await;
    assert_eq!(ended.refusal, Some(Refusal::Aged), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_between_nodes_survives_every_renewal() {
    let mut world = World::new(1);
    let nodes = nodes(&mut world, 2).await;
    let mut inlet = nodes[1].peers().take_incoming(Lane::Bulk).unwrap();
    let links = nodes[0].stats().links;
    let sender = nodes[0].clone();
    let sending = tokio::spawn(async move {
        for n in 0..4000u32 {
            let mut piece = n.to_le_bytes().to_vec();
            piece.resize(200_000, 1);
            sender.peers().send(NodeId(2), Lane::Bulk, piece.into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut seen = BTreeSet::new();
    while seen.len() < 4000 {
        let (_, piece) = soon("a piece", inlet.recv()).await.unwrap();
        assert!(seen.insert(number(&piece)));
    }
    sending.await.unwrap();
    assert!(nodes[0].stats().links >= links + 4, "{} links", nodes[0].stats().links);
}

#[tokio::test(start_paused = true)]
async fn another_authority_takes_over_step_by_step() {
    let mut world = World::new(1);
    let nodes = nodes(&mut world, 3).await;
    let mut new = CertificateAuthority::from_seed(&cluster(), 2).unwrap();
    let (old_pem, new_pem) = (world.ca.cert().to_owned(), new.cert().to_owned());
    let both = format!("{old_pem}{new_pem}");
    let client = world.client(7);
    let old_app = issue(&mut world.ca, &Identity::client(cluster(), "client-7", Role::Client).unwrap());
    let new_app = issue(&mut new, &Identity::client(cluster(), "client-7", Role::Client).unwrap());
    let mut inlets: Vec<_> = nodes.iter().map(|n| n.peers().take_incoming(Lane::Raft).unwrap()).collect();

    // Each step on one node after the other; meanwhile everyone is connected with everyone, and clients come in.
    client.renew(set(&both, &old_app)).unwrap();
    let mut steps: Vec<(u8, Tls)> = Vec::new();
    for id in 1..=3 {
        let issued = issue(&mut world.ca, &node(id));
        steps.push((id, set(&both, &issued)));
    }
    let issued: Vec<_> = (1..=3).map(|id| issue(&mut new, &node(id))).collect();
    steps.extend((1u8..).zip(&issued).map(|(id, issued)| (id, set(&both, issued))));
    steps.extend((1u8..).zip(&issued).map(|(id, issued)| (id, set(&new_pem, issued))));
    for (step, (id, tls)) in steps.into_iter().enumerate() {
        nodes[usize::from(id) - 1].renew(&tls).unwrap();
        if step == 6 {
            client.renew(set(&new_pem, &new_app)).unwrap();
            // Before the old one goes, every connection made with it must have been made anew.
            tokio::time::sleep(AGE).await;
        }
        for _ in 0..AGE.as_secs() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(all_connected(&nodes), "step {step}");
        }
        for to in 1..=3 {
            let connection = client.connect(&address(to).to_string(), Some(NodeId(to.into()))).await;
            connection.unwrap_or_else(|e| panic!("step {step}: {e}"));
        }
    }
    for (from, to) in [(0, 2u32), (1, 3), (2, 1)] {
        nodes[from].peers().try_send(NodeId(to), Lane::Raft, "word".into()).unwrap();
        soon("a word", inlets[to as usize - 1].recv()).await.unwrap();
    }
    client.renew(set(&both, &old_app)).unwrap();
    let refused = client.connect(&address(1).to_string(), None).await;
    assert!(
        matches!(refused, Err(ConnectError::Refused { refusal: Refusal::UnknownAuthority, .. })),
        "the old authority's word counts no more: {refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_authority_is_trusted_no_more_is_cut_off_in_time() {
    let mut world = World::new(1);
    let nodes = nodes(&mut world, 3).await;
    let mut new = CertificateAuthority::from_seed(&cluster(), 2).unwrap();
    // The third is left out.
    for id in 1..=2 {
        let issued = issue(&mut new, &node(id));
        nodes[usize::from(id) - 1].renew(&set(new.cert(), &issued)).unwrap();
    }
    let began = Instant::now();
    until("the third is alone", || nodes[2].peers().connected().is_empty()).await;
    assert!(began.elapsed() <= AGE + Duration::from_secs(1), "{:?}", began.elapsed());
    tokio::time::sleep(AGE).await;
    assert_eq!(nodes[2].peers().connected(), []);
    assert_eq!(nodes[0].peers().connected(), [NodeId(2)]);
}

#[tokio::test(start_paused = true)]
async fn who_is_revoked_is_cut_off_and_nobody_else() {
    let mut world = World::new(1);
    let me: Vec<_> = (1..=3).map(|id| issue(&mut world.ca, &node(id))).collect();
    let nodes = nodes(&mut world, 3).await;
    let pem = world.ca.cert().to_owned();
    for (endpoint, issued) in nodes.iter().zip(&me) {
        endpoint.renew(&set(&pem, issued)).unwrap();
    }
    // By now every connection is one of these certificates.
    tokio::time::sleep(AGE).await;
    let good = Line::new(world.client(7)).await;
    let lost = issue(&mut world.ca, &app());
    let bad = world.client(8);
    assert!(matches!(bad.renew(set(&pem, &lost)), Err(TlsError::WrongClient { .. })));
    let bad = duet_transport::Connector::new(set(&pem, &lost), Arc::new(world.net.host(common::ip(9))));
    let cut = bad.connect(&address(1).to_string(), None).await.unwrap();
    assert!(all_connected(&nodes));

    let revoked = Revoked::parse(format!("{}{}", lost.cert, me[2].cert).as_bytes()).unwrap();
    for at in 0..2 {
        nodes[at].renew(&set(&pem, &me[at]).revoking(revoked.clone()).unwrap()).unwrap();
    }
    assert!(matches!(set(&pem, &me[2]).revoking(revoked.clone()), Err(TlsError::Revoked)));
    assert_eq!(soon("the end", cut.closed()).await.refusal, Some(Refusal::Revoked));
    let again = bad.connect(&address(2).to_string(), None).await;
    assert!(matches!(again, Err(ConnectError::Refused { refusal: Refusal::Revoked, .. })), "{again:?}");
    until("the third is alone", || nodes[2].peers().connected().is_empty()).await;
    for _ in 0..AGE.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(nodes[0].peers().connected(), [NodeId(2)]);
        assert_eq!(nodes[1].peers().connected(), [NodeId(1)]);
    }
    assert!(nodes[0].stats().refusals[&Refusal::Revoked] >= 2);
    // A client knows of it as well, if it is told.
    let wary = issue(&mut world.ca, &app());
    let wary = set(&pem, &wary).revoking(revoked).unwrap();
    let wary = duet_transport::Connector::new(wary, Arc::new(world.net.host(common::ip(10))));
    let third = wary.connect(&address(3).to_string(), None).await;
    assert!(matches!(third, Err(ConnectError::Refused { refusal: Refusal::Revoked, .. })), "{third:?}");
    wary.connect(&address(1).to_string(), None).await.unwrap();
    drop(good);
}

#[tokio::test(start_paused = true)]
async fn certificates_that_do_not_fit_change_nothing() {
    let mut world = World::new(1);
    let nodes = nodes(&mut world, 2).await;
    let other = issue(&mut world.ca, &node(2));
    let refused = nodes[0].renew(&set(world.ca.cert(), &other));
    assert!(matches!(refused, Err(StartError::Identity { .. })), "{refused:?}");
    world.client(7).connect(&address(1).to_string(), Some(NodeId(1))).await.unwrap();
    // And a door that was closed is not opened by it.
    nodes[0].stop_accepting();
    let own = issue(&mut world.ca, &node(1));
    nodes[0].renew(&set(world.ca.cert(), &own)).unwrap();
    assert!(world.client(7).connect(&address(1).to_string(), None).await.is_err());
}

#[test]
fn authorities_that_have_ended_are_left_out_of_a_bundle() {
    let at = |from, until| CertificateAuthority::generate(&cluster(), Validity { from, until }).unwrap();
    let ended = at(1_000_000_000, 1_100_000_000);
    let mut ca = CertificateAuthority::generate(&cluster(), Validity::days(20)).unwrap();
    let issued = ca.issue(&node(1), Validity::days(9), &[]).unwrap();
    let other = CertificateAuthority::generate(&cluster(), Validity::days(900)).unwrap();
    let tls = set(&format!("{}{}{}", ended.cert(), ca.cert(), other.cert()), &issued);
    let days = |seconds: i64| (seconds - tls.expires()) / 86_400;
    assert_eq!(days(tls.authority_expires()), 11, "that of the one that issued it");
    let alone = Tls::from_pem(ended.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes());
    assert!(matches!(alone, Err(TlsError::NotNow { .. })), "{alone:?}");
}
