//! Trust: from a master key that the operator gave to a manifest that may be believed.
//!
//! ```text
//! master key ──signs──► whitelist ──lists──► certificate ──signs──► manifest ──names──► everything else, by hash
//! ```
//!
//! Documents are read into `Signed…` values, which give their content away only through `verify`. A failed check is
//! an error ([`Error::Untrusted`](crate::Error::Untrusted), [`Error::Expired`](crate::Error::Expired)), never a warning.

pub mod keys;
mod letter;
#[cfg(feature = "token")]
pub mod token;
pub mod whitelist;

pub use letter::Letter;
