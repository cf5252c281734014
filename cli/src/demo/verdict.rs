//! What has become of everything that clients were told.

use std::time::Duration;

use duet_client::Client;
use tokio::time::{Instant, sleep};

use super::{
    PATIENCE, detail,
    load::{Found, Load, Tally},
    print,
    watch::{Stall, Watched},
};
use crate::{
    cluster,
    failure::Failure,
    output::{count, table},
    status::Report,
};

/// What was promised, and what was kept.
pub(super) struct Verdict {
    tally: Tally,
    found: Found,
}

impl Verdict {
    /// Ends the loads, each of a namespace, and looks for what they were told has been done: once as the namespace
    /// answers, and once on each member alone.
    ///
    /// # Errors
    /// If a client was told of an error that none should see, or something cannot be read.
    pub(super) async fn of(client: &Client, loads: Vec<(&'static str, Load)>) -> Result<Verdict, Failure> {
        let mut tally = Tally::default();
        for (_, load) in &loads {
            tally = tally.plus(load.stop().await?);
        }
        let report = in_step(client).await?;
        let mut found = Found::default();
        for (name, load) in loads {
            let namespace = client.namespace(name)?;
            let here = load.verify(&namespace).await?;
            found = found.plus(here);
            for node in report.nodes.iter().map(|row| row.id) {
                let there = load.verify(&namespace.on(node)).await?;
                if there != here {
                    return Err(Failure::failed(format!("node {node} alone has {there:?}, all together {here:?}")));
                }
            }
        }
        Ok(Verdict { tally, found })
    }

    /// Says it.
    ///
    /// # Errors
    /// If a promise was not kept.
    pub(super) fn tell(&self, switches: &[Watched]) -> Result<(), Failure> {
        summary(switches);
        let Verdict { tally, found } = self;
        let row = |what: &str, number: u64, more: &str| {
            detail(format!("{what:<20}{:>10}   {more}", count(number)).trim_end());
        };
        let codes: Vec<String> = tally.errors.iter().map(|(code, number)| format!("{number} {code}")).collect();
        let unknown = if tally.unknown == 0 { "" } else { "under way to a node as it died; their clients know" };
        let kept =
            format!("on each member: {} keys as last put, {} deleted for good", count(found.held), count(found.gone));
        detail("");
        row("acknowledged writes", tally.acknowledged, "");
        row("found", found.writes(), &kept);
        row("lost", found.lost + found.back, "");
        row("outcome unknown", tally.unknown, unknown);
        row("errors", tally.errors.values().sum(), &codes.join(", "));
        row("reads", tally.reads, &format!("{} of them wrong", tally.wrong));
        let longest =
            |stall: fn(&Watched) -> Stall| switches.iter().map(|s| stall(s).longest).max().unwrap_or_default();
        detail(&format!(
            "longest stall       {:>10}   of writes; of reads {}",
            ms(longest(Watched::writes)),
            ms(longest(Watched::reads))
        ));
        found.check()?;
        if found.writes() != tally.acknowledged {
            return Err(Failure::failed("the ledger and the acknowledged writes differ"));
        }
        if tally.wrong > 0 {
            return Err(Failure::failed(format!("{} reads returned something else than what is there", tally.wrong)));
        }
        Ok(())
    }
}

/// What each switch cost those who were writing and reading.
fn summary(switches: &[Watched]) {
    let rows = switches.iter().map(|switch| {
        let (writes, reads) = (switch.writes(), switch.reads());
        vec![
            format!("   {}", switch.name),
            switch.to.to_string(),
            ms(switch.took()),
            ms(writes.longest),
            ms(writes.slowest),
            ms(reads.longest),
            ms(reads.slowest),
        ]
    });
    let headers = ["   SWITCH", "TO", ">TOOK", ">NO WRITE FOR", ">SLOWEST WRITE", ">NO READ FOR", ">SLOWEST READ"];
    print(&table(&headers, rows));
}

fn ms(time: Duration) -> String {
    format!("{} ms", count(time.as_millis() as u64))
}

/// Waits until nothing is amiss, and all members of each namespace hold the same.
pub(super) async fn in_step(client: &Client) -> Result<Report, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = cluster::report(client).await?;
        let same = report.namespaces.iter().all(|row| {
            let mut members = row.members.iter().map(|member| member.replica.as_ref().map(|r| (r.lag, &r.digest)));
            let first = members.next().flatten();
            first.is_some_and(|(lag, _)| lag == 0) && members.all(|member| member == first)
        });
        if report.healthy && same {
            return Ok(report);
        }
        if Instant::now() > deadline {
            return Err(Failure::failed(format!("the cluster does not settle:\n{}", report.render())));
        }
        sleep(Duration::from_millis(50)).await;
    }
}
