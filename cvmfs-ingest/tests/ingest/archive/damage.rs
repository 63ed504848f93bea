//! Truncated, altered and arbitrary archives: never a panic, never a silent loss.

use std::collections::BTreeSet;

use cvmfs_ingest::archive::{Archive, ArchiveError, EntryKind};
use proptest::prelude::*;

use super::support::{GNU, Header, Member, USTAR, V7, end, file, members, pax, read, read_compressed, set_checksum};
use crate::accidents::support::compressed;

/// The parts of an archive with every kind of header; between two parts it may end.
fn parts() -> Vec<Vec<u8>> {
    let long = |typeflag, text: &[u8]| Header::new(typeflag, b"././@LongLink", text.len()).magic(GNU).with(text);
    vec![
        pax(b'g', &[("comment", b"global"), ("gid", b"7")]),
        file("a", b"content"),
        Header::new(b'5', b"dir/", 0).with(b""),
        [
            pax(b'x', &[("path", b"dir/pax"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"v")]),
            file("short", &[b'c'; 600]),
        ]
        .concat(),
        [long(b'L', &[b'n'; 600]), long(b'K', b"target\0"), Header::new(b'2', b"s", 0).link(b"t").magic(GNU).with(b"")]
            .concat(),
        Header::new(b'1', b"hard", 0).link(b"a").with(b""),
        Header::new(b'3', b"device", 0).put(329, b"0000010\0").put(337, b"0000401\0").with(b""),
        [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"sparse-1.0"),
                    ("GNU.sparse.realsize", b"900"),
                ],
            ),
            file("x", &[&b"1\n10\n5\n"[..], &[0; 505], b"12345"].concat()),
        ]
        .concat(),
        [pax(b'x', &[("GNU.sparse.size", b"900"), ("GNU.sparse.map", b"10,5")]), file("sparse-0.1", b"12345")].concat(),
        Header::new(b'S', b"sparse-old", 5)
            .magic(GNU)
            .put(386, b"00000000012\x0000000000005\0")
            .put(483, b"00000001604\0")
            .with(b"12345"),
        file("last", b"z"),
    ]
}

#[test]
fn the_sample_is_read() {
    let members = read(&[parts().concat(), end()].concat()).unwrap();
    assert_eq!(members.len(), parts().len() - 1);
    assert!(members.iter().all(|(entry, _)| entry.gid == 7));
}

#[test]
fn a_plain_archive_may_end_between_entries_only() {
    let parts = parts();
    let archive = [parts.concat(), end(), vec![0; 512]].concat();
    let whole = read(&archive).unwrap();
    let boundaries: BTreeSet<usize> = parts
        .iter()
        .scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        })
        .chain([0])
        .collect();
    let last = *boundaries.last().unwrap();
    for length in 0..archive.len() {
        // Of the end marker one block is enough, and what follows it does not matter.
        let is_clean = boundaries.contains(&length) || length == last + 512 || length >= last + 1024;
        match read(&archive[..length]) {
            Ok(members) => {
                assert!(is_clean, "accepted {length} bytes");
                assert!(whole.starts_with(&members), "{length}");
                assert_eq!(members.len() == whole.len(), length >= last, "{length}");
            }
            Err(error @ ArchiveError::Truncated { .. }) => assert!(!is_clean, "{length}: {error}"),
            Err(error) => panic!("{length}: {error}"),
        }
    }
}

/// As `umoci insert` writes it.
#[test]
fn a_layer_may_end_with_the_content_of_its_last_file() {
    let archive = [file("a", b"content"), file("b", &[b'x'; 600])].concat();
    for length in 0..=archive.len() {
        let expected = match length {
            0 => Some(0),
            519..=1024 => Some(1),
            2136.. => Some(2),
            _ => None,
        };
        let found = members(Archive::new(&archive[..length]).without_last_padding()).map(|members| members.len());
        assert_eq!(found.ok(), expected, "{length}");
    }
}

#[test]
fn a_compressed_archive_may_not_end_early_at_all() {
    // Without end marker the archive itself would be complete before the compressed data is.
    for archive in [[parts().concat(), end()].concat(), parts().concat()] {
        let whole = read(&archive).unwrap();
        for (_, bytes) in compressed(&archive) {
            for length in 1..bytes.len() {
                assert!(read_compressed(bytes[..length].to_vec()).is_err(), "{length} of {}", bytes.len());
            }
            let (format, members) = read_compressed(bytes).unwrap();
            assert!(members == whole, "{format}");
        }
    }
}

