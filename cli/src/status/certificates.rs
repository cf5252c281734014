//! Certificates: whose end is near, and whose files do not fit.

use std::collections::BTreeMap;

use duet_proto::{Certificate, CertificateStatus, NodeId, NodeStatus};

use super::Report;
use crate::output;

impl Report {
    /// Takes in what nodes say of their certificates, at a time in seconds since 1970.
    pub fn tell_of_certificates(&mut self, answers: &BTreeMap<NodeId, Result<NodeStatus, String>>, now_s: i64) {
        for (node, status) in answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?))) {
            let certificates = &status.certificates;
            for (which, left) in certificates.ends(now_s) {
                let what = match which {
                    Certificate::Node => "its certificate",
                    Certificate::Authority => "the certificate of its authority",
                };
                match left {
                    ..=0 => self.problems.push(format!("node {node}: {what} has expired")),
                    1..CertificateStatus::SOON_S => {
                        self.notes.push(format!("node {node}: {what} expires in {}", output::left(left)));
                    }
                    _ => {}
                }
            }
            if let Some(why) = &certificates.fault {
                self.problems.push(format!("node {node}: the certificates in its files are not in use: {why}"));
            }
        }
        self.healthy = self.problems.is_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::answers, *};

    const DAY_S: i64 = 24 * 3600;

    #[test]
    fn an_end_is_told_of_thirty_days_before_and_a_fault_at_once() {
        let (topology, mut answers) = answers();
        let mut told = |certificates: CertificateStatus| {
            answers.values_mut().flatten().for_each(|status| status.certificates = certificates.clone());
            let mut report = Report::new(&topology, &answers);
            report.tell_of_certificates(&answers, 1_000 * DAY_S);
            (report.problems.len(), report.notes.len(), report.healthy)
        };
        let until = |days: i64| CertificateStatus {
            expires: (1_000 + days) * DAY_S,
            authority_expires: 3_000 * DAY_S,
            ..CertificateStatus::default()
        };
        assert_eq!(told(CertificateStatus::default()), (0, 0, true), "nothing is said");
        assert_eq!(told(until(31)), (0, 0, true));
        assert_eq!(told(until(29)), (0, 3, true), "of each node");
        assert_eq!(told(until(0)), (3, 0, false));
        assert_eq!(told(CertificateStatus { fault: Some("no".into()), ..until(31) }), (3, 0, false));
    }
}
