//! What the controller wants to change.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{
    super::beacon::BeaconText,
    UpdateFailure,
    new_key::{NewKey, NewKeyArgs, new_key},
};
use crate::{
    controller::Keys,
    protocol::{
        did::Did,
        document::beacon_address,
        resolution::BeaconKind,
        update::{Edit, EditError, Relationship, unused_id},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a key to the document
    AddKey(AddKeyArgs),
    /// Replace a key of the document by a new one, wherever it is listed
    RotateKey(RotateKeyArgs),
    /// Remove a key from the document
    RemoveKey(MethodArgs),
    /// Add a service that is not a beacon
    AddService(AddServiceArgs),
    /// Remove a service that is not a beacon
    RemoveService(ServiceArgs),
    /// Add a beacon: from the block of this update on, resolvers look there too
    AddBeacon(AddBeaconArgs),
    /// Remove a beacon: updates are not announced there any more
    RemoveBeacon(BeaconArgs),
    /// Deactivate the DID: no later update counts
    Deactivate,
}

#[derive(Debug, Args)]
pub(super) struct AddKeyArgs {
    #[command(flatten)]
    key: NewKeyArgs,
    /// What the key may be used for; may be given several times [default: all but key-agreement]
    #[arg(long = "purpose", value_enum, value_name = "PURPOSE", value_delimiter = ',')]
    purposes: Vec<Purpose>,
}

#[derive(Debug, Args)]
pub(super) struct RotateKeyArgs {
    #[command(flatten)]
    key: NewKeyArgs,
    /// The id of the key to replace [default: the one that signs this update]
    #[arg(long, value_name = "ID")]
    old: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct MethodArgs {
    /// The id of the key, e.g. key-2
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Args)]
pub(super) struct AddServiceArgs {
    /// The id of the service, e.g. files
    #[arg(value_name = "ID")]
    id: String,
    /// Its type, e.g. LinkedDomains
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// Its endpoint: a URL, or JSON
    #[arg(long, value_name = "URL")]
    endpoint: String,
}

#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// The id of the service, e.g. files
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Args)]
pub(super) struct AddBeaconArgs {
    /// Its address and type: cas (unless stated), smt or singleton
    #[arg(value_name = "ADDRESS[,TYPE]")]
    pub(super) beacon: BeaconText,
    /// The id of its service [default: from its type]
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct BeaconArgs {
    /// The id of its service, e.g. initialP2PKH, or its address
    #[arg(value_name = "ID|ADDRESS")]
    beacon: String,
}

/// A verification relationship.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Purpose {
    /// To prove control of the DID
    Authentication,
    /// To sign statements
    AssertionMethod,
    /// To receive encrypted messages
    KeyAgreement,
    /// To update the document
    CapabilityInvocation,
    /// To delegate a right
    CapabilityDelegation,
}

impl Purpose {
    const fn relationship(self) -> Relationship {
        match self {
            Self::Authentication => Relationship::Authentication,
            Self::AssertionMethod => Relationship::AssertionMethod,
            Self::KeyAgreement => Relationship::KeyAgreement,
            Self::CapabilityInvocation => Relationship::CapabilityInvocation,
            Self::CapabilityDelegation => Relationship::CapabilityDelegation,
        }
    }
}

/// What is to be done.
pub(super) struct Plan {
    pub(super) patch: Value,
    /// The change as it can be made on another document; none for a patch that was given.
    pub(super) edit: Option<Edit>,
    pub(super) new_key: Option<NewKey>,
    /// What the controller should know, beside what is checked.
    pub(super) notes: Vec<String>,
}

impl From<EditError> for UpdateFailure {
    fn from(error: EditError) -> Self {
        Self::Refused(format!("{error}; `resolve` prints the document"))
    }
}

/// The document that is updated, and how.
pub(super) struct Current<'a> {
    pub(super) did: &'a Did,
    pub(super) document: &'a Value,
    pub(super) version: u64,
    /// The id of the method that signs.
    pub(super) signer: &'a str,
}

