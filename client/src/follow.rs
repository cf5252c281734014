//! How a call follows its namespace from epoch to epoch.

use duet_proto::{DataRequest, Epoch, Error, Meta, Mode, NamespaceId, Op, Request, Token};
use tokio::time::Instant;

use crate::{
    call::{Call, Outcome, Trip},
    client::Shared,
    course::Planned,
    retry::{Crossing, Onward, onward, verdict},
};

impl<'a> Trip<'a> {
    /// A call about data.
    pub(crate) fn data(shared: &'a Shared, call: Call<'a>, planned: Planned<'a>, request: DataRequest) -> Trip<'a> {
        let mut trip = Trip::new(shared, call, Request::Data(request));
        trip.planned = Some(planned);
        trip.aim();
        trip
    }

    /// Its request, if it is about data.
    pub(crate) fn data_request(&self) -> Option<&DataRequest> {
        if let Request::Data(data) = &self.frame.request { Some(data) } else { None }
    }

    /// The tokens that it shows.
    pub(crate) fn shown(&self) -> &[Token] {
        self.data_request().map_or(&[], |request| &request.tokens)
    }

    /// Goes on after the client has learned the position of the namespace.
    pub(crate) fn again(&mut self) {
        if let (Some(planned), Request::Data(data)) = (&mut self.planned, &mut self.frame.request) {
            planned.reposition(data);
        }
        self.aim();
        self.begin_again();
    }

    /// The terms that hang on what the request is planned for.
    fn aim(&mut self) {
        if let (Some(planned), Request::Data(data)) = (&self.planned, &self.frame.request) {
            self.call.leader = planned.leads(data);
            // Only the replicated state of a strong namespace remembers what it has done.
            self.call.safe = !self.call.write || data.attempt.is_some();
        }
    }

    /// Plans the request as if for the first time, and sends it at once.
    fn plan(&mut self) {
        if let (Some(planned), Request::Data(data)) = (&mut self.planned, &mut self.frame.request) {
            planned.plan(data);
        }
        self.aim();
        self.begin_again();
    }

    /// What is known of a namespace says nothing of another one that has its name now. A write that may have been done
    /// in the one that is gone is not done in this one, too.
    pub(crate) fn plan_if_replaced(&mut self) {
        let Some(planned) = self.planned.as_ref().filter(|planned| planned.replaced()) else { return };
        if !self.is_uncertain() {
            self.plan();
        } else if planned.id != NamespaceId::default() {
            self.give_up = Instant::now();
        }
    }

    /// The epoch that the request is about to be sent in. A read is always of the latest one, a write of the one that
    /// it was planned for: there is more to that than a number.
    pub(crate) fn address_epoch(&mut self) -> Epoch {
        let Request::Data(data) = &mut self.frame.request else { return Epoch::default() };
        if let (false, Some(space)) = (self.call.write, self.call.space) {
            data.epoch = data.epoch.max(space.with(|known| known.epoch));
        }
        data.epoch
    }

    /// Whether an answer is of an earlier epoch than the session had seen when it asked. A write was done there, and
    /// that is good to know; a read would go back in time.
    pub(crate) fn is_stale(&self, meta: &Meta, sent: Epoch) -> bool {
        !self.call.write && meta.epoch < sent
    }

    /// Whether it goes on from a page of a scan.
    pub(crate) fn has_cursor(&self) -> bool {
        matches!(self.data_request(), Some(DataRequest { op: Op::Scan { cursor: Some(_), .. }, .. }))
    }

    /// The namespace is in another epoch than the one that a copy of the request was sent in.
    pub(crate) async fn follow(&mut self, error: &Error, sent: Epoch) -> Outcome {
        let (&Error::EpochChanged { epoch, mode, .. }, Some(space)) = (error, self.call.space) else {
            self.wait().await;
            return None;
        };
        space.with(|known| known.switched(epoch, mode));
        let current = self.data_request().map_or(sent, |data| data.epoch);
        // Whoever names no later epoch has not caught up; a copy sent before the request was planned anew says nothing.
        if epoch <= sent || sent < current {
            self.wait().await;
            return None;
        }
        if !self.call.write {
            self.next = Some(Instant::now());
            self.tried.clear();
            return None;
        }
        let request = self.data_request();
        let crossing = Crossing {
            numbered: request.is_some_and(|data| data.attempt.is_some()),
            now: mode,
            uncertain: self.is_uncertain(),
            conditional: request.is_some_and(|data| data.op.is_conditional()),
        };
        match onward(crossing) {
            Onward::Anew => self.plan(),
            Onward::Unknown => return Some(Err(verdict(error.clone(), true).into())),
            Onward::Unsupported => {
                let why = "it has been switched; conditional writes need a strong namespace".into();
                return Some(Err(Error::Unsupported { mode: Mode::Eventual, why }.into()));
            }
        }
        None
    }
}
