//! Switches as the catalog tells of them: the one under way, those before, and who is owed late writes.

use duet_client::SwitchInfo;
use duet_proto::{BaseInfo, LateWrite, Mode, NodeId, SwitchPast, SwitchProgress, SwitchStep};
use serde::Serialize;

use crate::{
    output::{count, span, table},
    status::word,
    text::{Text, escape},
};

/// What the catalog tells, for scripts.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Document {
    pub namespace: String,
    pub mode: Mode,
    pub epoch: u32,
    pub progress: Option<SwitchProgress>,
    pub base: Option<Base>,
    pub owed: Vec<Owed>,
    pub history: Vec<Past>,
}

/// What an epoch began with.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Base {
    pub keys: u64,
    pub digest: String,
    pub last: String,
}

/// Late writes that are waited for.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Owed {
    pub node: NodeId,
    pub epoch: u32,
}

/// A switch that is over. Times are in milliseconds, `asked_ms` since 1970.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Past {
    /// The epoch that it ended, or was to end.
    pub epoch: u32,
    pub to: Mode,
    pub asked_ms: u64,
    pub took_ms: u64,
    /// How long writes were stopped, the last time.
    pub stopped_ms: u64,
    pub attempts: u64,
    pub left_out: Vec<NodeId>,
    pub aborted: bool,
    pub forgotten: Vec<NodeId>,
}

/// A late write, and on whose disk it is.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Late {
    pub node: NodeId,
    pub key: Text,
    pub version: String,
    pub deletes: bool,
    pub state: duet_proto::LateState,
}

impl Document {
    /// From the catalog's words.
    #[must_use]
    pub fn of(info: &SwitchInfo) -> Document {
        Document {
            namespace: info.namespace.name.to_string(),
            mode: info.namespace.mode,
            epoch: info.namespace.epoch.0,
            progress: info.progress.clone(),
            base: info.base.as_ref().map(Base::of),
            owed: info.owed.iter().map(Owed::of).collect(),
            history: info.history.iter().map(Past::of).collect(),
        }
    }
}

impl Base {
    pub(super) fn of(base: &BaseInfo) -> Base {
        Base { keys: base.keys, digest: base.digest.to_string(), last: base.last.to_string() }
    }
}

impl Owed {
    pub(crate) fn of((node, epoch): &(NodeId, duet_proto::Epoch)) -> Owed {
        Owed { node: *node, epoch: epoch.0 }
    }

    /// For people: who, and when that comes to its end in a namespace of this mode.
    pub(crate) fn line(&self, mode: Mode) -> String {
        let Owed { node, epoch } = self;
        let until = match mode {
            Mode::Strong => "tombstones are kept until then",
            Mode::Eventual => "they come in when the namespace is strong again, and tombstones are kept until then",
        };
        format!("late writes of epoch {epoch} are awaited from node {node}; {until}")
    }
}

impl Past {
    /// From the catalog's words.
    #[must_use]
    pub fn of(past: &SwitchPast) -> Past {
        let stopped = if past.sealed_ms == 0 { 0 } else { past.ended_ms.saturating_sub(past.sealed_ms) };
        Past {
            epoch: past.epoch.0,
            to: past.to,
            asked_ms: past.asked_ms,
            took_ms: past.ended_ms.saturating_sub(past.asked_ms),
            stopped_ms: stopped,
            attempts: past.attempts,
            left_out: past.apart.clone(),
            aborted: past.aborted,
            forgotten: past.forgotten.clone(),
        }
    }
}

impl Late {
    pub(crate) fn of(node: NodeId, write: LateWrite) -> Late {
        let LateWrite { key, stamp, tombstone, state } = write;
        Late { node, key: Text(key), version: stamp.to_string(), deletes: tombstone, state }
    }
}

/// What a step is, for people.
pub(super) fn explain(step: SwitchStep) -> &'static str {
    match step {
        SwitchStep::Gathering => "members come close; writes go on",
        SwitchStep::Sealing => "writes are stopped; members say what they hold",
        SwitchStep::Converging => "writes are stopped; members get what they lack",
        SwitchStep::Ending => "the end of the epoch goes through the log; writes behind it wait",
    }
}

