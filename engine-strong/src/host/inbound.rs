//! Messages from peers. The transport has authenticated the sender's node; everything else is checked here, because
//! raft-rs trusts its caller: it takes impossible indices for bugs of its own, and panics.

use duet_proto::NodeId;
use duet_store::warm_soon;
use raft::eraftpb::{EntryType, Message, MessageType};

use super::group::{Cx, Fault, Group};
use crate::machine::{self, Command};

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It names another sender or receiver than it came from or to.
    Misaddressed,
    /// It is of a kind that does not travel, or not from there.
    Kind,
    /// From a node that is no member.
    Stranger,
    /// Indices or terms that cannot be.
    Impossible,
}

impl Group {
    /// Hands a message to Raft.
    pub(crate) fn step(
        &mut self,
        from: NodeId,
        message: Message,
        cx: &mut Cx<'_>,
    ) -> Result<Result<(), Refusal>, Fault> {
        if self.is_moving() {
            return Ok(Ok(()));
        }
        if let Err(refusal) = self.check(from, &message)? {
            return Ok(Err(refusal));
        }
        self.warm(&message, cx);
        let kind = message.msg_type();
        match kind {
            // The last answers to a leader that has just gone to sleep.
            MessageType::MsgHeartbeatResponse => {}
            MessageType::MsgHeartbeat if !self.asleep => {}
            _ => self.wake(cx, false),
        }
        // An answer from a node that was just removed, or a proposal that cannot be taken: both are as good as lost.
        let taken = self.raw.step(message).is_ok();
        if taken && kind == MessageType::MsgPropose && self.is_leader() {
            // Whoever asked waits until it is applied there. Who asks for a read is told with the answer.
            self.hurry(self.raw.raft.raft_log.last_index());
        }
        Ok(Ok(()))
    }

    /// By the time its entries are committed, the rows that they change should be in memory: applying reads them.
    fn warm(&self, message: &Message, cx: &Cx<'_>) {
        let commands = message.entries.iter().flat_map(|entry| Command::decode(&entry.data).unwrap_or_default());
        let keys = commands.flat_map(|command| match command {
            Command::Write(write) => write.op.keys().cloned().collect(),
            _ => Vec::new(),
        });
        warm_soon(cx.store, self.id.namespace, keys);
    }

    fn check(&self, from: NodeId, m: &Message) -> Result<Result<(), Refusal>, Fault> {
        use MessageType as T;
        let raft = &self.raw.raft;
        if m.from != u64::from(from.0) || m.to != raft.id {
            return Ok(Err(Refusal::Misaddressed));
        }
        let kind = m.msg_type();
        if m.msg_type != kind as i32 {
            return Ok(Err(Refusal::Kind));
        }
        let member = raft.prs().get(m.from).is_some();
        let last = raft.raft_log.last_index();
        let verdict = match kind {
            T::MsgHup | T::MsgBeat | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum | T::MsgSnapshot => {
                Err(Refusal::Kind)
            }
            T::MsgPropose | T::MsgReadIndex | T::MsgTransferLeader if !member => Err(Refusal::Stranger),
            T::MsgPropose => possible(!m.entries.is_empty() && m.entries.iter().all(|e| is_normal(e.entry_type))),
            T::MsgReadIndex => possible(m.entries.len() == 1),
            T::MsgReadIndexResp => possible(m.entries.len() == 1 && self.leader() == Some(from)),
            T::MsgTransferLeader => Ok(()),
            // Whoever has nothing may have voted before it lost it; it votes again once it has caught up.
            T::MsgRequestVote | T::MsgRequestPreVote | T::MsgTimeoutNow if last == 0 => Err(Refusal::Stranger),
            T::MsgTimeoutNow if self.leader() != Some(from) => Err(Refusal::Stranger),
            T::MsgAppend | T::MsgHeartbeat if self.is_rival(from, m.term) => Err(Refusal::Impossible),
            T::MsgAppend => possible(self.fits(m)),
            T::MsgHeartbeat if m.commit > last && last > 0 && m.term >= raft.term => {
                // The leader counts on entries that this replica has told it of, and they are not here.
                let why = format!("the leader has counted entries up to {}, the log ends at {last}", m.commit);
                return Err(Fault(format!("{why}: this replica has lost durable data")));
            }
            T::MsgHeartbeat => possible(m.commit <= last),
            T::MsgAppendResponse => possible(m.index <= last || m.reject),
            T::MsgRequestVote
            | T::MsgRequestPreVote
            | T::MsgRequestVoteResponse
            | T::MsgRequestPreVoteResponse
            | T::MsgHeartbeatResponse
            | T::MsgTimeoutNow => Ok(()),
        };
        Ok(verdict)
    }

    /// Whether it speaks as the leader of a term that has another one.
    fn is_rival(&self, from: NodeId, term: u64) -> bool {
        term == self.raw.raft.term && self.leader().is_some_and(|leader| leader != from)
    }

    /// Whether entries are in a row, of rising terms, and leave what is committed alone.
    fn fits(&self, m: &Message) -> bool {
        let log = &self.raw.raft.raft_log;
        let (mut index, mut term) = (m.index, m.log_term);
        m.entries.iter().all(|entry| {
            let follows = entry.index == index + 1 && entry.term >= term && entry.term <= m.term;
            (index, term) = (entry.index, entry.term);
            follows
                && (entry.index > log.committed
                    || log.term(entry.index).is_ok_and(|t| t == entry.term || t == 0)
                    || entry.index < log.first_index())
        })
    }

    /// Names the machine for errors.
    pub(crate) fn machine_group(&self) -> machine::Group {
        machine::Group { namespace: self.id.namespace, epoch: self.id.epoch, name: self.name.clone(), node: self.me }
    }
}

fn possible(it_is: bool) -> Result<(), Refusal> {
    if it_is { Ok(()) } else { Err(Refusal::Impossible) }
}

fn is_normal(kind: i32) -> bool {
    kind == EntryType::EntryNormal as i32
}
