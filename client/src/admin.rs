//! Administration: namespaces and nodes.

use std::{sync::Arc, time::Duration};

use duet_proto::{
    self as proto, LateWrite, Mode, NamespaceInfo, NamespaceName, NodeId, NodeInfo, Request, Response, SwitchInfo,
};
use tokio::time::Instant;

use crate::{
    ClientError,
    call::{Answered, Call},
    client::{Shared, unexpected},
};

/// What a new namespace is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNamespace {
    /// Its first mode.
    pub mode: Mode,
    /// How many members, if [`NewNamespace::members`] names none; `None`: up to three.
    pub replicas: Option<u32>,
    /// The members, if they are to be these.
    pub members: Vec<NodeId>,
    /// In eventual mode, how many members must have synced a write before it is acknowledged.
    pub copies: u32,
}

impl NewNamespace {
    /// A strong namespace on up to three nodes.
    #[must_use]
    pub fn strong() -> NewNamespace {
        NewNamespace { mode: Mode::Strong, replicas: None, members: Vec::new(), copies: 1 }
    }

    /// An eventual namespace on up to three nodes, whose writes are acknowledged by one.
    #[must_use]
    pub fn eventual() -> NewNamespace {
        NewNamespace { mode: Mode::Eventual, ..NewNamespace::strong() }
    }
}

/// Changes to the cluster; needs a certificate of the role admin. A change whose connection breaks ends as
/// `OutcomeUnknown`: look before asking again.
///
/// ```no_run
/// # async fn example(client: duet_client::Client) -> Result<(), duet_client::ClientError> {
/// use duet_client::NewNamespace;
///
/// let admin = client.admin();
/// let info = admin.create_namespace("orders", NewNamespace::strong()).await?;
/// println!("{} on nodes {:?}", info.name, info.members);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
}

impl Admin {
    /// A handle whose requests may take this long.
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Admin {
        Admin { timeout, ..self.clone() }
    }

    /// Creates a namespace.
    ///
    /// # Errors
    /// [`ClientError`], `NamespaceExists` among them.
    pub async fn create_namespace(
        &self,
        name: impl AsRef<str>,
        new: NewNamespace,
    ) -> Result<NamespaceInfo, ClientError> {
        let NewNamespace { mode, replicas, members, copies } = new;
        let name = NamespaceName::new(name)?;
        self.info(proto::Admin::CreateNamespace { name, mode, replicas, members, copies }).await
    }

