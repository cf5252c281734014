//! What peers say: who is heard, pushes, reports, changes of the members.

use std::collections::BTreeSet;

use duet_proto::{Hlc, NodeId, Record, Stamp};
use duet_store::StoreError;

use super::{Step, serve};
use crate::{
    Envelope, Frontier, Members, Planted,
    message::{Message, Nonce, Push, Report, Summary},
    rows::{Standing, next_beyond},
    table::Merge,
};

/// What is known of a peer, from its own words.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// The version of the members in which it reported `frontier`.
    pub(super) version: u64,
    /// What it durably holds, as reported in that version.
    pub(super) frontier: Frontier,
    /// Its latest report, if it was made since this node started.
    pub(super) report: Option<Report>,
    /// What its data came to when a session with it last came to its end.
    pub(super) pulled: Option<(Frontier, Summary)>,
    /// No session with it is begun before this: the last one was refused, here or there.
    pub(super) rest_until_ms: u64,
    /// When it was last heard.
    pub(super) heard_ms: u64,
    /// When the latest report came.
    pub(super) reported_ms: u64,
    /// Since when something is missing here that it reported, and what it held by then.
    pub(super) lacking: Option<(u64, Frontier)>,
}

/// Sessions with all members, to know that nothing more of some origins exists.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The version of the members at which they were missed.
    version: u64,
    gone: BTreeSet<NodeId>,
    /// Sessions begun before this do not count.
    since: Nonce,
    swept: BTreeSet<NodeId>,
}

impl Peer {
    /// Takes note of a durable frontier. Within a version it only rises; an older version says nothing any more.
    fn holds(&mut self, version: u64, frontier: &Frontier) {
        if version > self.version {
            self.version = version;
            self.frontier = frontier.clone();
        } else if version == self.version {
            self.frontier.join(frontier);
        }
    }
}

