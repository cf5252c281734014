//! One fsync for everything that waits.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::Instant,
};

use crate::{Batch, Store, StoreError};

/// Batches beyond this many bytes wait for the next sync: a group that grows without end would keep its first
/// waiter waiting.
const GROUP_BYTES: usize = 8 << 20;

type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

enum Job {
    Commit(Batch, Done),
    Stop(oneshot::Sender<()>),
}

/// The way by which durable writes reach the store.
///
/// It takes all that has queued, writes it as one batch, syncs once, and then tells everyone, in the order of
/// submission. Since the log is ordered, a completion also says that everything written to the store *before the
/// submission*, by whatever way, is durable; an empty batch is a way to ask just that.
///
/// After a failure the disk's state is unknown (the page cache lies after a failed fsync: Rebello et al., "Can
/// Applications Recover from fsync Failures?", ATC 2020), so everything that waits and everything that is submitted
/// later fails, and [`Committer::failed`] tells the node to stop.
#[derive(Clone)]
pub struct Committer {
    queue: UnboundedSender<Job>,
    shared: Arc<Shared>,
}

/// Figures of a committer since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Batches submitted that are not completed yet.
    pub queued: u64,
    /// Batches completed.
    pub batches: u64,
    /// Writes with a sync; `batches / groups` is how many shared one.
    pub groups: u64,
    /// Bytes committed.
    pub bytes: u64,
    /// Time spent writing and syncing, in microseconds.
    pub busy_us: u64,
    /// How many groups took up to 1, 2, 4, … 2^14 milliseconds, and longer.
    pub took_ms: [u64; 16],
    /// How many groups held up to 1, 2, 4, … 2^14 batches, and more.
    pub held: [u64; 16],
}

#[derive(Default)]
struct Shared {
    failure: OnceLock<StoreError>,
    watchers: Mutex<Vec<oneshot::Sender<StoreError>>>,
    queued: AtomicU64,
    batches: AtomicU64,
    groups: AtomicU64,
    bytes: AtomicU64,
    busy_us: AtomicU64,
    took_ms: [AtomicU64; 16],
    held: [AtomicU64; 16],
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer")
            .field("stats", &self.stats())
            .field("failure", &self.shared.failure.get())
            .finish()
    }
}

