//! TLS 1.3, both sides with a certificate of the cluster's authority, and nothing else.

use std::{path::Path, sync::Arc};

use duet_proto::ClusterName;
use quinn::crypto::{
    CryptoError, HmacKey,
    rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        CryptoProvider,
        tls13::{Hkdf, OkmBlock},
        verify_tls13_signature,
    },
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Identity, InvalidIdentity, Refusal, Revoked, pki::unix_now, revoked::plain};

/// One of the three things a member of a cluster is equipped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The authority's certificate.
    Authority,
    /// The member's own certificate.
    Certificate,
    /// Its private key.
    Key,
    /// The list of certificates that are not good any more.
    Revoked,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Authority => "CA certificate",
            Part::Certificate => "certificate",
            Part::Key => "private key",
            Part::Revoked => "list of revoked certificates",
        })
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("{part} {path}: {source}")]
    Read {
        /// Which.
        part: Part,
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Bytes that are not what they should be.
    #[error("the {part} cannot be used: {why}")]
    Invalid {
        /// Which.
        part: Part,
        /// What is wrong.
        why: String,
    },
    /// A certificate outside its time.
    #[error("the {part} holds from {from} to {until} (seconds since 1970); it is {now} now")]
    NotNow {
        /// Which.
        part: Part,
        /// When it begins to hold.
        from: i64,
        /// When it ends.
        until: i64,
        /// When it was looked at.
        now: i64,
    },
    /// The certificate names nobody of a Duet cluster.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// The certificate was not issued by the authority.
    #[error("the certificate was not issued by this CA: {why}")]
    OtherAuthority {
        /// What the check says.
        why: String,
    },
    /// The key is another certificate's.
    #[error("the private key is not the certificate's")]
    KeyMismatch,
    /// The certificate is on the list of revoked ones itself.
    #[error("the certificate is on the list of revoked ones")]
    Revoked,
    /// The certificate is another client's than the one before.
    #[error("the certificate is for {found}, the one before was for {expected}")]
    WrongClient {
        /// Who it was for before.
        expected: String,
        /// Who it is for now.
        found: String,
    },
    /// The certificate is of another cluster.
    #[error("the certificate is of cluster {found}, expected {expected}")]
    WrongCluster {
        /// The one expected.
        expected: ClusterName,
        /// The one in the certificate.
        found: ClusterName,
    },
}

/// Certificates, checked and ready to use. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    inner: Arc<Inner>,
    revoked: Revoked,
}

