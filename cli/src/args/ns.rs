//! `duet ns` and `duet node`.

use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use duet_proto::{Mode, NamespaceName, NodeId};

use super::duration;

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Ns {
    /// Create a namespace
    Create {
        /// Its name: 1 to 128 characters of a-z, 0-9, '.', '_' and '-'
        name: NamespaceName,
        /// How it keeps its replicas in step: strong or eventual
        #[arg(long, default_value = "strong")]
        mode: Mode,
        /// How many members it has, chosen by the cluster; by default up to three
        #[arg(long, conflicts_with = "members")]
        replicas: Option<u32>,
        /// The members it has: node ids, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "ID")]
        members: Vec<NodeId>,
        /// In eventual mode: how many members must have synced a write before it is acknowledged
        #[arg(long, default_value_t = 1)]
        copies: u32,
    },
    /// List the namespaces
    List,
    /// Show one namespace, its replicas and its switches; exit code 5 if replicas are at odds or a clock is
    Show {
        /// Its name
        name: NamespaceName,
        /// List late writes: what members that a switch went on without brought in, or are about to
        #[arg(long)]
        late: bool,
    },
    /// Switch a namespace to the other mode while it is in use
    ///
    /// Waits for the end and shows how far it is. Ctrl-C leaves the switch going; asking again goes on watching.
    Switch(Switch),
    /// Compare what the members of a namespace hold; exit code 5 if it is not the same
    Verify(Verify),
    /// Wait no longer for what a member that will not return may still hold of an earlier epoch
    Forget {
        /// The namespace
        name: NamespaceName,
        /// The member
        node: NodeId,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Delete a namespace and everything in it
    Delete {
        /// Its name
        name: NamespaceName,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Change the members of a namespace
    #[command(visible_alias = "set-members")]
    Members {
        /// Its name
        name: NamespaceName,
        /// The members it is to have: node ids, separated by commas
        #[arg(required = true, value_delimiter = ',', value_name = "ID")]
        members: Vec<NodeId>,
    },
    /// Change how many members of an eventual namespace must have synced a write before it is acknowledged; of a strong one it
    /// counts once that is switched
    SetCopies {
        /// Its name
        name: NamespaceName,
        /// How many: 1 to the number of its members
        copies: u32,
    },
}

#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Node {
    /// List the nodes
    List,
    /// Give out an id for a new node
    Add {
        /// Where others will reach it: HOST:PORT
        address: String,
    },
    /// Take a node out of the cluster; it must hold no namespace
    Remove {
        /// Its id
        node: NodeId,
    },
}

#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct Switch {
    /// The namespace
    pub name: NamespaceName,
    /// The mode it is to have: strong or eventual
    #[arg(long, required_unless_present = "abort", value_name = "MODE")]
    pub to: Option<Mode>,
    /// Go on without these members: node ids, separated by commas. What an eventual namespace has on them alone comes
    /// in when they return
    #[arg(long, value_delimiter = ',', value_name = "N")]
    pub without: Vec<NodeId>,
    /// Change nothing: show the members, what stands in the way, and what it would cost
    #[arg(long, conflicts_with_all = ["abort", "wait", "no_wait"])]
    pub plan: bool,
    /// End a switch that is under way, where it can still be ended
    #[arg(long, conflicts_with_all = ["to", "without", "wait", "no_wait"])]
    pub abort: bool,
    /// Wait for the end, at most so long; the switch goes on in any case. This is the default, without a limit
    #[arg(long, value_parser = duration, value_name = "TIME", num_args = 0..=1, require_equals = true, conflicts_with = "no_wait")]
    pub wait: Option<Option<Duration>>,
    /// Do not wait for the end
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_wait: bool,
}

#[derive(Clone, Debug, Args)]
#[allow(missing_docs)]
pub struct Verify {
    /// The namespace
    pub name: NamespaceName,
    /// Compare every record of every member, not only digests
    #[arg(long)]
    pub deep: bool,
    /// How long members may take to come to the same position
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub within: Duration,
}