    /// Every namespace.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn namespaces(&self) -> Result<Vec<NamespaceInfo>, ClientError> {
        match self.ask(proto::Admin::ListNamespaces).await? {
            Answered { response: Response::Namespaces(list), .. } => Ok(list),
            other => Err(unexpected(&other)),
        }
    }

    /// One namespace.
    ///
    /// # Errors
    /// [`ClientError`], `NamespaceNotFound` among them.
    pub async fn namespace(&self, name: impl AsRef<str>) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::ShowNamespace { name: NamespaceName::new(name)? }).await
    }

    /// Deletes a namespace and everything in it.
    ///
    /// # Errors
    /// [`ClientError`], `NamespaceNotFound` among them.
    pub async fn delete_namespace(&self, name: impl AsRef<str>) -> Result<(), ClientError> {
        self.done(proto::Admin::DeleteNamespace { name: NamespaceName::new(name)? }).await
    }

    /// Changes the members of a namespace.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_members(
        &self,
        name: impl AsRef<str>,
        members: Vec<NodeId>,
    ) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::SetMembers { name: NamespaceName::new(name)?, members }).await
    }

    /// Changes how many members of an eventual namespace must have synced a write before it is acknowledged. Answered
    /// when the catalog has the change; the members follow one by one. Of a strong namespace, whose writes are synced by
    /// a majority, it counts once that is switched.
    ///
    /// # Errors
    /// [`ClientError`]; `InvalidRequest` if its members cannot give so many.
    pub async fn set_copies(&self, name: impl AsRef<str>, copies: u32) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::SetCopies { name: NamespaceName::new(name)?, copies }).await
    }

    /// Switches a namespace to a mode while it is in use. Answered when the catalog has it; [`Admin::switch`] tells how
    /// far it is. Asked again, it changes whom a switch under way goes on without.
    ///
    /// # Errors
    /// [`ClientError`]; `Changing` while another change of the namespace goes on.
    pub async fn switch_mode(
        &self,
        name: impl AsRef<str>,
        to: Mode,
        without: Vec<NodeId>,
    ) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::SwitchMode { name: NamespaceName::new(name)?, to, without }).await
    }

    /// Ends a switch that is under way.
    ///
    /// # Errors
    /// [`ClientError`]; `Changing` if it can only go on, `InvalidRequest` if there is none.
    pub async fn abort_switch(&self, name: impl AsRef<str>) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::AbortSwitch { name: NamespaceName::new(name)? }).await
    }

    /// Ends the waiting for what a member that will not return may still hold of an earlier epoch.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn forget(&self, name: impl AsRef<str>, node: NodeId) -> Result<NamespaceInfo, ClientError> {
        self.info(proto::Admin::Forget { name: NamespaceName::new(name)?, node }).await
    }

    /// How far a switch is, who is owed late writes, and the switches before.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn switch(&self, name: impl AsRef<str>) -> Result<SwitchInfo, ClientError> {
        match self.ask(proto::Admin::ShowSwitch { name: NamespaceName::new(name)? }).await? {
            Answered { response: Response::Switch(info), .. } => Ok(*info),
            other => Err(unexpected(&other)),
        }
    }

    /// The late writes that a node holds of a namespace or has brought, at most so many. Each member keeps its own:
    /// `node` alone is asked.
    ///
    /// # Errors
    /// [`ClientError`]; `Unreachable` or `TimedOut` if the node does not answer.
    pub async fn late(&self, name: impl AsRef<str>, node: NodeId, limit: u32) -> Result<Vec<LateWrite>, ClientError> {
        let request = proto::Admin::ListLate { name: NamespaceName::new(name)?, limit };
        let deadline = Instant::now() + self.timeout;
        let call = Call { pinned: Some(node), ..self.shared.call(deadline, self.timeout) };
        match self.shared.run(call, Request::Admin(request)).await? {
            Answered { response: Response::Late(list), .. } => Ok(list),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives out an id for a new node that will be reached at `address`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_node(&self, address: impl Into<String>) -> Result<NodeInfo, ClientError> {
        match self.ask(proto::Admin::AddNode { address: address.into() }).await? {
            Answered { response: Response::Node(info), .. } => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a node out of the cluster. It must hold no namespace.
    ///
    /// # Errors
    /// [`ClientError`], `NodeNotFound` among them.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), ClientError> {
        self.done(proto::Admin::RemoveNode { node }).await
    }

    /// Any request, answered as it is.
    async fn ask(&self, request: proto::Admin) -> Result<Answered, ClientError> {
        let write = !matches!(
            request,
            proto::Admin::ListNamespaces
                | proto::Admin::ShowNamespace { .. }
                | proto::Admin::ShowSwitch { .. }
                | proto::Admin::ListLate { .. }
        );
        // Whoever switches is told at once what stands in the way.
        let patient = !matches!(
            request,
            proto::Admin::SwitchMode { .. } | proto::Admin::AbortSwitch { .. } | proto::Admin::Forget { .. }
        );
        let system = self.shared.system();
        let call = Call {
            space: system.as_deref(),
            leader: true,
            write,
            safe: !write,
            patient,
            ..self.shared.call(Instant::now() + self.timeout, self.timeout)
        };
        let answered = self.shared.run(call, Request::Admin(request)).await?;
        if write {
            self.shared.refresh(call.deadline).await;
        }
        Ok(answered)
    }

    async fn info(&self, request: proto::Admin) -> Result<NamespaceInfo, ClientError> {
        match self.ask(request).await? {
            Answered { response: Response::Namespace(info), .. } => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    async fn done(&self, request: proto::Admin) -> Result<(), ClientError> {
        match self.ask(request).await? {
            Answered { response: Response::Done, .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}
