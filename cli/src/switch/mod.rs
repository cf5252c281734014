//! `duet ns switch` and `duet ns forget`: a namespace changes its mode, and an operator sees it.
//!
//! The cluster switches by itself once it is asked to; nothing here takes part in it. This asks, watches (`watch`),
//! and says what came of it ([`verdict`]) — or beforehand what would ([`mod@plan`]). Watching can end at any time and begin
//! again.

pub mod past;
pub mod plan;
pub mod verdict;
mod watch;

use std::time::{Duration, Instant};

use duet_client::{Client, ClientError, SwitchInfo};
use duet_proto::{Class, Error, NamespaceName, NodeId, Phase};
use serde_json::json;

use crate::{
    args::Switch,
    cluster::{answers, confirm},
    failure::{Exit, Failure},
    output::{Printer, count, say},
    switch::{plan::Plan, verdict::Verdict},
};

/// How many late writes of a member are counted before it is forgotten.
const COUNTED: u32 = 10_000;

/// `duet ns switch`
pub(crate) async fn run(client: &Client, verb: &Switch, printer: Printer) -> Result<Exit, Failure> {
    let name = &verb.name;
    let admin = client.admin();
    if verb.abort {
        return abort(client, name, printer).await;
    }
    let Some(to) = verb.to else { return Err(Failure::usage("--to is needed")) };
    let before = admin.switch(name.as_str()).await?;
    if verb.plan {
        return plan(client, &before, verb, printer).await;
    }
    if before.namespace.mode == to && before.progress.is_none() {
        say(format!("{name} is {to} already, in epoch {}: there is nothing to do", before.namespace.epoch));
        return verdict::show(client, Verdict::already(&before), printer).await;
    }
    // Asked again without saying so, it does not take back whom an earlier call went on without; it does take back an
    // abort that has not come to its end.
    let mut without = verb.without.clone();
    if let Some(progress) = before.progress.as_ref().filter(|progress| progress.to == to) {
        say(format!("{name} is being switched to {to} already"));
        if without.is_empty() {
            without.clone_from(&progress.without);
        }
    }
    match admin.switch_mode(name.as_str(), to, without).await {
        Ok(_) => {}
        // It may have been taken: what follows shows.
        Err(error) if error.class() == Class::Unknown => say(format!("{error}; looking whether it was taken")),
        Err(error) => return Err(refused(error, name)),
    }
    if verb.no_wait {
        let now = admin.switch(name.as_str()).await?;
        let underway = now.progress.is_some() || now.namespace.mode == to;
        if !underway {
            return Err(Failure::from(Error::OutcomeUnknown { why: "the switch does not show yet".into() }));
        }
        say(format!("the switch goes on by itself; duet ns show {name} tells how far it is"));
        printer.answer(&past::Document::of(&now), || past::render(&now))?;
        return Ok(Exit::Done);
    }
    let ended = watch::watch(client, &before, to, verb.wait.flatten()).await?;
    verdict::show(client, Verdict::of(&before, &ended, to)?, printer).await
}

/// What a refusal to switch means to whoever asked.
fn refused(error: ClientError, name: &NamespaceName) -> Failure {
    let changing = matches!(error.cluster(), Some(Error::Changing { .. }));
    let mut failure = Failure::from(error);
    if changing {
        failure.message += &format!("; duet ns show {name} tells how far that is");
    }
    failure
}

async fn abort(client: &Client, name: &NamespaceName, printer: Printer) -> Result<Exit, Failure> {
    let before = client.admin().switch(name.as_str()).await?;
    let info = match client.admin().abort_switch(name.as_str()).await {
        Ok(info) => info,
        Err(error) => {
            let mut failure = Failure::from(error);
            if before.progress.is_none() {
                failure.message = format!("{name} is not being switched: it is {}", state(&before));
            }
            return Err(failure);
        }
    };
    // The end of a strong epoch may be in its log already: then the way back leads through the next one.
    let through = (info.phase == Phase::Switching).then(|| before.progress.map(|progress| progress.to)).flatten();
    let document = json!({ "aborted": true, "through": through, "namespace": info });
    printer.answer(&document, || match through {
        None => format!("aborted: {name} stays {} in epoch {}; writes go on\n", info.mode, info.epoch),
        Some(through) => format!(
            "aborted: the end of epoch {} may be in the log already, so {name} becomes {through} and then {} again, by \
             itself; duet ns show {name} tells how far it is\n",
            info.epoch, info.mode
        ),
    })?;
    Ok(Exit::Done)
}

fn state(info: &SwitchInfo) -> String {
    format!("{} in epoch {}", info.namespace.mode, info.namespace.epoch)
}

async fn plan(client: &Client, info: &SwitchInfo, verb: &Switch, printer: Printer) -> Result<Exit, Failure> {
    let Some(to) = verb.to else { return Err(Failure::usage("--to is needed")) };
    // How long a transaction on the catalog takes hangs on how long it takes to reach it.
    let asked = Instant::now();
    client.admin().switch(verb.name.as_str()).await?;
    let round_trip = asked.elapsed().max(Duration::from_millis(1));
    let (_, answers) = answers(client).await?;
    let plan = Plan::new(info, &answers, to, &verb.without, round_trip);
    printer.answer(&plan, || plan.render())?;
    Ok(if plan.blocks.is_empty() { Exit::Done } else { Exit::Unhealthy })
}

/// `duet ns forget`
pub(crate) async fn forget(
    client: &Client,
    name: &NamespaceName,
    node: NodeId,
    yes: bool,
    printer: Printer,
) -> Result<Exit, Failure> {
    let admin = client.admin();
    let before = admin.switch(name.as_str()).await?;
    let Some((_, epoch)) = before.owed.iter().find(|(owed, _)| *owed == node) else {
        let waited: Vec<String> = before.owed.iter().map(|(owed, _)| owed.to_string()).collect();
        let who = if waited.is_empty() { "nobody".into() } else { format!("node {}", waited.join(", ")) };
        return Err(Failure::not_found(format!(
            "{name} does not wait for late writes of node {node}; it waits for those of {who}"
        )));
    };
    // Whether it answers decides what is known of what is given up.
    let held = match admin.timeout(Duration::from_secs(2)).late(name.as_str(), node, COUNTED).await {
        Ok(late) => {
            let waiting = late.iter().filter(|write| write.state == duet_proto::LateState::Waiting).count();
            format!(
                "it answers and holds {} late writes now, which it may yet bring by itself",
                count(waiting as u64)
            )
        }
        Err(_) => "it does not answer, so nobody knows how many there are".into(),
    };
    let what = format!(
        "This gives up whatever node {node} alone still holds of {name} from epoch {epoch}: writes that were acknowledged, \
         and that nobody else has. They will be refused when it returns, and listed there.\n{}{}.",
        held[..1].to_uppercase(),
        &held[1..]
    );
    if !yes {
        confirm(name, &what)?;
    }
    admin.forget(name.as_str(), node).await?;
    let after = admin.switch(name.as_str()).await?;
    let owed: Vec<past::Owed> = after.owed.iter().map(past::Owed::of).collect();
    printer.answer(&json!({ "namespace": name, "forgotten": node, "owed": owed }), || {
        format!("{name} no longer waits for node {node}\n")
    })?;
    Ok(Exit::Done)
}
