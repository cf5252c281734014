//! The node's clock: hybrid time that never goes back, across restarts too.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use duet_proto::{ClockFault, Hlc, HlcState};

use crate::{
    Batch, Store, StoreError,
    identity::{put_u64, read_u64},
    layout,
};

/// Where the time comes from.
pub trait WallClock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch. May jump, either way.
    fn now_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// A node's hybrid clock. After a restart it gives only times above every time that is in its store.
///
/// Before a time at or above the persisted bound is given out, a higher bound is *written*, not synced: the log is
/// ordered, so whatever bears the time is written after the bound and cannot outlive it. What leaves the node before
/// it is durable here has no such promise; only Raft proposals do, and their times are re-stamped when they are
/// applied.
///
/// ```text
/// tick -> 1000.0      bound 1250 written
/// record at 1000.0    written
///                     crash: either the record is lost, or the bound is there
/// restart             the first tick is above 1250, whatever the wall clock says
/// ```
///
/// The window is half of the drift that peers allow: after a quick restart times lie ahead of the wall clock by as
/// much, and peers must not refuse them.
///
/// Invariants: times given rise strictly; `last < bound`, and `bound` has been written, whenever a time is given.
pub struct HybridClock {
    store: Arc<dyn Store>,
    wall: Arc<dyn WallClock>,
    drift_ms: u64,
    state: Mutex<Bounded>,
}

struct Bounded {
    hlc: HlcState,
    bound: Hlc,
}

impl fmt::Debug for HybridClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("HybridClock").field("last", &state.hlc.last()).field("bound", &state.bound).finish()
    }
}

impl HybridClock {
    /// Goes on above the bound that the store holds. Remote times more than `drift_ms` ahead will be refused.
    ///
    /// # Errors
    /// If the bound cannot be read.
    pub fn open(
        store: Arc<dyn Store>,
        wall: Arc<dyn WallClock>,
        drift_ms: u64,
    ) -> Result<Arc<HybridClock>, StoreError> {
        let bound = Hlc(read_u64(&*store, layout::CLOCK)?.unwrap_or(0));
        let state = Mutex::new(Bounded { hlc: HlcState::above(bound), bound });
        Ok(Arc::new(HybridClock { store, wall, drift_ms, state }))
    }

    /// The next time.
    ///
    /// # Errors
    /// If a higher bound cannot be written: the store is then poisoned.
    pub fn tick(&self) -> Result<Hlc, StoreError> {
        let wall_ms = self.wall.now_ms();
        let mut state = self.lock();
        let mut hlc = state.hlc;
        let time = hlc.tick(wall_ms);
        if time >= state.bound {
            let bound = Hlc::from_millis(time.millis() + self.window_ms());
            let mut batch = Batch::new();
            put_u64(&mut batch, layout::CLOCK, bound.0);
            self.store.write(batch)?;
            state.bound = bound;
        }
        state.hlc = hlc;
        Ok(time)
    }

    /// Takes note of a remote time: what follows here is after it.
    ///
    /// # Errors
    /// If it is further ahead of this node's wall clock than is allowed; it is then not taken note of.
    pub fn observe(&self, remote: Hlc) -> Result<(), ClockFault> {
        let wall_ms = self.wall.now_ms();
        self.lock().hlc.observe(remote, wall_ms, self.drift_ms)
    }

    /// The latest time given or observed.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.lock().hlc.last()
    }

    /// The wall clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        self.wall.now_ms()
    }

    /// How far ahead of this node's wall clock a remote time may be, in milliseconds.
    #[must_use]
    pub fn drift_ms(&self) -> u64 {
        self.drift_ms
    }

    fn window_ms(&self) -> u64 {
        (self.drift_ms / 2).max(1)
    }

    /// The state is replaced only when a tick has succeeded, so a panic elsewhere leaves it whole.
    fn lock(&self) -> MutexGuard<'_, Bounded> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        Family, View,
        memory::{Fault, MemoryStore},
    };

    struct Hands(AtomicU64);

    impl WallClock for Hands {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Tick,
        Write,
        Sync,
        Wall(u64),
        Observe(u64),
        Crash(u64),
        Kill,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Tick),
            6 => Just(Step::Write),
            2 => Just(Step::Sync),
            3 => (0u64..4000).prop_map(Step::Wall),
            1 => (0u64..5000).prop_map(Step::Observe),
            2 => any::<u64>().prop_map(Step::Crash),
            1 => Just(Step::Kill),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// Whatever the wall clock does and whenever the power fails: what is in the store is below what comes.
        #[test]
        fn a_restart_never_goes_back(steps in steps()) {
            let wall = Arc::new(Hands(AtomicU64::new(1000)));
            let mut store = MemoryStore::new();
            let mut clock = HybridClock::open(store.clone(), wall.clone(), 500).unwrap();
            let mut synced = Hlc::ZERO;
            let mut last = Hlc::ZERO;
            for step in steps {
                match step {
                    Step::Tick | Step::Write => {
                        let time = clock.tick().unwrap();
                        prop_assert!(time > last && time.millis() >= wall.now_ms());
                        last = time;
                        if matches!(step, Step::Write) {
                            let mut batch = Batch::new();
                            batch.put(Family::Data, time.0.to_be_bytes().to_vec(), "v");
                            store.write(batch).unwrap();
                        }
                    }
                    Step::Sync => {
                        store.sync().unwrap();
                        synced = last;
                    }
                    Step::Wall(ms) => wall.0.store(ms, Ordering::Relaxed),
                    Step::Observe(ms) => {
                        let accepted = clock.observe(Hlc::from_millis(ms)).is_ok();
                        prop_assert_eq!(accepted, ms <= wall.now_ms() + 500);
                    }
                    Step::Crash(_) | Step::Kill => {
                        store = if let Step::Crash(seed) = step { store.crash(seed) } else { store.kill() };
                        clock = HybridClock::open(store.clone(), wall.clone(), 500).unwrap();
                        let held = store.scan_reverse(Family::Data, &[], None).unwrap().next();
                        let held = held.map_or(0, |e| u64::from_be_bytes(e.unwrap().0.as_ref().try_into().unwrap()));
                        last = synced.max(Hlc(held));
                    }
                }
            }
        }
    }

    #[test]
    fn a_quick_restart_stays_within_the_drift() {
        let wall = Arc::new(Hands(AtomicU64::new(1_000_000)));
        let mut store = MemoryStore::new();
        for _ in 0..3 {
            let clock = HybridClock::open(store.clone(), wall.clone(), 500).unwrap();
            clock.tick().unwrap();
            store = store.kill();
            wall.0.fetch_add(250, Ordering::Relaxed);
        }
        let time = HybridClock::open(store, wall.clone(), 500).unwrap().tick().unwrap();
        assert!(time.millis() <= wall.now_ms() + 500, "{time}");
    }

    #[test]
    fn a_busy_clock_writes_its_bound_seldom() {
        let wall = Arc::new(Hands(AtomicU64::new(1000)));
        let store = MemoryStore::new();
        let clock = HybridClock::open(store.clone(), wall, 500).unwrap();
        for _ in 0..10_000 {
            clock.tick().unwrap();
        }
        assert_eq!(store.stats().writes, 1);
    }

    #[test]
    fn no_time_without_a_bound() {
        let store = MemoryStore::new();
        let clock = HybridClock::open(store.clone(), Arc::new(SystemClock), 500).unwrap();
        store.fail(Fault::Write);
        assert!(clock.tick().is_err());
        assert_eq!(clock.last(), Hlc::ZERO);
        assert!(matches!(clock.tick(), Err(StoreError::Poisoned { .. })));
    }
}
