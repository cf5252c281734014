//! What is asked for: the six workloads of YCSB, and plain ones.

use rand::Rng;

use crate::Spread;

/// A mixture of requests.
///
/// A to F: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB" (SoCC 2010), with the proportions of YCSB's own
/// `workloads/workloada` to `f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Writes.
    Put,
    /// Reads.
    Get,
    /// Half reads, half writes (see --reads).
    Mixed,
    /// Short scans.
    Scan,
    /// Read, then compare and set.
    Cas,
    /// YCSB A: 50 % reads, 50 % writes.
    #[value(name = "ycsb-a", alias = "a")]
    A,
    /// YCSB B: 95 % reads, 5 % writes.
    #[value(name = "ycsb-b", alias = "b")]
    B,
    /// YCSB C: reads.
    #[value(name = "ycsb-c", alias = "c")]
    C,
    /// YCSB D: 95 % reads of what came last, 5 % inserts.
    #[value(name = "ycsb-d", alias = "d")]
    D,
    /// YCSB E: 95 % short scans, 5 % inserts.
    #[value(name = "ycsb-e", alias = "e")]
    E,
    /// YCSB F: 50 % reads, 50 % a read and then a write of the same key.
    #[value(name = "ycsb-f", alias = "f")]
    F,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Reads a key.
    Get,
    /// Writes a key that is there.
    Put,
    /// Writes a key that is not there.
    Insert,
    /// Reads a key, then writes it.
    Modify,
    /// Reads a key, then writes it if it is still the same.
    Cas,
    /// Reads some keys in order.
    Scan,
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 6] = [Kind::Get, Kind::Put, Kind::Insert, Kind::Modify, Kind::Cas, Kind::Scan];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put => "put",
            Kind::Insert => "insert",
            Kind::Modify => "modify",
            Kind::Cas => "cas",
            Kind::Scan => "scan",
        }
    }

    /// Whether it may change something.
    #[must_use]
    pub fn writes(self) -> bool {
        !matches!(self, Kind::Get | Kind::Scan)
    }
}

impl Workload {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Workload::Put => "put",
            Workload::Get => "get",
            Workload::Mixed => "mixed",
            Workload::Scan => "scan",
            Workload::Cas => "cas",
            Workload::A => "ycsb-a",
            Workload::B => "ycsb-b",
            Workload::C => "ycsb-c",
            Workload::D => "ycsb-d",
            Workload::E => "ycsb-e",
            Workload::F => "ycsb-f",
        }
    }

    /// How its keys are chosen unless something else is asked for.
    #[must_use]
    pub fn spread(self) -> Spread {
        match self {
            Workload::Put | Workload::Get | Workload::Mixed | Workload::Scan | Workload::Cas => Spread::Uniform,
            Workload::A | Workload::B | Workload::C | Workload::E | Workload::F => Spread::Zipfian,
            Workload::D => Spread::Latest,
        }
    }

    /// Whether the keys must be there before it begins.
    #[must_use]
    pub fn needs_keys(self) -> bool {
        self != Workload::Put
    }

    /// Whether the lengths of its scans differ: from one entry to the most.
    #[must_use]
    pub fn scans_vary(self) -> bool {
        self == Workload::E
    }

    /// The kind of the next request; `reads` is the percentage of them in [`Workload::Mixed`].
    pub fn next(self, reads: u8, rng: &mut impl Rng) -> Kind {
        let (first, percent, second) = match self {
            Workload::Put => return Kind::Put,
            Workload::Get | Workload::C => return Kind::Get,
            Workload::Scan => return Kind::Scan,
            Workload::Cas => return Kind::Cas,
            Workload::Mixed => (Kind::Get, reads, Kind::Put),
            Workload::A => (Kind::Get, 50, Kind::Put),
            Workload::B => (Kind::Get, 95, Kind::Put),
            Workload::D => (Kind::Get, 95, Kind::Insert),
            Workload::E => (Kind::Scan, 95, Kind::Insert),
            Workload::F => (Kind::Get, 50, Kind::Modify),
        };
        if rng.random_range(0..100) < percent { first } else { second }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::ValueEnum;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn each_workload_has_its_proportions() {
        let expected: [(Workload, &[(Kind, f64)]); 11] = [
            (Workload::Put, &[(Kind::Put, 1.0)]),
            (Workload::Get, &[(Kind::Get, 1.0)]),
            (Workload::Mixed, &[(Kind::Get, 0.2), (Kind::Put, 0.8)]),
            (Workload::Scan, &[(Kind::Scan, 1.0)]),
            (Workload::Cas, &[(Kind::Cas, 1.0)]),
            (Workload::A, &[(Kind::Get, 0.5), (Kind::Put, 0.5)]),
            (Workload::B, &[(Kind::Get, 0.95), (Kind::Put, 0.05)]),
            (Workload::C, &[(Kind::Get, 1.0)]),
            (Workload::D, &[(Kind::Get, 0.95), (Kind::Insert, 0.05)]),
            (Workload::E, &[(Kind::Insert, 0.05), (Kind::Scan, 0.95)]),
            (Workload::F, &[(Kind::Get, 0.5), (Kind::Modify, 0.5)]),
        ];
        assert_eq!(expected.len(), Workload::value_variants().len());
        for (workload, proportions) in expected {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut seen = BTreeMap::<Kind, u32>::new();
            (0..100_000).for_each(|_| *seen.entry(workload.next(20, &mut rng)).or_default() += 1);
            assert_eq!(seen.len(), proportions.len(), "{workload:?}: {seen:?}");
            for (kind, share) in proportions {
                let got = f64::from(seen[kind]) / 100_000.0;
                assert!((got - share).abs() < 0.01, "{workload:?}: {got} of {kind:?} instead of {share}");
            }
        }
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for workload in Workload::value_variants() {
            assert_eq!(workload.to_possible_value().unwrap().get_name(), workload.name());
        }
    }
}
