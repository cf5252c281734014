//! The certificates that a node uses: when they end, and what is wrong with those that were to replace them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use duet_proto::{Certificate, CertificateStatus};
use duet_store::HybridClock;
use duet_transport::Tls;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// What is told of a node's certificates. A clone is the same.
#[derive(Clone)]
pub(crate) struct Certificates {
    state: Arc<Mutex<State>>,
    clock: Arc<HybridClock>,
}

#[derive(Default)]
struct State {
    status: CertificateStatus,
    renewed: u64,
    refused: u64,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl Certificates {
    pub(crate) fn new(tls: &Tls, clock: Arc<HybridClock>) -> Certificates {
        let state = State { status: status(tls), ..State::default() };
        Certificates { state: Arc::new(state.into()), clock }
    }

    /// Others are in use now.
    pub(crate) fn renewed(&self, tls: &Tls) {
        let mut state = self.lock();
        state.status = status(tls);
        state.renewed += 1;
    }

    /// Others were there, and are not used.
    pub(crate) fn refused(&self, why: String) {
        let mut state = self.lock();
        state.status.fault = Some(why);
        state.refused += 1;
    }

    pub(crate) fn status(&self) -> CertificateStatus {
        self.lock().status.clone()
    }

    /// What a person should be warned of: an end that is near, or past.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let status = self.status();
        self.ends(&status)
            .into_iter()
            .filter(|(_, left)| *left < CertificateStatus::SOON_S)
            .map(|(what, left)| ending(what, left))
            .collect()
    }

    /// What ends, and in how many seconds.
    fn ends(&self, status: &CertificateStatus) -> Vec<(&'static str, i64)> {
        let now = i64::try_from(self.clock.wall_ms() / 1000).unwrap_or(i64::MAX);
        let name = |which| match which {
            Certificate::Node => "node",
            Certificate::Authority => "authority",
        };
        status.ends(now).map(|(which, left)| (name(which), left)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(tls: &Tls) -> CertificateStatus {
    CertificateStatus {
        expires: tls.expires(),
        authority_expires: tls.authority_expires(),
        revoked: tls.revoked().len() as u64,
        fault: None,
    }
}

fn ending(what: &str, left: i64) -> String {
    let left = match (left, left / 3600) {
        (..0, _) => return format!("the {what}'s certificate has ended"),
        (_, 0) => "less than an hour".to_owned(),
        (_, 1) => "1 hour".to_owned(),
        (_, hours @ ..48) => format!("{hours} hours"),
        (_, hours) => format!("{} days", hours / 24),
    };
    format!("the {what}'s certificate ends in {left}")
}

impl Collector for Certificates {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (status, renewed, refused) = {
            let state = self.lock();
            (state.status.clone(), state.renewed, state.refused)
        };
        let help = "Time until the certificate ends; below zero once it has";
        let mut family =
            out.encode_descriptor("certificate_expires", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (certificate, left) in self.ends(&status) {
            ConstGauge::new(left).encode(family.encode_family(&[("certificate", certificate)])?)?;
        }
        let help = "Certificates that were read while the node ran, by what came of it";
        let mut family = out.encode_descriptor("certificate_renewals", help, None, MetricType::Counter)?;
        for (outcome, count) in [("used", renewed), ("refused", refused)] {
            ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        for (name, help, value) in [
            (
                "certificate_fault",
                "1 while the files hold certificates that cannot be used in place of those in use",
                u64::from(status.fault.is_some()),
            ),
            ("certificates_revoked", "Certificates on the list of revoked ones", status.revoked),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(out.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(ending("node", 12 * DAY + 5), "the node's certificate ends in 12 days");
        assert_eq!(ending("node", 2 * DAY - 1), "the node's certificate ends in 47 hours");
        assert_eq!(ending("node", 3600), "the node's certificate ends in 1 hour");
        assert_eq!(ending("node", 0), "the node's certificate ends in less than an hour");
        assert_eq!(ending("authority", -1), "the authority's certificate has ended");
    }
}
