//! Requests that wait: writes for their entry to be applied, reads for a quorum to confirm what is committed.

use std::{collections::BTreeMap, time::Duration};

use duet_proto::{Answer, Error, Op};
use raft::eraftpb::Entry;
use tokio::{sync::oneshot, time::Instant};

use crate::machine::{self, Command, join};

pub(crate) type Reply = oneshot::Sender<Result<Answer, Error>>;

/// Bytes of entries in one proposal: what a follower forwards must fit a frame.
const PROPOSAL_BYTES: usize = 1 << 20;
/// Writes share an entry up to this many bytes; one always fits.
const ENTRY_BYTES: usize = 64 << 10;

/// A write.
#[derive(Debug)]
pub(crate) struct Write {
    /// The command. Kept as long as it may be proposed again.
    data: Vec<u8>,
    /// Whether proposing it again is safe.
    again: bool,
    /// Whether it has an entry of its own: its answer may be large, or it is none of a client's.
    alone: bool,
    /// Whether it may be in some log.
    at_large: bool,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
}

impl Write {
    /// A client's.
    pub(crate) fn of_client(write: machine::Write, arrived: Instant, deadline: Instant, reply: Reply) -> Write {
        let (again, alone) = (write.attempt.is_some(), matches!(write.op, Op::Transaction { .. }));
        Write { data: Command::Write(write).encode(), again, alone, at_large: false, arrived, deadline, reply }
    }

    /// The engine's own, which can be done twice without harm.
    pub(crate) fn of_engine(command: &Command, arrived: Instant, deadline: Instant, reply: Reply) -> Write {
        Write { data: command.encode(), again: true, alone: true, at_large: false, arrived, deadline, reply }
    }

    /// Whether it was proposed under an earlier leader and will not be proposed again.
    pub(crate) fn is_lost(&self, led_since: Instant) -> bool {
        self.at_large && !self.again && self.arrived < led_since
    }
}

/// The writes of one group that wait here, by the counter of their proposal.
///
/// Invariant: every write is in `all`; those to be proposed are also in `held`, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    all: BTreeMap<u64, Write>,
    held: BTreeMap<u64, ()>,
    bytes: usize,
}

/// Why a write that waits gets no more answer of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was never in a log, and will not be.
    NotDone,
    /// It may be in a log.
    Unknown,
}

impl Writes {
    pub(crate) fn hold(&mut self, counter: u64, write: Write) {
        self.bytes += write.data.len();
        self.all.insert(counter, write);
        self.held.insert(counter, ());
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// The next entries to propose, up to a bound; they stay held until [`Writes::proposed`].
    pub(crate) fn next_proposal(&self) -> (Vec<u64>, Vec<Entry>) {
        let (mut counters, mut entries, mut size) = (Vec::new(), Vec::<Entry>::new(), 0);
        // Whether the last entry takes no more.
        let mut full = true;
        for (counter, write) in self.held.keys().filter_map(|c| Some((*c, self.all.get(c)?))) {
            size += write.data.len();
            if size > PROPOSAL_BYTES && !entries.is_empty() {
                break;
            }
            counters.push(counter);
            match entries.last_mut() {
                Some(last) if !full && !write.alone && last.data.len() + write.data.len() <= ENTRY_BYTES => {
                    join(&mut last.data, &write.data);
                }
                _ => {
                    let mut data = Vec::with_capacity(1 + write.data.len());
                    join(&mut data, &write.data);
                    entries.push(Entry { data, ..Entry::default() });
                    full = write.alone;
                }
            }
        }
        (counters, entries)
    }

    /// These were handed to Raft. Answers how many of them for another time.
    pub(crate) fn proposed(&mut self, counters: &[u64], now: Instant) -> u64 {
        let mut again = 0;
        for counter in counters {
            self.held.remove(counter);
            if let Some(write) = self.all.get_mut(counter) {
                again += u64::from(write.at_large);
                (write.at_large, write.arrived) = (true, now);
                if !write.again {
                    self.bytes -= std::mem::take(&mut write.data).len();
                }
            }
        }
        again
    }

    /// What was proposed may be lost: what can be proposed again will be. With `before`, only what was proposed by
    /// then.
    pub(crate) fn lost(&mut self, before: Option<Instant>) {
        for (counter, write) in &self.all {
            if write.again && write.at_large && before.is_none_or(|before| write.arrived <= before) {
                self.held.insert(*counter, ());
            }
        }
    }

    pub(crate) fn take(&mut self, counter: u64) -> Option<Write> {
        let write = self.all.remove(&counter)?;
        self.held.remove(&counter);
        self.bytes -= write.data.len();
        Some(write)
    }

    /// Takes out the writes for which `over` holds.
    pub(crate) fn take_if(&mut self, mut over: impl FnMut(&Write) -> bool) -> Vec<(Write, Outcome)> {
        let counters: Vec<u64> = self.all.iter().filter(|(_, w)| over(w)).map(|(c, _)| *c).collect();
        counters
            .into_iter()
            .filter_map(|c| self.take(c))
            .map(|w| {
                let outcome = if w.at_large { Outcome::Unknown } else { Outcome::NotDone };
                (w, outcome)
            })
            .collect()
    }
}

/// A read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) op: Op,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
}

