//! One group: Raft, the log, the machine, and what waits for them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use duet_proto::{Answer, Boot, NamespaceId, NamespaceName, NodeId, Outcome, QuorumView};
use duet_store::{Batch, Store, StoreError};
use raft::{
    RawNode, StateRole,
    eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use super::{
    install::Receiving,
    owed::Owed,
    peers::Peers,
    requests::{self, Read, Reads, Writes},
    thrift::Thrift,
    wire::{Item, Outbox},
};
use crate::{
    Config, GroupId, Metrics, Planted,
    log::{Log, Place},
    machine::{Command, Committed, Machine, MachineError},
};

/// Why a replica stops. The node goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(pub(crate) String);

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault(error.to_string())
    }
}

impl From<MachineError> for Fault {
    fn from(error: MachineError) -> Fault {
        Fault(error.to_string())
    }
}

impl From<raft::Error> for Fault {
    fn from(error: raft::Error) -> Fault {
        Fault(error.to_string())
    }
}

/// What a group works with during one step of the host, and where its effects go.
pub(crate) struct Cx<'a> {
    pub(crate) config: &'a Config,
    pub(crate) store: &'a Arc<dyn Store>,
    pub(crate) peers: &'a Peers,
    pub(crate) now: Instant,
    /// Names the write of this step.
    pub(crate) ticket: u64,
    /// What is to be durable before what is held for the ticket goes out.
    pub(crate) batch: &'a mut Batch,
    pub(crate) held: &'a mut BTreeMap<u64, Outbox>,
    /// The groups for which something waits for the ticket.
    pub(crate) wait: &'a mut BTreeSet<GroupId>,
    /// What may go out at once.
    pub(crate) out: &'a mut Outbox,
    /// Followers that need a snapshot.
    pub(crate) lagging: &'a mut Vec<(GroupId, NodeId)>,
    pub(crate) bulk: &'a mut Vec<(NodeId, super::wire::Bulk)>,
    pub(crate) owed: &'a mut Owed,
    /// Groups whose data has changed.
    pub(crate) changed: &'a mut Vec<GroupId>,
    pub(crate) metrics: &'a mut Metrics,
    pub(crate) rounds: &'a mut u64,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) name: NamespaceName,
    pub(super) me: NodeId,
    boot: Boot,
    pub(super) raw: RawNode<Log>,
    /// None until the first snapshot of a replica that joins, and while one is put in place.
    pub(super) machine: Option<Machine>,
    pub(super) writes: Writes,
    pub(super) reads: Reads,
    /// Readies that are not durable yet: the ticket of the write, and the ready's number.
    unsynced: VecDeque<(u64, u64)>,
    /// The write that makes the term and the vote durable.
    vote: Option<u64>,
    /// What is committed and not applied yet.
    committed: Vec<Entry>,
    /// As its leader: up to where each follower has been told what is committed.
    pub(super) told: BTreeMap<u64, u64>,
    /// As its leader: what rounds of reads did without.
    pub(super) thrift: Thrift,
    /// As its leader: up to here followers are told at once what is committed.
    pub(super) hurried: u64,
    rng: ChaCha8Rng,
    drawn: (u64, StateRole, u64),
    led_by: (u64, u64),
    pub(super) led_since: Instant,
    /// When a leader and a majority had last been heard of.
    pub(super) quorum_seen: Instant,
    pub(super) active: Instant,
    pub(super) asleep: bool,
    pub(super) receiving: Option<Receiving>,
    /// The node is stopping, and this group was led here.
    pub(super) leaving: bool,
    /// Leader or members differ from what the board says.
    pub(super) news: bool,
}

