#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::expect_used)]
use duet_client::{Client, Tls};
use duet_proto::{Mode, NamespaceInfo};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let env = |n: &str| std::env::var(n).unwrap();
    let tls = Tls::load(env("DUET_CACERT").as_ref(), env("DUET_CERT").as_ref(), env("DUET_KEY").as_ref()).unwrap();
    let client = Client::builder()
        .endpoints(env("DUET_ENDPOINTS").split(',').map(str::to_owned).collect::<Vec<_>>())
        .tls(tls)
        .timeout(Duration::from_secs(10))
        .connect()
        .await
        .unwrap();
    let rounds: usize = std::env::args().nth(1).map_or(5, |x| x.parse().unwrap());
    let records: u64 = std::env::args().nth(2).map_or(0, |x| x.parse().unwrap());
    let writers: u64 = std::env::args().nth(3).map_or(8, |x| x.parse().unwrap());
    let name = format!("stall-{}", std::process::id());
    client.admin().create_namespace(name.as_str(), duet_client::NewNamespace::eventual()).await.unwrap();
    let space = client.namespace(&name).unwrap();
    let value: bytes::Bytes = vec![7u8; 256].into();
    let mut tasks = Vec::new();
    for w in 0..64u64 {
        let (space, value) = (space.clone(), value.clone());
        tasks.push(tokio::spawn(async move {
            let mut n = w;
            while n < records {
                space.put(format!("base{n}"), value.clone()).await.unwrap();
                n += 64;
            }
        }));
    }
    for t in tasks {
        t.await.unwrap();
    }
    println!("loaded {records}");
    let gaps: Arc<Mutex<Vec<(bool, Duration, Instant)>>> = Default::default();
    let errors = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicU64::new(0));
    for w in 0..writers {
        let (space, gaps, value, errors, done) =
            (space.clone(), gaps.clone(), value.clone(), errors.clone(), done.clone());
        tokio::spawn(async move {
            let mut n = 0u64;
            loop {
                let t = Instant::now();
                let write = w % 2 == 0;
                let r = if write {
                    space.put(format!("w{w}-{}", n % 1000), value.clone()).await.map(drop)
                } else {
                    space.get(format!("w{}-{}", w - 1, n % 1000)).await.map(drop)
                };
                if let Err(e) = r {
                    errors.fetch_add(1, Ordering::Relaxed);
                    println!("error {write} {e}");
                }
                done.fetch_add(1, Ordering::Relaxed);
                let e = t.elapsed();
                if e > Duration::from_millis(15) {
                    gaps.lock().unwrap().push((write, e, t));
                }
                n += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!(
        "steady: {} ops, gaps {:?}",
        done.load(Ordering::Relaxed),
        gaps.lock().unwrap().iter().map(|g| (g.0, g.1.as_millis())).collect::<Vec<_>>()
    );
    let mut to = Mode::Strong;
    for _ in 0..rounds * 2 {
        gaps.lock().unwrap().clear();
        let t = Instant::now();
        client.admin().switch_mode(&name, to, vec![]).await.unwrap();
        loop {
            let info: NamespaceInfo = client.admin().namespace(&name).await.unwrap();
            if info.mode == to && info.phase == duet_proto::Phase::Stable {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = t.elapsed();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let g = gaps.lock().unwrap();
        let max = |w: bool| g.iter().filter(|x| x.0 == w).map(|x| x.1.as_millis()).max().unwrap_or(0);
        println!(
            "to {to}: took {} ms, longest write {} ms, longest read {} ms, slow {} ",
            took.as_millis(),
            max(true),
            max(false),
            g.len()
        );
        to = if to == Mode::Strong { Mode::Eventual } else { Mode::Strong };
    }
    let s = client.admin().switch(&name).await.unwrap();
    for h in s.history {
        println!(
            "{:?} asked->sealed {} sealed->ended {} attempts {}",
            h.to,
            h.sealed_ms as i64 - h.asked_ms as i64,
            h.ended_ms - h.sealed_ms,
            h.attempts
        );
    }
    println!("errors {} ops {}", errors.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
}
