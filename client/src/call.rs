//! One call: from a request to its answer, over however many tries that takes.
//!
//! A call is a small state machine around a list of *flights*: connections being made and requests that wait. It has
//! one clock, the time of the next launch. A flight that is slow does not end; where a second try does no harm, another
//! member is asked beside it, and the first answer counts.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use duet_proto::{Epoch, Error, NodeId, Request, Response, frame::RequestFrame};
use duet_transport::NotSent;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    ClientError,
    client::{Shared, Space},
    course::Planned,
    line::{Asked, Line, Lost, Reply},
    pool::{NotReached, Reach},
    retry::{Situation, Step, decide, verdict},
    route::{Health, Target, choose},
    session::Known,
};

/// Flights of one call at a time.
const FLIGHTS: usize = 4;
/// Redirections that are followed without a pause.
const REDIRECTS: u32 = 8;
/// How long a member that answers at all may hold a request: without a quorum it says so by then. Before that, a second
/// member is asked only if nothing speaks against it: what is sent into a dead connection makes a write uncertain.
const HELD: Duration = Duration::from_millis(1800);
/// Between the endpoints when a client begins: any of them will do.
const STAGGER: Duration = Duration::from_millis(50);
/// The pause when a connection's queue is full.
const FULL: Duration = Duration::from_millis(2);

/// A call's terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The namespace it is about.
    pub(crate) space: Option<&'a Space>,
    /// The leader answers it fastest; otherwise any member does.
    pub(crate) leader: bool,
    /// It may change something.
    pub(crate) write: bool,
    /// Doing it again does no harm.
    pub(crate) safe: bool,
    /// A change of the namespace is waited out.
    pub(crate) patient: bool,
    /// Only this node can answer.
    pub(crate) pinned: Option<NodeId>,
    /// Give up once everybody was found out of reach.
    pub(crate) one_round: bool,
    /// When it is over.
    pub(crate) deadline: Instant,
    /// How long it was to take, for the error's text.
    pub(crate) timeout: Duration,
}

/// An answer, and who gave it.
pub(crate) struct Answered {
    pub(crate) response: Response,
    pub(crate) from: Arc<Line>,
}

enum Flight {
    Dialing(Target, oneshot::Receiver<Result<Arc<Line>, NotReached>>),
    /// Since when, and in which epoch it was sent.
    Waiting(Arc<Line>, Asked, Instant, Epoch),
}

enum Event {
    Connected(Result<Arc<Line>, NotReached>),
    Replied(Arc<Line>, Reply, Epoch),
}

impl Flight {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        match self {
            Flight::Dialing(_, wait) => Pin::new(wait).poll(cx).map(|result| {
                let gone = || NotReached { address: "".into(), why: "the dial was given up".into(), refused: false };
                Event::Connected(result.unwrap_or_else(|_| Err(gone())))
            }),
            Flight::Waiting(line, asked, _, epoch) => Pin::new(&mut asked.reply)
                .poll(cx)
                .map(|reply| Event::Replied(line.clone(), reply.unwrap_or(Err(Lost)), *epoch)),
        }
    }
}

/// A call under way.
pub(crate) struct Trip<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) call: Call<'a>,
    pub(crate) frame: RequestFrame,
    /// If it is about data: what the request is planned for.
    pub(crate) planned: Option<Planned<'a>>,
    flights: Vec<Flight>,
    /// Whom this round has asked.
    pub(crate) tried: Vec<Target>,
    /// An earlier try may have been done.
    pub(crate) uncertain: bool,
    round: u32,
    /// How often it was held up by a change.
    held_up: u32,
    redirects: u32,
    not_found: u32,
    /// When to ask the next one; `None` while only waiting helps.
    pub(crate) next: Option<Instant>,
    pub(crate) give_up: Instant,
    /// A member has answered that there is no quorum.
    grace: bool,
    last: Option<Error>,
    unreached: Vec<NotReached>,
}

pub(crate) type Outcome = Option<Result<Answered, ClientError>>;

