//! The pages of `cvmfs-replica serve`, with names that attack them, as curl and Chromium see them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{NAME, Site, run};

/// Names that would be markup, addresses or ends of attributes, if they were not escaped.
const HOSTILE: [&[u8]; 12] = [
    b"<script>document.title='owned'<!--",
    b"<img src=x onerror=document.title='owned'>",
    b"\" onmouseover=\"document.title='owned'\" x=\"",
    b"' autofocus onfocus=document.title='owned' x='",
    b"javascript:document.title='owned'",
    b"a\nb\r\nSet-Cookie: owned=1",
    b"&lt;b&gt; &amp; %3Cb%3E",
    b"%2e%2e",
    b"#fragment?query=1",
    b"\xff\xfe not utf-8",
    "\u{202e}gpj.exe \u{e4}\u{1f600}".as_bytes(),
    b" ",
];

/// A repository of hostile names, each a file with its name as content, and in a directory of that name once more.
fn hostile_site() -> Site {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    for name in HOSTILE {
        let name = OsStr::from_bytes(name);
        fs::create_dir_all(tree.join("directories").join(name)).expect("the test can go on");
        fs::write(tree.join(name), name.as_bytes()).expect("the test can go on");
        fs::write(tree.join("directories").join(name).join(name), "below").expect("the test can go on");
    }
    for (name, target) in [
        ("link-script", "javascript:document.title='owned'"),
        ("link-data", "data:text/html,<script>document.title='owned'</script>"),
        ("link-out", "//evil.example.org/x"),
        ("link-up", "../../../../etc/passwd"),
        ("link-in", "directories"),
        ("link-absolute", "/cvmfs/test.example.org/large"),
    ] {
        symlink(target, tree.join(name)).expect("the test can go on");
    }
    // Several chunks.
    let large: Vec<u8> = (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(tree.join("large"), large).expect("the test can go on");
    let tag = ["--tag", "v1/<b>"];
    let from = tree.to_str().expect("the test can go on");
    // The tag's name is refused, so there is another one.
    assert!(!site.publish(&[&["publish", "--from", from], &tag[..]].concat()).status.success());
    site.publish(&["publish", "--from", from, "--tag", "v1/a", "--message", "<script>document.title='owned'</script>"])
        .ok();
    site
}

/// What curl gets: status, head and body.
fn curl(url: &str, more: &[&str]) -> (String, String, Vec<u8>) {
    let mut command = Command::new("curl");
    command.args(["--noproxy", "*", "--silent", "--include", "--path-as-is"]).args(more).arg(url);
    let output = command.output().expect("this test needs curl: apt-get install curl").stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(output[..end].to_vec()).expect("text");
    let status = head.split(' ').nth(1).expect("a status").to_owned();
    (status, head.to_ascii_lowercase(), output[end + 4..].to_vec())
}

/// The addresses that a page links to.
fn links(page: &str) -> Vec<String> {
    let addresses = page.split(" href=\"").skip(1).map(|rest| rest.split('"').next().expect("the test can go on"));
    addresses.map(|address| address.replace("&amp;", "&")).collect()
}

#[test]
fn hostile_names_are_text_and_all_links_work() {
    let site = hostile_site();
    let server = site.serve();
    let base = server.url.trim_end_matches("/cvmfs").to_owned();
    let mut todo = vec!["/".to_owned()];
    let mut seen = Vec::new();
    let mut contents = Vec::new();
    while let Some(address) = todo.pop() {
        let (status, head, body) = curl(&format!("{base}{address}"), &[]);
        // Where one of the links leads there is nothing, but still in the repository.
        let is_dangling = address.contains("/data%3Atext/");
        assert_eq!(status, if is_dangling { "404" } else { "200" }, "{address}");
        assert!(head.contains("\r\nx-content-type-options: nosniff"), "{address}: {head}");
        assert!(!head.contains("\r\nset-cookie"), "{head}");
        if address.starts_with("/download/") {
            assert!(head.contains("\r\ncontent-type: application/octet-stream"), "{head}");
            assert!(head.contains("\r\ncontent-disposition: attachment; filename="), "{head}");
            assert!(head.contains("\r\ncontent-security-policy: default-src 'none'; sandbox"), "{head}");
            contents.push(body);
            continue;
        }
        let page = String::from_utf8(body).expect("UTF-8");
        if head.contains("content-type: text/html") {
            assert!(head.contains("\r\ncontent-security-policy: default-src 'none'; style-src 'self';"), "{head}");
            assert_eq!(page.matches("<script").count(), 0, "{page}");
            assert_eq!(page.matches("<img").count(), 0, "{page}");
        }
        for link in links(&page) {
            // Nothing leaves this server, or its names.
            if link.starts_with("data:image/svg+xml,") || link.starts_with("/cvmfs/") || link == "/metrics" {
                continue;
            }
            let known = ["/", "/style.css"].contains(&link.as_str());
            assert!(known || link.starts_with("/browse/") || link.starts_with("/download/"), "{address}: {link}");
            // One revision has all there is to see.
            if !seen.contains(&link) && !link.contains("trunk-previous") && !link.contains("/v1") {
                seen.push(link.clone());
                todo.push(link);
            }
        }
    }
    for name in HOSTILE {
        assert!(contents.iter().any(|content| content == name), "{}", String::from_utf8_lossy(name));
    }
    assert_eq!(contents.iter().filter(|content| content.as_slice() == b"below").count(), HOSTILE.len());
    assert!(contents.contains(&fs::read(site.path("tree/large")).expect("the test can go on")));
}

#[test]
fn revisions_are_found_by_tag_number_and_hash() {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    fs::create_dir(&tree).expect("the test can go on");
    for (content, tag) in [("one", "v1/a"), ("two", "v2")] {
        fs::write(tree.join("file"), content).expect("the test can go on");
        site.publish(&["publish", "--from", tree.to_str().expect("the test can go on"), "--tag", tag]).ok();
    }
    let server = site.serve();
    let base = server.url.trim_end_matches("/cvmfs").to_owned();
    let root = site.manifest_field('C');
    for (revision, expected) in [
        ("v1%2Fa", "one"),
        ("v2", "two"),
        ("trunk", "two"),
        ("trunk-previous", "one"),
        ("2", "one"),
        ("3", "two"),
        (&root, "two"),
    ] {
        let (status, _, body) = curl(&format!("{base}/download/{NAME}/{revision}/file"), &[]);
        assert_eq!((status.as_str(), body.as_slice()), ("200", expected.as_bytes()), "{revision}");
        assert_eq!(curl(&format!("{base}/browse/{NAME}/{revision}/file"), &[]).0, "200", "{revision}");
    }
    for (path, status) in [
        (format!("/browse/{NAME}/v3/"), "404"),
        (format!("/browse/{NAME}/v1/a"), "404"),
        (format!("/browse/{NAME}/99/"), "404"),
        (format!("/browse/{NAME}/trunk/missing"), "404"),
        (format!("/browse/{NAME}/trunk/file/below"), "404"),
        (format!("/download/{NAME}/trunk/"), "404"),
        ("/browse/none.example.org/trunk/".to_owned(), "404"),
        (format!("/browse/{NAME}/trunk/%2e%2e"), "404"),
        // A hash of another object is no root catalog.
        (format!("/browse/{NAME}/{}/", site.manifest_field('X')), "500"),
    ] {
        let (found, _, body) = curl(&format!("{base}{path}"), &[]);
        assert_eq!(found, status, "{path}");
        // Places on this machine are nobody's business.
        let body = String::from_utf8(body).expect("the test can go on");
        assert!(!body.contains(site.temp.path().to_str().expect("the test can go on")), "{path}: {body}");
    }
    let (status, head, body) = curl(&format!("{base}/download/{NAME}/trunk/file"), &["--head"]);
    assert_eq!((status.as_str(), body.len()), ("200", 0));
    assert!(head.contains("content-length: 3"), "{head}");
    assert_eq!(curl(&format!("{base}/browse/{NAME}/trunk/"), &["--data", "x"]).0, "405");
}

#[test]
fn a_damaged_file_is_never_complete() {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    fs::create_dir(&tree).expect("the test can go on");
    let content = "plain text, many times over. ".repeat(30);
    fs::write(tree.join("file"), &content).expect("the test can go on");
    site.publish(&["publish", "--from", tree.to_str().expect("the test can go on")]).ok();
    let object = site.objects().into_iter().find(|name| name.len() == 40).expect("an object");
    let path = site.storage().join(format!("data/{}/{}", &object[..2], &object[2..]));
    let stored = fs::read(&path).expect("the test can go on");
    let server = site.serve();
    let base = server.url.trim_end_matches("/cvmfs").to_owned();
    let download = |expected: bool| {
        let output = site.path("download");
        let mut command = Command::new("curl");
        command.args(["--noproxy", "*", "--silent", "--output"]).arg(&output).arg("--fail");
        let done = run(command.arg(format!("{base}/download/{NAME}/trunk/file")));
        assert_eq!(done.status.success(), expected);
        fs::read(&output).unwrap_or_default()
    };
    assert_eq!(download(true), content.as_bytes());
    for at in [0, 2, stored.len() / 2, stored.len() - 1] {
        let mut damaged = stored.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).expect("the test can go on");
        fs::remove_file(site.path("download")).unwrap_or_default();
        assert!(download(false).len() < content.len(), "byte {at}");
    }
}

