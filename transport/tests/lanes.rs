//! Peers: lanes, backpressure, broken connections, and the same packets for the same seed.

#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{World, address, echo, introduce, ip, soon, until};
use duet_proto::NodeId;
use duet_transport::{
    Endpoint, Lane, Refusal, SendError,
    sim::{Link, Packet},
};
use tokio::sync::mpsc::Receiver;

fn all_connected(nodes: &[Endpoint]) -> bool {
    nodes.iter().all(|node| node.peers().connected().len() == nodes.len() - 1)
}

fn number(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_le_bytes())
}

async fn expect(lane: &mut Receiver<(NodeId, Bytes)>, from: u32, n: u32) {
    assert_eq!(soon("a message", lane.recv()).await.unwrap(), (NodeId(from), number(n)));
}

/// Sends until it gets through: what is queued when a connection breaks is lost.
async fn insist(from: &Endpoint, to: NodeId, lane: &mut Receiver<(NodeId, Bytes)>) {
    let word = Bytes::from_static(b"are you there?");
    for _ in 0..600 {
        from.peers().try_send(to, Lane::Raft, word.clone()).ok();
        if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(100), lane.recv()).await {
            return;
        }
    }
    panic!("nothing gets through to {to}");
}

#[tokio::test(start_paused = true)]
async fn every_lane_carries_both_ways_and_in_order() {
    let mut world = World::new(1);
    let nodes = world.nodes(3);
    until("all are connected", || all_connected(&nodes)).await;
    for lane in Lane::ALL {
        let mut inlets: Vec<_> = nodes.iter().map(|n| n.peers().take_incoming(lane).unwrap()).collect();
        assert!(nodes[0].peers().take_incoming(lane).is_none());
        for n in 0..500 {
            nodes[0].peers().try_send(NodeId(2), lane, number(n)).unwrap();
            nodes[1].peers().try_send(NodeId(3), lane, number(n)).unwrap();
            nodes[2].peers().try_send(NodeId(1), lane, number(n)).unwrap();
        }
        for n in 0..500 {
            expect(&mut inlets[1], 1, n).await;
            expect(&mut inlets[2], 2, n).await;
            expect(&mut inlets[0], 3, n).await;
        }
        assert_eq!(nodes[0].stats().lanes[lane as usize].received, 500);
    }
    let links: u64 = nodes.iter().map(|node| node.stats().links).sum();
    assert_eq!(links, 6, "one connection for each pair, seen from both ends");
    assert!(nodes.iter().all(|node| node.stats().refusals.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_go_is_refused() {
    let mut world = World::new(1);
    let nodes = world.nodes(2);
    let peers = nodes[0].peers();
    let word = Bytes::from_static(b"word");
    assert_eq!(peers.try_send(NodeId(9), Lane::Raft, word.clone()), Err(SendError::Unknown));
    assert_eq!(peers.try_send(NodeId(2), Lane::Raft, word.clone()), Err(SendError::Down));
    until("all are connected", || all_connected(&nodes)).await;
    let huge = Bytes::from(vec![0; duet_proto::limits::PEER_FRAME + 1]);
    assert_eq!(peers.try_send(NodeId(2), Lane::Raft, huge.clone()), Err(SendError::TooLarge));
    let largest = huge.slice(1..);
    let mut inlet = nodes[1].peers().take_incoming(Lane::Raft).unwrap();
    peers.try_send(NodeId(2), Lane::Raft, largest.clone()).unwrap();
    assert!(soon("it", inlet.recv()).await.unwrap().1 == largest);
    peers.forget(NodeId(2));
    nodes[1].peers().forget(NodeId(1));
    assert_eq!(peers.try_send(NodeId(2), Lane::Raft, word), Err(SendError::Unknown));
    until("the connection is gone", || nodes[1].peers().connected().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_bulk_lane_does_not_delay_raft() {
    let mut world = World::new(1);
    let nodes = world.nodes(2);
    until("all are connected", || all_connected(&nodes)).await;
    let mut raft = nodes[1].peers().take_incoming(Lane::Raft).unwrap();
    // Nobody takes what comes in the bulk lane, and far more is sent than every window and queue holds.
    let chunk = Bytes::from(vec![7; 256 << 10]);
    let mut stalled = false;
    for n in 0..400u32 {
        let sending = nodes[0].peers().send(NodeId(2), Lane::Bulk, chunk.clone());
        stalled |= tokio::time::timeout(Duration::from_millis(100), sending).await.is_err();
        nodes[0].peers().try_send(NodeId(2), Lane::Raft, number(n)).unwrap();
        expect(&mut raft, 1, n).await;
        if stalled {
            break;
        }
    }
    assert!(stalled, "nothing held the sender of unread chunks up");
    assert_eq!(nodes[0].peers().try_send(NodeId(2), Lane::Bulk, chunk.clone()), Err(SendError::Full));
    assert_eq!(nodes[0].stats().lanes[Lane::Bulk as usize].full, 1);
    for n in 0..100 {
        nodes[0].peers().try_send(NodeId(2), Lane::Raft, number(n)).unwrap();
        expect(&mut raft, 1, n).await;
    }
    // Once it is read, it goes on.
    let mut bulk = nodes[1].peers().take_incoming(Lane::Bulk).unwrap();
    let reading = tokio::spawn(async move { while bulk.recv().await.is_some() {} });
    soon("room", nodes[0].peers().send(NodeId(2), Lane::Bulk, chunk)).await.unwrap();
    drop(nodes);
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_restarts_is_found_again() {
    let mut world = World::new(1);
    let mut nodes = world.nodes(3);
    until("all are connected", || all_connected(&nodes)).await;
    // Each in turn: the one that calls, the one that is called, and the one in between.
    for id in [1u8, 3, 2] {
        let at = usize::from(id) - 1;
        world.net.crash(ip(id));
        nodes[at] = world.node(id);
        introduce(&nodes[at], 3);
        let mut inlet = nodes[at].peers().take_incoming(Lane::Raft).unwrap();
        for other in (0..3).filter(|other| *other != at) {
            insist(&nodes[other], NodeId(id.into()), &mut inlet).await;
        }
        until("all are connected", || all_connected(&nodes)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_healed_partition_is_noticed_soon() {
    let mut world = World::new(1);
    let nodes = world.nodes(3);
    until("all are connected", || all_connected(&nodes)).await;
    world.net.partition(&[ip(1)], &[ip(2), ip(3)]);
    until("1 is alone", || nodes[0].peers().connected().is_empty()).await;
    until("2 has lost 1", || nodes[1].peers().connected() == [NodeId(3)]).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    world.net.heal();
    let healed = tokio::time::Instant::now();
    until("all are connected", || all_connected(&nodes)).await;
    assert!(healed.elapsed() < Duration::from_secs(3), "it took {:?}", healed.elapsed());
    // One way only is as good as none.
    world.net.block(ip(3), ip(1));
    until("3 has lost 1", || nodes[2].peers().connected() == [NodeId(2)]).await;
    world.net.heal();
    until("all are connected", || all_connected(&nodes)).await;
}

/// QUIC's own tries come later and later: one that was broken for two seconds would be noticed two seconds late.
#[tokio::test(start_paused = true)]
async fn a_short_partition_is_over_when_it_is_healed() {
    let mut world = World::new(1);
    let nodes = world.nodes(2);
    until("all are connected", || all_connected(&nodes)).await;
    let mut inlet = nodes[1].peers().take_incoming(Lane::Raft).unwrap();
    for ms in (1_000..7_000).step_by(350) {
        world.net.partition(&[ip(1)], &[ip(2)]);
        let healed = tokio::time::Instant::now() + Duration::from_millis(ms);
        while tokio::time::Instant::now() < healed {
            // More than may be on its way without an answer.
            nodes[0].peers().try_send(NodeId(2), Lane::Raft, vec![0; 4096].into()).ok();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.net.heal();
        while inlet.try_recv().is_ok() {}
        insist(&nodes[0], NodeId(2), &mut inlet).await;
        assert!(healed.elapsed() < Duration::from_secs(1), "{ms} ms: {:?}", healed.elapsed());
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(5), inlet.recv()).await {}
    }
}

#[tokio::test(start_paused = true)]
async fn old_connections_are_renewed_without_a_gap() {
    let mut world = World::new(1);
    world.limits.max_age = Duration::from_secs(100);
    let nodes = world.nodes(2);
    until("all are connected", || all_connected(&nodes)).await;
    for _ in 0..420 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(all_connected(&nodes));
    }
    assert!(nodes[0].stats().links >= 4, "{:?}", nodes[0].stats());
    assert_eq!(nodes[0].stats().refusals.get(&Refusal::Aged), None, "none reaches its greatest age");
}

/// Packets of twenty idle seconds between two nodes of which the lower one calls `after` the other, and how many connections
/// came up at first.
async fn idle_packets(after: Duration) -> (u64, u64) {
    let mut world = World::new(1);
    let delay = Duration::from_millis(10)..Duration::from_millis(11);
    world.net.set_default(Link { delay, ..Link::default() });
    let nodes = [world.node(1), world.node(2)];
    introduce(&nodes[1], 2);
    tokio::time::sleep(after).await;
    introduce(&nodes[0], 2);
    tokio::time::sleep(Duration::from_secs(7)).await;
    let before = world.net.packets();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(all_connected(&nodes));
    (world.net.packets() - before, nodes[0].stats().links)
}

/// When calls cross, the sides see the connections come up in different orders. Were they to send on different ones, no
/// message would carry the acknowledgement of another.
#[tokio::test(start_paused = true)]
async fn calls_that_cross_leave_one_connection() {
    let (of_one, links) = idle_packets(Duration::from_millis(200)).await;
    assert_eq!(links, 1);
    let mut crossed = 0;
    for after in (0..100).step_by(5) {
        let (packets, links) = idle_packets(Duration::from_millis(after)).await;
        assert!(packets < of_one * 3 / 2, "{packets} packets, not {of_one}: the lower one calls after {after} ms");
        crossed += links - 1;
    }
    assert!(crossed > 0, "no calls have crossed");
}

/// A busy minute on a bad network: peers, a client, a partition, a crash. Returns the outline of every packet.
async fn story(seed: u64) -> Vec<Packet> {
    let mut world = World::new(seed);
    world.net.record();
    let delay = Duration::from_millis(1)..Duration::from_millis(20);
    world.net.set_default(Link { delay, loss: 0.05, duplicate: 0.05, reorder: 0.1 });
    let mut nodes: Vec<_> = world.nodes(3).into_iter().map(Arc::new).collect();
    nodes.iter().for_each(echo);
    let client = world.client(7);
    for round in 0..60u32 {
        match round {
            20 => world.net.partition(&[ip(2)], &[ip(1), ip(3)]),
            30 => world.net.heal(),
            40 => {
                world.net.crash(ip(3));
                nodes[2] = Arc::new(world.node(3));
                introduce(&nodes[2], 3);
                echo(&nodes[2]);
            }
            _ => (),
        }
        for (from, to) in [(0, 2), (1, 3), (2, 1)] {
            for lane in Lane::ALL {
                let body = vec![round as u8; 1 + 977 * (round as usize % 9)];
                nodes[from].peers().try_send(NodeId(to), lane, body.into()).ok();
            }
        }
        if let Ok(connection) = client.connect(&address(1).to_string(), None).await {
            let mut answers = connection.incoming().unwrap();
            for n in 0..50 {
                connection.send(number(n)).unwrap();
            }
            connection.send(vec![1; 100_000].into()).unwrap();
            for _ in 0..51 {
                if soon("an answer", answers.recv()).await.is_none() {
                    panic!("loss is made good: {:?}", connection.closed().await);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    world.net.trace()
}

fn run(seed: u64) -> Vec<Packet> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story(seed))
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let (first, again) = (run(1), run(1));
    let differs = first.iter().zip(&again).position(|(a, b)| a != b);
    if let Some(at) = differs {
        panic!("packet {at} differs:\n{:?}\n{:?}", first[at], again[at]);
    }
    assert_eq!(first.len(), again.len());
    assert!(first.len() > 5000, "{} packets", first.len());
    assert_ne!(first, run(2));
}
