//! Certificates: a cluster has one authority, and every node and client has a certificate of it.
//!
//! Keys are Ed25519: small, fast, and of a fixed size in every message, which the simulation needs (the packets of a
//! seed must not change their sizes with the bytes of a signature).

use std::{net::IpAddr, time::SystemTime};

use duet_proto::ClusterName;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

use crate::{Identity, Principal, tls};

/// What went wrong with certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The library that makes certificates refused.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The authority's files are not those of a Duet authority.
    #[error("this is not a Duet certificate authority: {why}")]
    NotAnAuthority {
        /// What is wrong.
        why: String,
    },
    /// An authority of one cluster was asked for a certificate of another.
    #[error("the authority is of cluster {ours}, the certificate would be of {theirs}")]
    OtherCluster {
        /// The authority's cluster.
        ours: ClusterName,
        /// The identity's.
        theirs: ClusterName,
    },
    /// An alternative name that is neither an address nor a host name.
    #[error("{name:?} is neither an address nor a host name")]
    AlternativeName {
        /// The name.
        name: String,
    },
}

/// When a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From this second since the Unix epoch on.
    pub from: i64,
    /// Up to this second since the Unix epoch.
    pub until: i64,
}

impl Validity {
    /// From an hour ago (clocks differ) until `days` from now.
    #[must_use]
    pub fn days(days: u32) -> Validity {
        let now = unix_now();
        Validity { from: now - 3600, until: now + i64::from(days) * 86_400 }
    }

    /// From 2000 to 2100: for simulations, whose clock stands elsewhere.
    pub const CENTURY: Validity = Validity { from: 946_684_800, until: 4_102_444_800 };
}

pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its private key (PKCS #8): to be readable by its owner alone.
    pub key: String,
}

/// The authority of one cluster.
#[derive(Debug)]
pub struct CertificateAuthority {
    cluster: ClusterName,
    issuer: Issuer<'static, KeyPair>,
    cert: String,
    /// Where keys and serial numbers come from; without a seed, from the system.
    random: Option<ChaCha20Rng>,
}

impl CertificateAuthority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn generate(cluster: &ClusterName, validity: Validity) -> Result<Self, PkiError> {
        Self::make(cluster, validity, None)
    }

    /// The same authority for the same seed, which issues the same certificates in the same order. For tests and
    /// simulations: whoever knows the seed knows the keys.
    ///
    /// # Errors
    /// If the library refuses.
    pub fn from_seed(cluster: &ClusterName, seed: u64) -> Result<Self, PkiError> {
        Self::make(cluster, Validity::CENTURY, Some(ChaCha20Rng::seed_from_u64(seed)))
    }

    fn make(cluster: &ClusterName, validity: Validity, mut random: Option<ChaCha20Rng>) -> Result<Self, PkiError> {
        let key = new_key(random.as_mut())?;
        let mut params = params(format!("Duet {cluster} authority"), validity, random.as_mut());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(authority_uri(cluster).try_into()?)];
        let cert = params.self_signed(&key)?.pem();
        Ok(Self { cluster: cluster.clone(), issuer: Issuer::new(params, key), cert, random })
    }

    /// Takes up an authority that was generated before.
    ///
    /// # Errors
    /// If these are not the certificate and key of one, or do not belong together.
    pub fn load(cert: &str, key: &str) -> Result<Self, PkiError> {
        let not = |why: String| PkiError::NotAnAuthority { why };
        let der = CertificateDer::from_pem_slice(cert.as_bytes()).map_err(|e| not(format!("certificate: {e}")))?;
        let key = KeyPair::from_pem(key).map_err(|e| not(format!("key: {e}")))?;
        let facts = tls::read_certificate(&der).map_err(not)?;
        if facts.public_key != key.public_key_raw() {
            return Err(not("the key is not the certificate's".into()));
        }
        let cluster = facts.uris.iter().find_map(|uri| uri.strip_prefix("duet://")?.strip_suffix("/authority"));
        let cluster = cluster.ok_or_else(|| not("it has no identity duet://CLUSTER/authority".into()))?;
        let cluster = ClusterName::new(cluster).map_err(|e| not(e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { cluster, issuer, cert: cert.to_owned(), random: None })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The authority's certificate in PEM: what every node and client trusts.
    #[must_use]
    pub fn cert(&self) -> &str {
        &self.cert
    }

    /// The authority's private key in PEM: whoever has it can be anyone.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a key and a certificate for `identity`. `names` are addresses and host names to put in beside it; Duet
    /// itself goes by the identity alone.
    ///
    /// # Errors
    /// If the identity is of another cluster, or a name is not one.
    pub fn issue(&mut self, identity: &Identity, validity: Validity, names: &[String]) -> Result<Issued, PkiError> {
        if identity.cluster != self.cluster {
            let theirs = identity.cluster.clone();
            return Err(PkiError::OtherCluster { ours: self.cluster.clone(), theirs });
        }
        let (name, usages) = match &identity.principal {
            Principal::Node(node) => (
                format!("Duet {} node {node}", self.cluster),
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            ),
            Principal::Client { name, .. } => {
                (format!("Duet {} client {name}", self.cluster), vec![ExtendedKeyUsagePurpose::ClientAuth])
            }
        };
        let key = new_key(self.random.as_mut())?;
        let mut params = params(name, validity, self.random.as_mut());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    let wrong = |_| PkiError::AlternativeName { name: name.clone() };
                    SanType::DnsName(name.as_str().try_into().map_err(wrong)?)
                }
            });
        }
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn authority_uri(cluster: &ClusterName) -> String {
    format!("duet://{cluster}/authority")
}