struct Inner {
    identity: Identity,
    serial: Vec<u8>,
    expires: i64,
    authority_expires: i64,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.inner.identity.to_string()).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`TlsError`] says which file, and what is wrong with it.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Tls, TlsError> {
        let read = |part, path: &Path| {
            let named = |source| TlsError::Read { part, path: path.display().to_string(), source };
            std::fs::read(path).map_err(named)
        };
        Tls::from_pem(&read(Part::Authority, ca)?, &read(Part::Certificate, cert)?, &read(Part::Key, key)?)
    }

    /// Takes the contents of the three files and checks that they hold now and belong together. There may be several
    /// authorities, so that one can take the place of another step by step; those that have ended are left out as long
    /// as there is one that has not.
    ///
    /// # Errors
    /// [`TlsError`] says which part, and what is wrong with it.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Tls, TlsError> {
        let authorities = certificates(Part::Authority, ca)?;
        let chain = certificates(Part::Certificate, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| invalid(Part::Key, e))?;
        let (roots, ends) = trusted(&authorities)?;
        let facts = facts_in_time(Part::Certificate, &chain[0])?;
        let identity = facts.identity()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let signer = provider.key_provider.load_private_key(key.clone_key()).map_err(|e| invalid(Part::Key, e))?;
        let spki = ParsedCertificate::try_from(&chain[0]).map_err(|e| invalid(Part::Certificate, e))?;
        if signer.public_key().is_some_and(|ours| ours != spki.subject_public_key_info()) {
            return Err(TlsError::KeyMismatch);
        }
        let roots = Arc::new(roots);
        issued_by(&roots, &chain, &provider)?;
        // Which of them issued it: trusting that one alone is enough.
        let issuer = |at: &usize| {
            let mut alone = RootCertStore::empty();
            alone.roots.push(roots.roots[*at].clone());
            issued_by(&Arc::new(alone), &chain, &provider).is_ok()
        };
        let authority_expires = (0..roots.len()).filter(issuer).map(|at| ends[at]).max().unwrap_or(facts.until);
        let (expires, serial) = (facts.until, facts.serial);
        let inner = Inner { identity, serial, expires, authority_expires, roots, chain, key, provider };
        Ok(Tls { inner: Arc::new(inner), revoked: Revoked::default() })
    }

    /// The same certificates, and from now on nobody is let in with those on the list.
    ///
    /// # Errors
    /// [`TlsError::Revoked`] if our own is on it: nobody would let us in.
    pub fn revoking(mut self, revoked: Revoked) -> Result<Tls, TlsError> {
        if revoked.holds(&self.inner.serial) {
            return Err(TlsError::Revoked);
        }
        self.revoked = revoked;
        Ok(self)
    }

    /// Who is let in no more.
    #[must_use]
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Who the certificate says we are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// When the certificate ends, in seconds since the Unix epoch.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.inner.expires
    }

    /// When the authority that issued it ends, in seconds since the Unix epoch.
    #[must_use]
    pub fn authority_expires(&self) -> i64 {
        self.inner.authority_expires
    }

    /// Checks that the certificate is of `cluster`.
    ///
    /// # Errors
    /// [`TlsError::WrongCluster`].
    pub fn expect_cluster(&self, cluster: &ClusterName) -> Result<(), TlsError> {
        let found = &self.inner.identity.cluster;
        if found == cluster {
            return Ok(());
        }
        Err(TlsError::WrongCluster { expected: cluster.clone(), found: found.clone() })
    }

    /// A key that nobody else has, the same whenever this certificate's private key is.
    pub(crate) fn reset_key(&self) -> Option<Arc<dyn HmacKey>> {
        let hkdf = self.inner.provider.cipher_suites.iter().find_map(|suite| suite.tls13())?.hkdf_provider;
        let mut secret = [0; 32];
        let private = self.inner.key.secret_der();
        hkdf.extract_from_secret(None, private).expand_slice(&[b"duet stateless reset"], &mut secret).ok()?;
        Some(Arc::new(ResetKey { hkdf, key: OkmBlock::new(&secret) }))
    }

    pub(crate) fn server(&self, alpn: &[&[u8]]) -> Result<quinn::ServerConfig, TlsError> {
        let Inner { roots, chain, key, provider, .. } = &*self.inner;
        let verifier = client_verifier(roots, provider).map_err(|e| invalid(Part::Authority, e))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|c| c.with_client_cert_verifier(verifier).with_single_cert(chain.clone(), key.clone_key()))
            .map_err(|e| invalid(Part::Certificate, e))?;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        // Neither 0-RTT nor resumption: each connection proves anew who is there.
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let crypto = QuicServerConfig::try_from(config).map_err(|e| invalid(Part::Certificate, e))?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
    }

    pub(crate) fn client(&self, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
        let Inner { roots, chain, key, provider, .. } = &*self.inner;
        let verifier = AnyNode { roots: roots.clone(), provider: provider.clone() };
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| invalid(Part::Certificate, e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|e| invalid(Part::Certificate, e))?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        config.enable_sni = false;
        let crypto = QuicClientConfig::try_from(config).map_err(|e| invalid(Part::Certificate, e))?;
        Ok(quinn::ClientConfig::new(Arc::new(crypto)))
    }
}

/// Signs stateless resets.
struct ResetKey {
    hkdf: &'static dyn Hkdf,
    key: OkmBlock,
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        out.copy_from_slice(&self.hkdf.hmac_sign(&self.key, data).as_ref()[..out.len()]);
    }

    fn signature_len(&self) -> usize {
        // Every hash of TLS 1.3 has as much.
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = self.hkdf.hmac_sign(&self.key, data);
        if tag.as_ref().get(..32) == Some(signature) { Ok(()) } else { Err(CryptoError) }
    }
}

fn client_verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::server::VerifierBuilderError> {
    WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()
}

/// Accepts a server whose certificate the authority issued for a server, whatever host it is on: which node of which
/// cluster it is, is checked right after the handshake, where a refusal can say why.
#[derive(Debug)]
struct AnyNode {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let cert = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What Duet reads in a certificate.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// Without leading zeros.
    pub(crate) serial: Vec<u8>,
    pub(crate) uris: Vec<String>,
    pub(crate) public_key: Vec<u8>,
}

impl Facts {
    /// The one identity in it.
    pub(crate) fn identity(&self) -> Result<Identity, InvalidIdentity> {
        match &self.uris[..] {
            [uri] => uri.parse(),
            uris => Err(InvalidIdentity { uri: uris.join(" "), why: "a certificate holds exactly one URI" }),
        }
    }
}

pub(crate) fn read_certificate(der: &CertificateDer<'_>) -> Result<Facts, String> {
    let (rest, cert) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate".into());
    }
    let names = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Ok(Facts {
        from: cert.validity().not_before.timestamp(),
        until: cert.validity().not_after.timestamp(),
        serial: plain(cert.raw_serial()).to_vec(),
        uris: uris.collect(),
        public_key: cert.public_key().subject_public_key.data.to_vec(),
    })
}

/// The identity of the other end of a connection whose certificates were verified.
pub(crate) fn remote_identity(connection: &quinn::Connection, revoked: &Revoked) -> Result<Identity, Refusal> {
    let facts = remote_facts(connection).ok_or(Refusal::NoIdentity)?;
    if revoked.holds(&facts.serial) {
        Err(Refusal::Revoked)
    } else {
        facts.identity().map_err(|_| Refusal::NoIdentity)
    }
}