impl Verb {
    pub(super) fn plan(&self, current: &Current<'_>, keys: &Keys) -> Result<Plan, UpdateFailure> {
        let (document, target) = (current.document, current.version + 1);
        let (mut added, mut notes) = (None, Vec::new());
        let edit = match self {
            Self::AddKey(args) => {
                let new = new_key(keys, &args.key, document, target)?;
                let relationships = match &args.purposes[..] {
                    [] => Relationship::INITIAL.to_vec(),
                    purposes => purposes.iter().map(|purpose| purpose.relationship()).collect(),
                };
                let edit = Edit::AddKey { method: new.method.clone(), key: new.public_key, relationships };
                added = Some(new);
                edit
            }
            Self::RotateKey(args) => {
                let new = new_key(keys, &args.key, document, target)?;
                let old = args.old.as_deref().map_or_else(|| current.signer.to_owned(), id);
                let edit = Edit::ReplaceKey { old, method: new.method.clone(), key: new.public_key };
                added = Some(new);
                edit
            }
            Self::RemoveKey(args) => Edit::RemoveKey { method: id(&args.id) },
            Self::AddService(args) => {
                if BeaconKind::from_service_type(&args.kind).is_some() {
                    let problem = format!("{} is a beacon: use `add-beacon ADDRESS[,TYPE]`", args.kind);
                    return Err(UpdateFailure::Refused(problem));
                }
                // A URL is not JSON.
                let endpoint =
                    serde_json::from_str(&args.endpoint).unwrap_or_else(|_| Value::from(args.endpoint.as_str()));
                Edit::AddService { id: id(&args.id), kind: args.kind.clone(), endpoint }
            }
            Self::RemoveService(args) => {
                let id = id(&args.id);
                if beacon_with(document, current.did, &id).is_some() {
                    let problem = format!("{id} is a beacon: use `remove-beacon {}`", args.id);
                    return Err(UpdateFailure::Refused(problem));
                }
                Edit::RemoveService { id }
            }
            Self::AddBeacon(args) => {
                let address = args.beacon.on(current.did.network()).map_err(UpdateFailure::Refused)?;
                let id = args.id.as_deref().map_or_else(|| unused_id(document, args.beacon.name()), id);
                notes.push(format!(
                    "resolvers look at {address} from the block on that announces this update. Announce it at a beacon of the \
                     current document: a signal at {address} below that block is ignored (rule R-4)"
                ));
                notes.push(format!(
                    "from then on resolvers need the data of every signal of {address}, also after the beacon is removed (rule R-5)"
                ));
                let kind = args.beacon.kind().service_type().to_owned();
                Edit::AddService { id, kind, endpoint: Value::from(format!("bitcoin:{address}")) }
            }
            Self::RemoveBeacon(args) => {
                let id = beacon_with(document, current.did, &id(&args.beacon))
                    .or_else(|| beacon_with(document, current.did, &args.beacon))
                    .ok_or_else(|| {
                        let problem = format!("the document has no beacon {}; `resolve` prints it", args.beacon);
                        UpdateFailure::Refused(problem)
                    })?;
                notes.push(
                    "resolvers go on to need the data of every signal of the removed beacon (rule R-5): keep what you have of it"
                        .to_owned(),
                );
                Edit::RemoveService { id }
            }
            Self::Deactivate => {
                notes.push("no update after this one counts: a deactivation cannot be taken back".to_owned());
                Edit::Deactivate
            }
        };
        Ok(Plan { patch: edit.patch(document)?, edit: Some(edit), new_key: added, notes })
    }
}

/// An id as people write it: without the DID, with or without `#`.
pub(super) fn id(text: &str) -> String {
    if text.starts_with(['#', '?', '/']) || text.contains(':') { text.to_owned() } else { format!("#{text}") }
}

/// The id of the beacon with that id, or at that address.
fn beacon_with(document: &Value, did: &Did, wanted: &str) -> Option<String> {
    let services = document.get("service").and_then(Value::as_array).into_iter().flatten();
    let wanted_id = if wanted.starts_with('#') { format!("{did}{wanted}") } else { wanted.to_owned() };
    let address = beacon_address(wanted).unwrap_or(wanted);
    let beacon = |service: &Value| {
        BeaconKind::from_service_type(service.get("type")?.as_str()?)?;
        let id = service.get("id")?.as_str()?;
        let absolute = if id.starts_with('#') { format!("{did}{id}") } else { id.to_owned() };
        let at = service.get("serviceEndpoint").and_then(Value::as_str).and_then(beacon_address);
        (absolute == wanted_id || at == Some(address)).then_some(absolute)
    };
    services.into_iter().find_map(beacon)
}
