//! How a member is configured, and the names in its state directory.

use std::{path::PathBuf, sync::Arc, time::Duration};

use age::secrecy::SecretString;

use super::policy::Policy;
use crate::{
    actors::transport::{nostr::NostrConfig, tls::Trust},
    cas::Cas,
    join::ChainQuestions,
    protocol::{cohort::standing::SeatSeed, did::Did, identity::Identity, invite::InviteToken, network::Network},
};

/// The command in the profile of a state directory.
pub const ROLE: &str = "member";

/// The directory of Sidecar Data in a state directory.
pub const SIDECARS: &str = "sidecars";

/// The directory of identities that the agent has made, in a state directory.
pub const MINTED: &str = "minted";

/// A service at which a seed takes seats.
#[derive(Clone)]
pub struct ServiceSettings {
    /// Its name in messages.
    pub name: String,
    /// Its base URL, for one that serves HTTP.
    pub url: Option<String>,
    /// Its DID; without it, any that is found there.
    pub did: Option<Did>,
    /// The certificates by which an https service is trusted.
    pub trust: Trust,
    /// The relays on which it is found.
    pub nostr: Option<NostrConfig>,
}

/// A seed of seats, and the DIDs that its seats register.
#[derive(Clone)]
pub struct SeatSettings {
    /// Its name in messages and commands.
    pub name: String,
    /// The seed.
    pub seed: Arc<SeatSeed>,
    /// Identity files, and directories of them.
    pub dids: Vec<PathBuf>,
    /// An invite of the operator of a service.
    pub invite: Option<InviteToken>,
    /// The identity as which it applies for seats, if services are to know it.
    pub applies_as: Option<Identity>,
    /// Where it takes seats.
    pub services: Vec<ServiceSettings>,
}

/// Backups after each change.
#[derive(Clone)]
pub struct BackupSettings {
    /// The directory.
    pub directory: PathBuf,
    /// How many files stay there.
    pub keep: usize,
    /// What encrypts them.
    pub passphrase: SecretString,
    /// Changes within this time are in one backup.
    pub pause: Duration,
}

/// The configuration of a member.
#[derive(Clone)]
pub struct MemberConfig {
    /// The network.
    pub network: Network,
    /// The seeds.
    pub seats: Vec<SeatSettings>,
    /// The chain.
    pub chain: ChainQuestions,
    /// The confirmations with which a signal counts in a resolution.
    pub min_conf: u32,
    /// Content stores for resolutions.
    pub stores: Vec<Arc<dyn Cas>>,
    /// The policy.
    pub policy: Arc<Policy>,
    /// The state directory.
    pub state: PathBuf,
    /// The directory in which every DID has its Sidecar Data.
    pub out: PathBuf,
    /// Backups after each change.
    pub backup: Option<BackupSettings>,
    /// The configuration file and the files of seeds, for backups.
    pub files: Vec<PathBuf>,
    /// The address of the page for a browser, if there is one.
    pub console: Option<String>,
    /// Whether to print JSON.
    pub json: bool,
    /// Whether lines for people start with the time.
    pub times: bool,
}
