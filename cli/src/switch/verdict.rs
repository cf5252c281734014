//! What came of a switch: its phases, and what every member holds now.

use duet_client::{Client, SwitchInfo};
use duet_proto::{Mode, NodeId, SwitchStep};
use serde::Serialize;

use crate::{
    failure::{Exit, Failure},
    output::{Printer, count, span, table},
    switch::past::{Base, Owed, Past, nodes},
    verify::{self, Compared, MemberRow},
};

/// How long members may take to follow, before the verdict says that they have not.
const FOLLOW: std::time::Duration = std::time::Duration::from_secs(5);

/// What came of a switch.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Verdict {
    pub namespace: String,
    /// Whether it was this switch that brought the mode: false if it had it already.
    pub switched: bool,
    pub from: Mode,
    pub to: Mode,
    pub epoch_before: u32,
    pub epoch: u32,
    pub phases: Vec<PhaseRow>,
    pub took_ms: Option<u64>,
    pub stopped_ms: Option<u64>,
    pub attempts: Option<u64>,
    pub left_out: Vec<NodeId>,
    pub owed: Vec<Owed>,
    pub base: Option<Base>,
    pub members: Vec<MemberRow>,
    /// Whether all members were seen to hold the same; nothing if that could not be told yet.
    pub equal: Option<bool>,
    /// Why not, or why it could not be told.
    pub why: Option<String>,
}

/// A phase, and how long it took.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct PhaseRow {
    pub phase: &'static str,
    pub ms: u64,
    pub what: &'static str,
}

impl Verdict {
    /// Of a namespace that has the mode already.
    pub(super) fn already(info: &SwitchInfo) -> Verdict {
        let (mode, epoch) = (info.namespace.mode, info.namespace.epoch.0);
        Verdict {
            namespace: info.namespace.name.to_string(),
            switched: false,
            from: mode,
            to: mode,
            epoch_before: epoch,
            epoch,
            phases: Vec::new(),
            took_ms: None,
            stopped_ms: None,
            attempts: None,
            left_out: Vec::new(),
            owed: info.owed.iter().map(Owed::of).collect(),
            base: info.base.as_ref().map(Base::of),
            members: Vec::new(),
            equal: None,
            why: None,
        }
    }

    /// Of a switch that is over.
    ///
    /// # Errors
    /// If it did not bring the mode: somebody aborted it, or the namespace is another one.
    pub fn of(before: &SwitchInfo, after: &SwitchInfo, to: Mode) -> Result<Verdict, Failure> {
        let (name, from) = (&after.namespace.name, before.namespace.epoch);
        let past = after.history.iter().rev().find(|past| past.epoch == from && past.to == to);
        let later = after.namespace.epoch > from;
        if !later || past.is_some_and(|past| past.aborted) {
            let was = before.namespace.mode;
            let message = match later {
                false => format!("the switch of {name} was aborted: it stays {was} in epoch {from}"),
                true => format!(
                    "the switch of {name} was aborted when it could only go on: it becomes {was} again by itself"
                ),
            };
            return Err(Failure { exit: Exit::Failed, code: "aborted", message, class: None });
        }
        let told = past.map(Past::of);
        let phases = told.as_ref().map_or_else(Vec::new, |past| phases(past, before.namespace.mode));
        Ok(Verdict {
            switched: true,
            from: before.namespace.mode,
            to,
            epoch_before: from.0,
            epoch: from.next().0,
            // What it says of the base is of the latest epoch, and there may be a later one by now.
            base: after.base.as_ref().filter(|_| after.namespace.epoch == from.next()).map(Base::of),
            phases,
            took_ms: told.as_ref().map(|past| past.took_ms),
            stopped_ms: told.as_ref().map(|past| past.stopped_ms),
            attempts: told.as_ref().map(|past| past.attempts),
            left_out: told.map_or_else(Vec::new, |past| past.left_out),
            ..Verdict::already(after)
        })
    }

    fn judge(&mut self, compared: Compared) {
        self.equal = compared.equal;
        self.why = compared.why;
        self.members = compared.members;
    }

