//! Layers with all that layers can have.

use crate::tarball::Tar;

/// Changes of a header.
fn number(at: usize, value: u32) -> impl Fn(&mut [u8; 512]) {
    move |header| header[at..at + 8].copy_from_slice(format!("{value:07o}\0").as_bytes())
}

pub(crate) fn mode(bits: u32) -> impl Fn(&mut [u8; 512]) {
    number(100, bits)
}

fn owner(uid: u32, gid: u32) -> impl Fn(&mut [u8; 512]) {
    move |header| {
        number(108, uid)(header);
        number(116, gid)(header);
    }
}

pub(crate) fn device(major: u32, minor: u32) -> impl Fn(&mut [u8; 512]) {
    move |header| {
        number(329, major)(header);
        number(337, minor)(header);
    }
}

/// `cap_net_raw+ep`, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Every kind of entry.
pub(crate) fn base() -> Vec<u8> {
    let long = format!("long/{}", "n".repeat(255));
    Tar::new()
        .dir("./")
        .dir("./etc/")
        .file("./etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        .file("./etc/hosts", b"127.0.0.1 of the image\n")
        .link("./etc/hosts.same", "./etc/hosts")
        .file("./etc/gone", b"gone\n")
        .entry(b'5', "tmp", "", b"", mode(0o1777))
        .entry(b'5', "root", "", b"", mode(0o700))
        .entry(b'0', "root/secret", "", b"secret", mode(0o600))
        .dir("bin")
        .entry(b'0', "bin/su", "", b"su", mode(0o4755))
        .entry(b'0', "bin/wall", "", b"wall", mode(0o2755))
        .pax(&[("SCHILY.xattr.security.capability", &CAPABILITY)])
        .file("bin/ping", b"ping")
        .pax(&[("SCHILY.xattr.user.comment", b"a = \"b\"\n\x01"), ("SCHILY.xattr.user.empty", b"")])
        .file("bin/noted", b"noted")
        .pax(&[("SCHILY.xattr.user.on", b"directory")])
        .dir("noted")
        .dir("dev")
        .entry(b'3', "dev/null", "", b"", device(1, 3))
        .entry(b'4', "dev/disk", "", b"", device(259, 70))
        .entry(b'6', "dev/fifo", "", b"", mode(0o620))
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/libc.so", &vec![7; 40_000])
        .entry(b'2', "lib", "usr/lib", b"", mode(0o777))
        .entry(b'2', "lib64", "usr/lib", b"", mode(0o777))
        .entry(b'2', "broken", "/no/where", b"", mode(0o777))
        .dir("owners")
        .entry(b'0', "owners/some", "", b"", owner(65_534, 65_534))
        .pax(&[("uid", b"4000000000"), ("gid", b"3000000000"), ("mtime", b"1234567890.987654321")])
        .file("owners/large", b"")
        .pax(&[("mtime", b"-5")])
        .file("owners/before-1970", b"")
        .dir("names")
        .file("names/with blank\n", b"1")
        .file("names/*?[\\", b"2")
        .file("names/-", b"3")
        .entry(b'0', "names/_", "", b"4", |header| header[6] = 0xff)
        .dir("long")
        .file(&long, b"long")
        .dir("hard")
        .dir("hard/b")
        .file("hard/one", b"several names")
        .link("hard/two", "hard/one")
        .link("hard/b/three", "hard/two")
        .link("hard/b/four", "hard/one")
        .entry(b'2', "hard/symbolic", "one", b"", mode(0o777))
        .link("hard/symbolic2", "hard/symbolic")
        .dir("dir-to-file")
        .file("dir-to-file/x", b"x")
        .file("file-to-dir", b"x")
        .dir("dir-to-link")
        .file("dir-to-link/x", b"x")
        .dir("opaque")
        .file("opaque/old", b"old")
        .dir("opaque/sub")
        .file("opaque/sub/old", b"old")
        .dir("removed")
        .dir("removed/sub")
        .file("removed/sub/x", b"x")
        .dir("again")
        .file("again/old", b"old")
        .entry(b'5', "merged", "", b"", mode(0o750))
        .file("merged/low", b"low")
        .file("merged/both", b"low")
        .file("empty", b"")
        .end()
}

/// Replacements and removals.
pub(crate) fn upper() -> Vec<u8> {
    Tar::new()
        .dir("etc")
        .file("etc/.wh.gone", b"")
        .file("etc/.wh.never", b"")
        .file("dir-to-file", b"now a file")
        .dir("file-to-dir")
        .file("file-to-dir/x", b"in a directory")
        .entry(b'2', "dir-to-link", "usr/lib", b"", mode(0o777))
        .dir("lib64")
        .file("lib64/own", b"own")
        .file(".wh.lib64", b"")
        .dir("opaque")
        .file("opaque/before", b"before the marker")
        .file("opaque/.wh..wh..opq", b"")
        .dir("opaque/sub")
        .file("opaque/sub/new", b"after the marker")
        .file(".wh.removed", b"")
        .file(".wh.again", b"")
        .dir("again")
        .file("again/new", b"new")
        .entry(b'5', "merged", "", b"", mode(0o711))
        .file("merged/both", b"high")
        .file("merged/twice", b"first")
        .file("merged/twice", b"second")
        .end()
}

/// Nothing but removals; of its parents as well only what lies in them.
pub(crate) fn removals() -> Vec<u8> {
    Tar::new().file("hard/.wh.two", b"").file("dev/.wh.disk", b"").file(".wh.file-to-dir", b"").end()
}

/// Links into lower layers, names as some programs write them, entries below links of the same layer.
pub(crate) fn links() -> Vec<u8> {
    Tar::new()
        .entry(b'2', "through", "usr/lib", b"", mode(0o777))
        .file("through/behind", b"behind a link")
        .link("through/behind2", "through/behind")
        .dir("through/sub")
        .file("through/sub/file", b"further")
        .entry(b'2', "through2", "./tmp/../through", b"", mode(0o777))
        .file("through2/twice", b"behind two links")
        .entry(b'2', "out", "../../outside", b"", mode(0o777))
        .file("out/file", b"outside")
        .entry(b'2', "to-hard", "/hard", b"", mode(0o777))
        .file("to-hard/.wh.symbolic2", b"")
        .dir("hard")
        .link("hard/five", "hard/one")
        .link("libc.so", "usr/lib/libc.so")
        .link("/ping", "/bin/ping")
        .file("/absolute", b"absolute")
        .file("./dot", b"dot")
        .end()
}

/// Entries whose parents no entry names; one of them is a link in a lower layer.
pub(crate) fn orphans() -> Vec<u8> {
    Tar::new()
        .file("tmp/in-tmp", b"1")
        .file("merged/in-merged", b"2")
        .file("new/directories/x", b"3")
        .file("lib/in-the-place-of-a-link", b"4")
        .end()
}

pub(crate) fn nothing() -> Vec<u8> {
    Tar::new().end()
}

/// All of them, the lowest first.
pub(crate) fn all() -> Vec<Vec<u8>> {
    vec![base(), upper(), nothing(), removals(), links(), orphans()]
}
