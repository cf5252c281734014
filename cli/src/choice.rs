//! How a benchmark chooses keys.

use rand::Rng;

use crate::args::Spread;

/// The skew of YCSB's zipfian workloads.
const THETA: f64 = 0.99;

/// Chooses numbers below `n`.
///
/// Zipfian: Gray et al., "Quickly Generating Billion-Record Synthetic Databases" (SIGMOD 1994), section 3.2; the ranks
/// are then scattered, as YCSB does, so that the popular keys do not lie beside each other.
#[derive(Clone, Debug)]
pub struct Choice {
    n: u64,
    zipf: Option<Zipf>,
}

#[derive(Clone, Debug)]
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
        let zipf = (spread == Spread::Zipfian).then(|| {
            let zeta = |n: u64| (1..=n).map(|i| 1.0 / (i as f64).powf(THETA)).sum::<f64>();
            let all = zeta(n);
            let eta = (1.0 - (2.0 / n as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / all);
            Zipf { zeta: all, alpha: 1.0 / (1.0 - THETA), eta }
        });
        Choice { n, zipf }
    }

    /// The next number.
    pub fn next(&self, rng: &mut impl Rng) -> u64 {
        let Some(zipf) = &self.zipf else { return rng.random_range(0..self.n) };
        let u: f64 = rng.random();
        let rank = match u * zipf.zeta {
            x if x < 1.0 => 0,
            x if x < 1.0 + 0.5f64.powf(THETA) => 1,
            _ => (self.n as f64 * (zipf.eta * u - zipf.eta + 1.0).powf(zipf.alpha)) as u64,
        };
        scatter(rank) % self.n
    }
}

/// SplitMix64's finalizer: a bijection of 64 bits.
fn scatter(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn most_frequent(spread: Spread) -> f64 {
        let choice = Choice::new(spread, 1000);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut seen = BTreeMap::<u64, u32>::new();
        for _ in 0..100_000 {
            let key = choice.next(&mut rng);
            assert!(key < 1000);
            *seen.entry(key).or_default() += 1;
        }
        f64::from(seen.into_values().max().unwrap()) / 100_000.0
    }

    #[test]
    fn zipfian_has_favourites_and_uniform_has_none() {
        assert!(most_frequent(Spread::Uniform) < 0.002);
        // 1 / zeta(1000, 0.99) is 0.1304.
        assert!((most_frequent(Spread::Zipfian) - 0.13).abs() < 0.02);
    }

    #[test]
    fn one_key_is_enough() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for spread in [Spread::Uniform, Spread::Zipfian] {
            assert_eq!(Choice::new(spread, 1).next(&mut rng), 0);
        }
    }
}