    /// For people.
    #[must_use]
    pub fn render(&self) -> String {
        let Verdict { namespace, from, to, epoch, epoch_before, .. } = self;
        let mut text = String::new();
        if self.switched {
            text += &format!("{namespace} is {to} now (epoch {epoch}); it was {from} (epoch {epoch_before})\n\n");
            let rows = self.phases.iter().map(|p| vec![p.phase.into(), span(p.ms), p.what.into()]);
            text += &table(&["PHASE", ">TOOK", ""], rows);
            if let Some(attempts) = self.attempts.filter(|attempts| *attempts > 1) {
                text += &format!("writes were stopped {attempts} times; the last time counts above\n");
            }
        } else {
            text += &format!("{namespace} is {to} (epoch {epoch})\n");
        }
        if let Some(base) = &self.base {
            let keys = count(base.keys);
            text += &format!("\nepoch {epoch} began with {keys} keys, digest {}\n", &base.digest[..8]);
        }
        if !self.left_out.is_empty() {
            text += &format!("left out: {}\n", nodes(&self.left_out));
        }
        for owed in &self.owed {
            text += &format!("{}. If it never returns: duet ns forget {namespace} {}\n", owed.line(*to), owed.node);
        }
        text.push('\n');
        text += &verify::members_table(&self.members);
        text += &match (self.equal, &self.why) {
            (Some(true), _) => format!("\nall {} members hold the same\n", self.members.len()),
            (Some(false), why) => format!("\n✗ {}\n", why.as_deref().unwrap_or("members do not hold the same")),
            (None, why) => format!(
                "\nnot all members could be compared yet: {}; duet ns verify {namespace} looks again\n",
                why.as_deref().unwrap_or("no answer")
            ),
        };
        text
    }
}

fn phases(past: &Past, from: Mode) -> Vec<PhaseRow> {
    let gathered = past.took_ms.saturating_sub(past.stopped_ms);
    let row = |phase, ms, what| PhaseRow { phase, ms, what };
    let all = row("in all", past.took_ms, "");
    match from {
        Mode::Eventual => vec![
            row("gathering", gathered, super::past::explain(SwitchStep::Gathering)),
            row("stopped", past.stopped_ms, "writes waited: members sealed, converged and began the next epoch"),
            all,
        ],
        Mode::Strong => {
            vec![row("ending", past.took_ms, "the end of the epoch went through the log; writes behind it waited")]
        }
    }
}

/// Looks what the members hold now, and tells everything.
pub(super) async fn show(client: &Client, mut verdict: Verdict, printer: Printer) -> Result<Exit, Failure> {
    let name = verdict.namespace.parse().map_err(|_| Failure::failed("a name that is none"))?;
    verdict.judge(verify::compare(client, &name, FOLLOW, duet_proto::Epoch(verdict.epoch)).await?);
    printer.answer(&verdict, || verdict.render())?;
    Ok(if verdict.equal == Some(false) { Exit::Unhealthy } else { Exit::Done })
}

#[cfg(test)]
mod tests {
    use duet_proto::{Epoch, NamespaceId, NamespaceInfo, Phase, SwitchPast};

    use super::*;

    fn info(mode: Mode, epoch: u32, history: Vec<SwitchPast>) -> SwitchInfo {
        SwitchInfo {
            namespace: NamespaceInfo {
                id: NamespaceId(1),
                name: "orders".parse().unwrap(),
                mode,
                epoch: Epoch(epoch),
                phase: Phase::Stable,
                members: (1..=3).map(NodeId).collect(),
                copies: 1,
                leader: None,
            },
            progress: None,
            base: None,
            owed: vec![],
            history,
        }
    }

    fn past(epoch: u32, to: Mode, aborted: bool) -> SwitchPast {
        SwitchPast {
            epoch: Epoch(epoch),
            to,
            asked_ms: 1000,
            sealed_ms: 1010,
            ended_ms: 1055,
            attempts: 2,
            apart: vec![NodeId(3)],
            aborted,
            forgotten: vec![],
        }
    }

    #[test]
    fn the_phases_are_the_catalogs() {
        let before = info(Mode::Eventual, 3, vec![past(1, Mode::Strong, false), past(2, Mode::Eventual, false)]);
        let mut after = info(Mode::Strong, 4, before.history.clone());
        after.history.extend([past(3, Mode::Strong, true), past(3, Mode::Strong, false)]);
        after.owed = vec![(NodeId(3), Epoch(3))];
        let verdict = Verdict::of(&before, &after, Mode::Strong).unwrap();
        assert_eq!(
            verdict.phases.iter().map(|p| (p.phase, p.ms)).collect::<Vec<_>>(),
            [("gathering", 10), ("stopped", 45), ("in all", 55)]
        );
        let text = verdict.render();
        for line in [
            "orders is strong now (epoch 4); it was eventual (epoch 3)",
            "writes were stopped 2 times",
            "left out: node 3",
            "tombstones are kept until then. If it never returns: duet ns forget orders 3",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn an_abort_is_no_switch() {
        let strong = info(Mode::Strong, 2, vec![]);
        let through = info(Mode::Eventual, 3, vec![past(2, Mode::Eventual, true)]);
        let stays = info(Mode::Strong, 2, vec![]);
        for (after, words) in [(stays, "stays strong in epoch 2"), (through, "becomes strong again by itself")] {
            let failure = Verdict::of(&strong, &after, Mode::Eventual).unwrap_err();
            assert!(failure.message.contains(words) && failure.code == "aborted", "{failure}");
        }
    }
}
