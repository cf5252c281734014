//! A request for data on its way through the epochs of its namespace.
//!
//! It is *planned* for an epoch: a write for a strong one gets a number, which makes it exactly once there; one for an
//! eventual one gets none, since nobody would remember it. When the namespace turns out to be in another epoch,
//! [`retry::onward`](crate::retry::onward) says whether the write may be planned anew.

use duet_proto::{Consistency, DataRequest, Epoch, Mode, NamespaceId, Op, SessionId, Try};

use crate::{client::Space, session::Known};

/// What stays the same in every epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course<'a> {
    pub(crate) space: &'a Space,
    /// Which session it is of, if it may be numbered.
    pub(crate) session: Option<SessionId>,
    /// Whether the session's guarantees are asked for.
    pub(crate) guarded: bool,
}

/// A write's number, taken back when its call ends or it gets another one.
#[derive(Debug)]
pub(crate) struct Ticket<'a>(&'a Space, Try);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.with(|known| known.window.end(self.1.sequence));
    }
}

/// A request and what it is planned for.
#[derive(Debug)]
pub(crate) struct Planned<'a> {
    /// Where it was before is known here.
    pub(crate) course: Course<'a>,
    /// The namespace that its name stood for.
    pub(crate) id: NamespaceId,
    ticket: Option<Ticket<'a>>,
}

impl<'a> Course<'a> {
    /// The operation, for the epoch that the namespace is thought to be in.
    pub(crate) fn begin(self, op: Op, consistency: Consistency) -> (Planned<'a>, DataRequest) {
        let mut planned = Planned { course: self, id: NamespaceId::default(), ticket: None };
        let (namespace, epoch) = (self.space.name.clone(), Epoch::default());
        let mut request = DataRequest { namespace, epoch, op, attempt: None, tokens: Vec::new(), consistency };
        planned.plan(&mut request);
        (planned, request)
    }
}

impl Planned<'_> {
    /// Plans a request as if for the first time: nothing of it was done.
    pub(crate) fn plan(&mut self, request: &mut DataRequest) {
        let Course { space, session, guarded } = self.course;
        let numbered = session.filter(|_| request.op.is_write());
        let ticket = space.with(|known| {
            (self.id, request.epoch) = (known.id, known.epoch);
            request.tokens = if guarded { known.seen.show() } else { Vec::new() };
            numbered.filter(|_| known.mode == Some(Mode::Strong)).map(|session| known.begin(session))
        });
        request.attempt = ticket;
        // Only now is the old number free: no lock is held.
        self.ticket = ticket.map(|attempt| Ticket(space, attempt));
    }

    /// Plans it again where it was certainly not done because the client knew too old a position. The number stays,
    /// if one is still needed.
    pub(crate) fn reposition(&mut self, request: &mut DataRequest) {
        let now = self
            .course
            .space
            .with(|k| (k.mode == Some(Mode::Strong) && k.id == self.id).then_some((k.epoch, k.position)));
        match (now, &mut request.attempt) {
            (Some((epoch, position)), Some(attempt)) => {
                (attempt.epoch, attempt.seen) = (epoch.max(Epoch::FIRST), position);
                request.epoch = epoch;
            }
            _ => self.plan(request),
        }
    }

    /// Where it is best answered: whether by the leader.
    pub(crate) fn leads(&self, request: &DataRequest) -> bool {
        let reads = request.consistency == Consistency::Linearizable;
        self.course.space.with(|known| known.mode == Some(Mode::Strong)) && (request.op.is_write() || reads)
    }

    /// Whether the name stands for another namespace by now.
    pub(crate) fn replaced(&self) -> bool {
        self.course.space.with(|known: &mut Known| known.id) != self.id
    }
}