#[derive(Debug)]
struct Round {
    begun: Instant,
    reads: Vec<Read>,
}

/// The reads of one group that wait here.
///
/// All that wait share a round of ReadIndex; every round has a number of its own, for ever, because Raft answers a
/// number that it has seen before with an index that may be old.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    waiting: Vec<Read>,
    rounds: BTreeMap<u64, Round>,
    /// Confirmed: they wait until this index is applied.
    confirmed: BTreeMap<u64, Vec<Read>>,
    /// Rounds that were given up lately, less those that were answered.
    losses: u32,
}

impl Reads {
    /// Rounds that may be under way at once.
    const ROUNDS: usize = 8;
    /// Losses that are counted.
    const LOSSES: u32 = 5;

    pub(crate) fn push(&mut self, read: Read) {
        self.waiting.push(read);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty()
    }

    /// Whether a round should begin.
    pub(crate) fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.rounds.len() < Self::ROUNDS
    }

    /// All that wait go on round `number`.
    pub(crate) fn begin(&mut self, number: u64, now: Instant) {
        let reads = std::mem::take(&mut self.waiting);
        self.rounds.insert(number, Round { begun: now, reads });
    }

    /// The number of the oldest round under way.
    pub(crate) fn first_round(&self) -> Option<u64> {
        self.rounds.keys().next().copied()
    }

    /// A round was answered; so were, in effect, those before it, but they get an answer of their own.
    pub(crate) fn confirm(&mut self, number: u64, index: u64) {
        if let Some(round) = self.rounds.remove(&number) {
            self.losses = self.losses.saturating_sub(1);
            self.confirmed.entry(index).or_default().extend(round.reads);
        }
    }

    /// Rounds without an answer after `patience` are given up; their reads wait for another one. Each loss doubles the
    /// patience, and each answer halves it again, so that reads get through a network that is slower than it.
    pub(crate) fn retry_lost(&mut self, now: Instant, patience: Duration) {
        let Some(before) = now.checked_sub(patience * (1 << self.losses)) else { return };
        if self.rounds.values().any(|round| round.begun <= before) {
            self.losses = (self.losses + 1).min(Self::LOSSES);
            self.retry_begun_by(before);
        }
    }

    /// Rounds that began by `before` are given up; their reads wait for another one.
    pub(crate) fn retry_begun_by(&mut self, before: Instant) {
        let lost: Vec<u64> = self.rounds.iter().filter(|(_, r)| r.begun <= before).map(|(n, _)| *n).collect();
        for number in lost {
            if let Some(round) = self.rounds.remove(&number) {
                self.waiting.extend(round.reads);
            }
        }
    }

    /// The reads that can be served once `applied` is applied.
    pub(crate) fn ready(&mut self, applied: u64) -> Vec<Read> {
        let later = self.confirmed.split_off(&(applied + 1));
        std::mem::replace(&mut self.confirmed, later).into_values().flatten().collect()
    }

    /// Takes out the reads for which `over` holds.
    pub(crate) fn take_if(&mut self, mut over: impl FnMut(&Read) -> bool) -> Vec<Read> {
        let lists = std::iter::once(&mut self.waiting)
            .chain(self.rounds.values_mut().map(|r| &mut r.reads))
            .chain(self.confirmed.values_mut());
        let mut taken = Vec::new();
        for list in lists {
            taken.extend(list.extract_if(.., |read| over(read)));
        }
        self.rounds.retain(|_, round| !round.reads.is_empty());
        self.confirmed.retain(|_, reads| !reads.is_empty());
        taken
    }
}

