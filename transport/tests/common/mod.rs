//! A cluster of endpoints on a simulated network, and an intruder who is free to say anything.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use duet_proto::{ClusterName, NodeId, Role, frame};
use duet_transport::{
    CertificateAuthority, Config, Connector, Endpoint, Identity, Issued, Limits, Network, Refusal, Tls, Validity,
    sim::{SimHost, SimNet},
};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ED25519, SanType};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

pub const PORT: u16 = 7000;

pub fn cluster() -> ClusterName {
    ClusterName::new("c1").unwrap()
}

pub fn ip(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

pub fn address(node: u8) -> SocketAddr {
    SocketAddr::new(ip(node), PORT)
}

pub struct World {
    pub net: SimNet,
    pub ca: CertificateAuthority,
    pub limits: Limits,
    starts: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let ca = CertificateAuthority::from_seed(&cluster(), 1).unwrap();
        World { net: SimNet::new(seed), ca, limits: Limits::default(), starts: seed << 32 }
    }

    pub fn tls(&mut self, identity: &Identity) -> Tls {
        let Issued { cert, key } = self.ca.issue(identity, Validity::CENTURY, &[]).unwrap();
        Tls::from_pem(self.ca.cert().as_bytes(), cert.as_bytes(), key.as_bytes()).unwrap()
    }

    /// Starts node `id` at [`address`]`(id)`.
    pub fn node(&mut self, id: u8) -> Endpoint {
        let tls = self.tls(&Identity::node(cluster(), NodeId(id.into())));
        self.node_with(id, tls)
    }

    pub fn node_with(&mut self, id: u8, tls: Tls) -> Endpoint {
        self.starts += 1;
        let me = Identity::node(cluster(), NodeId(id.into()));
        Endpoint::start(Config {
            me,
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT),
            tls,
            limits: self.limits,
            rng_seed: Some(self.starts),
            network: Arc::new(self.net.host(ip(id))),
        })
        .unwrap()
    }

    /// Nodes 1 to `count` that know each other.
    pub fn nodes(&mut self, count: u8) -> Vec<Endpoint> {
        let nodes: Vec<_> = (1..=count).map(|id| self.node(id)).collect();
        nodes.iter().for_each(|node| introduce(node, count));
        nodes
    }

    pub fn client(&mut self, host: u8) -> Connector {
        let tls = self.tls(&Identity::client(cluster(), format!("client-{host}"), Role::Client).unwrap());
        self.starts += 1;
        Connector::with(tls, Arc::new(self.net.host(ip(host))), self.limits, Some(self.starts))
    }

    /// A certificate of the authority for whatever URI.
    pub fn forge(&self, uri: &str, validity: Validity) -> Issued {
        let ca_key = KeyPair::from_pem(&self.ca.key()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(self.ca.cert(), ca_key).unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let at = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        (params.not_before, params.not_after) = (at(validity.from), at(validity.until));
        Issued { cert: params.signed_by(&key, &issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

pub fn introduce(node: &Endpoint, count: u8) {
    for other in 1..=count {
        node.peers().set(NodeId(other.into()), address(other).to_string());
    }
}

/// Waits, in whatever time it takes, until `done`.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..60_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain: {what}");
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Answers every request with its own body.
pub fn echo(endpoint: &Arc<Endpoint>) {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(mut client) = endpoint.accept().await {
            tokio::spawn(async move {
                while let Some(request) = client.next().await {
                    request.reply.send(request.body);
                }
            });
        }
    });
}

pub fn framed(body: &[u8]) -> Bytes {
    let mut wire = BytesMut::new();
    frame::put(body, &mut wire);
    wire.freeze()
}

/// Someone with QUIC, and perhaps a certificate, who checks nothing.
pub struct Intruder {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
}

impl Intruder {
    pub fn new(host: SimHost, alpn: &[u8], certificate: Option<&Issued>) -> Intruder {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting));
        let mut tls = match certificate {
            Some(Issued { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let socket = host.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)).unwrap();
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), None, socket, host.runtime());
        Intruder { endpoint: endpoint.unwrap(), config }
    }

    pub async fn connect(&self, to: SocketAddr) -> Result<quinn::Connection, quinn::ConnectionError> {
        self.endpoint.connect_with(self.config.clone(), to, "duet").unwrap().await
    }

    /// Connects, says `first` on the first stream and, once that is answered, `then` on a one-way stream; returns what
    /// became of it.
    pub async fn say(&self, to: SocketAddr, first: &[u8], then: &[u8]) -> Option<Refusal> {
        let connection = match self.connect(to).await {
            Ok(connection) => connection,
            Err(error) => return Refusal::of(&error),
        };
        let Ok((mut send, mut receive)) = connection.open_bi().await else {
            return Refusal::of(&connection.closed().await);
        };
        let said = send.write_all(first).await.is_ok() && !first.is_empty();
        if said && !then.is_empty() && receive.read_exact(&mut [0; 5]).await.is_ok() {
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(then).await.ok();
            stream.finish().ok();
            return Refusal::of(&connection.closed().await);
        }
        Refusal::of(&connection.closed().await)
    }
}

#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
