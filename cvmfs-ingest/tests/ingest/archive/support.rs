//! Writing blocks, reading archives, running programs.

use std::io::{Cursor, Read};
use std::process::Command;

use cvmfs_ingest::archive::{Archive, ArchiveError, Entry, EntryKind, Format, decompress};

/// Content that tests look at; sizes in damaged archives may be anything.
const CONTENT_LIMIT: u64 = 4 << 20;

/// A member with its content.
pub(crate) type Member = (Entry, Vec<u8>);

/// Reads a whole archive that is not compressed.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Member>, ArchiveError> {
    members(Archive::new(bytes))
}

/// Reads a whole archive with any compression.
pub(crate) fn read_compressed(bytes: Vec<u8>) -> Result<(Format, Vec<Member>), ArchiveError> {
    let (format, reader) = decompress(Box::new(Cursor::new(bytes)))?;
    Ok((format, members(Archive::new(reader))?))
}

pub(crate) fn members<R: Read>(mut archive: Archive<R>) -> Result<Vec<Member>, ArchiveError> {
    let mut members = Vec::new();
    while let Some(entry) = archive.next()? {
        let mut content = Vec::new();
        let read = archive.content().take(CONTENT_LIMIT).read_to_end(&mut content);
        read.map_err(|error| error.downcast::<ArchiveError>().expect("all errors are ours"))?;
        members.push((entry, content));
    }
    assert!(archive.next()?.is_none(), "an end stays an end");
    Ok(members)
}

/// Reads an archive of one member.
pub(crate) fn read_one(bytes: &[u8]) -> Member {
    let mut members = read(bytes).unwrap();
    assert_eq!(members.len(), 1);
    members.remove(0)
}

/// Paths and kinds, for comparison in one go.
pub(crate) fn listing(members: &[Member]) -> Vec<(String, EntryKind)> {
    members.iter().map(|(entry, _)| (String::from_utf8_lossy(&entry.path).into_owned(), entry.kind.clone())).collect()
}

/// A header under construction; ustar unless said otherwise.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

pub(crate) const USTAR: &[u8] = b"ustar\x0000";
pub(crate) const GNU: &[u8] = b"ustar  \0";
pub(crate) const V7: &[u8] = &[0; 8];

impl Header {
    pub(crate) fn new(typeflag: u8, name: &[u8], size: usize) -> Self {
        let mut header = Self([0; 512]);
        header.0[156] = typeflag;
        header
            .put(0, name)
            .put(100, b"0000644\0")
            .put(108, b"0001750\0")
            .put(116, b"0003720\0")
            .put(124, format!("{size:011o}\0").as_bytes())
            .put(136, b"00000000144\0")
            .put(257, USTAR)
    }

    pub(crate) fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn magic(self, magic: &[u8]) -> Self {
        self.put(257, magic)
    }

    pub(crate) fn link(self, target: &[u8]) -> Self {
        self.put(157, target)
    }

    /// The header with its checksum, and content with padding behind it.
    pub(crate) fn with(self, content: &[u8]) -> Vec<u8> {
        let mut block = self.0;
        set_checksum(&mut block);
        let mut bytes = [&block[..], content].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

pub(crate) fn set_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub(crate) fn file(name: &str, content: &[u8]) -> Vec<u8> {
    Header::new(b'0', name.as_bytes(), content.len()).with(content)
}

/// An extended header: `x` for the next entry, `g` for all.
pub(crate) fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    Header::new(typeflag, b"pax", content.len()).with(&content)
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let digits = (1..10).find(|digits| (body.len() + digits).to_string().len() == *digits).expect("it is short");
    [(body.len() + digits).to_string().as_bytes(), &body].concat()
}

/// The end marker.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}

/// Runs a program; `None`, with a note, if it is not installed.
pub(crate) fn run(command: &mut Command) -> Option<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        output => output.unwrap(),
    };
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {problem}");
    Some(output.stdout)
}