/// Whether the certificate of the other end is on the list.
pub(crate) fn is_revoked(connection: &quinn::Connection, revoked: &Revoked) -> bool {
    remote_facts(connection).is_some_and(|facts| revoked.holds(&facts.serial))
}

fn remote_facts(connection: &quinn::Connection) -> Option<Facts> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    read_certificate(chain.first()?).ok()
}

/// The authorities that have not ended, and when each of them will.
fn trusted(authorities: &[CertificateDer<'static>]) -> Result<(RootCertStore, Vec<i64>), TlsError> {
    let (mut roots, mut ends, mut ended) = (RootCertStore::empty(), Vec::new(), None);
    for authority in authorities {
        match facts_in_time(Part::Authority, authority) {
            Ok(facts) => {
                roots.add(authority.clone()).map_err(|e| invalid(Part::Authority, e))?;
                ends.push(facts.until);
            }
            Err(error @ TlsError::NotNow { .. }) => ended = Some(error),
            Err(error) => return Err(error),
        }
    }
    match ended {
        Some(error) if roots.is_empty() => Err(error),
        _ => Ok((roots, ends)),
    }
}

fn issued_by(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
    provider: &Arc<CryptoProvider>,
) -> Result<(), TlsError> {
    let verifier = client_verifier(roots, provider).map_err(|e| invalid(Part::Authority, e))?;
    let verified = verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now());
    verified.map(drop).map_err(|e| TlsError::OtherAuthority { why: e.to_string() })
}

fn certificates(part: Part, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| invalid(part, e))?;
    if found.is_empty() { Err(invalid(part, "there is no certificate in it")) } else { Ok(found) }
}

fn facts_in_time(part: Part, der: &CertificateDer<'_>) -> Result<Facts, TlsError> {
    let facts = read_certificate(der).map_err(|why| TlsError::Invalid { part, why })?;
    let now = unix_now();
    if (facts.from..=facts.until).contains(&now) {
        return Ok(facts);
    }
    Err(TlsError::NotNow { part, from: facts.from, until: facts.until, now })
}

fn invalid(part: Part, why: impl ToString) -> TlsError {
    TlsError::Invalid { part, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use duet_proto::NodeId;

    use super::*;
    use crate::{CertificateAuthority, Issued, Validity};

    fn setup() -> (CertificateAuthority, Issued) {
        let mut ca = CertificateAuthority::generate(&ClusterName::new("c1").unwrap(), Validity::days(9)).unwrap();
        let issued = node(&mut ca, Validity::days(1));
        (ca, issued)
    }

    fn node(ca: &mut CertificateAuthority, validity: Validity) -> Issued {
        ca.issue(&Identity::node(ca.cluster().clone(), NodeId(1)), validity, &[]).unwrap()
    }

    fn tls(ca: &str, cert: &str, key: &str) -> Result<Tls, TlsError> {
        Tls::from_pem(ca.as_bytes(), cert.as_bytes(), key.as_bytes())
    }

    #[test]
    fn a_good_set_is_taken() {
        let (ca, one) = setup();
        let tls = tls(ca.cert(), &one.cert, &one.key).unwrap();
        assert_eq!(tls.identity().to_string(), "duet://c1/node/1");
        tls.expect_cluster(ca.cluster()).unwrap();
        let other = ClusterName::new("c2").unwrap();
        assert!(matches!(tls.expect_cluster(&other), Err(TlsError::WrongCluster { .. })));
        tls.server(&[b"x"]).unwrap();
        tls.client(b"x").unwrap();
    }

    #[test]
    fn each_fault_is_named() {
        let (mut ca, one) = setup();
        let (other, two) = setup();
        let old = node(&mut ca, Validity { from: 0, until: 1000 });
        type Check = fn(&TlsError) -> bool;
        let cases: [(_, _, _, Check); 7] = [
            ("", &one.cert, &one.key, |e| matches!(e, TlsError::Invalid { part: Part::Authority, .. })),
            (ca.cert(), &one.key, &one.key, |e| matches!(e, TlsError::Invalid { part: Part::Certificate, .. })),
            (ca.cert(), &one.cert, &one.cert, |e| matches!(e, TlsError::Invalid { part: Part::Key, .. })),
            (ca.cert(), &one.cert, &two.key, |e| matches!(e, TlsError::KeyMismatch)),
            (other.cert(), &one.cert, &one.key, |e| matches!(e, TlsError::OtherAuthority { .. })),
            (ca.cert(), &old.cert, &old.key, |e| matches!(e, TlsError::NotNow { part: Part::Certificate, .. })),
            (ca.cert(), &ca.cert().to_owned(), &ca.key(), |e| matches!(e, TlsError::Identity(_))),
        ];
        for (ca, cert, key, check) in cases {
            let error = tls(ca, cert, key).unwrap_err();
            assert!(check(&error), "{error}");
        }
    }
}
