//! What the catalog tells of switches: to operators, and to the log.

use duet_proto::{BaseInfo, Error, NamespaceName, NodeId, Response, SwitchInfo, SwitchProgress, SwitchStep};

use crate::{
    catalog::{NamespaceRecord, NamespaceState, Step, Switch},
    plan::other,
    router::Inner,
    view::namespace_info,
};

impl Inner {
    /// The answer to `ShowSwitch`.
    pub(crate) fn show_switch(&self, name: &NamespaceName) -> Result<Response, Error> {
        let view = self.view();
        let entry = view.namespace(name).ok_or_else(|| Error::NamespaceNotFound { name: name.clone() })?;
        let record = &entry.record;
        let leader = self.strong.group(record.id, record.epoch).and_then(|group| group.leader);
        let now_ms = entry.stamp.hlc.millis();
        let info = SwitchInfo {
            namespace: namespace_info(name, record, leader),
            progress: progress(record, now_ms),
            base: record.base.as_ref().map(|base| BaseInfo { last: base.last, digest: base.digest, keys: base.keys }),
            owed: record.owed.clone(),
            history: record.history.clone(),
        };
        Ok(Response::Switch(Box::new(info)))
    }

    /// The answer to `ListLate`: of this node.
    pub(crate) fn list_late(&self, name: &NamespaceName, limit: u32) -> Result<Response, Error> {
        let view = self.view();
        let entry = view.namespace(name).ok_or_else(|| Error::NamespaceNotFound { name: name.clone() })?;
        let late = self.eventual.late(entry.record.id, limit as usize).map_err(|error| error.at(self.config.me))?;
        Ok(Response::Late(late))
    }

    /// A step of a switch that this node has taken, for the log and the figures.
    pub(crate) fn took_step(&self, name: &NamespaceName, before: &NamespaceRecord) {
        let view = self.view();
        let Some(after) = view.namespace(name).map(|entry| &entry.record) else { return };
        let to = other(before.mode);
        if after.epoch > before.epoch {
            let past = after.history.iter().find(|past| past.epoch == before.epoch);
            let stopped_ms = past.map_or(0, |past| past.ended_ms.saturating_sub(past.sealed_ms));
            let took_ms = past.map_or(0, |past| past.ended_ms.saturating_sub(past.asked_ms));
            let owed = after.owed.len();
            self.count(|figures| (figures.steps, figures.completed) = (figures.steps + 1, figures.completed + 1));
            tracing::info!(namespace = %name, epoch = %after.epoch, mode = %to, took_ms, stopped_ms, owed, "switched");
        } else if let (Some(step), Some(was)) = (step_of(after), step_of(before)) {
            let given_up = step == SwitchStep::Gathering && was != SwitchStep::Gathering;
            self.count(|figures| {
                figures.steps += 1;
                figures.given_up += u64::from(given_up);
            });
            if given_up {
                tracing::warn!(namespace = %name, attempt = after.attempts, "a switch did not end in time; writes go on");
            } else if step != was {
                tracing::info!(namespace = %name, ?step, attempt = after.attempts, %to, "switching");
            }
        }
    }
}

fn step_of(record: &NamespaceRecord) -> Option<SwitchStep> {
    let NamespaceState::Switching(Switch { step, .. }) = &record.state else { return None };
    Some(match step {
        Step::Gathering { .. } => SwitchStep::Gathering,
        Step::Sealing { .. } => SwitchStep::Sealing,
        Step::Converging { .. } => SwitchStep::Converging,
        Step::Ending { .. } => SwitchStep::Ending,
    })
}

fn progress(record: &NamespaceRecord, now_ms: u64) -> Option<SwitchProgress> {
    let NamespaceState::Switching(switch) = &record.state else { return None };
    let (done, needed): (Vec<NodeId>, Vec<NodeId>) = match &switch.step {
        Step::Gathering { near } => {
            let all = record.members.iter().filter(|node| !switch.without.contains(node));
            (near.clone(), all.copied().collect())
        }
        Step::Sealing { expected, sealed } => (sealed.iter().map(|(node, _)| *node).collect(), expected.clone()),
        Step::Converging { base, held, .. } => (held.iter().map(|(node, _)| *node).collect(), base.clone()),
        Step::Ending { .. } => (Vec::new(), Vec::new()),
    };
    Some(SwitchProgress {
        to: other(record.mode),
        step: step_of(record)?,
        attempts: switch.tries,
        asked_ms: if switch.asked_ms == 0 { now_ms } else { switch.asked_ms },
        without: switch.without.clone(),
        waits_for: needed.into_iter().filter(|node| !done.contains(node)).collect(),
        done,
    })
}