/// One line on a switch under way.
pub(crate) fn line(progress: &SwitchProgress) -> String {
    let mut text = format!("{}: {}", word(progress.step), explain(progress.step));
    if progress.attempts > 1 {
        text += &format!(", attempt {}", progress.attempts);
    }
    if !progress.waits_for.is_empty() {
        text += &format!("; waits for {}", nodes(&progress.waits_for));
    }
    text
}

/// `node 1`, `nodes 1 and 3`.
pub(crate) fn nodes(list: &[NodeId]) -> String {
    let mut names: Vec<String> = list.iter().map(ToString::to_string).collect();
    match names.pop() {
        None => "nobody".into(),
        Some(one) if names.is_empty() => format!("node {one}"),
        Some(last) => format!("nodes {} and {last}", names.join(", ")),
    }
}

/// What there is to tell of a namespace's switches, for people; nothing if there were none.
pub(crate) fn render(info: &SwitchInfo) -> String {
    let mut text = String::new();
    if let Some(progress) = &info.progress {
        text += &format!("\nswitching to {}: {}\n", progress.to, line(progress));
        if !progress.without.is_empty() {
            text += &format!("goes on without {}\n", nodes(&progress.without));
        }
    }
    if let Some(base) = &info.base {
        let digest = base.digest.to_string();
        let keys = count(base.keys);
        text += &format!("\nepoch {} began with {keys} keys, digest {}\n", info.namespace.epoch, &digest[..8]);
    }
    for owed in info.owed.iter().map(Owed::of) {
        text += &format!("{}\n", owed.line(info.namespace.mode));
    }
    if info.history.is_empty() {
        return text;
    }
    let rows = info.history.iter().map(Past::of).map(|past| {
        let mut notes = Vec::new();
        if past.aborted {
            notes.push("aborted".to_owned());
        }
        if !past.left_out.is_empty() {
            notes.push(format!("without {}", nodes(&past.left_out)));
        }
        if !past.forgotten.is_empty() {
            notes.push(format!("{} forgotten", nodes(&past.forgotten)));
        }
        vec![
            past.epoch.to_string(),
            past.to.to_string(),
            moment(past.asked_ms),
            span(past.took_ms),
            span(past.stopped_ms),
            // A switch to eventual has one, which the catalog does not count.
            if past.attempts == 0 { "–".into() } else { past.attempts.to_string() },
            notes.join(", "),
        ]
    });
    text.push('\n');
    text + &table(&[">FROM EPOCH", "TO", "ASKED FOR (UTC)", ">TOOK", ">WRITES STOPPED", ">ATTEMPTS", ""], rows)
}

/// Late writes, for people.
pub(crate) fn render_late(late: &[Late]) -> String {
    let rows = late.iter().map(|write| {
        let what = if write.deletes { "deletes" } else { "puts" };
        vec![write.node.to_string(), word(write.state), what.into(), escape(&write.key.0), write.version.clone()]
    });
    table(&[">NODE", "STATE", "", "KEY", "VERSION"], rows)
}

/// A time since 1970 as a date and a time of day, in UTC. After Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn moment(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms / 1000 % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_827_696_789, "2000-02-29 12:34:56"),
            (1_763_750_400_000, "2025-11-21 18:40:00"),
            (4_102_444_799_999, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(moment(ms), text);
        }
    }

    #[test]
    fn nodes_are_listed() {
        let list = |ids: &[u32]| nodes(&ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>());
        assert_eq!([list(&[]), list(&[3]), list(&[1, 2, 3])], ["nobody", "node 3", "nodes 1, 2 and 3"]);
    }

    #[test]
    fn what_never_stopped_writes_has_no_stall() {
        let past = SwitchPast {
            epoch: duet_proto::Epoch(1),
            to: Mode::Strong,
            asked_ms: 1000,
            sealed_ms: 0,
            ended_ms: 4500,
            attempts: 0,
            apart: vec![],
            aborted: true,
            forgotten: vec![],
        };
        assert_eq!((Past::of(&past).took_ms, Past::of(&past).stopped_ms), (3500, 0));
        let sealed = Past::of(&SwitchPast { sealed_ms: 4400, ..past });
        assert_eq!(sealed.stopped_ms, 100);
    }
}