#[test]
fn a_changed_byte_of_compressed_data_is_noticed_or_means_nothing() {
    let archive = [parts().concat(), end()].concat();
    let whole = read(&archive).unwrap();
    for (_, bytes) in compressed(&archive) {
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x11;
            if let Ok((format, members)) = read_compressed(bytes) {
                assert!(members == whole, "{format} {at}");
            }
        }
    }
}

/// Reads what may be damaged, and checks what every result must obey.
fn check(bytes: &[u8]) {
    match read(bytes) {
        Ok(members) => members.iter().for_each(check_member),
        Err(error) => assert!(error.to_string().starts_with("archive "), "{error}"),
    }
}

fn check_member((entry, content): &Member) {
    assert!(entry.mode <= 0o7777);
    assert!(entry.mtime.nanoseconds.is_none_or(|nanoseconds| nanoseconds < 1_000_000_000));
    assert!(!entry.path.contains(&0));
    match &entry.kind {
        EntryKind::File { size } => assert_eq!(content.len() as u64, (*size).min(4 << 20)),
        EntryKind::Symlink { target } | EntryKind::HardLink { target } => assert!(!target.is_empty()),
        _ => assert!(content.is_empty()),
    }
}

#[test]
fn every_changed_byte_is_survived() {
    let archive = [parts().concat(), end()].concat();
    for at in 0..archive.len() {
        for value in [archive[at] ^ 1, archive[at] ^ 0x80, 0, b'9', 0xff] {
            let mut bytes = archive.clone();
            bytes[at] = value;
            check(&bytes);
        }
    }
}

#[test]
fn every_changed_byte_of_a_header_is_survived_with_a_correct_checksum() {
    for part in parts() {
        for at in 0..512 {
            for value in [part[at] ^ 1, part[at] ^ 0x80, 0, b'7', b' ', 0xff] {
                let mut bytes = part.clone();
                bytes[at] = value;
                set_checksum(&mut bytes[..512]);
                check(&bytes);
            }
        }
    }
}

/// A name that the writer puts into the header, and others that need a long name.
fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,20}", "[a-z]{1,30}(/[a-zäß ]{1,90}){1,3}", "[a-z]{101,300}"]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        check(&bytes);
    }

    #[test]
    fn arbitrary_headers_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 512..3000), typeflag: u8, magic in 0..3_usize) {
        bytes[156] = typeflag;
        bytes[257..265].copy_from_slice([V7, GNU, USTAR][magic]);
        set_checksum(&mut bytes[..512]);
        check(&bytes);
    }

    #[test]
    fn arbitrary_records_are_survived(records in proptest::collection::vec((0..12_usize, ".{0,20}|[0-9,.-]{0,20}"), 0..8)) {
        const KEYS: [&str; 12] = [
            "path", "size", "mtime", "uid", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.size",
            "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.offset", "LIBARCHIVE.xattr.%41", "SCHILY.acl.access",
        ];
        let records: Vec<_> = records.iter().map(|(key, value)| (KEYS[*key], value.as_bytes())).collect();
        check(&[pax(b'x', &records), file("n", b"1\n0\n5\n"), end()].concat());
    }

    #[test]
    fn several_changes_are_survived(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = [parts().concat(), end()].concat();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        // Where a header was, there is one again.
        let mut at = 0;
        for part in parts() {
            set_checksum(&mut bytes[at..at + 512]);
            at += part.len();
        }
        check(&bytes);
    }

    #[test]
    fn what_the_tar_crate_writes_is_read(
        files in proptest::collection::vec((names(), proptest::collection::vec(any::<u8>(), 0..1500), any::<u32>()), 0..8),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content, number) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(number & 0o7777);
            header.set_uid(u64::from(*number) << 20);
            header.set_mtime((*number).into());
            builder.append_data(&mut header, name, &content[..]).unwrap();
        }
        let members = read(&builder.into_inner().unwrap()).unwrap();
        prop_assert_eq!(members.len(), files.len());
        for ((entry, content), (name, expected, number)) in members.iter().zip(&files) {
            prop_assert_eq!(&entry.path[..], name.as_bytes());
            prop_assert_eq!(content, expected);
            prop_assert_eq!(u32::from(entry.mode), number & 0o7777);
            prop_assert_eq!(entry.uid, u64::from(*number) << 20);
            prop_assert_eq!(entry.mtime.seconds, i64::from(*number));
        }
    }
}
