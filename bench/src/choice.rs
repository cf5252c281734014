//! Which key a request is about.

use std::sync::Arc;

use rand::Rng;

/// The skew of YCSB's zipfian workloads.
const THETA: f64 = 0.99;

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Spread {
    /// Every key alike.
    Uniform,
    /// A few keys often, after YCSB (theta 0.99), scattered.
    Zipfian,
    /// The same, those often that were inserted last.
    Latest,
}

impl Spread {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Spread::Uniform => "uniform",
            Spread::Zipfian => "zipfian",
            Spread::Latest => "latest",
        }
    }
}

/// Chooses numbers of keys.
///
/// Zipfian: Gray et al., "Quickly Generating Billion-Record Synthetic Databases" (SIGMOD 1994), section 3.2; the ranks
/// are then scattered, as YCSB does, so that the popular keys do not lie beside each other. Ranks are among the keys
/// that there are at first: those that are inserted later are chosen by `Latest` alone, which counts from the last one.
#[derive(Clone, Debug)]
pub struct Choice {
    spread: Spread,
    n: u64,
    zipf: Option<Arc<Zipf>>,
}

#[derive(Debug)]
struct Zipf {
    zeta: f64,
    alpha: f64,
    eta: f64,
}

impl Choice {
    /// A choice among `n`, at least one.
    #[must_use]
    pub fn new(spread: Spread, n: u64) -> Choice {
        let n = n.max(1);
        let zipf = (spread != Spread::Uniform).then(|| {
            let all = zeta(n);
            let eta = (1.0 - (2.0 / n as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / all);
            Arc::new(Zipf { zeta: all, alpha: 1.0 / (1.0 - THETA), eta })
        });
        Choice { spread, n, zipf }
    }

    /// The next number, where `held` keys have been written so far, `n` at least.
    pub fn next(&self, rng: &mut impl Rng, held: u64) -> u64 {
        let Some(zipf) = &self.zipf else { return rng.random_range(0..self.n) };
        let u: f64 = rng.random();
        let rank = match u * zipf.zeta {
            x if x < 1.0 => 0,
            x if x < 1.0 + 0.5f64.powf(THETA) => 1,
            _ => (self.n as f64 * (zipf.eta * u - zipf.eta + 1.0).powf(zipf.alpha)) as u64,
        };
        match self.spread {
            Spread::Latest => held.max(self.n) - 1 - rank.min(self.n - 1),
            _ => scatter(rank) % self.n,
        }
    }
}

/// The sum of 1 / i^theta up to `n`; from a million on as an integral, which is as good there.
fn zeta(n: u64) -> f64 {
    let summed = n.min(1_000_000);
    let sum: f64 = (1..=summed).map(|i| (i as f64).powf(-THETA)).sum();
    let integral = |x: u64| (x as f64 + 0.5).powf(1.0 - THETA) / (1.0 - THETA);
    sum + integral(n) - integral(summed)
}

/// SplitMix64's finalizer: a bijection of 64 bits.
fn scatter(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const DRAWS: u32 = 200_000;

    /// How often each of `n` keys is chosen.
    fn shares(spread: Spread, n: u64) -> Vec<f64> {
        let choice = Choice::new(spread, n);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut seen = vec![0_u32; usize::try_from(n).unwrap()];
        for _ in 0..DRAWS {
            seen[usize::try_from(choice.next(&mut rng, n)).unwrap()] += 1;
        }
        seen.into_iter().map(|times| f64::from(times) / f64::from(DRAWS)).collect()
    }

    /// What the law says: 1 / rank^theta, normed.
    fn law(n: u32) -> Vec<f64> {
        let weights: Vec<f64> = (1..=n).map(|rank| f64::from(rank).powf(-THETA)).collect();
        let all: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / all).collect()
    }

    #[test]
    fn a_large_sum_is_as_if_it_were_added_up() {
        let added: f64 = (1..=2_000_000_u32).map(|i| f64::from(i).powf(-THETA)).sum();
        assert!((zeta(2_000_000) - added).abs() < 1e-6, "{} is not {added}", zeta(2_000_000));
    }

    #[test]
    fn uniform_has_no_favourites() {
        let shares = shares(Spread::Uniform, 100);
        assert!(shares.iter().all(|share| (share - 0.01).abs() < 0.002), "{shares:?}");
    }

    #[test]
    fn latest_follows_the_law_counted_from_the_last_key() {
        let (shares, law) = (shares(Spread::Latest, 1000), law(1000));
        let of = |from: usize, to: usize, shares: &[f64]| shares[from..to].iter().sum::<f64>();
        let last_first: Vec<f64> = shares.into_iter().rev().collect();
        assert!((last_first[0] - law[0]).abs() < 0.01, "{} is not {}", last_first[0], law[0]);
        for (from, to) in [(1, 10), (10, 100), (100, 1000)] {
            let (seen, said) = (of(from, to, &last_first), of(from, to, &law));
            // Gray's formula is an approximation between the ranks.
            assert!((seen - said).abs() < 0.03, "ranks {from} to {to}: {seen} is not {said}");
        }
    }

    #[test]
    fn zipfian_is_as_skewed_but_its_favourites_are_not_neighbours() {
        let shares = shares(Spread::Zipfian, 1000);
        let mut sorted = shares.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        // 1 / zeta(1000, 0.99), which YCSB's skew makes of the favourite.
        assert!((sorted[0] - 0.1304).abs() < 0.01, "{}", sorted[0]);
        let at = |share: f64| shares.iter().position(|s| *s == share).unwrap();
        assert!(at(sorted[0]).abs_diff(at(sorted[1])) > 1, "{} and {}", at(sorted[0]), at(sorted[1]));
    }

    proptest! {
        #[test]
        fn a_chosen_key_is_one_that_is_there(n in 1_u64..5000, more in 0_u64..100, seed: u64) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for spread in [Spread::Uniform, Spread::Zipfian, Spread::Latest] {
                let choice = Choice::new(spread, n);
                for _ in 0..50 {
                    let key = choice.next(&mut rng, n + more);
                    prop_assert!(key < n + more, "{key} of {n} and {more} by {spread:?}");
                }
            }
        }
    }
}
