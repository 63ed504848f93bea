//! Users of this system.

use std::fs;

use crate::error::{Error, IoContext as _, Result};

/// A user of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemUser {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
}

impl SystemUser {
    /// Finds a user in `/etc/passwd`.
    ///
    /// # Errors
    /// `InvalidInput` if there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::find(|user| user.name == name)?
            .ok_or_else(|| Error::invalid(format!("user {name:?}"), "there is no such user"))
    }

    /// The user that this process runs as; named by the number if it has no name.
    pub fn current() -> Result<Self> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Self::of(uid, gid)
    }

    /// The user with these numbers; named by the number if it has no name.
    pub fn of(uid: u32, gid: u32) -> Result<Self> {
        Ok(Self::find(|user| user.uid == uid)?.unwrap_or(Self { name: uid.to_string(), uid, gid }))
    }

    fn find(wanted: impl Fn(&Self) -> bool) -> Result<Option<Self>> {
        let path = "/etc/passwd";
        let text = fs::read_to_string(path).at(path)?;
        let parse = |line: &str| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Self { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        };
        Ok(text.lines().filter_map(parse).find(wanted))
    }
}
