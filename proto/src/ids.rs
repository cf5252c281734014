//! Identifiers, each a type of its own so that one can never stand for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limits;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }
    };
}

id! {
    /// A node of the cluster. Given out by the catalog, starting at 1, and never reused: a node that lost its disk
    /// rejoins under a new id. Zero stands for no node.
    NodeId(u32)
}
id! {
    /// A namespace, for ever: a name that is deleted and created again gets a new id.
    NamespaceId(u64)
}
id! {
    /// Counts the changes of mode of a namespace, from 1. Never reused within a namespace.
    Epoch(u32)
}
id! {
    /// Counts the starts of a node on its disk, from 1; persisted before anything of that start is sent.
    Boot(u64)
}

impl NamespaceId {
    /// The strong namespace that holds the catalog.
    pub const SYSTEM: NamespaceId = NamespaceId(0);
    /// The first id given to a namespace that a user creates.
    pub const FIRST_USER: NamespaceId = NamespaceId(1);
}

impl Epoch {
    /// The epoch in which a namespace is created.
    pub const FIRST: Epoch = Epoch(1);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what} {name:?} is not valid: 1 to {max} characters of a-z, 0-9, '.', '_' and '-' are")]
pub struct InvalidName {
    /// What was to be named.
    pub what: String,
    /// The name as given, cut at 160 characters.
    pub name: String,
    /// The longest allowed, in bytes.
    pub max: usize,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks `name` and takes it.
            ///
            /// # Errors
            /// If it is empty, too long, or holds a character outside `[a-z0-9._-]`.
            pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidName> {
                let name = name.as_ref();
                let fits = (1..=$max).contains(&name.len());
                if fits && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-')) {
                    Ok($name(name.into()))
                } else {
                    Err(InvalidName { what: $what.into(), name: name.chars().take(160).collect(), max: $max })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                $name::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                $name::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// The name of a namespace.
    NamespaceName, "namespace name", limits::NAMESPACE_NAME
}
name! {
    /// The name of a cluster: what every certificate of it carries.
    ClusterName, "cluster name", limits::CLUSTER_NAME
}

impl NamespaceName {
    /// The name under which the catalog's namespace appears to operators. Users cannot create or write it.
    pub const SYSTEM: &'static str = "_system";

    /// Whether this is the catalog's namespace.
    #[must_use]
    pub fn is_system(&self) -> bool {
        self.as_str() == Self::SYSTEM
    }
}

/// What a client certificate lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Data requests and reading the topology.
    Client,
    /// Everything, administration included.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Client => "client",
            Role::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "orders", "a.b_c-9", &"x".repeat(128)] {
            assert!(NamespaceName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Orders", "a b", "ä", "a/b", &"x".repeat(129)] {
            assert!(NamespaceName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_decoded_name_is_checked_too() {
        let bytes = postcard::to_stdvec("No Good").unwrap();
        assert!(postcard::from_bytes::<NamespaceName>(&bytes).is_err());
    }
}