impl Group {
    pub(crate) fn new(
        config: &Config,
        id: GroupId,
        name: NamespaceName,
        log: Log,
        machine: Option<Machine>,
        now: Instant,
    ) -> Result<Group, Fault> {
        let raft_config = raft::Config {
            id: u64::from(config.node.0),
            election_tick: config.election.start as usize,
            min_election_tick: config.election.start as usize,
            max_election_tick: config.election.end as usize,
            heartbeat_tick: config.heartbeat as usize,
            applied: log.applied.index,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // The next entries tell it, or `Group::announce`.
            skip_bcast_commit: true,
            max_uncommitted_size: config.pending_bytes as u64,
            max_committed_size_per_ready: 8 << 20,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, log, &logger)?;
        let mix = (id.namespace.0 << 20 ^ u64::from(id.epoch.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut group = Group {
            id,
            name,
            me: config.node,
            boot: config.boot,
            raw,
            machine,
            writes: Writes::default(),
            reads: Reads::default(),
            unsynced: VecDeque::new(),
            vote: None,
            committed: Vec::new(),
            told: BTreeMap::new(),
            thrift: Thrift::default(),
            hurried: 0,
            rng: ChaCha8Rng::seed_from_u64(config.seed ^ mix),
            drawn: (u64::MAX, StateRole::Follower, 0),
            led_by: (0, 0),
            led_since: now,
            quorum_seen: now,
            active: now,
            asleep: false,
            receiving: None,
            leaving: false,
            news: true,
        };
        group.draw(config);
        if id.namespace == NamespaceId::SYSTEM {
            group.hurry(u64::MAX);
        }
        // A group of one need not wait for anybody.
        let conf = group.conf();
        if conf.voters == [u64::from(config.node.0)] && conf.voters_outgoing.is_empty() {
            group.raw.campaign()?;
            group.draw(config);
        }
        Ok(group)
    }

    pub(crate) fn conf(&self) -> &ConfState {
        &self.raw.store().conf
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> + '_ {
        let conf = self.conf();
        let lists = [&conf.voters, &conf.voters_outgoing, &conf.learners, &conf.learners_next];
        lists.into_iter().flatten().map(|id| NodeId(*id as u32))
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        Some(NodeId(self.raw.raft.leader_id as u32)).filter(|node| node.0 != 0)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(crate) fn applied(&self) -> u64 {
        self.raw.store().applied.index
    }

    /// Whether nothing of this group waits for the disk.
    pub(super) fn is_settled(&self) -> bool {
        self.unsynced.is_empty()
    }

    pub(super) fn busy(&self) -> bool {
        !self.writes.is_empty() || !self.reads.is_empty()
    }

    /// Elections must be drawn from our seed. Raft draws for itself whenever its term, role or leader changes; this
    /// puts ours in the place of what it drew.
    fn draw(&mut self, config: &Config) {
        let raft = &mut self.raw.raft;
        let now = (raft.term, raft.state, raft.leader_id);
        if now != self.drawn {
            self.drawn = now;
            let ticks = self.rng.random_range(config.election.clone()) as usize;
            raft.set_randomized_election_timeout(ticks);
        }
    }

    /// One tick of Raft's clock.
    pub(crate) fn tick(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let candidate = |role| matches!(role, StateRole::PreCandidate | StateRole::Candidate);
        let before = self.raw.raft.state;
        if !self.asleep && !self.is_moving() {
            self.raw.tick();
            self.draw(cx.config);
        }
        if !candidate(before) && candidate(self.raw.raft.state) {
            cx.metrics.elections += 1;
        }
        self.see_quorum(cx.peers, cx.now);
        self.expire(cx);
        self.reads.retry_lost(cx.now, cx.config.tick * 4);
        if !self.is_leader() && self.leader().is_some() {
            // What was forwarded may be lost; what is in this replica's own log cannot be, without a change of term.
            self.writes.lost(cx.now.checked_sub(Duration::from_secs(1)));
        }
        self.tick_receiving(cx);
        self.fall_asleep(cx);
        Ok(())
    }

    pub(super) fn see_quorum(&mut self, peers: &Peers, now: Instant) {
        let leader = self.leader().and_then(|leader| peers.heard(leader, now));
        let majority = peers.majority(self.conf(), now);
        if let (Some(leader), Some(majority)) = (leader, majority) {
            self.quorum_seen = self.quorum_seen.max(leader.min(majority));
        }
    }

    /// Whether a write that is proposed now is likely to get through.
    pub(super) fn in_doubt(&self, config: &Config, now: Instant) -> bool {
        self.leader().is_none() || now - self.quorum_seen > config.doubt_after
    }

    /// Takes in a write, to be proposed with everything else that has come.
    pub(crate) fn write(&mut self, counter: u64, write: requests::Write) {
        self.writes.hold(counter, write);
    }

    /// Takes in a linearizable read.
    pub(crate) fn read(&mut self, cx: &mut Cx<'_>, read: Read) {
        if cx.config.planted(Planted::ReadWithoutReadIndex) {
            return self.serve(cx, read);
        }
        self.reads.push(read);
    }

    /// Does everything that has become possible.
    pub(crate) fn process(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        self.apply(cx)?;
        self.advance_install(cx)?;
        if self.is_moving() {
            return Ok(());
        }
        self.draw(cx.config);
        self.see_quorum(cx.peers, cx.now);
        self.notice_leader(cx);
        self.propose(cx);
        self.ask(cx);
        while self.raw.has_ready() {
            self.ready(cx)?;
            self.draw(cx.config);
        }
        self.notice_leader(cx);
        self.owe(cx);
        if self.machine.is_some() {
            for read in self.reads.ready(self.applied()) {
                self.serve(cx, read);
            }
            self.tell_held(cx);
            let mut cut = Batch::new();
            self.raw.mut_store().compact(&mut cut);
            cx.batch.append(cut);
        }
        Ok(())
    }

    fn notice_leader(&mut self, cx: &Cx<'_>) {
        let now = (self.raw.raft.term, self.raw.raft.leader_id);
        if now != self.led_by {
            (self.led_by, self.led_since) = (now, cx.now);
            self.news = true;
            self.active = cx.now;
            self.told.clear();
            if now.1 != 0 {
                self.writes.lost(None);
                self.reads.retry_begun_by(cx.now);
            }
        }
    }

    fn propose(&mut self, cx: &mut Cx<'_>) {
        while self.writes.has_held() && !self.in_doubt(cx.config, cx.now) {
            let (counters, entries) = self.writes.next_proposal();
            let message = Message { from: u64::from(self.me.0), entries, ..typed(MessageType::MsgPropose) };
            if self.raw.step(message).is_err() {
                // It went into no log: leadership is being handed over, or too much is uncommitted. Later.
                return;
            }
            self.active = cx.now;
            cx.metrics.proposed += counters.len() as u64;
            cx.metrics.reproposed += self.writes.proposed(&counters, cx.now);
        }
    }

    fn ask(&mut self, cx: &mut Cx<'_>) {
        // A leader drops rounds until it has committed something in its term. Whoever has not seen that yet would have to
        // be further behind than what it asks for.
        if self.reads.wants_round() && self.leader().is_some() && self.raw.raft.commit_to_current_term() {
            *cx.rounds += 1;
            let number = *cx.rounds;
            self.reads.begin(number, cx.now);
            let named = if cx.config.planted(Planted::ReuseReadContext) { 0 } else { number };
            let mut context = Vec::with_capacity(20);
            context.extend_from_slice(&self.me.0.to_be_bytes());
            context.extend_from_slice(&self.boot.0.to_be_bytes());
            context.extend_from_slice(&named.to_be_bytes());
            self.active = cx.now;
            cx.metrics.read_rounds += 1;
            self.raw.read_index(context);
        }
    }

    /// Handles one `Ready`: everything that must be durable goes into the batch of the step, what depends on it is
    /// held until then. A leader's messages need not wait for its own disk (Ongaro's thesis, 10.2.1), unless they are
    /// the first of a term that is not durable itself: a sole voter elects itself without anybody's answer.
    fn ready(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let mut ready = self.raw.ready();
        let number = ready.number();
        let must_sync = ready.must_sync();
        let mut batch = Batch::new();
        if !ready.snapshot().is_empty() {
            let place =
                Place { index: ready.snapshot().get_metadata().index, term: ready.snapshot().get_metadata().term };
            self.put_in_place(place, cx.ticket, &mut batch)?;
            self.committed.clear();
        }
        let known = (self.raw.store().hard.term, self.raw.store().hard.vote);
        // Where only the commit index has moved, it can wait: what is applied was committed.
        if let Some(hard) = ready.hs().filter(|hard| (hard.term, hard.vote) != known) {
            self.vote = Some(cx.ticket);
            let mut hard = hard.clone();
            if cx.config.planted(Planted::ForgetVote) {
                hard.vote = 0;
            }
            self.raw.mut_store().set_hard(hard, &mut batch);
        }
        let entries = ready.take_entries();
        cx.metrics.appended += entries.len() as u64;
        self.raw.mut_store().append(entries, &mut batch)?;
        let at_once = ready.take_messages();
        let later = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        for state in ready.take_read_states() {
            self.confirm(&state.request_ctx, state.index, cx);
        }
        self.raw.advance_append_async(ready);
        cx.batch.append(batch);

        if must_sync {
            cx.wait.insert(self.id);
            self.unsynced.push_back((cx.ticket, number));
        } else if let Some((ticket, _)) = self.unsynced.back().copied() {
            // Nothing to write, but what came before is not durable yet: this is, when that is.
            self.unsynced.push_back((ticket, number));
        } else {
            self.raw.on_persist_ready(number);
        }
        if cx.config.planted(Planted::AnswerBeforeSync) {
            self.unsynced.clear();
            self.vote = None;
            self.raw.on_persist_ready(number);
        }
        self.send(at_once, false, cx);
        self.send(later, true, cx);
        self.committed.extend(committed);
        // Clients wait for a leader. Others apply in the next step: the leader waits for what they say in this one.
        if self.is_leader() { self.apply(cx) } else { Ok(()) }
    }

    /// Whether the next step has something to do, though nothing may have come.
    pub(crate) fn goes_on(&self) -> bool {
        self.is_moving() || !self.committed.is_empty()
    }

    /// Sends, or holds until what the message promises is durable: everything while the term and the vote are not,
    /// and in any case a follower's word on what it has, and votes.
    fn send(&mut self, messages: Vec<Message>, follower: bool, cx: &mut Cx<'_>) {
        use MessageType as T;
        for message in messages {
            let to = NodeId(message.to as u32);
            let kind = message.msg_type();
            if kind == T::MsgSnapshot {
                cx.lagging.push((self.id, to));
                continue;
            }
            let message = if kind == T::MsgHeartbeat { self.keep_back(message, cx) } else { Some(message) };
            let Some(message) = message else { continue };
            let news = kind == T::MsgAppend && self.told.insert(message.to, message.commit) < Some(message.commit);
            if news && self.thrift.is_empty() {
                cx.owed.told(self.id);
            }
            let promise = matches!(kind, T::MsgAppendResponse | T::MsgRequestVote | T::MsgRequestVoteResponse);
            let ticket = self.unsynced.back().map(|(ticket, _)| *ticket);
            let ticket = ticket.filter(|_| self.vote.is_some() || (follower && promise));
            let out = match ticket {
                Some(ticket) => cx.held.entry(ticket).or_default(),
                None => &mut *cx.out,
            };
            out.push(to, self.id, &Item::Raft(Box::new(message)));
        }
    }

    fn confirm(&mut self, context: &[u8], index: u64, cx: &Cx<'_>) {
        let number = context.last_chunk::<8>().map(|n| u64::from_be_bytes(*n));
        let reused = cx.config.planted(Planted::ReuseReadContext).then(|| self.reads.first_round()).flatten();
        if let Some(number) = reused.or(number) {
            self.reads.confirm(number, index);
        }
    }

    /// The write of a step is durable.
    pub(crate) fn persisted(&mut self, ticket: u64, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let mut number = None;
        while let Some((_, ready)) = self.unsynced.pop_front_if(|(t, _)| *t <= ticket) {
            number = Some(ready);
        }
        if self.vote.is_some_and(|vote| vote <= ticket) {
            self.vote = None;
        }
        if let Some(number) = number {
            self.raw.on_persist_ready(number);
            let persisted = self.raw.raft.raft_log.persisted;
            self.raw.mut_store().persisted(persisted);
            self.finish_install(ticket, cx)?;
        }
        Ok(())
    }

    /// Applies committed entries straight to the store: they are in a quorum's logs, and this one's; the applied
    /// position goes into the same batch, and the store's log keeps it all behind the entries.
    fn apply(&mut self, cx: &mut Cx<'_>) -> Result<(), Fault> {
        let entries = std::mem::take(&mut self.committed);
        let Some(last) = entries.last().map(|e| Place { index: e.index, term: e.term }) else { return Ok(()) };
        let mut batch = Batch::new();
        let mut list = Vec::with_capacity(entries.len());
        for entry in entries {
            let commands = match entry.entry_type() {
                EntryType::EntryNormal => Command::decode(&entry.data).map_err(|e| Fault(e.to_string()))?,
                _ => {
                    self.change_members(&entry.data, &mut batch)?;
                    Vec::new()
                }
            };
            list.push(Committed { index: entry.index, term: entry.term, commands });
        }
        cx.metrics.applied += list.len() as u64;
        let machine = self.machine.as_mut().ok_or_else(|| Fault("entries to apply but no state".into()))?;
        let applied = machine.apply(&**cx.store, list, &mut batch)?;
        cx.store.write(batch)?;
        self.raw.mut_store().applied = last;
        self.raw.advance_apply_to(last.index);
        if !applied.is_empty() {
            self.active = cx.now;
            cx.changed.push(self.id);
        }
        let meta = self.meta();
        for applied in applied {
            let mine = (applied.request.node, applied.request.boot) == (self.me, self.boot);
            if let Some(write) = mine.then(|| self.writes.take(applied.request.counter)).flatten() {
                let _ =
                    write.reply.send(applied.result.map(|outcome: Outcome| Answer { outcome, meta: meta.clone() }));
            }
        }
        Ok(())
    }

    /// All changes are proposed as V2; nothing at all is the way out of a joint configuration.
    fn change_members(&mut self, data: &[u8], batch: &mut Batch) -> Result<(), Fault> {
        let change = <ConfChangeV2 as prost::Message>::decode(data)
            .map_err(|_| Fault("a change of members that does not read".into()))?;
        let conf = self.raw.apply_conf_change(&change)?;
        self.raw.mut_store().set_conf(conf, batch);
        self.news = true;
        Ok(())
    }

    pub(super) fn quorum_view(&self, peers: &Peers, config: &Config, now: Instant) -> QuorumView {
        let voters: Vec<NodeId> = self.conf().voters.iter().map(|v| NodeId(*v as u32)).collect();
        let lately = |n: &NodeId| peers.heard(*n, now).is_some_and(|heard| now - heard <= config.doubt_after);
        let reachable = voters.iter().copied().filter(lately).collect();
        QuorumView { term: self.raw.raft.term, leader: self.leader(), voters, reachable }
    }
}

pub(super) fn typed(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message
}