impl Committer {
    /// Commits on a thread of its own, as the daemon does: an fsync never holds up a task. The thread ends, and
    /// lets go of the store, after [`Committer::stop`] or when the last clone is dropped.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start_thread(store: Arc<dyn Store>) -> Result<Committer, StoreError> {
        let (committer, mut worker) = Committer::new(store);
        let run = move || {
            while let Some(job) = worker.jobs.blocking_recv() {
                let (group, stop) = worker.gather(job);
                worker.commit(group);
                if let Some(stopped) = stop {
                    drop(worker);
                    let _ = stopped.send(());
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("committer".into())
            .spawn(run)
            .map_err(|e| StoreError::Io { what: format!("starting the committer's thread: {e}") })?;
        Ok(committer)
    }

    /// Commits on a task of the current runtime, as the simulation does: each sync takes `latency`, during which
    /// what it is about is written but not durable.
    #[must_use]
    pub fn start_task(store: Arc<dyn Store>, latency: Duration) -> Committer {
        let (committer, mut worker) = Committer::new(store);
        tokio::spawn(async move {
            while let Some(job) = worker.jobs.recv().await {
                let (group, stop) = worker.gather(job);
                if !group.dones.is_empty() {
                    let started = Instant::now();
                    let written = worker.write(group.batch);
                    tokio::time::sleep(latency).await;
                    let result = written.and_then(|()| worker.store.sync());
                    worker.complete(result, group.dones, group.bytes, started);
                }
                if let Some(stopped) = stop {
                    drop(worker);
                    let _ = stopped.send(());
                    return;
                }
            }
        });
        committer
    }

    fn new(store: Arc<dyn Store>) -> (Committer, Worker) {
        let (queue, jobs) = unbounded_channel();
        let shared = Arc::new(Shared::default());
        (Committer { queue, shared: shared.clone() }, Worker { store, jobs, shared })
    }

    /// Queues a batch, at once; the future completes when it is durable. Dropping the future does not take the
    /// batch back.
    pub fn submit(&self, batch: Batch) -> Committed {
        let (told, result) = oneshot::channel();
        self.submit_with(batch, move |outcome| {
            let _ = told.send(outcome);
        });
        Committed { result }
    }

    /// Queues a batch, at once; `done` is called when it is durable or has failed, after those of all batches
    /// submitted before it. It runs where the syncs do, so it must be quick and must not block.
    pub fn submit_with(&self, batch: Batch, done: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = self.queue.send(Job::Commit(batch, Box::new(done))) {
            self.shared.queued.fetch_sub(1, Ordering::Relaxed);
            if let Job::Commit(_, done) = refused.0 {
                done(Err(self.failure().unwrap_or(StoreError::Closed)));
            }
        }
    }

    /// The failure after which nothing more is committed, if there was one.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.shared.failure.get().cloned()
    }

    /// Waits for a failure; pending as long as there is none. What comes is the first error itself.
    pub async fn failed(&self) -> StoreError {
        let told = {
            let mut watchers = self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(failure) = self.failure() {
                return failure;
            }
            let (tell, told) = oneshot::channel();
            watchers.retain(|w| !w.is_closed());
            watchers.push(tell);
            told
        };
        match told.await {
            Ok(failure) => failure,
            // Shared outlives this call, and drops a watcher only to tell it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Commits what has been submitted, then lets go of the store; later submissions fail with
    /// [`StoreError::Closed`].
    pub async fn stop(&self) {
        let (stopped, wait) = oneshot::channel();
        if self.queue.send(Job::Stop(stopped)).is_ok() {
            let _ = wait.await;
        }
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> CommitStats {
        let shared = &self.shared;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CommitStats {
            queued: read(&shared.queued),
            batches: read(&shared.batches),
            groups: read(&shared.groups),
            bytes: read(&shared.bytes),
            busy_us: read(&shared.busy_us),
            took_ms: std::array::from_fn(|i| read(&shared.took_ms[i])),
            held: std::array::from_fn(|i| read(&shared.held[i])),
        }
    }
}

/// Completes when a batch is durable, or with why it is not known to be.
#[derive(Debug)]
pub struct Committed {
    result: oneshot::Receiver<Result<(), StoreError>>,
}

impl Future for Committed {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(cx).map(|told| told.unwrap_or(Err(StoreError::Closed)))
    }
}

/// What one sync is for.
#[derive(Default)]
struct Group {
    batch: Batch,
    bytes: usize,
    dones: Vec<Done>,
}

struct Worker {
    store: Arc<dyn Store>,
    jobs: UnboundedReceiver<Job>,
    shared: Arc<Shared>,
}

impl Drop for Worker {
    /// Who waits for a failure is told of a panic too: nothing is committed any more.
    fn drop(&mut self) {
        if thread::panicking() {
            self.fail(&StoreError::Io { what: "the committer panicked".into() });
        }
    }
}

impl Worker {
    /// All that has queued by now, up to a stop or the bound.
    fn gather(&mut self, first: Job) -> (Group, Option<oneshot::Sender<()>>) {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Stop(stopped) => return (group, Some(stopped)),
                Job::Commit(batch, done) => {
                    group.bytes += batch.bytes();
                    group.batch.append(batch);
                    group.dones.push(done);
                }
            }
            next = if group.bytes < GROUP_BYTES { self.jobs.try_recv().ok() } else { None };
        }
        (group, None)
    }

    fn commit(&self, group: Group) {
        if !group.dones.is_empty() {
            let started = Instant::now();
            let result = self.write(group.batch).and_then(|()| self.store.sync());
            self.complete(result, group.dones, group.bytes, started);
        }
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        if let Some(failure) = self.shared.failure.get() {
            return Err(failure.poison());
        }
        if batch.is_empty() { Ok(()) } else { self.store.write(batch) }
    }

    fn complete(&self, result: Result<(), StoreError>, dones: Vec<Done>, bytes: usize, started: Instant) {
        if let Err(error) = &result {
            self.fail(error);
        }
        let took = started.elapsed();
        let count = dones.len() as u64;
        let bucket = |figure: u64| (figure.max(1).next_power_of_two().ilog2() as usize).min(15);
        let (ms, size) = (bucket((took.as_micros() as u64).div_ceil(1000)), bucket(count));
        self.shared.groups.fetch_add(1, Ordering::Relaxed);
        self.shared.batches.fetch_add(count, Ordering::Relaxed);
        self.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.shared.busy_us.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        self.shared.took_ms[ms].fetch_add(1, Ordering::Relaxed);
        self.shared.held[size].fetch_add(1, Ordering::Relaxed);
        self.shared.queued.fetch_sub(count, Ordering::Relaxed);
        for done in dones {
            done(result.clone());
        }
    }

    /// Notes the first failure, and tells those who watch for it.
    fn fail(&self, error: &StoreError) {
        let mut watchers = self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.failure.set(error.clone()).is_ok() {
            for watcher in watchers.drain(..) {
                let _ = watcher.send(error.clone());
            }
        }
    }
}
