//! A primary of redis with two replicas.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use duet_proto::{ClusterName, NodeId};
use duet_tests::process::Port;
use duet_transport::{CertificateAuthority, Identity, Validity};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, RedisError, TlsCertificates, Value, aio::MultiplexedConnection,
};
use tempfile::TempDir;

use super::{server::Server, tell};
use crate::{Failure, Target};

/// How long an answer may take: the same as for Duet.
const PATIENCE: Duration = Duration::from_secs(20);

/// A primary of redis, which syncs every write before it answers, with two replicas, on loopback. They end when this is
/// dropped.
pub struct Redis {
    _servers: Vec<Server>,
    folder: TempDir,
    ports: Vec<Port>,
    over_tls: bool,
}

impl Redis {
    /// Starts them; over mutual TLS everywhere, or plain.
    ///
    /// # Errors
    /// If redis is not installed, or does not become ready.
    pub async fn start(over_tls: bool) -> Result<Redis> {
        tell(&format!("starting redis with two replicas{} …", if over_tls { ", over TLS" } else { "" }));
        let folder = TempDir::with_prefix("duet-bench-redis-")?;
        if over_tls {
            certificates(folder.path())?;
        }
        let ports = (0..3).map(|_| Port::claim()).collect::<Result<Vec<_>>>()?;
        let mut servers = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let data = folder.path().join(format!("data{number}"));
            fs::create_dir(&data)?;
            let port = port.number().to_string();
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
            command.arg("--dir").arg(data);
            if over_tls {
                command.args(["--port", "0", "--tls-port", &port, "--tls-replication", "yes"]);
                for (option, file) in
                    [("--tls-ca-cert-file", "ca.pem"), ("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem")]
                {
                    command.arg(option).arg(folder.path().join(file));
                }
            } else {
                command.args(["--port", &port]);
            }
            if number > 0 {
                command.args(["--replicaof", "127.0.0.1", &ports[0].number().to_string()]);
            }
            let log = folder.path().join(format!("log{number}"));
            servers.push(Server::start("redis-server", "redis-server", command, log)?);
        }
        let mut redis = Redis { _servers: servers, folder, ports, over_tls };
        let client = redis.client()?;
        let primary = redis._servers.first_mut().context("there is a primary")?;
        primary.until(async || attached(&client).await).await?;
        Ok(redis)
    }

    fn client(&self) -> Result<Client> {
        let port = self.ports.first().context("there is a primary")?.number();
        if !self.over_tls {
            return Ok(Client::open(format!("redis://127.0.0.1:{port}"))?);
        }
        // Twice is an error that does not matter: one of them is there.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = |name: &str| fs::read(self.folder.path().join(name));
        let client_tls = Some(ClientTlsConfig { client_cert: file("cert.pem")?, client_key: file("key.pem")? });
        let certificates = TlsCertificates { client_tls, root_cert: Some(file("ca.pem")?) };
        Ok(Client::build_with_tls(format!("rediss://127.0.0.1:{port}"), certificates)?)
    }

    /// Connections to the primary.
    ///
    /// # Errors
    /// If they cannot be made.
    pub async fn connections(&self, number: usize) -> Result<Vec<Connection>> {
        let client = self.client()?;
        let mut connections = Vec::new();
        for _ in 0..number {
            connections.push(Connection::open(&client).await?);
        }
        Ok(connections)
    }
}

/// A certificate that serves for all of them, made as Duet makes its own; from a seed, because OpenSSL 3.0 reads Ed25519
/// keys only in the form that those have. It is trusted by these processes alone, while they run.
fn certificates(folder: &Path) -> Result<()> {
    let name = ClusterName::new("bench")?;
    let mut authority = CertificateAuthority::from_seed(&name, std::process::id().into())?;
    let identity = Identity::node(name, NodeId(1));
    let issued = authority.issue(&identity, Validity::days(2), &["127.0.0.1".to_owned()])?;
    fs::write(folder.join("ca.pem"), authority.cert())?;
    fs::write(folder.join("cert.pem"), issued.cert)?;
    fs::write(folder.join("key.pem"), issued.key)?;
    Ok(())
}

/// An error unless two replicas follow.
async fn attached(client: &Client) -> Result<()> {
    let mut connection = Connection::open(client).await?;
    let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection.0).await?;
    let online = info.matches("state=online").count();
    ensure!(online == 2, "{online} of 2 replicas are online");
    Ok(())
}

/// A connection to the primary.
#[derive(Clone)]
pub struct Connection(MultiplexedConnection);

impl Connection {
    async fn open(client: &Client) -> Result<Connection> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        Ok(Connection(client.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

impl Target for Connection {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), Failure> {
        Ok(redis::cmd("SET").arg(&key[..]).arg(&value[..]).query_async::<()>(&mut self.0.clone()).await?)
    }

    async fn get(&self, key: Bytes) -> Result<bool, Failure> {
        Ok(redis::cmd("GET").arg(&key[..]).query_async::<Value>(&mut self.0.clone()).await? != Value::Nil)
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Failure {
        let unknown = error.is_timeout() || error.is_io_error() || error.is_connection_dropped();
        Failure { code: error.category().to_owned().into(), unknown }
    }
}
