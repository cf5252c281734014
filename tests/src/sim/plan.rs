//! What goes wrong in a run, and when: drawn whole from the seed before the run begins.

use std::time::Duration;

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Everything about a run that the seed decides.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// How many nodes there are: 3 or 5.
    pub nodes: u32,
    /// How many of them hold the namespace.
    pub replicas: u32,
    /// How many clients work at once.
    pub clients: u32,
    /// How many of them only read: those with the lowest numbers.
    pub readers: u32,
    /// How many keys they share.
    pub keys: u16,
    /// How long they work, in simulated time. Faults end with it.
    pub work: Duration,
    /// How long a sync of a disk takes.
    pub sync: Duration,
    /// The one-way delay of a packet, least and most.
    pub delay: (Duration, Duration),
    /// Packets lost at all times, of a thousand.
    pub loss_permille: u32,
    /// Packets that arrive twice, of a thousand.
    pub duplicate_permille: u32,
    /// Packets that others overtake, of a thousand.
    pub reorder_permille: u32,
    /// What happens, in order of time.
    pub faults: Vec<(Duration, Fault)>,
}

/// Something that goes wrong. Nodes are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies and loses what was not synced; it starts again after a while.
    Crash {
        /// Which node.
        node: u32,
        /// How long it is down.
        down: Duration,
    },
    /// Packets between the nodes of `side` and all others are lost, both ways or only those that leave `side`.
    Partition {
        /// The nodes of one side.
        side: Vec<u32>,
        /// Whether packets into `side` still arrive.
        one_way: bool,
        /// How long.
        heal: Duration,
    },
    /// Half of all packets are lost, and the rest come late.
    Storm {
        /// How long.
        heal: Duration,
    },
    /// The leader of the namespace, whoever it is, is cut off from the other nodes. A heal at about the time at which a
    /// deposed leader notices is where stale reads hide.
    CutLeader {
        /// How long.
        heal: Duration,
    },
    /// What the leader hears comes later and later; then nothing that it says arrives any more. It goes on believing that
    /// it leads for as long as old answers come in, and the others elect another one meanwhile. Half of the clients reach
    /// only the old one: may it take an old answer for a new one?
    LateLeader {
        /// How old the answers get. Beyond an election timeout it is dangerous.
        delay: Duration,
    },
    /// The leader crashes. In the moment in which another is elected, that one is cut off, and those who voted for it crash
    /// too. Then the old leader and the voters come back, and hold an election of their own: in the same term, if the
    /// voters have forgotten that they voted in it.
    CrashVoters,
    /// A node's wall clock jumps.
    Clock {
        /// Which node.
        node: u32,
        /// By how much, in milliseconds; backwards if negative.
        by_ms: i64,
    },
}

impl Plan {
    /// Draws a plan.
    #[must_use]
    pub fn draw(seed: u64) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let nodes = if rng.random_ratio(1, 5) { 5 } else { 3 };
        let work = Duration::from_secs(rng.random_range(5..=9));
        let slow = rng.random_ratio(1, 4);
        let mut plan = Plan {
            seed,
            nodes,
            replicas: if rng.random() { nodes } else { 3 },
            clients: rng.random_range(2..=5),
            readers: u32::from(rng.random_ratio(1, 4)),
            keys: rng.random_range(2..=6),
            work,
            sync: Duration::from_micros(rng.random_range(50..=if slow { 20_000 } else { 2_000 })),
            delay: (
                Duration::from_micros(rng.random_range(20..500)),
                Duration::from_micros(rng.random_range(600..8_000)),
            ),
            loss_permille: if rng.random_ratio(1, 3) { rng.random_range(1..=50) } else { 0 },
            duplicate_permille: if rng.random_ratio(1, 3) { rng.random_range(1..=50) } else { 0 },
            reorder_permille: if rng.random_ratio(1, 3) { rng.random_range(1..=50) } else { 0 },
            faults: Vec::new(),
        };
        let mut at = Duration::from_millis(rng.random_range(300..1500));
        while at < work {
            plan.faults.push((at, fault(&mut rng, nodes)));
            at += Duration::from_millis(rng.random_range(100..2500));
        }
        plan
    }

    /// A plan of one kind of fault, again and again, on a network that loses nothing otherwise.
    #[must_use]
    pub fn ambush(seed: u64, fault: impl Fn(&mut ChaCha8Rng) -> Fault) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut plan = Plan { nodes: 3, replicas: 3, clients: 6, readers: 2, ..Plan::draw(seed) };
        (plan.loss_permille, plan.duplicate_permille, plan.reorder_permille) = (0, 0, 0);
        plan.work = Duration::from_secs(20);
        plan.faults.clear();
        let mut at = Duration::from_secs(1);
        while at < plan.work {
            plan.faults.push((at, fault(&mut rng)));
            at += Duration::from_millis(rng.random_range(2500..4000));
        }
        plan
    }
}

fn fault(rng: &mut ChaCha8Rng, nodes: u32) -> Fault {
    let some_time = Duration::from_millis(rng.random_range(50..4000));
    let node = rng.random_range(1..=nodes);
    match rng.random_range(0..100) {
        0..40 => Fault::Crash { node, down: some_time },
        40..75 => {
            let mut side: Vec<u32> = (1..=nodes).collect();
            side.shuffle(rng);
            side.truncate(rng.random_range(1..=(nodes as usize / 2)));
            side.sort_unstable();
            Fault::Partition { side, one_way: rng.random_ratio(1, 3), heal: some_time }
        }
        75..85 => Fault::Storm { heal: some_time.min(Duration::from_millis(1500)) },
        85..90 => Fault::CutLeader { heal: Duration::from_millis(rng.random_range(500..1500)) },
        90..92 => Fault::LateLeader { delay: Duration::from_millis(rng.random_range(300..1500)) },
        92..94 => Fault::CrashVoters,
        _ => Fault::Clock { node, by_ms: rng.random_range(-5_000..=5_000) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(format!("{:?}", Plan::draw(7)), format!("{:?}", Plan::draw(7)));
        assert_ne!(format!("{:?}", Plan::draw(7)), format!("{:?}", Plan::draw(8)));
    }
}
