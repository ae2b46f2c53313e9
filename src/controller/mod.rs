//! What the programs of a DID's controller share: `update` prepares an update, `singleton` announces one.
//!
//! [`current`] has the document that the next update starts from, as a resolver gives it; [`keys`] the key that this
//! document authorizes.

pub mod current;
pub mod keys;

pub use self::{
    current::{Current, CurrentError, Resolving},
    keys::{Keys, NotAuthorized},
};
