//! What each value allows and several together do not.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use duet_proto::NodeId;

use super::{
    fault::{Fault, Origin},
    layers::Layers,
    values::{self, Value, literal},
};

/// Every combination that cannot work. What is itself wrong, or was not set, is in none.
pub(super) fn impossible(layers: &Layers) -> Vec<Fault> {
    let set = Set(layers);
    let mut faults: Vec<Fault> =
        [heartbeat, patience, token_wait, same_file].iter().filter_map(|check| check(&set)).collect();
    faults.extend(reach(&set).into_iter().chain(taken(&set)));
    faults.extend(family(&set));
    faults
}

struct Set<'a>(&'a Layers);

impl Set<'_> {
    fn value(&self, key: &str) -> Option<&(Value, Origin)> {
        self.0.get(key).filter(|_| !self.0.wrong.contains(key))
    }

    fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            (Value::Number(number), _) => Some(*number),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            (Value::Text(text), _) => Some(text),
            _ => None,
        }
    }

    fn listen(&self) -> Option<SocketAddr> {
        match self.value("listen")? {
            (Value::Socket(address), _) => *address,
            _ => None,
        }
    }

    fn me(&self) -> Option<NodeId> {
        self.number("node_id").and_then(|id| u32::try_from(id).ok()).map(NodeId)
    }

    fn founders(&self) -> Option<&BTreeMap<NodeId, String>> {
        match self.value("founders")? {
            (Value::Founders(founders), _) => Some(founders),
            _ => None,
        }
    }

    /// The founders but this node.
    fn others(&self) -> Option<impl Iterator<Item = (NodeId, &str)>> {
        let (me, founders) = (self.me()?, self.founders()?);
        Some(founders.iter().filter(move |(id, _)| **id != me).map(|(id, address)| (*id, address.as_str())))
    }

    /// Two keys that contradict each other: told where the one stands that somebody set.
    fn conflict(&self, key: &'static str, other: &'static str, why: String) -> Option<Fault> {
        let (first, second) = (&self.value(key)?.1, &self.value(other)?.1);
        Some(match first {
            Origin::Default => Fault::Value { key: other, origin: second.clone(), why },
            _ => {
                let why = match second {
                    Origin::Default => format!("{why}, by default"),
                    second => format!("{why}, set at {second}"),
                };
                Fault::Value { key, origin: first.clone(), why }
            }
        })
    }
}

fn heartbeat(set: &Set<'_>) -> Option<Fault> {
    let (election, heartbeat) = (set.number("timing.election_ticks")?, set.number("timing.heartbeat_ticks")?);
    if election >= 4 * heartbeat {
        return None;
    }
    let why = format!("an election after {election} ticks is less than 4 times a heartbeat of {heartbeat} ticks");
    set.conflict("timing.election_ticks", "timing.heartbeat_ticks", why)
}

/// No request would outlast the change of a leader.
fn patience(set: &Set<'_>) -> Option<Fault> {
    let (tick, ticks) = (set.number("timing.tick_ms")?, set.number("timing.election_ticks")?);
    let (election, patience) = (Duration::from_millis(tick * ticks), set.number("timing.no_quorum_ms")?);
    if Duration::from_millis(patience) > election {
        return None;
    }
    let why = format!(
        "requests would be refused after {patience} ms, before others stand for election, after {} ms \
         (timing.tick_ms × timing.election_ticks)",
        election.as_millis()
    );
    let moved = |key: &&str| matches!(set.value(key), Some((_, origin)) if !matches!(origin, Origin::Default));
    let cause = ["timing.tick_ms", "timing.election_ticks"].into_iter().find(moved).unwrap_or("timing.tick_ms");
    set.conflict("timing.no_quorum_ms", cause, why)
}

fn token_wait(set: &Set<'_>) -> Option<Fault> {
    let (wait, request) = (set.number("timing.token_wait_ms")?, set.number("timing.request_ms")?);
    if wait <= request {
        return None;
    }
    let why =
        format!("a read would wait {wait} ms for its session, and no request may wait longer than {request} ms");
    set.conflict("timing.token_wait_ms", "timing.request_ms", why)
}

/// The list of the revoked would hold what everybody trusts.
fn same_file(set: &Set<'_>) -> Option<Fault> {
    let revoked = set.text("tls.revoked")?;
    let same = ["tls.ca", "tls.cert", "tls.key"].into_iter().find(|key| set.text(key) == Some(revoked))?;
    set.conflict("tls.revoked", same, format!("{revoked:?} is the file of `{same}` too"))
}

/// What is told to others must lead here.
fn reach(set: &Set<'_>) -> Option<Fault> {
    let listen = set.listen()?;
    if set.founders()?.contains_key(&set.me()?) || set.0.get("advertise").is_some() {
        return None;
    }
    let why = values::address(&listen.to_string()).err()?;
    let why = format!("{why} as `advertise`, or this node among the `founders`");
    let (_, origin) = set.value("listen")?;
    Some(Fault::Value { key: "listen", origin: origin.clone(), why })
}

/// Another node is there already.
fn taken(set: &Set<'_>) -> Option<Fault> {
    let address = set.text("advertise")?;
    let (other, _) = set.others()?.find(|(_, known)| known.eq_ignore_ascii_case(address))?;
    set.conflict("advertise", "founders", format!("{address} is the address of founder {other}"))
}

/// Founders whom the socket that listens, from which is also sent, cannot reach.
fn family(set: &Set<'_>) -> Option<Fault> {
    let listen = set.listen()?.ip();
    let why = set.others()?.find_map(|(other, address)| {
        let ip = literal(address)?;
        if listen.is_ipv4() && ip.is_ipv6() || listen.is_ipv6() && !listen.is_unspecified() && ip.is_ipv4() {
            Some(format!("a socket on {listen} cannot send to founder {other} at {address}"))
        } else if listen.is_loopback() && !ip.is_loopback() {
            Some(format!("{listen} is heard on this machine only, and founder {other} is at {address}"))
        } else {
            None
        }
    })?;
    set.conflict("listen", "founders", why)
}
