//! One epoch ends and another begins over the same data.

use super::*;
use crate::{Proposal, Recall, machine::State};

const E2: Epoch = Epoch(2);

/// The write that a client makes again when it does not know what became of the first.
fn again(key: &str, value: &str, sequence: u64) -> Call {
    let attempt = Try { session: SessionId(7), sequence, answered_below: 1, seen: 0, epoch: E1 };
    let op = Op::Write { mutation: Mutation::put(key.to_owned(), value.to_owned()) };
    Call { op, attempt: Some(attempt), consistency: Consistency::Linearizable }
}

async fn sealed(cluster: &Cluster, id: u32) -> State {
    for _ in 0..2000 {
        let state = cluster.handle(id).state(NS, E1).unwrap();
        if let Some(state) = state.filter(|state| state.sealed.is_some()) {
            return state;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the seal did not come to node {id}");
}

/// Two members have applied the seal and found the next epoch; the third was away, and gets the base from them.
#[tokio::test(start_paused = true)]
async fn the_next_epoch_begins_with_what_the_last_one_left() {
    let (mut cluster, leader) = three(small).await;
    let [a, away] = others(leader);
    cluster.put(leader, "a", "1").await.unwrap();
    cluster.settle(&[1, 2, 3]).await;
    cluster.isolate(away);
    let earlier = cluster.put(a, "b", "2").await.unwrap();
    cluster.handle(a).propose(NS, E1, Proposal::Seal { next: E2 }, in_seconds(20)).await.unwrap();
    let refused = cluster.handle(a).call(NS, E1, again("c", "3", 3), in_seconds(20)).await;
    assert!(matches!(refused, Err(Error::Changing { .. })), "{refused:?}");
    assert_eq!(cluster.get(leader, "b").await.unwrap(), Some("2".into()), "reads go on");

    let all = [1, 2, 3].map(NodeId).into_iter().collect::<BTreeSet<_>>();
    let remembered = cluster.handle(leader).answers(NS).unwrap().unwrap();
    assert_eq!(cluster.handle(a).answers(NS).unwrap(), Some(remembered), "one table on all");
    let recall = |sequence| {
        let attempt = again("b", "2", sequence).attempt.unwrap();
        cluster.handle(a).recall(NS, E1, &attempt).unwrap()
    };
    assert_eq!(recall(2), Recall::Ran(Box::new(Ok(earlier.outcome.clone()))));
    assert_eq!(recall(3), Recall::Never, "it was refused by the seal");
    let second = |base| GroupSpec { epoch: E2, voters: all.clone(), base, ..spec(1, &[]) };
    for id in [leader, a] {
        let base = sealed(&cluster, id).await.base();
        assert_eq!(base.keys, 2);
        cluster.handle(id).retire(NS, E1).await.unwrap();
        cluster.handle(id).create(second(Some(base))).await.unwrap();
    }
    let late = cluster.handle(a).call(NS, E1, again("c", "3", 3), in_seconds(20)).await;
    assert!(matches!(late, Err(Error::NotHere { .. })), "{late:?}");
    let written = cluster.handle(a).call(NS, E2, again("c", "3", 3), in_seconds(20)).await.unwrap();
    let same = cluster.handle(leader).call(NS, E2, again("c", "3", 3), in_seconds(20)).await.unwrap();
    assert_eq!(written.outcome, same.outcome, "once");
    let stale = cluster.handle(leader).call(NS, E2, again("b", "2", 2), in_seconds(20)).await.unwrap();
    assert_eq!(stale.outcome, earlier.outcome, "answered in the first epoch");

    cluster.heal();
    let old = cluster.handle(away).state(NS, E1).unwrap().unwrap();
    assert_eq!((old.sealed, old.keys), (None, 1));
    cluster.handle(away).retire(NS, E1).await.unwrap();
    cluster.handle(away).create(GroupSpec { voters: BTreeSet::new(), ..second(None) }).await.unwrap();
    // It stops and starts while there is old data, and no state.
    let disk = cluster.crash(away, 1);
    cluster.restart(away, disk);
    cluster.settle(&[1, 2, 3]).await;
    let read = Call { consistency: Consistency::Local, ..Call::once(Op::Get { key: "c".into() }) };
    let read = cluster.handle(away).call(NS, E2, read, in_seconds(20)).await.unwrap();
    assert!(matches!(&read.outcome, Outcome::Value(Some((_, value))) if value == "3"), "{read:?}");
}
