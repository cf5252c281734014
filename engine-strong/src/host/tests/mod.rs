//! Golden scripts: a scenario in, every message, write and answer out. `UPDATE_GOLDENFILES=1` writes them anew.
//!
//! Nothing happens by itself here: a node `step`s, its write becomes durable with `persist`, its messages arrive with
//! `deliver`, time passes with `soon` (too little for a tick) and `tick` (which leaves heartbeats out). `run` does all but
//! these two until nothing is left.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    error::Error as StdError,
    fmt::Write as _,
    time::Duration,
};

use duet_proto::{Answer, Boot, Epoch, Mutation, Op, Outcome, SessionId, Try};
use duet_store::memory::MemoryStore;
use goldenscript::{Command as Line, Runner};
use tokio::sync::oneshot;

use super::{step::Unpersisted, wire::read, *};
use crate::{GroupSpec, handle::Command};

const ID: GroupId = GroupId { namespace: NamespaceId(1), epoch: Epoch(1) };
const TICK: Duration = Duration::from_millis(50);

type Waiting = oneshot::Receiver<Result<Answer, Error>>;

struct Node {
    host: Host,
    store: Arc<MemoryStore>,
    writes: VecDeque<Unpersisted>,
    boot: u64,
}

struct Script {
    now: Instant,
    nodes: BTreeMap<u32, Node>,
    net: VecDeque<(u32, u32, Bytes)>,
    cut: BTreeSet<u32>,
    waiting: BTreeMap<String, Waiting>,
    sequence: u64,
}

impl Script {
    fn boot(&mut self, id: u32, store: Arc<MemoryStore>, boot: u64) {
        let config = Config::new(NodeId(id), Boot(boot));
        let host = Host::open(config, store.clone(), Arc::default(), self.now).unwrap();
        self.nodes.insert(id, Node { host, store, writes: VecDeque::new(), boot });
    }

    fn step(&mut self, id: u32, out: &mut String) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        let Step { frames, write, .. } = node.host.step(0, self.now);
        let did = !frames.is_empty() || write.is_some() || node.host.is_restless(0);
        if let Some(write) = write {
            let _ = writeln!(out, "{id} write {} {}", node.writes.len() + 1, edits(&write.batch));
            node.writes.push_back(write);
        }
        self.send(id, frames, out);
        did
    }

    fn send(&mut self, from: u32, frames: Vec<(NodeId, Bytes)>, out: &mut String) {
        for (to, frame) in frames {
            for (_, item) in read(frame.clone()).unwrap() {
                let _ = writeln!(out, "{from} -> {to} {}", describe(&item));
            }
            self.net.push_back((from, to.0, frame));
        }
    }

    fn persist(&mut self, id: u32, out: &mut String) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(write) = node.writes.pop_front() else { return false };
        let (batch, held) = write.into_parts();
        node.store.write(batch).unwrap();
        node.store.sync().unwrap();
        let _ = writeln!(out, "{id} durable");
        node.host.persisted(held.durable(), self.now);
        true
    }

    fn deliver(&mut self) -> bool {
        let Some((from, to, frame)) = self.net.pop_front() else { return false };
        if !self.cut.contains(&from)
            && !self.cut.contains(&to)
            && let Some(node) = self.nodes.get_mut(&to)
        {
            node.host.frame(NodeId(from), frame, self.now);
        }
        true
    }

    fn ids(&self) -> Vec<u32> {
        self.nodes.keys().copied().collect()
    }

    fn run_all(&mut self, out: &mut String) {
        loop {
            let mut did = false;
            for id in self.ids() {
                did |= self.step(id, out) | self.persist(id, out);
            }
            while self.deliver() {
                did = true;
            }
            if !did {
                return;
            }
        }
    }

    /// As much time passes as followers wait to be told what is committed.
    fn soon(&mut self, out: &mut String) {
        self.now += TICK / 10;
        self.nodes.values_mut().for_each(|node| node.host.announce(self.now));
        self.run_all(out);
    }

    fn call(&mut self, line: &Line, at: u32, op: Op) {
        let write = op.is_write();
        let attempt = write.then(|| {
            self.sequence += 1;
            Try { session: SessionId(1), sequence: self.sequence, answered_below: 0, seen: 0, epoch: ID.epoch }
        });
        let (reply, waiting) = oneshot::channel();
        let call = Call { op, attempt, consistency: Consistency::Linearizable };
        let deadline = self.now + Duration::from_secs(10);
        let name = format!("{}{}", line.name, self.waiting.len() + 1);
        self.nodes.get_mut(&at).unwrap().host.call(ID, call, Hlc::ZERO, deadline, reply, self.now);
        self.waiting.insert(name, waiting);
    }

    fn answers(&mut self, out: &mut String) {
        self.waiting.retain(|name, waiting| match waiting.try_recv() {
            Err(_) => true,
            Ok(answer) => {
                let text = match answer {
                    Ok(Answer { outcome: Outcome::Value(found), meta }) => {
                        let value = found.map_or("nothing".into(), |(_, value)| format!("{}", value.escape_ascii()));
                        format!("{value} at {}", meta.position)
                    }
                    Ok(Answer { meta, .. }) => format!("done at {}", meta.position),
                    Err(error) => error.to_string(),
                };
                let _ = writeln!(out, "{name}: {text}");
                false
            }
        });
    }

    fn status(&mut self, out: &mut String) {
        for (id, node) in &mut self.nodes {
            for s in node.host.statuses(self.now) {
                let quiet = node.host.is_idle(ID);
                let (term, last, committed, applied) = (s.term, s.last, s.committed, s.applied);
                let asleep = if quiet { " asleep" } else { "" };
                let _ = writeln!(
                    out,
                    "{id} {:?}{asleep} term {term} last {last} committed {committed} applied {applied}",
                    s.role
                );
            }
        }
    }
}