impl<'a> Trip<'a> {
    pub(crate) fn new(shared: &'a Shared, call: Call<'a>, request: Request) -> Trip<'a> {
        Trip {
            shared,
            frame: RequestFrame { id: 0, timeout_ms: 0, request },
            planned: None,
            flights: Vec::new(),
            tried: Vec::new(),
            uncertain: false,
            round: 0,
            held_up: 0,
            redirects: 0,
            not_found: 0,
            next: Some(Instant::now()),
            give_up: call.deadline,
            grace: false,
            last: None,
            unreached: Vec::new(),
            call,
        }
    }

    pub(crate) async fn run(&mut self) -> Result<Answered, ClientError> {
        loop {
            let now = Instant::now();
            if self.next.is_some_and(|next| next <= now)
                && let Some(result) = self.launch(now)
            {
                return result;
            }
            let wake = self.next.map_or(self.give_up, |next| next.min(self.give_up));
            match timeout_at(wake, poll_fn(|cx| self.poll(cx))).await {
                Ok(event) => {
                    if let Some(result) = self.on(event).await {
                        return result;
                    }
                }
                Err(_) if Instant::now() >= self.give_up => return Err(self.expired()),
                Err(_) => self.overdue(),
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        for at in 0..self.flights.len() {
            if let Poll::Ready(event) = self.flights[at].poll(cx) {
                self.flights.remove(at);
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    /// Asks the next one.
    fn launch(&mut self, now: Instant) -> Outcome {
        if !self.call.safe && self.waits() {
            self.next = None;
            return None;
        }
        let leads = self.call.leader;
        let best = |known: &mut Known| if leads { known.leader } else { known.last };
        let favourite = self.call.space.and_then(|space| space.with(best));
        // The usual case: whoever answers best is known, connected and well.
        if self.tried.is_empty()
            && self.call.pinned.is_none()
            && let Some(line) = favourite.and_then(|node| self.shared.pool.ready(node))
        {
            self.tried.push(Target::Node(line.node));
            return self.send(line, now);
        }
        let members = self.members();
        let mut candidates = self.shared.pool.candidates(&members, favourite, &self.tried);
        if let Some(node) = self.call.pinned {
            candidates.retain(|c| c.target == Target::Node(node));
        }
        if self.waits_since().is_some_and(|since| now < since + HELD) || (self.grace && self.call.write) {
            candidates.retain(|c| c.health != Health::Suspect);
        }
        let Some(target) = choose(&candidates, self.shared.turn).filter(|_| self.flights.len() < FLIGHTS) else {
            return self.next_round(now);
        };
        self.tried.push(target);
        if let Some(node) = favourite.filter(|node| leads && target != Target::Node(*node)) {
            self.shared.pool.warm(node);
        }
        match self.shared.pool.reach(target) {
            Some(Reach::Ready(line)) => return self.send(line, now),
            Some(Reach::Dialing(wait)) => {
                self.flights.push(Flight::Dialing(target, wait));
                let patience = self.shared.options.dial_patience;
                self.next = Some(now + if self.call.one_round { patience.min(STAGGER) } else { patience });
            }
            None => (),
        }
        None
    }

    /// Everyone was asked.
    fn next_round(&mut self, now: Instant) -> Outcome {
        if self.flights.is_empty() {
            if self.grace {
                return Some(Err(self.expired()));
            }
            let nobody = self.last.is_none() && !self.unreached.is_empty();
            if nobody && (self.call.one_round || self.unreached.iter().all(|u| u.refused)) {
                return Some(Err(self.unreachable()));
            }
        }
        // After a `NoQuorum` too, nobody is asked twice.
        if (self.call.one_round || self.grace) && !self.flights.is_empty() {
            self.next = None;
            return None;
        }
        self.tried.clear();
        for flight in &self.flights {
            self.tried.push(match flight {
                Flight::Dialing(target, _) => *target,
                Flight::Waiting(line, ..) => Target::Node(line.node),
            });
        }
        self.pause(now);
        None
    }

    fn pause(&mut self, now: Instant) {
        self.next = Some(now + self.shared.backoff(self.round));
        self.round += 1;
    }

    /// Sends the request, if that does no harm beside what is under way.
    fn send(&mut self, line: Arc<Line>, now: Instant) -> Outcome {
        if !self.call.safe && self.waits() {
            self.next = None;
            return None;
        }
        // The node's own answer to a timeout says more than ours: leave it the time to arrive.
        let left = self.give_up.saturating_duration_since(now);
        let margin = (left / 10).min(Duration::from_millis(50));
        self.frame.timeout_ms = u32::try_from((left - margin).as_millis()).unwrap_or(u32::MAX).max(1);
        let epoch = self.address_epoch();
        match line.ask(&mut self.frame) {
            Ok(asked) => {
                self.flights.push(Flight::Waiting(line, asked, now, epoch));
                self.next = Some(now + self.shared.options.patience);
            }
            Err(NotSent::Full) => {
                self.tried.retain(|t| *t != Target::Node(line.node));
                self.next = Some(now + FULL);
            }
            Err(NotSent::Closed) => {
                self.shared.pool.lost(&line);
                // It has grown old and another one has taken its place: nothing is wrong with the node.
                if self.shared.pool.ready(line.node).is_some() {
                    self.tried.retain(|t| *t != Target::Node(line.node));
                }
                self.next = Some(now);
            }
        }
        None
    }

    fn waits(&self) -> bool {
        self.waits_since().is_some()
    }

    /// Since when the oldest request waits.
    fn waits_since(&self) -> Option<Instant> {
        self.flights.iter().find_map(|f| if let Flight::Waiting(_, _, since, _) = f { Some(*since) } else { None })
    }

    /// Whoever has been asked for too long is suspect from now on; the next one is asked too, where that does no harm.
    fn overdue(&mut self) {
        let now = Instant::now();
        for flight in &self.flights {
            if let Flight::Waiting(line, _, since, _) = flight
                && now >= *since + self.shared.options.patience
            {
                line.suspect();
            }
        }
    }

    async fn on(&mut self, event: Event) -> Outcome {
        match event {
            Event::Connected(Ok(line)) => {
                let target = Target::Node(line.node);
                if !self.tried.contains(&target) {
                    self.tried.push(target);
                }
                if self.call.pinned.is_some_and(|node| node != line.node) {
                    return None;
                }
                self.send(line, Instant::now())
            }
            Event::Connected(Err(why)) => {
                self.unreached.retain(|u| u.address != why.address);
                self.unreached.push(why);
                self.hurry();
                None
            }
            Event::Replied(line, Err(Lost), _) => {
                self.shared.pool.lost(&line);
                self.uncertain |= self.call.write;
                if self.call.write && !self.call.safe {
                    let why = format!("the connection to {} ended before the answer came", line.address);
                    return Some(Err(Error::OutcomeUnknown { why }.into()));
                }
                self.hurry();
                None
            }
            Event::Replied(line, Ok(Response::Error(error)), sent) => self.error(&line, error, sent).await,
            Event::Replied(from, Ok(Response::Data(answer)), sent) if self.is_stale(&answer.meta, sent) => {
                tracing::trace!(node = %from.node, epoch = %answer.meta.epoch, "a read of an earlier epoch came");
                self.wait().await;
                None
            }
            Event::Replied(from, Ok(response), _) => Some(Ok(Answered { response, from })),
        }
    }

    /// The next launch is at once, unless what is under way forbids one.
    fn hurry(&mut self) {
        if self.call.safe || !self.waits() {
            self.next = Some(Instant::now());
        }
    }

    async fn error(&mut self, line: &Arc<Line>, error: Error, sent: Epoch) -> Outcome {
        tracing::trace!(node = %line.node, %error, "an error came");
        self.not_found += u32::from(matches!(error, Error::NamespaceNotFound { .. }));
        self.uncertain |= self.call.write && matches!(error, Error::OutcomeUnknown { .. });
        let step = decide(&error, self.situation());
        let now = Instant::now();
        match step {
            Step::Give | Step::Refresh => return Some(Err(self.verdict(error).into())),
            Step::Redirect if self.call.pinned.is_some() => return Some(Err(self.verdict(error).into())),
            Step::Elsewhere => self.next = Some(now),
            Step::Grace if !self.untried() && self.flights.is_empty() => {
                return Some(Err(self.verdict(error).into()));
            }
            Step::Grace => {
                self.grace = true;
                self.give_up = self.give_up.min(now + self.shared.options.no_quorum_grace);
                self.next = Some(now);
            }
            Step::Redirect => {
                self.redirect(&error);
                self.next = Some(now);
                if self.redirects > REDIRECTS {
                    self.pause(now);
                    self.tried.clear();
                }
            }
            Step::Pause => {
                self.tried.clear();
                self.pause(now);
            }
            Step::Learn => {
                self.learn().await;
                if !self.untried() {
                    self.tried.clear();
                }
                self.pause(Instant::now());
            }
            Step::Wait => self.wait().await,
            Step::Follow => {
                if let Some(result) = self.follow(&error, sent).await {
                    return Some(result);
                }
            }
        }
        self.last = Some(error);
        None
    }

    /// Learns the topology.
    async fn learn(&mut self) {
        // Boxed: the topology is asked for by a call like this one.
        Box::pin(self.shared.refresh(self.give_up)).await;
        self.plan_if_replaced();
    }

    /// A change holds the request up: another member may know more, and all of them soon will.
    pub(crate) async fn wait(&mut self) {
        if !self.untried() {
            self.learn().await;
            self.tried.clear();
        }
        self.next = Some(Instant::now() + self.shared.short_pause(self.held_up));
        self.held_up += 1;
    }

    /// Lets go of every request that waits for an answer: what these would say is known.
    fn drop_waiting(&mut self) {
        self.flights.retain(|flight| matches!(flight, Flight::Dialing(..)));
    }

    /// Begins again with the same request, which has not been done.
    pub(crate) fn begin_again(&mut self) {
        self.drop_waiting();
        self.uncertain = false;
        self.grace = false;
        self.give_up = self.call.deadline;
        self.last = None;
        self.tried.clear();
        self.next = Some(Instant::now());
    }

    fn redirect(&mut self, error: &Error) {
        let Error::NotHere { members } = error else { return };
        self.redirects += 1;
        for (node, address) in members {
            self.shared.pool.locate(*node, address);
        }
        if let Some(space) = self.call.space {
            space.with(|known| {
                known.members = members.iter().map(|(node, _)| *node).collect();
                known.leader = known.members.first().copied();
                known.last = known.last.filter(|last| known.members.contains(last));
            });
        }
    }

    fn members(&self) -> Vec<NodeId> {
        self.call.space.map(|s| s.with(|known| known.members.clone())).unwrap_or_default()
    }

    fn untried(&self) -> bool {
        if self.call.pinned.is_some() {
            return false;
        }
        let members = self.members();
        let candidates = self.shared.pool.candidates(&members, None, &self.tried);
        candidates.iter().any(|c| !c.tried && (c.member || members.is_empty()))
    }

    fn situation(&self) -> Situation {
        Situation {
            safe: self.call.safe,
            uncertain: self.is_uncertain(),
            untried: self.untried(),
            not_found: self.not_found,
            cursor: self.has_cursor(),
            patient: self.call.patient,
        }
    }

    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain || (self.call.write && self.waits())
    }

    fn verdict(&self, error: Error) -> Error {
        verdict(error, self.is_uncertain())
    }

    /// Time is up.
    fn expired(&mut self) -> ClientError {
        let after = self.call.timeout;
        match self.last.take() {
            // Somebody else has named those that should be asked, and they cannot be.
            Some(Error::NotHere { .. }) if !self.is_uncertain() && self.never_reached() => self.unreachable(),
            Some(error) => self.verdict(error).into(),
            None if self.is_uncertain() => {
                Error::OutcomeUnknown { why: format!("no answer within {} ms", after.as_millis()) }.into()
            }
            None if !self.waits() && !self.uncertain && self.never_reached() => self.unreachable(),
            None => ClientError::TimedOut { after, why: "no answer came".into() },
        }
    }

    fn never_reached(&self) -> bool {
        !self.unreached.is_empty() || self.flights.iter().any(|f| matches!(f, Flight::Dialing(..)))
    }

    fn unreachable(&mut self) -> ClientError {
        let refused = self.flights.is_empty() && self.unreached.iter().all(|u| u.refused);
        let mut tried: Vec<_> = self.unreached.drain(..).map(|u| (u.address.to_string(), u.why)).collect();
        for flight in &self.flights {
            if let Flight::Dialing(target, _) = flight {
                tried.push((self.shared.pool.address(*target), "no answer yet".into()));
            }
        }
        if refused { ClientError::Refused { tried } } else { ClientError::Unreachable { tried } }
    }
}