#[cfg(test)]
mod tests {
    use duet_proto::{Boot, Epoch, Hlc, Mutation, NodeId};

    use super::*;
    use crate::machine::RequestId;

    /// What the entries of a proposal of these writes say, by the counters in them.
    fn shared(ops: impl IntoIterator<Item = Op>) -> Vec<Vec<u64>> {
        let (mut writes, now) = (Writes::default(), Instant::now());
        for (op, counter) in ops.into_iter().zip(1..) {
            let request = RequestId { node: NodeId(1), boot: Boot(1), counter };
            let write = machine::Write { request, proposed: Hlc(1), attempt: None, op };
            writes.hold(counter, Write::of_client(write, now, now, oneshot::channel().0));
        }
        let seal = |request| Command::Seal { request, next: Epoch(2) };
        let request = RequestId { node: NodeId(1), boot: Boot(1), counter: 99 };
        writes.hold(99, Write::of_engine(&seal(request), now, now, oneshot::channel().0));
        let said = |entry: Entry| {
            let commands = Command::decode(&entry.data).unwrap().into_iter();
            commands.map(|c| if let Command::Write(write) = c { write.request.counter } else { 99 }).collect()
        };
        writes.next_proposal().1.into_iter().map(said).collect()
    }

    #[test]
    fn writes_share_entries_but_for_what_may_have_a_large_answer() {
        let put = |size: usize| Op::Write { mutation: Mutation::put("k", vec![0; size]) };
        let transaction =
            Op::Transaction { compares: vec![], then: vec![], otherwise: vec![], reads: vec!["k".into()] };
        let ops = [put(1), put(1), transaction.clone(), put(1), transaction.clone(), transaction, put(1), put(1)];
        assert_eq!(shared(ops), [&[1, 2][..], &[3], &[4], &[5], &[6], &[7, 8], &[99]]);
        let large = ENTRY_BYTES / 2;
        assert_eq!(shared([put(large), put(large), put(1), put(3 * large)]), [&[1][..], &[2, 3], &[4], &[99]]);
        let most = shared((0..40).map(|_| put(large))).concat();
        assert_eq!(
            most,
            (1..PROPOSAL_BYTES as u64 / large as u64).collect::<Vec<_>>(),
            "the rest is for another proposal"
        );
    }

    /// An answer takes three times as long as a round is waited for at first.
    #[test]
    fn a_read_gets_through_a_slow_network() {
        let (patience, latency) = (Duration::from_millis(200), Duration::from_millis(600));
        let (mut reads, mut now, mut number) = (Reads::default(), Instant::now(), 0);
        for turn in 0..3 {
            let (reply, _) = oneshot::channel();
            let deadline = now + latency * 10;
            reads.push(Read { op: Op::Get { key: "k".into() }, arrived: now, deadline, reply });
            let mut under_way = Vec::new();
            while reads.ready(u64::MAX - 1).is_empty() {
                assert!(now < deadline, "turn {turn} never ends");
                if reads.wants_round() {
                    number += 1;
                    reads.begin(number, now);
                    under_way.push((number, now + latency));
                }
                now += Duration::from_millis(50);
                for (number, _) in under_way.extract_if(.., |(_, due)| *due <= now) {
                    reads.confirm(number, 1);
                }
                reads.retry_lost(now, patience);
            }
        }
    }
}