impl Runner for Script {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn StdError>> {
        let mut out = String::new();
        let ids: Vec<u32> = if matches!(line.name.as_str(), "put" | "get") {
            Vec::new()
        } else {
            let mut args = line.consume_args();
            std::iter::from_fn(|| args.next_pos()).map(str::parse).collect::<Result<_, _>>()?
        };
        match line.name.as_str() {
            "found" => {
                for id in &ids {
                    self.boot(*id, MemoryStore::new(), 1);
                    let voters = ids.iter().copied().map(NodeId).collect();
                    let name = NamespaceName::new("n")?;
                    let spec = GroupSpec {
                        namespace: ID.namespace,
                        epoch: ID.epoch,
                        name,
                        voters,
                        learners: BTreeSet::new(),
                        base: None,
                    };
                    let (reply, _) = oneshot::channel();
                    let host = &mut self.nodes.get_mut(id).ok_or("no node")?.host;
                    host.command(Command::Create { spec, reply }, self.now);
                }
                self.run_all(&mut String::new());
            }
            "soon" => self.soon(&mut out),
            "campaign" => {
                let (reply, _) = oneshot::channel();
                let host = &mut self.nodes.get_mut(&ids[0]).ok_or("no node")?.host;
                host.command(Command::Campaign { id: ID, reply }, self.now);
            }
            "step" => {
                for id in &ids {
                    self.step(*id, &mut out);
                }
            }
            "persist" => {
                for id in &ids {
                    self.persist(*id, &mut out);
                }
            }
            "deliver" => while self.deliver() {},
            "run" => self.run_all(&mut out),
            "tick" => {
                let mut lines = String::new();
                for _ in 0..ids.first().copied().unwrap_or(1) {
                    self.now += TICK;
                    for id in self.ids() {
                        let host = &mut self.nodes.get_mut(&id).ok_or("no node")?.host;
                        host.tick(self.now);
                        host.announce(self.now);
                    }
                    self.run_all(&mut lines);
                }
                let told = lines.lines().filter(|line| !line.contains("MsgHeartbeat"));
                told.for_each(|line| out.extend([line, "\n"]));
            }
            "put" | "get" => {
                let mut args = line.consume_args();
                let at = args.take_key("at").unwrap_or("1").parse()?;
                let op = match args.next_key() {
                    Some((key, value)) => Op::Write { mutation: Mutation::put(key.to_owned(), value.to_owned()) },
                    None => Op::Get { key: Bytes::from_static(b"k") },
                };
                self.call(line, at, op);
            }
            "cut" => self.cut.extend(ids),
            "heal" => self.cut.clear(),
            "crash" => {
                let node = self.nodes.remove(&ids[0]).ok_or("no node")?;
                self.boot(ids[0], node.store.crash(1), node.boot + 1);
            }
            "status" => self.status(&mut out),
            other => return Err(format!("unknown command {other}").into()),
        }
        self.answers(&mut out);
        Ok(out)
    }
}

fn edits(batch: &Batch) -> String {
    let mut counts = BTreeMap::new();
    for edit in batch.edits() {
        let (what, family) = match edit {
            duet_store::Edit::Put(family, ..) => ("put", family),
            duet_store::Edit::Delete(family, ..) => ("delete", family),
            duet_store::Edit::DeleteRange(family, ..) => ("cut", family),
        };
        *counts.entry((family.name(), what)).or_insert(0) += 1;
    }
    let list: Vec<_> = counts.iter().map(|((family, what), n)| format!("{what} {n} {family}")).collect();
    if list.is_empty() { "nothing".into() } else { list.join(", ") }
}

fn describe(item: &Item) -> String {
    let m = match item {
        Item::Raft(message) => message,
        other => return format!("{other:?}"),
    };
    let mut text = format!("{:?} term {}", m.msg_type(), m.term);
    if m.index > 0 {
        let _ = write!(text, " at {}/{}", m.index, m.log_term);
    }
    if !m.entries.is_empty() {
        let _ = write!(text, " entries {}", m.entries.len());
    }
    if m.commit > 0 {
        let _ = write!(text, " commit {}", m.commit);
    }
    if !m.context.is_empty() {
        let _ = write!(text, " context");
    }
    if m.reject {
        text.push_str(" rejected");
    }
    text
}

fn play(name: &str) {
    let mut script = Script {
        now: Instant::now(),
        nodes: BTreeMap::new(),
        net: VecDeque::new(),
        cut: BTreeSet::new(),
        waiting: BTreeMap::new(),
        sequence: 0,
    };
    let path = format!("{}/src/host/tests/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut script, path).unwrap();
}

macro_rules! scripts {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                play(stringify!($name));
            }
        )+
    };
}

scripts! {
    persist_before_telling,
    leader_sends_while_it_syncs,
    reads_share_a_round,
    rounds_ask_a_majority,
    doubtful_writes_are_held,
    lost_proposals_come_again,
    idle_groups_sleep,
    followers_answer_before_they_apply,
}