fn params(name: String, validity: Validity, random: Option<&mut ChaCha20Rng>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
    params.not_before = at(validity.from);
    params.not_after = at(validity.until);
    // A serial number is an integer in DER: a first byte of 0x40..0x7f fixes its length.
    let mut serial = [0u8; 16];
    match random {
        Some(random) => random.fill_bytes(&mut serial),
        None => rand::rng().fill_bytes(&mut serial),
    }
    serial[0] = 0x40 | (serial[0] & 0x3f);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// An Ed25519 key. PKCS #8 version 1 (RFC 8410) around 32 bytes of seed: those bytes are all that there is to it.
fn new_key(random: Option<&mut ChaCha20Rng>) -> Result<KeyPair, rcgen::Error> {
    let Some(random) = random else { return KeyPair::generate_for(&PKCS_ED25519) };
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let mut seed = [0u8; 32];
    random.fill_bytes(&mut seed);
    der.extend_from_slice(&seed);
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ED25519)
}

#[cfg(test)]
mod tests {
    use duet_proto::{NodeId, Role};

    use super::*;

    fn cluster(name: &str) -> ClusterName {
        ClusterName::new(name).unwrap()
    }

    #[test]
    fn an_authority_survives_its_files() {
        let first = CertificateAuthority::generate(&cluster("c1"), Validity::days(30)).unwrap();
        let mut again = CertificateAuthority::load(first.cert(), &first.key()).unwrap();
        assert_eq!(again.cluster(), &cluster("c1"));
        let identity = Identity::client(cluster("c1"), "ops", Role::Admin).unwrap();
        let issued = again.issue(&identity, Validity::days(1), &["localhost".into(), "::1".into()]).unwrap();
        let tls = crate::Tls::from_pem(first.cert().as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes());
        assert_eq!(tls.unwrap().identity(), &identity);
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let mut ca = CertificateAuthority::generate(&cluster("c1"), Validity::days(30)).unwrap();
        let other = CertificateAuthority::generate(&cluster("c1"), Validity::days(30)).unwrap();
        let leaf = ca.issue(&Identity::node(cluster("c1"), NodeId(1)), Validity::days(1), &[]).unwrap();
        for (cert, key) in [(ca.cert(), other.key()), (&leaf.cert, leaf.key.clone()), ("", String::new())] {
            let refused = CertificateAuthority::load(cert, &key);
            assert!(matches!(refused, Err(PkiError::NotAnAuthority { .. })), "{refused:?}");
        }
        let foreign = Identity::node(cluster("c2"), NodeId(1));
        assert!(matches!(ca.issue(&foreign, Validity::days(1), &[]), Err(PkiError::OtherCluster { .. })));
    }

    #[test]
    fn a_seed_gives_the_same_certificates() {
        let make = |seed| {
            let mut ca = CertificateAuthority::from_seed(&cluster("c1"), seed).unwrap();
            let node = ca.issue(&Identity::node(cluster("c1"), NodeId(1)), Validity::CENTURY, &[]).unwrap();
            (ca.cert().to_owned(), node.cert, node.key)
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        assert_eq!(make(7).1.len(), make(8).1.len());
    }
}
