//! Nodes that gossip over lanes in memory, on paused time. chitchat draws its peers at random, so these wait for what
//! must come in the end, and look at no moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chitchat::{ChitchatId, Serializable};
use duet_proto::{Boot, Digest, Epoch, Mode, NamespaceId, NodeId};
use tokio::{sync::mpsc, task::JoinHandle};

use super::*;
use crate::handle::Board;

type Inlets = Arc<Mutex<BTreeMap<NodeId, mpsc::Sender<(NodeId, Bytes)>>>>;

struct Net {
    inlets: Inlets,
    nodes: BTreeSet<NodeId>,
}

struct Node {
    board: Arc<Board>,
    task: JoinHandle<()>,
    inlet: mpsc::Sender<(NodeId, Bytes)>,
}

fn word(namespace: u64, lag_ms: u64) -> SpaceWord {
    let (epoch, mode) = (Epoch(namespace as u32), Mode::Eventual);
    SpaceWord { epoch, mode, frontier: namespace, digest: Digest(7), lag_ms }
}

impl Net {
    fn new(nodes: u32) -> Net {
        Net { inlets: Inlets::default(), nodes: (1..=nodes).map(NodeId).collect() }
    }

    fn start(&self, id: u32, boot: u64) -> Node {
        let node = NodeId(id);
        let (out, mut sent) = mpsc::channel::<(NodeId, Bytes)>(64);
        let (inlet, inbox) = mpsc::channel(64);
        let (inlets, board) = (self.inlets.clone(), Arc::new(Board::default()));
        inlets.lock().unwrap().insert(node, inlet.clone());
        tokio::spawn(async move {
            while let Some((to, bytes)) = sent.recv().await {
                let inlet = inlets.lock().unwrap().get(&to).cloned();
                if let Some(inlet) = inlet {
                    let _ = inlet.try_send((node, bytes));
                }
            }
        });
        board.peers().extend(self.nodes.iter().filter(|other| **other != node));
        let config = GossipConfig { interval: Duration::from_millis(100), ..GossipConfig::new("test") };
        let task = tokio::spawn(run(config, (node, Boot(boot)), out, inbox, board.clone()));
        Node { board, task, inlet }
    }

    fn stop(&self, id: u32, node: &Node) {
        self.inlets.lock().unwrap().remove(&NodeId(id));
        node.task.abort();
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not in ten minutes: {what}");
}

fn says(at: &Node, of: u32, expected: impl Fn(&NodeWord) -> bool) -> bool {
    at.board.alive().get(&NodeId(of)).is_some_and(expected)
}

#[tokio::test(start_paused = true)]
async fn everyone_hears_of_everyone_and_of_who_has_gone() {
    let net = Net::new(4);
    let nodes: Vec<_> = (1..=4).map(|id| net.start(id, 1)).collect();
    nodes[0].board.words().insert(NamespaceId(5), word(5, 10));
    until("all alive", || nodes.iter().all(|n| n.board.alive().values().filter(|w| w.alive).count() == 3)).await;
    until("a word", || says(&nodes[3], 1, |w| w.namespaces.get(&NamespaceId(5)) == Some(&word(5, 10)))).await;
    nodes[0].board.words().insert(NamespaceId(5), word(5, 99));
    nodes[0].board.words().insert(NamespaceId(6), word(6, 0));
    until("a change", || says(&nodes[2], 1, |w| w.namespaces.get(&NamespaceId(5)) == Some(&word(5, 99)))).await;
    nodes[0].board.words().remove(&NamespaceId(5));
    until("an end", || says(&nodes[1], 1, |w| w.namespaces.keys().eq([&NamespaceId(6)]))).await;
    net.stop(4, &nodes[3]);
    until("a death", || nodes[..3].iter().all(|n| says(n, 4, |w| !w.alive))).await;
    let again = net.start(4, 2);
    again.board.words().insert(NamespaceId(8), word(8, 1));
    let back = |w: &NodeWord| w.alive && w.boot == Boot(2) && w.namespaces.contains_key(&NamespaceId(8));
    until("a return", || nodes[..3].iter().all(|n| says(n, 4, back))).await;
}

#[tokio::test(start_paused = true)]
async fn many_namespaces_are_spoken_of_in_bounded_messages() {
    let net = Net::new(2);
    let nodes: Vec<_> = (1..=2).map(|id| net.start(id, 1)).collect();
    nodes[0].board.words().extend((1..=5000).map(|id| (NamespaceId(id), word(id, id))));
    until("as many as are spoken of", || says(&nodes[1], 1, |w| w.namespaces.len() == 2048)).await;
    assert_eq!(nodes[1].board.alive()[&NodeId(1)].namespaces[&NamespaceId(2000)], word(2000, 2000));
}

/// An answer about `node`, in its first start, whose last version lies before that of a key in it.
fn poison(node: u32) -> Bytes {
    let (mut ops, mut bytes) = (vec![0], Vec::new());
    let id = ChitchatId::new(node.to_string(), super::task::LIVES, super::wire::address(NodeId(node)));
    id.serialize(&mut ops);
    [0u64, 0].iter().for_each(|version| version.serialize(&mut ops));
    ops.push(1);
    ["key", "value"].iter().for_each(|text| text.to_string().serialize(&mut ops));
    5u64.serialize(&mut ops);
    ops.extend([0, 2]);
    1u64.serialize(&mut ops);
    45_139u16.serialize(&mut bytes);
    bytes.extend([0, 2, 2]);
    (ops.len() as u16).serialize(&mut bytes);
    bytes.extend(ops);
    bytes.push(0);
    bytes.into()
}

#[tokio::test(start_paused = true)]
async fn what_kills_gossip_does_not_keep_it_down() {
    let net = Net::new(3);
    let nodes: Vec<_> = (1..=3).map(|id| net.start(id, 1)).collect();
    until("all alive", || nodes.iter().all(|n| n.board.alive().values().filter(|w| w.alive).count() == 2)).await;
    for bytes in [&b""[..], b"nonsense", &[0xff; 70_000]] {
        nodes[0].inlet.send((NodeId(2), Bytes::copy_from_slice(bytes))).await.unwrap();
    }
    let counts = &nodes[0].board.counts;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    until("refusals", || read(&counts.gossip_malformed) == 3).await;
    assert_eq!(read(&counts.gossip_restarts), 0);
    // A delta whose versions contradict each other fails an assertion of chitchat's.
    nodes[0].inlet.send((NodeId(2), poison(2))).await.unwrap();
    until("a restart", || read(&counts.gossip_restarts) == 1).await;
    nodes[0].board.words().insert(NamespaceId(5), word(5, 10));
    until("it speaks again", || nodes[1..].iter().all(|n| says(n, 1, |w| w.alive && w.namespaces.len() == 1))).await;
}