impl Step<'_> {
    pub(super) fn peer(&mut self, from: NodeId, envelope: Envelope) -> Result<(), StoreError> {
        let stranger = from == self.r.config.node || !self.r.meta.members.hears(from);
        if stranger || (envelope.namespace, envelope.epoch) != self.r.id() {
            self.r.counters.not_heard += 1;
            return Ok(());
        }
        self.r.clocks.heard(from, self.cx.now_ms, envelope.wall_ms, self.cx.clock);
        let version = envelope.version;
        if let Some(peer) = self.r.peers.get_mut(&from) {
            peer.heard_ms = self.cx.now_ms;
        }
        match envelope.message {
            Message::Push(_) | Message::Copied(_) | Message::Fetched { .. } | Message::Differs(_)
                if self.takes_nothing() => {}
            Message::Push(push) => {
                self.r.peers.entry(from).or_default().holds(version, &push.frontier);
                self.pushed(from, push)?;
            }
            Message::Ack(hlc) => {
                let me = self.r.config.node;
                let held = Frontier::from_iter([(me, hlc)]);
                self.r.peers.entry(from).or_default().holds(version, &held);
            }
            Message::Report(report) => self.reported(from, version, report)?,
            Message::Pull { nonce, frontier } => self.serve(from, nonce, frontier)?,
            Message::More { nonce, walk, sequence } => self.serve_more(from, nonce, walk, sequence)?,
            Message::Chunk(chunk) => self.chunk(from, version, chunk)?,
            Message::Copy { nonce, target, after } => self.serve_copy(from, nonce, target, after)?,
            Message::Copied(copied) => self.copied(from, copied)?,
            Message::Refused { nonce, why } => self.refused(from, nonce, why),
            Message::Fetch { keys } => self.serve_fetch(from, &keys)?,
            Message::Fetched { frontier, items } => self.fetched(&frontier, items)?,
            Message::Compare(compare) => self.serve_compare(from, compare)?,
            Message::Differs(differs) => self.differs(from, differs)?,
        }
        Ok(())
    }

    /// Whether what `frontier` stands for may be merged from: its holder has seen every tombstone that was forgotten
    /// here, so it does not hold what one of those deleted.
    pub(super) fn above_floor(&mut self, frontier: &Frontier) -> bool {
        let above = frontier.covers(&self.r.meta.floor) || self.r.planted(Planted::FloorIgnored);
        self.r.counters.below_floor += u64::from(!above);
        above
    }

    /// Whether the clock takes a peer's stamps; takes note of them.
    pub(super) fn in_time(&mut self, last: Hlc) -> bool {
        let taken = self.cx.clock.observe(last).is_ok();
        self.r.counters.clock_refused += u64::from(!taken);
        taken
    }

    /// Merges a peer's record, unless it is known already: what lies at or below the frontier is held, superseded, or
    /// deleted and forgotten.
    pub(super) fn merge(&mut self, key: &bytes::Bytes, record: Record) -> Result<(), StoreError> {
        let stamp = record.stamp;
        let covered = match stamp.epoch.cmp(&self.r.epoch) {
            std::cmp::Ordering::Less => self.r.meta.standing == Standing::Whole,
            std::cmp::Ordering::Equal => self.r.meta.frontier.includes(stamp),
            std::cmp::Ordering::Greater => true,
        };
        if covered && !self.r.planted(Planted::CoveredMergedAgain) {
            self.r.counters.covered += 1;
            return Ok(());
        }
        match self.table.merge(&mut self.r.meta, key, record)? {
            Merge::Won => {
                self.r.counters.won += 1;
                self.effects.changed.push(key.clone());
            }
            Merge::Lost => self.r.counters.lost += 1,
            Merge::Same => {}
            Merge::Conflict => self.r.counters.conflicting_marker += 1,
            Merge::Damaged => self.damaged(key),
        }
        Ok(())
    }

    fn pushed(&mut self, from: NodeId, push: Push) -> Result<(), StoreError> {
        let ordered = push.writes.is_sorted_by(|a, b| a.hlc < b.hlc)
            && push.writes.first().is_some_and(|first| push.previous < first.hlc);
        let twice = self.r.planted(Planted::MarkerTwice);
        let Some(last) = push.writes.last().map(|w| w.hlc).filter(|_| ordered || twice) else { return Ok(()) };
        if self.r.meta.standing != Standing::Whole || !self.above_floor(&push.frontier) || !self.in_time(last) {
            return Ok(());
        }
        if push.previous > self.r.meta.frontier.get(from) && !self.r.planted(Planted::PushWithGap) {
            self.r.counters.gaps += 1;
            self.r.wanted.insert(from);
            self.keep_for_later(from, push);
            return Ok(());
        }
        let epoch = self.r.epoch;
        for write in push.writes {
            let stamp = Stamp { epoch, hlc: write.hlc, node: from };
            self.merge(&write.key, Record { stamp, body: write.body })?;
        }
        self.r.meta.frontier.raise(from, last);
        if push.ack {
            let held = self.r.meta.frontier.get(from);
            self.send([from], Message::Ack(held));
        }
        Ok(())
    }

    /// A session is on its way to fill the gap: what arrives meanwhile follows on it. Too much is dropped from the
    /// end, which is a gap again.
    fn keep_for_later(&mut self, from: NodeId, push: Push) {
        let size = |p: &Push| p.writes.iter().map(|w| w.key.len() + serve::body_len(&w.body) + 32).sum::<usize>();
        let early = self.r.early.entry(from).or_default();
        if early.iter().map(size).sum::<usize>() + size(&push) <= self.r.config.early_bytes {
            early.push(push);
        }
    }

    /// After a session: the pushes that came too early, those that now follow.
    pub(super) fn replay_early(&mut self) -> Result<(), StoreError> {
        for (from, mut pushes) in std::mem::take(&mut self.r.early) {
            pushes.sort_by_key(|push| push.previous);
            for push in pushes {
                if self.r.meta.members.hears(from) && push.previous <= self.r.meta.frontier.get(from) {
                    self.pushed(from, push)?;
                }
            }
        }
        Ok(())
    }

    fn reported(&mut self, from: NodeId, version: u64, report: Report) -> Result<(), StoreError> {
        let me = self.r.config.node;
        let told = report.ahead.iter().find(|(node, _)| *node == me).map_or(0, |(_, ms)| *ms);
        self.r.clocks.told(from, told);
        let mine = &self.r.synced;
        let equal = report.frontier == mine.frontier;
        let differ = (report.summary.digest, report.summary.keys) != (mine.digest, mine.keys);
        let peer = self.r.peers.entry(from).or_default();
        peer.holds(version, &report.frontier);
        // An unclean peer has something beyond its frontier; once is enough, until its data changes.
        let pulled = peer.pulled.as_ref().is_some_and(|(f, s)| *f == report.frontier && *s == report.summary);
        let news = !mine.frontier.covers(&report.frontier) || !report.clean && !pulled;
        let clean = report.clean;
        if peer.lacking.as_ref().is_none_or(|(_, lacking)| mine.frontier.covers(lacking)) {
            let lacks = !mine.frontier.covers(&report.frontier);
            peer.lacking = lacks.then(|| (self.cx.now_ms, report.frontier.clone()));
        }
        (peer.heard_ms, peer.reported_ms) = (self.cx.now_ms, self.cx.now_ms);
        peer.report = Some(report);
        if self.is_fenced() {
            return Ok(());
        }
        if news {
            self.r.wanted.insert(from);
        }
        if equal && differ && clean && self.r.clean(self.cx.view)? {
            self.r.counters.digest_mismatch += 1;
            self.compare_with(from);
        }
        Ok(())
    }

    /// Says what is durable, when that has changed, and now and then when it has not.
    pub(super) fn report(&mut self) -> Result<(), StoreError> {
        let wait = match &self.r.reported {
            None => 0,
            Some((_, told)) if told.members.version != self.r.synced.members.version => 0,
            Some((_, told)) if *told != self.r.synced => self.r.config.report_ms,
            Some(_) if self.r.is_apart() => self.r.config.apart_report_ms,
            Some(_) => self.r.config.idle_report_ms,
        };
        if self.r.reported.as_ref().is_some_and(|(at, _)| self.cx.now_ms < at + wait) {
            return Ok(());
        }
        // A step that moves to another version tells of it when it is durable: the next one.
        if self.r.meta.members.version != self.r.synced.members.version {
            return Ok(());
        }
        let report = Report {
            frontier: self.r.synced.frontier.clone(),
            clean: self.r.clean(self.cx.view)?,
            summary: self.r.synced.summary(),
            ahead: self.r.clocks.ahead(),
        };
        self.r.reported = Some((self.cx.now_ms, self.r.synced.clone()));
        let others = self.others();
        if !others.is_empty() {
            self.send(others, Message::Report(report));
        }
        Ok(())
    }

    /// Moves to a later version of the members, and records what this replica held durably when it did (rule 8).
    pub(super) fn members(&mut self, members: Members) {
        if members.version <= self.r.meta.members.version {
            return;
        }
        self.r.meta.moved = self.r.meta.frontier.clone();
        self.r.meta.members = members;
        let heard = &self.r.meta.members;
        self.r.peers.retain(|node, _| heard.hears(*node));
        self.r.wanted.retain(|node| heard.hears(*node));
        self.r.early.retain(|node, _| heard.hears(*node));
        self.r.serving.retain(|node, _| heard.hears(*node));
        if self.r.pull.as_ref().is_some_and(|pull| !heard.hears(pull.from())) {
            self.r.pull = None;
        }
    }

    /// Rule 7: an origin that has left writes no more. When a session with every member, each at the version without
    /// it, was begun after it was missed and has come to its end, whatever of it still exists is here, and its entry
    /// rises to that.
    ///
    /// At that very version: an origin that nobody here has heard of may as well be one that is about to join, whose
    /// records come from a member that is a version ahead.
    pub(super) fn adopt_departed(&mut self) -> Result<(), StoreError> {
        let mut at = (NodeId(0), Hlc::ZERO);
        let mut gone = BTreeSet::new();
        while let Some((origin, _, _)) = next_beyond(self.cx.view, self.r.id(), &self.r.synced.frontier, at)? {
            if !self.r.synced.members.hears(origin) {
                gone.insert(origin);
            }
            let Some(next) = origin.0.checked_add(1) else { break };
            at = (NodeId(next), Hlc::ZERO);
        }
        let version = self.r.synced.members.version;
        if gone.is_empty() || self.r.meta.members.version != version {
            self.r.sweep = None;
            return Ok(());
        }
        if self.r.sweep.as_ref().is_none_or(|s| s.version != version || !s.gone.is_superset(&gone)) {
            self.r.sweep = Some(Sweep { version, gone, since: self.r.fresh(), swept: BTreeSet::new() });
        }
        let others = self.others();
        let Some(sweep) = &self.r.sweep else { return Ok(()) };
        let lacking: Vec<_> = others.into_iter().filter(|node| !sweep.swept.contains(node)).collect();
        if !lacking.is_empty() {
            self.r.wanted.extend(lacking);
            return Ok(());
        }
        for origin in self.r.sweep.take().into_iter().flat_map(|sweep| sweep.gone) {
            let last = serve::last_of(self.cx.view, self.r.id(), origin)?;
            self.r.meta.frontier.raise(origin, last);
        }
        Ok(())
    }

    /// A session has come to its end.
    pub(super) fn swept(&mut self, from: NodeId, version: u64, nonce: Nonce) {
        if let Some(sweep) = self.r.sweep.as_mut().filter(|s| s.version == version && s.since < nonce) {
            sweep.swept.insert(from);
        }
    }
}
