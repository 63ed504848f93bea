//! Puts an entry together from its own header and those that extend it.
//!
//! For each field PAX records come first, then GNU long names, then the header. Fields of the header that a record
//! replaces are not looked at: writers leave there whatever fits.

use super::acl::Owners;
use super::header::Header;
use super::pax::{Attributes, Records};
use super::{ArchiveError, Entry, EntryKind, Position, Result, Timestamp, xattr};

/// Headers that extend the entry behind them.
#[derive(Default)]
pub(super) struct Extensions {
    /// Whether there was any.
    pub(super) any: bool,
    pub(super) records: Records,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

/// All that is known of an entry before its content.
pub(super) struct Parts<'a> {
    header: &'a Header,
    extensions: &'a Extensions,
    pub(super) records: Attributes<'a>,
    /// Where the header begins, and the entry's path.
    pub(super) at: Position,
    pub(super) path: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Takes the headers of one entry; `offset` is where its own begins.
    pub(super) fn new(
        header: &'a Header,
        extensions: &'a Extensions,
        global: &'a Records,
        offset: u64,
    ) -> Result<Self> {
        let records = Attributes { global, local: &extensions.records };
        // The `path` of a sparse file is a made-up name, for readers that do not know sparse files.
        let key = if records.local(b"GNU.sparse.name").is_some() { &b"GNU.sparse.name"[..] } else { b"path" };
        let path = records.text(key).map_err(|reason| ArchiveError::malformed(offset, reason))?;
        let path = path.or(extensions.long_name.as_deref()).map_or_else(|| header.path(), <[u8]>::to_vec);
        let parts = Self { header, extensions, records, at: Position::new(offset, &path), path };
        if parts.path.is_empty() && !parts.is_directory() {
            return Err(parts.malformed("entry without a name"));
        }
        Ok(parts)
    }

    pub(super) fn malformed(&self, reason: impl Into<String>) -> ArchiveError {
        ArchiveError::malformed(self.at.clone(), reason)
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> ArchiveError {
        ArchiveError::unsupported(self.at.clone(), what)
    }

    fn checked<T>(&self, result: Result<T, String>) -> Result<T> {
        result.map_err(|reason| self.malformed(reason))
    }

    pub(super) fn is_directory(&self) -> bool {
        match self.header.typeflag() {
            b'5' | b'D' => true,
            // BSD tar marked directories by the slash alone, before there was a type for them.
            0 | b'0' | b'7' => self.path.ends_with(b"/"),
            _ => false,
        }
    }

    /// What the archive says about the number of stored bytes.
    pub(super) fn size(&self) -> Result<u64> {
        self.number(b"size", Header::size)
    }

    /// What the entry is, unless it is a file.
    ///
    /// # Errors
    /// `Unsupported` for unknown types, `Malformed` if fields of the type are.
    pub(super) fn kind(&self) -> Result<EntryKind> {
        Ok(match self.header.typeflag() {
            _ if self.is_directory() => EntryKind::Directory,
            b'1' => EntryKind::HardLink { target: self.link_target()? },
            b'2' => EntryKind::Symlink { target: self.link_target()? },
            b'3' => {
                let (major, minor) = self.checked(self.header.device())?;
                EntryKind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = self.checked(self.header.device())?;
                EntryKind::BlockDevice { major, minor }
            }
            b'6' => EntryKind::Fifo,
            b'M' => return Err(self.unsupported("a file continued from another volume")),
            b'N' => return Err(self.unsupported("a list of long names in GNU tar's oldest format")),
            other => return Err(self.unsupported(format!("entry type '{}'", other.escape_ascii()))),
        })
    }

    fn link_target(&self) -> Result<Vec<u8>> {
        let target = self.checked(self.records.text(b"linkpath"))?.or(self.extensions.long_link.as_deref());
        match target.unwrap_or_else(|| self.header.link_target()) {
            b"" => Err(self.malformed("link without a target")),
            target => Ok(target.to_vec()),
        }
    }

    /// The entry, as what `kind` says.
    pub(super) fn entry(&self, kind: EntryKind) -> Result<Entry> {
        let uid = self.number(b"uid", Header::uid)?;
        let gid = self.number(b"gid", Header::gid)?;
        let uname = self.checked(self.records.text(b"uname"))?.unwrap_or(self.header.uname());
        let gname = self.checked(self.records.text(b"gname"))?.unwrap_or(self.header.gname());
        let owners = Owners { user: (uname, uid), group: (gname, gid) };
        let collected = self.checked(xattr::collect(&self.records, owners))?;
        let mode = self.checked(self.header.mode())?;
        let mtime = match self.checked(self.records.time(b"mtime"))? {
            Some(time) => time,
            None => Timestamp { seconds: self.checked(self.header.mtime())?, nanoseconds: None },
        };
        Ok(Entry {
            path: self.path.clone(),
            kind,
            mode: collected.permissions.map_or(mode, |permissions| mode & 0o7000 | permissions),
            uid,
            gid,
            uname: uname.to_vec(),
            gname: gname.to_vec(),
            mtime,
            xattrs: collected.xattrs,
            offset: self.at.offset,
            warnings: collected.warnings,
        })
    }

    fn number(&self, key: &[u8], field: fn(&Header) -> Result<u64, String>) -> Result<u64> {
        match self.checked(self.records.number(key))? {
            Some(value) => Ok(value),
            None => self.checked(field(self.header)),
        }
    }
}