/// The document that Chromium makes of a page.
fn chromium(site: &Site, url: &str) -> String {
    let profile = site.path("chromium");
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    command.arg(format!("--user-data-dir={}", profile.display())).args(["--timeout=10000", "--dump-dom", url]);
    run(&mut command).ok()
}

#[test]
fn chromium_shows_the_pages_and_runs_nothing() {
    if !Path::new("/usr/bin/chromium").exists() {
        eprintln!("skipped: this test needs Chromium: apt-get install chromium");
        return;
    }
    let site = hostile_site();
    let server = site.serve();
    let base = server.url.trim_end_matches("/cvmfs").to_owned();
    let overview = chromium(&site, &format!("{base}/"));
    assert!(overview.contains("<title>CernVM-FS repositories</title>"), "{overview}");
    assert!(overview.contains(&format!("<a href=\"/browse/{NAME}/\">{NAME}</a>")), "{overview}");
    assert!(overview.contains("30 days left") || overview.contains("29 days left"), "{overview}");
    assert!(overview.contains("up to date"), "{overview}");
    for page in ["trunk/", "trunk/%3Cscript%3Edocument.title%3D%27owned%27%3C%21--", "v1%2Fa/directories/", ""] {
        let document = chromium(&site, &format!("{base}/browse/{NAME}/{page}"));
        let title = document.split("<title>").nth(1).and_then(|rest| rest.split("</title>").next()).expect("a title");
        assert!(title.contains(NAME) && title != "owned", "{title}");
        assert!(!document.contains("<script") && !document.contains("<img"), "{document}");
        // No name became an attribute.
        for tag in document.split('<').skip(1).filter_map(|rest| rest.split('>').next()) {
            let attributes = ["onerror", "onmouseover", "onfocus"].map(|name| format!(" {name}=\""));
            assert!(!attributes.iter().any(|attribute| tag.contains(attribute.as_str())), "{tag}");
        }
    }
}
