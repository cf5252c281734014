//! What clients are told: of what is applied, of what has waited too long, and at the end.

use duet_proto::{Answer, Error, Meta};
use tokio::time::Instant;

use super::{
    group::{Cx, Group},
    requests::{self, Read},
};

impl Group {
    /// What goes with an answer.
    pub(super) fn meta(&self) -> Meta {
        let leader = self.leader().filter(|leader| *leader != self.me);
        Meta { epoch: self.id.epoch, position: self.applied(), leader, token: None }
    }

    /// Answers a read from what is applied.
    pub(crate) fn serve(&mut self, cx: &mut Cx<'_>, read: Read) {
        let result = match &self.machine {
            Some(machine) => machine.read(&**cx.store, &read.op),
            None => Err(Error::Unavailable { node: self.me, why: "this replica is still catching up".into() }),
        };
        cx.metrics.reads += 1;
        let _ = read.reply.send(result.map(|outcome| Answer { outcome, meta: self.meta() }));
    }

    /// Answers what has waited too long.
    pub(super) fn expire(&mut self, cx: &mut Cx<'_>) {
        if !self.busy() {
            return;
        }
        let (now, bound) = (cx.now, cx.config.no_quorum_after);
        let majority = cx.peers.majority(self.conf(), now);
        // With a majority in reach a leader will be found soon: each request may wait for it.
        let reachable = majority.is_some_and(|heard| now - heard <= cx.config.doubt_after);
        let seen = self.quorum_seen;
        let lost = |arrived: Instant| now - (if reachable { seen.max(arrived) } else { seen }) > bound;
        let view = self.quorum_view(cx.peers, cx.config, now);
        let led_since = self.led_since;
        let over = |w: &requests::Write| {
            now >= w.deadline || lost(w.arrived) || (w.is_lost(led_since) && now - led_since > bound)
        };
        for (write, outcome) in self.writes.take_if(over) {
            let error = match outcome {
                requests::Outcome::Unknown => {
                    cx.metrics.unknown += 1;
                    Error::OutcomeUnknown { why: format!("proposed, and not known to be applied: {view}") }
                }
                requests::Outcome::NotDone if lost(write.arrived) => {
                    cx.metrics.no_quorum += 1;
                    Error::NoQuorum { namespace: self.name.clone(), seen: view.clone() }
                }
                requests::Outcome::NotDone => late(now, write.arrived, "the write to be proposed"),
            };
            let _ = write.reply.send(Err(error));
        }
        for read in self.reads.take_if(|r| now >= r.deadline || lost(r.arrived)) {
            let error = if lost(read.arrived) {
                cx.metrics.no_quorum += 1;
                Error::NoQuorum { namespace: self.name.clone(), seen: view.clone() }
            } else {
                late(now, read.arrived, "a quorum to confirm the read")
            };
            let _ = read.reply.send(Err(error));
        }
    }

    /// Ends: everything that waits is answered.
    pub(crate) fn stop(mut self, why: &str) {
        for (write, outcome) in self.writes.take_if(|_| true) {
            let error = match outcome {
                requests::Outcome::Unknown => Error::OutcomeUnknown { why: why.to_owned() },
                requests::Outcome::NotDone => Error::Unavailable { node: self.me, why: why.to_owned() },
            };
            let _ = write.reply.send(Err(error));
        }
        for read in self.reads.take_if(|_| true) {
            let _ = read.reply.send(Err(Error::Unavailable { node: self.me, why: why.to_owned() }));
        }
    }
}

fn late(now: Instant, arrived: Instant, what: &str) -> Error {
    Error::TimedOut { after_ms: (now - arrived).as_millis() as u64, why: format!("waited for {what}") }
}
