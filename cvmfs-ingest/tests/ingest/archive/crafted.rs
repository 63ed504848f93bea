//! Rare constructs, put together byte by byte.

use std::io::{self, Read};

use cvmfs_ingest::archive::{Archive, ArchiveError, EntryKind, Timestamp};

use super::support::{GNU, Header, USTAR, V7, end, file, listing, pax, read, read_one};

fn is_file(size: u64) -> EntryKind {
    EntryKind::File { size }
}

/// The message of the error that reading ends with.
fn error(parts: &[Vec<u8>]) -> String {
    match read(&parts.concat()) {
        Ok(members) => panic!("read {:?}", listing(&members)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn fields_of_a_ustar_header() {
    let header = Header::new(b'0', b"name", 3)
        .put(100, b"0107755\0")
        .put(265, b"joe")
        .put(297, &[b'g'; 32])
        .put(345, b"some/prefix");
    let (entry, content) = read_one(&[header.with(b"abc"), end()].concat());
    assert_eq!(entry.path, b"some/prefix/name");
    assert_eq!((entry.kind, entry.mode, entry.uid, entry.gid), (is_file(3), 0o7755, 1000, 2000));
    assert_eq!(entry.mtime, Timestamp { seconds: 100, nanoseconds: None });
    assert_eq!((&entry.uname[..], &entry.gname[..], entry.offset), (&b"joe"[..], &[b'g'; 32][..], 0));
    assert!(entry.xattrs.is_empty() && entry.warnings.is_empty());
    assert_eq!(content, b"abc");
}

#[test]
fn full_fields_have_no_terminator() {
    let header = Header::new(b'2', &[b'n'; 100], 0).link(&[b't'; 100]).put(345, &[b'p'; 155]);
    let (entry, _) = read_one(&header.with(b""));
    assert_eq!(entry.path, [&[b'p'; 155][..], b"/", &[b'n'; 100]].concat());
    assert_eq!(entry.kind, EntryKind::Symlink { target: vec![b't'; 100] });
}

#[test]
fn numbers_beyond_octal() {
    let header = Header::new(b'0', b"n", 0)
        .magic(GNU)
        .put(108, b"\x80\0\0\x01\0\0\0\x02")
        .put(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
    let (entry, _) = read_one(&header.clone().with(b""));
    assert_eq!((entry.uid, entry.mtime.seconds), ((1 << 32) + 2, -2));
    let negative = header.put(116, &[0xff; 8]);
    assert!(error(&[negative.with(b"")]).starts_with("archive entry n at byte 0: gid field holds no usable number"));
}

#[test]
fn every_type_of_entry() {
    let device = |typeflag| Header::new(typeflag, b"n", 0).put(329, b"0000010\0").put(337, b"0000401\0");
    for (header, expected) in [
        (Header::new(b'0', b"n", 0), is_file(0)),
        (Header::new(0, b"n", 0), is_file(0)),
        (Header::new(b'7', b"n", 0), is_file(0)),
        (Header::new(0, b"n/", 0).magic(V7), EntryKind::Directory),
        (Header::new(b'0', b"n/", 0), EntryKind::Directory),
        (Header::new(b'5', b"n", 0), EntryKind::Directory),
        (Header::new(b'5', b"", 0), EntryKind::Directory),
        (Header::new(b'1', b"n", 0).link(b"t"), EntryKind::HardLink { target: b"t".into() }),
        (Header::new(b'2', b"n", 0).link(b"t"), EntryKind::Symlink { target: b"t".into() }),
        (Header::new(b'2', b"n/", 0).link(b"t"), EntryKind::Symlink { target: b"t".into() }),
        (device(b'3'), EntryKind::CharDevice { major: 8, minor: 257 }),
        (device(b'4'), EntryKind::BlockDevice { major: 8, minor: 257 }),
        (Header::new(b'6', b"n", 0), EntryKind::Fifo),
    ] {
        assert_eq!(read_one(&header.with(b"")).0.kind, expected);
    }
}

#[test]
fn types_that_cannot_be_represented_are_errors() {
    for (typeflag, what) in [
        (b'M', "a file continued from another volume"),
        (b'N', "a list of long names in GNU tar's oldest format"),
        (b'Q', "entry type 'Q'"),
        (b'\n', "entry type '\\n'"),
        (b'A', "entry type 'A'"),
    ] {
        let bytes = [file("a", b""), Header::new(typeflag, b"dir/n", 0).with(b""), end()];
        assert_eq!(error(&bytes), format!("archive entry dir/n at byte 512: {what} is not supported"));
    }
    let star = Header::new(b'S', b"n", 0).with(b"");
    assert!(error(&[star]).contains("sparse file in star's format is not supported"));
    let continued = [pax(b'g', &[("GNU.volume.offset", b"100")]), file("n", b"rest")];
    assert!(error(&continued).contains("entry n at byte 1024: a file continued"));
}

#[test]
fn volume_labels_are_skipped() {
    let label = Header::new(b'V', b"label", 700).with(&[1; 700]);
    let long = Header::new(b'L', b"x", 5).with(b"name\0");
    let members = read(&[label.clone(), file("a", b"1"), long, label, file("b", b"2"), end()].concat()).unwrap();
    assert_eq!(listing(&members), [("a".to_owned(), is_file(1)), ("b".to_owned(), is_file(1))]);
}

#[test]
fn content_of_incremental_directories_is_skipped() {
    let dump = Header::new(b'D', b"d", 700).magic(GNU).with(&[b'Y'; 700]);
    let members = read(&[dump, file("a", b"1"), end()].concat()).unwrap();
    assert_eq!(listing(&members), [("d".to_owned(), EntryKind::Directory), ("a".to_owned(), is_file(1))]);
    assert_eq!(members[0].1, b"");
}

#[test]
fn the_size_of_what_has_no_content_is_ignored() {
    for typeflag in *b"23456" {
        let bytes = [Header::new(typeflag, b"n", 99_999).link(b"t").with(b""), file("a", b"1")].concat();
        assert_eq!(listing(&read(&bytes).unwrap())[1], ("a".to_owned(), is_file(1)));
    }
}

#[test]
fn hard_links_have_content_in_pax_archives_only() {
    let link = EntryKind::HardLink { target: b"t".into() };
    let expected = [("n".to_owned(), link.clone()), ("a".to_owned(), is_file(1))];
    for magic in [V7, GNU, USTAR] {
        let header = Header::new(b'1', b"n", 600).link(b"t").magic(magic).with(b"");
        assert_eq!(listing(&read(&[header.clone(), file("a", b"1"), end()].concat()).unwrap()), expected);
        assert_eq!(listing(&read(&[header.clone(), end()].concat()).unwrap()), expected[..1]);
        assert_eq!(listing(&read(&header).unwrap()), expected[..1]);
    }
    // Content that is itself a tar archive shows that PAX does not guess.
    let inner = [file("inner", b""), vec![7; 88]].concat();
    let stored = Header::new(b'1', b"n", 600).link(b"t").with(&inner);
    for bytes in [
        [Header::new(b'1', b"n", 600).link(b"t").with(&[7; 600]), file("a", b"1"), end()].concat(),
        [pax(b'g', &[("comment", b"x")]), stored, file("a", b"1"), end()].concat(),
    ] {
        let members = read(&bytes).unwrap();
        assert_eq!(listing(&members), expected);
        assert_eq!(members[0].1, b"", "the content is the target's");
    }
}

#[test]
fn long_names_belong_to_the_next_entry_only() {
    let long = |typeflag, text: &[u8]| Header::new(typeflag, b"././@LongLink", text.len()).magic(GNU).with(text);
    let name = [b'n'; 1000];
    let target = [b't'; 2000];
    let bytes = [
        long(b'K', &[&target[..], b"\0"].concat()),
        long(b'L', &[&name[..], b"\0junk"].concat()),
        Header::new(b'2', b"short", 0).link(b"short").magic(GNU).with(b""),
        file("a", b"1"),
        end(),
    ]
    .concat();
    let members = read(&bytes).unwrap();
    assert_eq!(members[0].0.path, name);
    assert_eq!(members[0].0.kind, EntryKind::Symlink { target: target.to_vec() });
    assert_eq!(members[0].0.offset, 512 + 2048 + 512 + 1024, "the offset is that of the entry's own header");
    assert_eq!(members[1].0.path, b"a");
}

#[test]
fn pax_records_replace_all_else() {
    let bytes = [
        Header::new(b'L', b"x", 4).with(b"gnu\0"),
        pax(
            b'x',
            &[
                ("path", b"pax/n"),
                ("size", b"4"),
                ("uid", b"4294967296"),
                ("gid", b"7"),
                ("uname", b"joe \xff"),
                ("gname", b"grp"),
                ("mtime", b"-1.25"),
                ("atime", b"nonsense is not looked at"),
                ("SCHILY.xattr.user.a", b"v\0\n"),
                ("SCHILY.xattr.user.none", b""),
                ("LIBARCHIVE.xattr.user.b%3D", b"Zm8"),
                ("RHT.security.selinux", b"label"),
                ("SCHILY.acl.default", b"user::rwx,user:joe:r-x,group::r-x,mask::r-x,other::---"),
            ],
        ),
        // Fields that records replace may hold anything.
        Header::new(b'0', b"ustar", 0).put(108, b"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz").with(b"1234"),
        file("a", b"1"),
    ]
    .concat();
    let members = read(&bytes).unwrap();
    let (entry, content) = &members[0];
    assert_eq!((&entry.path[..], &content[..]), (&b"pax/n"[..], &b"1234"[..]));
    assert_eq!((entry.uid, entry.gid), (1 << 32, 7));
    assert_eq!((&entry.uname[..], &entry.gname[..]), (&b"joe \xff"[..], &b"grp"[..]));
    assert_eq!(entry.mtime, Timestamp { seconds: -2, nanoseconds: Some(750_000_000) });
    let xattrs: Vec<(&[u8], &[u8])> = entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let expected: [(&[u8], &[u8]); 4] =
        [(b"security.selinux", b"label"), (b"user.a", b"v\0\n"), (b"user.b=", b"fo"), (b"user.none", b"")];
    assert_eq!(xattrs, expected);
    assert_eq!(
        entry.warnings,
        ["left out the access control list system.posix_acl_default: the number of `joe` is unknown"]
    );
    assert_eq!((&members[1].0.path[..], members[1].0.uid), (&b"a"[..], 1000));
}

#[test]
fn global_records_last_until_replaced() {
    let bytes = [
        pax(b'g', &[("uid", b"1"), ("gid", b"2"), ("SCHILY.xattr.user.g", b"all")]),
        file("a", b""),
        pax(b'x', &[("uid", b"3"), ("gid", b"")]),
        pax(b'g', &[("uid", b"4")]),
        pax(b'x', &[("uname", b"both")]),
        file("b", b""),
        file("c", b""),
        pax(b'g', &[("gid", b""), ("SCHILY.xattr.user.g", b"new")]),
        file("d", b""),
        pax(b'g', &[("comment", b"may stand last")]),
        end(),
    ]
    .concat();
    let members = read(&bytes).unwrap();
    let owners: Vec<_> = members.iter().map(|(entry, _)| (entry.uid, entry.gid, &entry.uname[..])).collect();
    assert_eq!(owners, [(1, 2, &b""[..]), (3, 2000, b"both"), (4, 2, b""), (4, 2000, b"")]);
    let values: Vec<_> = members.iter().map(|(entry, _)| &entry.xattrs[&b"user.g"[..]][..]).collect();
    assert_eq!(values, [b"all", b"all", b"all", b"new"]);
}

#[test]
fn sparse_files_in_all_encodings() {
    let expected = [&[0; 700][..], b"abc", &[0; 97], b"xy", &[0; 98]].concat();
    let map: &[(&str, &[u8])] = &[("GNU.sparse.map", b"700,3,800,2,900,0"), ("GNU.sparse.numblocks", b"3")];
    let pairs: &[(&str, &[u8])] = &[
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"700"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"800"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let leading = b"2\n700\n3\n800\n2\n";
    let stored = [&leading[..], &[0; 512 - 14], b"abcxy"].concat();
    let gnu = Header::new(b'S', b"n", 5)
        .magic(GNU)
        .put(386, b"00000001274\x0000000000003\0")
        .put(410, b"00000001440\x0000000000002\0")
        .put(483, b"00000001604\0");
    for bytes in [
        [pax(b'x', &[&[("GNU.sparse.size", &b"900"[..])], map].concat()), file("n", b"abcxy")].concat(),
        [pax(b'x', &[&[("GNU.sparse.size", &b"900"[..])], pairs].concat()), file("n", b"abcxy")].concat(),
        [
            pax(
                b'x',
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"n"),
                    ("GNU.sparse.realsize", b"900"),
                    ("path", b"./GNUSparseFile.1/n"),
                ],
            ),
            file("other", &stored),
        ]
        .concat(),
        gnu.with(b"abcxy"),
    ] {
        let members = read(&[bytes, file("a", b"1")].concat()).unwrap();
        assert_eq!(listing(&members), [("n".to_owned(), is_file(900)), ("a".to_owned(), is_file(1))]);
        assert_eq!(members[0].1, expected);
    }
}

#[test]
fn old_gnu_maps_may_go_on_in_further_blocks() {
    let slot = |index: usize| format!("{:011o}\0{:011o}\0", index * 10, 1);
    let mut header = Header::new(b'S', b"n", 50).magic(GNU).put(482, b"\x01").put(483, b"00000001000\0");
    for index in 0..4 {
        header = header.put(386 + 24 * index, slot(index).as_bytes());
    }
    let mut blocks = vec![0; 3 * 512];
    for index in 4..50_usize {
        let (block, place) = ((index - 4) / 21, (index - 4) % 21);
        let at = block * 512 + place * 24;
        blocks[at..at + 24].copy_from_slice(slot(index).as_bytes());
    }
    blocks[504] = 1;
    blocks[512 + 504] = b'1';
    let bytes = [header.with(&[&blocks[..], &[b'x'; 50]].concat()), file("a", b"1"), end()].concat();
    let members = read(&bytes).unwrap();
    let expected: Vec<u8> = (0..512).map(|at| if at % 10 == 0 && at < 500 { b'x' } else { 0 }).collect();
    assert_eq!(members[0].1, expected);
    assert_eq!(members[1].1, b"1");
    let torn = &bytes[..1024];
    assert!(matches!(read(torn), Err(ArchiveError::Truncated { at, .. }) if at.path.as_deref() == Some(b"n")));
}

#[test]
fn sparse_maps_that_do_not_fit_are_errors() {
    for (records, reason) in [
        (&[("GNU.sparse.size", &b"9"[..]), ("GNU.sparse.map", b"0,5,3,5")][..], "not ascending"),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,10")], "exceeds the file's 9 bytes"),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,9")], "describes 9 bytes, but 5 are stored"),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,4")], "describes 4 bytes, but 5 are stored"),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5"), ("GNU.sparse.numblocks", b"2")], "as many regions"),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"0")], "ends with an offset"),
        (&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], "without GNU.sparse.realsize"),
        (&[("GNU.sparse.major", b"0"), ("GNU.sparse.minor", b"1")], "without GNU.sparse.size"),
        (&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], "this version of the sparse format"),
        (
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")],
            "longer than what is stored",
        ),
        (&[("GNU.sparse.size", b"9223372036854775808"), ("GNU.sparse.map", b"0,5")], "larger than files can be"),
    ] {
        let message = error(&[pax(b'x', records), file("n", b"12345"), end()]);
        assert!(message.starts_with("archive entry n at byte 1024: ") && message.contains(reason), "{message}");
    }
}

#[test]
fn an_archive_ends_with_two_blocks_of_zeros_or_the_stream() {
    let one = [("a".to_owned(), is_file(1))];
    let a = file("a", b"1");
    for rest in [vec![], vec![0; 512], end(), vec![0; 10_240], [end(), b"garbage".to_vec()].concat(), {
        [end(), file("ignored", b"")].concat()
    }] {
        assert_eq!(listing(&read(&[a.clone(), rest].concat()).unwrap()), one);
    }
    for empty in [0, 512, 1024, 10_240] {
        assert!(read(&vec![0; empty]).unwrap().is_empty());
    }
}

#[test]
fn a_lone_block_of_zeros_does_not_hide_entries() {
    assert_eq!(
        error(&[file("a", b"1"), vec![0; 512], file("b", b"2"), end()]),
        "archive at byte 1024: a single block of zeros where the end marker has two"
    );
}

#[test]
fn what_is_no_archive_is_an_error() {
    assert_eq!(error(&[b"short text\n".to_vec()]), "archive at byte 11: the archive ends within a header");
    assert_eq!(
        error(&["long text\n".repeat(100).into_bytes()]),
        "archive at byte 0: this is not a tar archive (checksum of the header is wrong)"
    );
    assert_eq!(error(&[file("a", b""), vec![b'x'; 512]]), "archive at byte 512: checksum of the header is wrong");
}

#[test]
fn extended_headers_need_an_entry() {
    for extension in [pax(b'x', &[("path", b"n")]), Header::new(b'L', b"x", 2).with(b"n\0")] {
        assert!(error(&[extension.clone(), end()]).contains("extended header without the entry it extends"));
        assert!(error(&[extension]).contains("ends within the headers of an entry"));
    }
}

#[test]
fn impossible_names_are_errors() {
    for (bytes, reason) in [
        (Header::new(b'0', b"", 0).with(b""), "entry without a name"),
        (Header::new(b'2', b"n", 0).with(b""), "link without a target"),
        (Header::new(b'1', b"n", 0).with(b""), "link without a target"),
        ([pax(b'x', &[("path", b"a\0b")]), file("n", b"")].concat(), "PAX record path holds a NUL byte"),
        ([pax(b'x', &[("uname", b"a\0b")]), file("n", b"")].concat(), "PAX record uname holds a NUL byte"),
        ([pax(b'x', &[("uid", b"-1")]), file("n", b"")].concat(), "PAX record uid holds no usable value: -1"),
        ([pax(b'x', &[("mtime", b"soon")]), file("n", b"")].concat(), "PAX record mtime holds no usable value: soon"),
        ([Header::new(b'x', b"n", 9).with(b"9 pathab\n"), file("n", b"")].concat(), "malformed PAX record"),
    ] {
        let message = error(&[bytes]);
        assert!(message.ends_with(reason), "{message}");
    }
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    let base256 = |typeflag, size: &[u8; 12]| Header::new(typeflag, b"n", 0).put(124, size).with(b"");
    let huge = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    for (bytes, reason) in [
        (Header::new(b'L', b"n", (1 << 20) + 1).with(b""), "long name of 1048577 bytes, more than 1048576"),
        (Header::new(b'x', b"n", (8 << 20) + 1).with(b""), "PAX header of 8388609 bytes, more than 8388608"),
        (base256(b'g', huge), "PAX header of 9223372036854775807 bytes, more than 8388608"),
        (base256(b'K', b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), "more than 1048576"),
        (base256(b'0', b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), "the file is larger than files can be"),
        (base256(b'D', b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), "the size is too large"),
        (base256(b'0', b"\x80\0\0\x01\0\0\0\0\0\0\0\0"), "no usable number"),
        (base256(b'0', &[0xff; 12]), "no usable number"),
        (base256(b'0', huge), "the archive ends within the content of an entry"),
        (base256(b'V', huge), "the archive ends within a volume label"),
    ] {
        let message = error(&[bytes]);
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn global_records_do_not_pile_up() {
    let value = vec![b'v'; 7 << 20];
    let more = |key: &str| pax(b'g', &[(key, &value)]);
    assert!(error(&[more("a"), more("b"), more("c")]).contains("PAX records of more than"));
    assert!(read(&[more("a"), more("a"), more("a"), more("b")].concat()).unwrap().is_empty());
}

#[test]
fn content_is_read_in_pieces_or_skipped() {
    let content: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let bytes = [file("a", &content), file("b", &content), file("c", b"end"), end()].concat();
    let mut archive = Archive::new(&bytes[..]);
    assert_eq!(archive.read(&mut [0; 10]).unwrap(), 0, "there is no entry yet");
    archive.next().unwrap().unwrap();
    let mut piece = [0; 600];
    assert_eq!(archive.read(&mut piece).unwrap(), 600);
    assert_eq!(piece, content[..600]);
    assert_eq!(archive.read(&mut []).unwrap(), 0);
    archive.next().unwrap().unwrap();
    let mut rest = Vec::new();
    archive.content().read_to_end(&mut rest).unwrap();
    assert_eq!(rest, content);
    assert_eq!(archive.read(&mut piece).unwrap(), 0);
    assert_eq!(archive.next().unwrap().unwrap().path, b"c");
    assert!(archive.next().unwrap().is_none());
    assert!(archive.next().unwrap().is_none());
    assert_eq!(archive.read(&mut piece).unwrap(), 0);
}

#[test]
fn an_error_is_not_followed_by_an_end() {
    let bytes = [file("a", &[1; 2000])[..1000].to_vec()].concat();
    let mut archive = Archive::new(&bytes[..]);
    archive.next().unwrap().unwrap();
    let error = archive.content().read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(error.to_string(), "archive entry a at byte 1000: the archive ends within the content of an entry");
    assert!(archive.read(&mut [0; 10]).is_err());
    assert!(archive.next().is_err());
    assert!(archive.next().is_err());
}

/// Fails like a disk, after some interruptions.
struct Failing<'a>(&'a [u8], bool);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // One odd byte at a time shows that nobody relies on whole blocks.
        match self.0.read(&mut buffer[..1])? {
            0 => Err(io::Error::other("disk on fire")),
            count => Ok(count),
        }
    }
}

#[test]
fn errors_of_the_input_are_passed_on() {
    let bytes = file("a", b"1");
    let mut archive = Archive::new(Failing(&bytes, false));
    assert_eq!(archive.next().unwrap().unwrap().path, b"a");
    let error = archive.next().unwrap_err();
    assert_eq!(error.to_string(), "archive at byte 1024: reading failed");
    assert!(matches!(error, ArchiveError::Io { source, .. } if source.to_string() == "disk on fire"));
}
