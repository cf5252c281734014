//! Certificates that are not good any more although they have not ended: a list of serial numbers.
//!
//! A list and not a CRL (RFC 5280): a CRL is signed by the authority, whose key lies elsewhere, and ends after a while, so
//! that whoever forgets to make a new one has either stopped the cluster or revoked nothing. This list is a file beside
//! the certificates, on disks that its reader trusts anyway.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{
    TlsError,
    tls::{Part, read_certificate},
};

/// Serial numbers of certificates that nobody is let in with. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked(Arc<BTreeSet<Vec<u8>>>);

impl Revoked {
    /// Reads a list from a file.
    ///
    /// # Errors
    /// [`TlsError`], if the file cannot be read or [`Revoked::parse`] refuses it.
    pub fn load(path: &Path) -> Result<Revoked, TlsError> {
        let named = |source| TlsError::Read { part: Part::Revoked, path: path.display().to_string(), source };
        Revoked::parse(&std::fs::read(path).map_err(named)?)
    }

    /// Reads a list: on each line a serial number in hexadecimal, as `openssl x509 -serial` prints it (colons and
    /// `serial=` may stand in it), or a whole certificate in PEM. What follows a `#` is a remark.
    ///
    /// # Errors
    /// [`TlsError::Invalid`] with the number of the line.
    pub fn parse(text: &[u8]) -> Result<Revoked, TlsError> {
        let invalid = |why: String| TlsError::Invalid { part: Part::Revoked, why };
        let text = std::str::from_utf8(text).map_err(|e| invalid(e.to_string()))?;
        let mut serials = BTreeSet::new();
        let mut pem: Option<String> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |why: &str| invalid(format!("line {number}: {why}"));
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.starts_with("-----BEGIN ") {
                pem = Some(String::new());
            }
            match &mut pem {
                Some(pem_text) => {
                    *pem_text += line;
                    *pem_text += "\n";
                    if line.starts_with("-----END ") {
                        let der = CertificateDer::from_pem_slice(pem_text.as_bytes());
                        let der = der.map_err(|e| wrong(&e.to_string()))?;
                        serials.insert(read_certificate(&der).map_err(|e| wrong(&e))?.serial);
                        pem = None;
                    }
                }
                None if line.is_empty() => (),
                None => {
                    let serial = serial(line).ok_or_else(|| wrong("this is no serial number in hexadecimal"))?;
                    serials.insert(serial);
                }
            }
        }
        if pem.is_some() {
            return Err(invalid("a certificate in it has no end".into()));
        }
        Ok(Revoked(Arc::new(serials)))
    }

    /// How many are on it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn holds(&self, serial: &[u8]) -> bool {
        self.0.contains(serial)
    }
}

/// The bytes of a serial number, without leading zeros: DER and people put different ones.
fn serial(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.strip_prefix("serial=").unwrap_or(text).bytes().filter(|b| *b != b':').collect();
    let nibbles: Vec<u8> =
        digits.iter().map(|b| char::from(*b).to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    if nibbles.is_empty() {
        return None;
    }
    let bytes: Vec<u8> = nibbles.rchunks(2).rev().map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect();
    Some(plain(&bytes).to_vec())
}

/// Without leading zeros.
pub(crate) fn plain(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

#[cfg(test)]
mod tests {
    use duet_proto::{ClusterName, NodeId};

    use super::*;
    use crate::{CertificateAuthority, Identity, Validity};

    #[test]
    fn serial_numbers_are_read_as_people_write_them() {
        let text = "# lost laptops\n\n0A:0b:0C  # app\nserial=7F\n00ff\nf\n";
        let list = Revoked::parse(text.as_bytes()).unwrap();
        assert_eq!(list.len(), 4);
        for serial in [&[0x0a, 0x0b, 0x0c][..], &[0x7f], &[0xff], &[0x0f]] {
            assert!(list.holds(serial), "{serial:x?}");
        }
        assert!(!list.holds(&[0x0a]));
        assert!(Revoked::parse(b"").unwrap().is_empty());
    }

    #[test]
    fn a_certificate_stands_for_its_serial_number() {
        let cluster = ClusterName::new("c1").unwrap();
        let mut ca = CertificateAuthority::generate(&cluster, Validity::days(9)).unwrap();
        let issued = ca.issue(&Identity::node(cluster, NodeId(1)), Validity::days(1), &[]).unwrap();
        let der = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
        let list = Revoked::parse(format!("01\n{}02\n", issued.cert).as_bytes()).unwrap();
        assert_eq!(list.len(), 3);
        assert!(list.holds(&read_certificate(&der).unwrap().serial));
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_line() {
        for (text, why) in [
            ("01\nzz\n", "line 2: this is no serial number"),
            ("::\n", "line 1: this is no serial number"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "has no end"),
            ("01\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "line 4: "),
        ] {
            let error = Revoked::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(Revoked::parse(&[0xff]).is_err());
    }
}
