//! What befalls the machines: how each fault of a plan is made to happen.

use std::{sync::atomic::Ordering, time::Duration};

use duet_transport::sim::Link;
use tokio::time::{Instant, sleep};

use super::{
    plan::Fault,
    world::{Undo, World, address, client_address},
};

/// Packets lost in a storm, of a thousand.
const STORM_PERMILLE: u32 = 500;
/// How long a leader's answers take to get a third older, see [`Fault::LateLeader`].
const AGEING: Duration = Duration::from_millis(500);
/// How long an election may take.
const ELECTION: Duration = Duration::from_secs(4);
/// How often an election is looked at. A vote that has just been counted must not yet have led to anything.
const GLANCE: Duration = Duration::from_millis(1);

impl World {
    /// Makes a fault happen. What is left of it is undone later; those that take several steps last until they are over.
    pub(super) async fn suffer(&mut self, fault: Fault) -> Result<Option<(Duration, Undo)>, String> {
        Ok(match fault {
            Fault::Crash { node, down } => self.crash(node).then_some((down, Undo::Restart(node))),
            Fault::Partition { side, one_way, heal } => {
                self.cut(&side, one_way, true);
                Some((heal, Undo::Reopen { side, one_way }))
            }
            Fault::Storm { heal } => {
                let storm = Link {
                    loss: f64::from(STORM_PERMILLE) / 1000.0,
                    delay: self.calm.delay.start..self.calm.delay.end * 10,
                    ..self.calm.clone()
                };
                self.net.set_default(storm);
                Some((heal, Undo::Calm))
            }
            Fault::CutLeader { heal } => self.leader().await?.map(|leader| {
                let side = vec![leader];
                self.cut(&side, false, true);
                (heal, Undo::Reopen { side, one_way: false })
            }),
            Fault::LateLeader { delay } => {
                self.late_leader(delay).await?;
                None
            }
            Fault::CrashVoters => {
                self.crash_voters().await?;
                None
            }
            Fault::Clock { node, by_ms } => {
                if let Some(machine) = self.machines.get(&node) {
                    machine.clock.offset_ms.fetch_add(by_ms, Ordering::Relaxed);
                }
                None
            }
        })
    }

    /// See [`Fault::LateLeader`]. The answers age step by step, so that the leader never hears nothing for long.
    async fn late_leader(&mut self, delay: Duration) -> Result<(), String> {
        let Some(old) = self.leader().await? else { return Ok(()) };
        let others: Vec<u32> = self.machines.keys().copied().filter(|id| *id != old).collect();
        let age = |world: &World, delay: Option<Duration>| {
            for other in &others {
                let link =
                    delay.map(|delay| Link { delay: delay..delay + world.calm.delay.end, ..world.calm.clone() });
                world.net.set_link(address(*other).ip(), address(old).ip(), link);
            }
        };
        self.lead_astray(&others, true);
        for third in 1..=3 {
            age(self, Some(delay * third / 3));
            self.pass(Instant::now() + AGEING).await?;
        }
        self.cut(&[old], true, true);
        self.pass(Instant::now() + delay + AGEING).await?;
        self.cut(&[old], true, false);
        age(self, None);
        self.lead_astray(&others, false);
        Ok(())
    }

    /// Keeps half of the clients from these nodes.
    fn lead_astray(&self, from: &[u32], cut: bool) {
        for client in (1..=self.clients.div_ceil(2)).map(client_address) {
            for node in from.iter().map(|id| address(*id).ip()) {
                for (from, to) in [(client, node), (node, client)] {
                    if cut { self.net.block(from, to) } else { self.net.unblock(from, to) }
                }
            }
        }
    }

    /// See [`Fault::CrashVoters`].
    async fn crash_voters(&mut self) -> Result<(), String> {
        let Some(old) = self.leader().await?.filter(|old| self.crash(*old)) else { return Ok(()) };
        let new = self.elected(old).await?;
        let outside: Vec<u32> = new.into_iter().collect();
        self.cut(&outside, false, true);
        let voters: Vec<u32> =
            self.machines.keys().copied().filter(|id| ![Some(old), new].contains(&Some(*id))).collect();
        let crashed: Vec<u32> = voters.into_iter().filter(|id| new.is_some() && self.crash(*id)).collect();
        // The old one first: it is to stand before the voters do.
        self.boot(old).await?;
        self.pass(Instant::now() + AGEING / 2).await?;
        for voter in crashed {
            self.boot(voter).await?;
        }
        if let Some(new) = new
            && self.elected(new).await?.is_some()
        {
            // Something is to be written under it.
            self.pass(Instant::now() + AGEING).await?;
        }
        self.cut(&outside, false, false);
        Ok(())
    }

    /// Waits until a node other than this leads.
    async fn elected(&mut self, besides: u32) -> Result<Option<u32>, String> {
        let patience = Instant::now() + ELECTION;
        while Instant::now() < patience {
            let leaders = self.look().await?;
            if let Some((_, leader)) = leaders.into_iter().find(|(_, leader)| *leader != besides) {
                return Ok(Some(leader));
            }
            sleep(GLANCE).await;
        }
        Ok(None)
    }

    /// Who leads the namespace: of several who think so, the one of the latest term.
    async fn leader(&mut self) -> Result<Option<u32>, String> {
        Ok(self.look().await?.last().map(|(_, leader)| *leader))
    }
}
