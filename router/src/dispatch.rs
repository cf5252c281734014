//! A request's way to the replica that serves it, through a change of mode if need be.
//!
//! A namespace is in one epoch at a time, and every replica checks that in the same step in which it acts. What comes
//! to a replica that takes no writes any more waits here until the catalog says what follows; then
//!
//! - a read is answered in the epoch that there is;
//! - a write of an earlier epoch is *not* done in the name of its sender, who alone knows whether an earlier copy of
//!   it may have been done: it is told [`Error::EpochChanged`], and sends it as one of the new epoch. Only where a
//!   strong epoch remembers what it has done ([`Try`]) can that be answered here.

use std::{sync::Arc, time::Duration};

use duet_engine_eventual::{Call as EventualCall, SpaceId};
use duet_engine_strong::{Call, Recall};
use duet_proto::{Answer, DataRequest, Epoch, Error, Meta, Mode, NamespaceName, Token, Try};
use tokio::time::{Instant, timeout_at};

use crate::{
    catalog::{NamespaceRecord, NamespaceState},
    plan::other,
    planted::Planted,
    router::Inner,
    view::View,
};

/// How long a request waits before it looks again, though nobody has told it to.
const AGAIN: Duration = Duration::from_millis(100);

/// How a request fits the epoch that there is.
enum Fit {
    /// It goes to the engine, with this token.
    Serve(Option<Token>),
    /// It ran in an epoch that is over, and this was the answer.
    Ran(Box<Result<Answer, Error>>),
}

impl Inner {
    /// Hands a request to the engine of the namespace's mode: again when the namespace has changed under it, or the
    /// replica has been set up.
    pub(crate) async fn dispatch(&self, request: &DataRequest, deadline: Instant) -> Result<Answer, Error> {
        match self.attempt(request, deadline).await {
            Err(Error::Changing { .. }) => {}
            answer => return answer,
        }
        let begun = Instant::now();
        // Boxed, since it is rare: it has another attempt in it.
        let answer = Box::pin(self.hold(request, deadline)).await;
        if request.op.is_write() {
            self.count(|figures| figures.waited(begun.elapsed()));
        }
        answer
    }

    /// Tries again until the change that holds the request up is over.
    async fn hold(&self, request: &DataRequest, deadline: Instant) -> Result<Answer, Error> {
        loop {
            // Before the try, so that what happens after it is not missed.
            let (seen, placed) = (self.seen.notified(), self.placed.notified());
            tokio::pin!(seen, placed);
            seen.as_mut().enable();
            placed.as_mut().enable();
            let error = match self.attempt(request, deadline).await {
                Err(error @ Error::Changing { .. }) => error,
                answer => return answer,
            };
            let news = async {
                tokio::select! {
                    biased;
                    () = seen => {}
                    () = placed => {}
                }
            };
            let again = deadline.min(Instant::now() + AGAIN);
            if timeout_at(again, news).await.is_err() && again == deadline {
                return Err(error);
            }
        }
    }

    /// One try. `Changing` is worth another one.
    async fn attempt(&self, request: &DataRequest, deadline: Instant) -> Result<Answer, Error> {
        let (view, record) = self.find(request, deadline).await?;
        let name = &request.namespace;
        if let NamespaceState::Deleting { .. } = record.state {
            return Err(Error::NamespaceNotFound { name: name.clone() });
        }
        if !self.serves(&record) {
            return Err(Error::NotHere { members: view.members(&record) });
        }
        let token = match self.fit(&record, request)? {
            Fit::Serve(token) => token,
            Fit::Ran(answer) => return *answer,
        };
        // The namespace's name and the rest of the request are not copied: this is every request's way.
        let (op, attempt, consistency) = (request.op.clone(), request.attempt, request.consistency);
        let answer = match record.mode {
            Mode::Strong => {
                let call = Call { op, attempt, consistency };
                self.strong.call(record.id, record.epoch, call, deadline).await
            }
            Mode::Eventual => {
                let call = EventualCall { op, token };
                self.eventual.call(record.id, record.epoch, call, deadline).await
            }
        };
        match answer {
            Err(Error::NotHere { .. }) => Err(changing(name, "its replica is being set up on this node")),
            // The records stay in place: what was read when the next epoch had begun here may be of that one. An eventual
            // replica is frozen before that.
            Ok(_) if !request.op.is_write() && self.opened(&view, &record) => {
                Err(changing(name, "its epoch is over here"))
            }
            answer => answer,
        }
    }

    /// Whether the eventual epoch that follows a strong one has begun here. That takes a later view than the one that the
    /// request was routed by.
    fn opened(&self, view: &Arc<View>, record: &NamespaceRecord) -> bool {
        let next = SpaceId { namespace: record.id, epoch: Epoch(record.epoch.0 + 1) };
        record.mode == Mode::Strong
            && !Arc::ptr_eq(view, &self.view())
            && self.eventual.space(next).is_some()
            && !self.planted(Planted::ReadsOfNextEpoch)
    }

