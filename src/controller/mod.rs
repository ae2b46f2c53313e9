//! What the programs of a DID's controller share: `update` prepares an update, `singleton` announces one alone, `join` in a cohort.
//!
//! [`current`] has the document that the next update starts from, as a resolver gives it; [`keys`] the key that this
//! document authorizes; [`places`] the beacons at which resolvers look; [`prepared`] reads a file that holds an
//! update; and [`standing`] is what is settled of those that were approved.

pub(crate) mod address_change;
pub mod current;
mod diff;
mod genesis;
pub mod keys;
pub mod places;
pub mod prepared;
mod service_entry;
pub mod standing;

pub(crate) use self::diff::diff;
pub use self::{
    current::{Current, CurrentError, Resolving},
    genesis::genesis_with,
    keys::{Keys, NotAuthorized},
    places::Place,
    prepared::UpdateFile,
    service_entry::{SERVICE_TYPE, ServiceEntry},
    standing::{AnnouncementState, Settled, Settlement},
};
