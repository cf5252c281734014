//! Who is at the other end: the URI in a certificate.

use std::{fmt, str::FromStr};

use duet_proto::{ClusterName, NodeId, Role};

/// Longest name of a client, in bytes.
pub const CLIENT_NAME: usize = 64;

/// What a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Principal {
    /// A node of the cluster.
    Node(NodeId),
    /// A client.
    Client {
        /// Its name, for logs and audit: 1 to 64 characters of `[A-Za-z0-9._@-]`.
        name: String,
        /// What it may do.
        role: Role,
    },
}

/// A principal of one cluster, written `duet://CLUSTER/node/ID` or `duet://CLUSTER/client/NAME?role=admin`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterName,
    /// Who in it.
    pub principal: Principal,
}

/// A URI that names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no Duet identity: {why}")]
pub struct InvalidIdentity {
    /// The URI, cut at 200 characters.
    pub uri: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Identity {
    /// The identity of a node.
    #[must_use]
    pub fn node(cluster: ClusterName, node: NodeId) -> Identity {
        Identity { cluster, principal: Principal::Node(node) }
    }

    /// The identity of a client.
    ///
    /// # Errors
    /// If the name is empty, too long, or holds a character that is not allowed.
    pub fn client(cluster: ClusterName, name: impl Into<String>, role: Role) -> Result<Identity, InvalidIdentity> {
        let name = name.into();
        if valid_client_name(&name) {
            Ok(Identity { cluster, principal: Principal::Client { name, role } })
        } else {
            Err(invalid(&name, "a client's name is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_', '@' and '-'"))
        }
    }

    /// The node, if it is one.
    #[must_use]
    pub fn node_id(&self) -> Option<NodeId> {
        match self.principal {
            Principal::Node(node) => Some(node),
            Principal::Client { .. } => None,
        }
    }

    /// What its holder may ask as a client; nodes ask nothing that way.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match self.principal {
            Principal::Node(_) => None,
            Principal::Client { role, .. } => Some(role),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "duet://{}/", self.cluster)?;
        match &self.principal {
            Principal::Node(node) => write!(f, "node/{node}"),
            Principal::Client { name, role } => write!(f, "client/{name}?role={role}"),
        }
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let wrong = |why| invalid(uri, why);
        let rest = uri.strip_prefix("duet://").ok_or_else(|| wrong("it does not begin with duet://"))?;
        let (cluster, rest) = rest.split_once('/').ok_or_else(|| wrong("it names no principal"))?;
        let cluster = ClusterName::new(cluster).map_err(|_| wrong("the cluster's name is not valid"))?;
        match rest.split_once('/') {
            Some(("node", id)) => {
                let canonical = id.bytes().all(|b| b.is_ascii_digit()) && !id.starts_with('0');
                let node =
                    id.parse().ok().filter(|_| canonical).ok_or_else(|| wrong("the node's id is no number"))?;
                Ok(Identity::node(cluster, NodeId(node)))
            }
            Some(("client", rest)) => {
                let (name, role) = match rest.split_once('?') {
                    None | Some((_, "role=client")) => (rest.trim_end_matches("?role=client"), Role::Client),
                    Some((name, "role=admin")) => (name, Role::Admin),
                    Some(_) => return Err(wrong("the role is neither client nor admin")),
                };
                Identity::client(cluster, name, role)
            }
            _ => Err(wrong("it names neither a node nor a client")),
        }
    }
}

fn invalid(uri: &str, why: &'static str) -> InvalidIdentity {
    InvalidIdentity { uri: uri.chars().take(200).collect(), why }
}

fn valid_client_name(name: &str) -> bool {
    (1..=CLIENT_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_uris() {
        for uri in ["duet://c1/node/7", "duet://c1/client/ops?role=admin", "duet://c1/client/app@x?role=client"] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
        let plain: Identity = "duet://c1/client/app".parse().unwrap();
        assert_eq!(plain.role(), Some(Role::Client));
    }

    #[test]
    fn other_uris_name_nobody() {
        for uri in [
            "",
            "http://c1/node/7",
            "duet://c1",
            "duet://C1/node/7",
            "duet://c1/node/",
            "duet://c1/node/+7",
            "duet://c1/node/07",
            "duet://c1/node/0",
            "duet://c1/node/4294967296",
            "duet://c1/client/",
            "duet://c1/client/a b",
            "duet://c1/client/a?role=root",
            "duet://c1/other/a",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
