//! The task that keeps chitchat going, tells it what this node holds, and notes what it says of the others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use duet_proto::{Boot, NodeId};
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};

use super::{
    GossipConfig, NodeWord,
    wire::{Lane, address, anyone},
    words::{Said, heard},
};
use crate::handle::{Board, count};

/// After its first death gossip is started again this soon, after every further one twice as late.
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long it must live for the next death to be a first one.
const SETTLED: Duration = Duration::from_secs(120);
/// Within one start of the node, each life of the task is a generation of its own: its versions begin anew.
pub(super) const LIVES: u64 = 1 << 16;

/// Runs gossip until it is dropped. Whatever becomes of chitchat, nothing but [`Board`] knows.
pub(crate) async fn run(
    config: GossipConfig,
    (node, boot): (NodeId, Boot),
    out: mpsc::Sender<(NodeId, Bytes)>,
    inbox: mpsc::Receiver<(NodeId, Bytes)>,
    board: Arc<Board>,
) {
    let lane = Lane { out, inbox: Arc::new(Mutex::new(inbox)), board: board.clone() };
    let mut backoff = BACKOFF;
    for life in 0.. {
        let began = Instant::now();
        let generation = boot.0.wrapping_mul(LIVES).wrapping_add(life % LIVES);
        let id = ChitchatId::new(node.to_string(), generation, address(node));
        match spawn_chitchat(settings(&config, id), Vec::new(), &lane).await {
            Ok(gossip) => live(&gossip, &config, &board).await,
            Err(error) => tracing::warn!(%error, "gossip does not start"),
        }
        count(&board.counts.gossip_restarts);
        tracing::warn!(life, "gossip has died and is started again");
        if began.elapsed() >= SETTLED {
            backoff = BACKOFF;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

fn settings(config: &GossipConfig, chitchat_id: ChitchatId) -> ChitchatConfig {
    ChitchatConfig {
        listen_addr: chitchat_id.gossip_advertise_addr,
        chitchat_id,
        cluster_id: config.cluster.clone(),
        gossip_interval: config.interval,
        seed_nodes: vec![anyone().to_string()],
        failure_detector_config: FailureDetectorConfig {
            initial_interval: config.interval * 4,
            max_interval: config.interval * 10,
            ..FailureDetectorConfig::default()
        },
        marked_for_deletion_grace_period: Duration::from_secs(3600),
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// One life of chitchat's task.
async fn live(gossip: &ChitchatHandle, config: &GossipConfig, board: &Board) {
    let mut ended = std::pin::pin!(gossip.termination_watcher());
    let (mut said, mut known) = (Said::default(), Known::default());
    loop {
        tokio::select! {
            biased;
            _ = &mut ended => return,
            () = tokio::time::sleep(config.interval) => {}
        }
        let words = board.words().clone();
        let nodes = gossip.with_chitchat(|chitchat| {
            said.say(chitchat.self_node_state(), &words);
            known.refresh(chitchat)
        });
        *board.alive() = nodes.await;
    }
}

/// What the others have said, read anew only when it has changed.
#[derive(Default)]
struct Known(BTreeMap<NodeId, (u64, u64, NodeWord)>);

impl Known {
    fn refresh(&mut self, chitchat: &Chitchat) -> BTreeMap<NodeId, NodeWord> {
        let mut seen = BTreeMap::new();
        for (id, state) in chitchat.node_states() {
            let Ok(node) = id.node_id.parse().map(NodeId) else { continue };
            if id == chitchat.self_chitchat_id() || id.gossip_advertise_addr != address(node) {
                continue;
            }
            // In order of generation: the latest start of a node is what counts.
            seen.insert(node, (id, state));
        }
        seen.remove(&NodeId(chitchat.self_chitchat_id().node_id.parse().unwrap_or(0)));
        self.0.retain(|node, _| seen.contains_key(node));
        for (node, (id, state)) in seen {
            let (generation, version) = (id.generation_id, state.max_version());
            let known = self.0.entry(node).or_default();
            if (known.0, known.1) != (generation, version) {
                let word = NodeWord { alive: false, boot: Boot(generation / LIVES), namespaces: heard(state) };
                *known = (generation, version, word);
            }
            known.2.alive = chitchat.live_nodes().any(|live| live == id);
        }
        self.0.iter().map(|(node, (_, _, word))| (*node, word.clone())).collect()
    }
}
