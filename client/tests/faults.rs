//! A client and nodes that fail it: what is retried, what is not, and what the caller is told.

mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use duet_client::{ClientError, Options, limits};
use duet_proto::{ClusterName, Error, Mode, NodeId, Op, Outcome, Role};
use duet_transport::{CertificateAuthority, Identity, Tls, Validity};
use fake::{Act, Fake, address, cluster, data, fails, ip, meta, no_quorum, stamp, usual, written};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn without_a_quorum_everyone_is_asked_once_and_the_answer_is_quick() {
    let mut fake = Fake::new(3, |_, _| fails(no_quorum()));
    let orders = fake.orders().await;
    let start = Instant::now();
    assert_eq!(cluster(orders.put("k", "v").await), no_quorum());
    assert_eq!(cluster(orders.get("k").await), no_quorum());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(fake.asked().iter().collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn after_no_quorum_the_others_get_a_grace() {
    let mut fake = Fake::new(3, |node, _| if node == 1 { fails(no_quorum()) } else { Act::Silence });
    let orders = fake.orders().await;
    let start = Instant::now();
    assert_eq!(cluster(orders.get("k").await), no_quorum());
    assert!(start.elapsed() < Duration::from_millis(600), "{:?}", start.elapsed());
    let write = cluster(orders.put("k", "v").await);
    assert!(matches!(write, Error::OutcomeUnknown { .. }), "those who are silent may have done it: {write}");
    fake.script(|node, _| if node == 1 { fails(no_quorum()) } else { written(1) });
    orders.put("k", "v").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn once_the_dead_are_suspect_a_write_without_a_quorum_is_certain() {
    let mut fake = Fake::new(3, usual());
    let orders = fake.orders().await;
    for _ in 0..2 {
        orders.put("k", "v").await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Node 1, connected, dies, and so does node 3. Node 2 holds what it is sent for as long as nodes do.
    let Act::Answer(refusal) = fails(no_quorum()) else { unreachable!() };
    fake.script(move |_, _| Act::Late(Duration::from_millis(1500), refusal.clone()));
    fake.net.crash(ip(1));
    fake.net.crash(ip(3));
    let first = cluster(orders.put("k", "v").await);
    assert!(matches!(first, Error::OutcomeUnknown { .. }), "node 1 was sent it: {first}");
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(cluster(orders.put("k", "v").await), no_quorum());
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn dead_endpoints_are_passed_by() {
    let mut fake = Fake::new(3, usual());
    let start = Instant::now();
    let client = fake.builder(&[8, 9, 2], Options::default()).connect().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    client.namespace("orders").unwrap().put("k", "v").await.unwrap();
    assert_eq!(fake.asked(), [2]);
    let Err(ClientError::Unreachable { tried }) = fake.builder(&[8, 9], Options::default()).connect().await else {
        panic!("nobody is there");
    };
    let tried: BTreeSet<_> = tried.into_iter().map(|(at, _)| at).collect();
    assert_eq!(tried, [address(8), address(9)].into());
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_refused_at_once() {
    let mut fake = Fake::new(1, usual());
    let mut ca = CertificateAuthority::from_seed(&ClusterName::new("c2").unwrap(), 2).unwrap();
    let me = Identity::client(ca.cluster().clone(), "app", Role::Client).unwrap();
    let issued = ca.issue(&me, Validity::CENTURY, &[]).unwrap();
    let tls = Tls::from_pem(ca.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes()).unwrap();
    let start = Instant::now();
    let error = fake.builder(&[1], Options::default()).tls(tls).connect().await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_try_is_sent_once() {
    let mut fake = Fake::new(3, |_, _| Act::Break);
    let orders = fake.orders().await.exactly_once(false);
    let error = cluster(orders.put("k", "v").await);
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(fake.asked().len(), 1);
    fake.stage(|stage| stage.modes[0].1 = Mode::Eventual);
    let orders = fake.orders().await;
    let error = cluster(orders.put("k", "v").await);
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "nobody remembers eventual writes: {error}");
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_with_a_try_is_done_once_however_often_it_is_sent() {
    // A replicated table of answers, and connections that break after every other write.
    let (mut table, mut position, mut count) = (BTreeMap::new(), 0, 0);
    let mut fake = Fake::new(3, move |_, request| {
        let attempt = request.attempt.unwrap();
        let done = *table.entry(attempt.sequence).or_insert_with(|| {
            position += 1;
            position
        });
        count += 1;
        if count % 2 == 1 { Act::Break } else { data(Outcome::Written(stamp(done)), meta(done)) }
    });
    let orders = fake.orders().await;
    for n in 1..=5 {
        assert_eq!(orders.put("k", "v").await.unwrap(), stamp(n), "done once, answered from the table");
    }
    let seen = fake.requests();
    assert_eq!(seen.len(), 10);
    for pair in seen.chunks(2) {
        assert_eq!(pair[0].1, pair[1].1, "a retry is the same request");
        assert_ne!(pair[0].0, pair[1].0, "sent to another node");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_hedged_and_then_avoided() {
    let mut fake = Fake::new(3, |node, _| if node == 1 { Act::Silence } else { written(3) });
    let orders = fake.orders().await;
    let start = Instant::now();
    orders.put("k", "v").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(fake.asked()[0], 1);
    orders.put("k", "v").await.unwrap();
    assert!(!fake.asked().contains(&1), "once bitten");
}

#[tokio::test(start_paused = true)]
async fn a_killed_leader_costs_less_than_an_election() {
    let mut fake = Fake::new(3, usual());
    let orders = fake.orders().await;
    orders.put("k", "v").await.unwrap();
    fake.net.crash(ip(1));
    fake.asked();
    let start = Instant::now();
    orders.put("k", "v").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(fake.asked().iter().all(|node| *node != 1));
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_refreshed_on_the_first_try() {
    let mut fake = Fake::new(1, |_, request| match (&request.op, request.attempt) {
        (Op::Get { .. }, _) => data(Outcome::Value(None), meta(900)),
        (_, Some(attempt)) if attempt.seen < 800 => fails(Error::SessionExpired { floor: 800, seen: attempt.seen }),
        _ => written(901),
    });
    let orders = fake.orders().await;
    orders.put("k", "v").await.unwrap();
    let seen = fake.requests();
    let tries: Vec<_> = seen.iter().filter_map(|(_, r)| r.attempt).map(|t| (t.sequence, t.seen)).collect();
    assert_eq!(tries, [(1, 0), (1, 900)]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_on_a_retry_is_an_unknown_outcome() {
    let mut first = true;
    let mut fake = Fake::new(3, move |_, _| match std::mem::replace(&mut first, false) {
        true => Act::Break,
        false => fails(Error::SessionExpired { floor: 800, seen: 0 }),
    });
    let error = cluster(fake.orders().await.put("k", "v").await);
    assert!(matches!(error, Error::OutcomeUnknown { .. }), "{error}");
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_read_as_timed_out_and_a_write_as_unknown() {
    let mut fake = Fake::new(3, |_, _| Act::Silence);
    let orders = fake.orders().await.timeout(Duration::from_secs(2));
    let read = orders.get("k").await.unwrap_err();
    assert!(matches!(read, ClientError::TimedOut { .. }), "{read}");
    let write = cluster(orders.put("k", "v").await);
    assert!(matches!(write, Error::OutcomeUnknown { .. }), "{write}");
}

#[tokio::test(start_paused = true)]
async fn what_a_node_cannot_do_another_may() {
    let internal = || Error::Corrupt { node: NodeId(1), what: "a record".into() };
    for error in [
        internal(),
        Error::Unavailable { node: NodeId(1), why: "stopping".into() },
        Error::Overloaded { why: "queue".into() },
        Error::OutcomeUnknown { why: "lost leadership".into() },
    ] {
        let refusal = error.clone();
        let mut fake = Fake::new(3, move |node, _| if node == 1 { fails(refusal.clone()) } else { written(1) });
        fake.orders().await.put("k", "v").await.unwrap_or_else(|e| panic!("{error}: {e}"));
        assert_eq!(fake.asked().len(), 2);
    }
    let mut fake = Fake::new(3, move |_, _| fails(internal()));
    assert_eq!(cluster(fake.orders().await.get("k").await), internal());
    assert_eq!(fake.asked().len(), 3, "everyone is asked before it is given up");
}

#[tokio::test(start_paused = true)]
async fn a_missing_namespace_is_asked_for_until_believed() {
    let missing = |name: &str| Error::NamespaceNotFound { name: name.parse().unwrap() };
    let mut fake = Fake::new(3, move |_, request| fails(missing(request.namespace.as_str())));
    let client = fake.client().await;
    let error = cluster(client.namespace("nowhere").unwrap().get("k").await);
    assert_eq!(error, missing("nowhere"));
    assert_eq!(fake.asked().len(), 3);
    // Created meanwhile, and this node's view lags.
    let mut count = 0;
    fake.script(move |_, _| {
        count += 1;
        if count < 3 { fails(missing("new")) } else { written(1) }
    });
    client.namespace("new").unwrap().put("k", "v").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_version_is_the_callers_business() {
    let error = Error::Version { theirs: 2, ours: 1 };
    let theirs = error.clone();
    let mut fake = Fake::new(3, move |_, _| fails(theirs.clone()));
    assert_eq!(cluster(fake.orders().await.get("k").await), error);
    assert_eq!(fake.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_names_who_is_silent() {
    let mut fake = Fake::new(3, usual());
    let client = fake.client().await;
    client.status().await.unwrap();
    fake.net.crash(ip(3));
    let start = Instant::now();
    let status = client.status().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let silent: Vec<_> = status
        .nodes
        .iter()
        .filter(|report| !matches!(report.status, Err(ClientError::Unexpected { .. })))
        .map(|report| report.info.id)
        .collect();
    assert_eq!(silent, [NodeId(3)], "the fakes answer `Done`, which is no status");
}

#[tokio::test(start_paused = true)]
async fn settings_are_checked() {
    let mut fake = Fake::new(1, usual());
    let mut options = Options::default();
    options.in_flight = limits::IN_FLIGHT + 1;
    for bad in [fake.builder(&[1], options), fake.builder(&[], Options::default())] {
        assert!(matches!(bad.connect().await, Err(ClientError::Configuration { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn old_connections_are_left_without_a_lost_request() {
    let mut node = usual();
    let mut fake = Fake::new(3, move |id, request| match node(id, request) {
        // Long enough that some are under way whenever a connection is left.
        Act::Answer(answer) => Act::Late(Duration::from_millis(300), answer),
        other => other,
    });
    let orders = fake.orders().await;
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..4000 {
        let orders = orders.clone();
        writes.spawn(async move { orders.put(format!("{n}"), "v").await.map(drop) });
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap().unwrap();
    }
    assert_eq!(fake.asked(), [1; 4000], "none was asked twice, so none was lost, and the leader was never passed by");
}