    /// The entry of a namespace: from the view, or, where that is behind the request, after it has caught up with the
    /// catalog. If even then there is no epoch so late, the client speaks of another namespace, which had this name.
    async fn find(
        &self,
        request: &DataRequest,
        deadline: Instant,
    ) -> Result<(Arc<View>, Arc<NamespaceRecord>), Error> {
        let token = request.tokens.iter().map(|token| token.epoch).max().unwrap_or(request.epoch);
        let attempt = request.attempt.map_or(request.epoch, |attempt| attempt.epoch);
        let epoch = request.epoch.max(token).max(attempt);
        for fresh in [false, true] {
            if fresh && let Err(error) = Box::pin(self.refresh(deadline)).await {
                // It is not the namespace that has no quorum.
                let why = format!("this node knows of no epoch {epoch} of it, and cannot ask the catalog: {error}");
                let known = self.view().namespace(&request.namespace).is_some();
                return Err(if known { changing(&request.namespace, &why) } else { error });
            }
            let view = self.view();
            match view.namespace(&request.namespace).map(|entry| entry.record.clone()) {
                Some(record) if record.epoch >= epoch => return Ok((view, record)),
                _ => {}
            }
        }
        Err(Error::NamespaceNotFound { name: request.namespace.clone() })
    }

    /// Whether this node serves a namespace. Of an eventual one only members do: whoever else holds a replica receives
    /// its first copy, or is on its way out.
    fn serves(&self, record: &NamespaceRecord) -> bool {
        match record.mode {
            Mode::Strong => record.id == duet_proto::NamespaceId::SYSTEM || record.holds(self.config.me),
            Mode::Eventual => record.members.contains(&self.config.me),
        }
    }

    fn fit(&self, record: &NamespaceRecord, request: &DataRequest) -> Result<Fit, Error> {
        let token = token_of(record, &request.tokens, self.planted(Planted::TokenOfAnyEpoch))?;
        if !request.op.is_write() {
            return Ok(Fit::Serve(token));
        }
        let changed = || {
            let (namespace, epoch, mode) = (request.namespace.clone(), record.epoch, record.mode);
            Err(Error::EpochChanged { namespace, epoch, mode })
        };
        match &request.attempt {
            Some(attempt) if attempt.epoch < record.epoch => match mode_of(record, attempt) {
                // Nobody remembers what was done in an eventual epoch.
                Mode::Eventual => changed(),
                Mode::Strong if record.mode == Mode::Strong && self.planted(Planted::EarlierTriesRun) => {
                    Ok(Fit::Serve(token))
                }
                // It is looked up, and never runs: this may be a copy that was long on its way, of a write that its client
                // was told of meanwhile, and has sent anew.
                Mode::Strong => match self.recall(record, attempt)? {
                    Some(answer) => Ok(Fit::Ran(Box::new(answer))),
                    None => changed(),
                },
            },
            None if request.epoch.0 > 0 && request.epoch < record.epoch => changed(),
            _ => Ok(Fit::Serve(token)),
        }
    }

    /// What became of a write that was first tried in a strong epoch that is over; `None`: it has not run and never
    /// will.
    fn recall(&self, record: &NamespaceRecord, attempt: &Try) -> Result<Option<Result<Answer, Error>>, Error> {
        let table = if record.mode == Mode::Strong { record.epoch } else { Epoch(record.epoch.0 - 1) };
        let recalled = self.strong.recall(record.id, table, attempt).map_err(|error| error.at(self.config.me))?;
        match recalled {
            Recall::Ran(result) => {
                let meta = Meta { epoch: record.epoch, position: 0, leader: None, token: None };
                Ok(Some(result.map(|outcome| Answer { outcome, meta })))
            }
            Recall::Never => Ok(None),
            Recall::Unknown => {
                let why = "its epoch is over, and this member does not know what became of it".into();
                Err(Error::OutcomeUnknown { why })
            }
        }
    }
}

/// The mode of the epoch in which a write was first tried: modes alternate.
fn mode_of(record: &NamespaceRecord, attempt: &Try) -> Mode {
    let apart = record.epoch.0.saturating_sub(attempt.epoch.0);
    if apart.is_multiple_of(2) { record.mode } else { other(record.mode) }
}

/// The token that the engine is to honour. Those of epochs that are over are honoured by all that follows, if what each of
/// these epochs has come to covers its token.
fn token_of(record: &NamespaceRecord, tokens: &[Token], unseen: bool) -> Result<Option<Token>, Error> {
    if !tokens.is_sorted_by(|one, next| one.epoch < next.epoch) {
        return Err(Error::InvalidRequest { why: "its tokens are not of one epoch each, in their order".into() });
    }
    let current = tokens.iter().find(|token| token.epoch >= record.epoch);
    if !unseen {
        tokens.iter().filter(|token| token.epoch < record.epoch).try_for_each(|token| covered(record, token))?;
    }
    Ok(current.cloned())
}

/// Whether what an epoch that is over has come to covers a token of it.
fn covered(record: &NamespaceRecord, token: &Token) -> Result<(), Error> {
    if token.seen.is_empty() {
        return Ok(());
    }
    let not_covered = |why: String| Err(Error::TokenNotCovered { why });
    let Some(end) = record.end_of(token.epoch) else {
        return not_covered(format!("epoch {} ended too long ago to know", token.epoch));
    };
    match token.seen.iter().find(|(node, hlc)| end.get(*node) < *hlc) {
        None => Ok(()),
        Some((node, hlc)) => {
            let have = end.get(*node);
            not_covered(format!(
                "epoch {} ended with the writes of node {node} up to {have}, without those up to {hlc}: it was cut off, \
                 and has yet to bring them",
                token.epoch
            ))
        }
    }
}

fn changing(name: &NamespaceName, why: &str) -> Error {
    Error::Changing { namespace: name.clone(), why: why.into() }
}
