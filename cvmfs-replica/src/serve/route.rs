//! From the path of a request to what it names; no I/O, no decoding, nothing by default.
//!
//! The rules are a list of what exists. Every name in a repository's storage consists of letters, digits and
//! `. _ -`, so a path with a percent sign, backslash, doubled slash, `..` or anything else that could be read in
//! two ways matches no rule and is simply not found. What comes out is safe to hand to [`super::file`], which
//! follows no symbolic links besides.

use cvmfs_core::hash::ObjectId;
use cvmfs_core::path::RepoPath;

/// Longest repository name or alias that is looked up. Source: `cvmfs/sanitizer.h`.
const REPOSITORY_NAME_MAX: usize = 60;

/// How deep and long the names below `stats/` may be; the reference writes one level.
const STATISTICS_DEPTH_MAX: usize = 4;
const FILE_NAME_MAX: usize = 255;

/// Mutable files at the top of a repository that are published.
const NAMED_FILES: [&str; 8] = [
    ".cvmfspublished",
    ".cvmfswhitelist",
    ".cvmfswhitelist.pkcs7",
    ".cvmfsreflog",
    ".cvmfs_master_replica",
    ".cvmfs_status.json",
    ".cvmfs_last_snapshot",
    ".cvmfs_is_snapshotting",
];

/// Server-wide documents, by their path below `/cvmfs/info/`.
const INFO_FILES: [&str; 2] = ["v1/repositories.json", "v1/meta.json"];

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Whether the server is up, and its repositories are well, or this one.
    Health(Option<String>),
    /// Counters for monitoring.
    Metrics,
    /// A function of the server; see [`super::api`].
    Api(ApiCall),
    /// A page for people.
    Page(Page),
    /// A file.
    File(Resource),
}

/// A page for people, or what belongs to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Page {
    /// All repositories.
    Overview,
    /// The style sheet.
    Style,
    /// The revisions of a repository that have names.
    Tags(String),
    /// A directory or another entry of a revision.
    Entry(Entry),
    /// The content of a file.
    Download(Entry),
}

/// A path in a revision of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) repository: String,
    /// A tag, the number of a revision or the hash of a root catalog.
    pub(super) tag: String,
    pub(super) path: RepoPath,
}

/// A function with its argument, as the path has it: `/cvmfs/<repository>/api/vN.M/<function>/<argument>`, or
/// `/api/vN[.M]/<function>/<argument>` for those of the server as a whole.
///
/// Function and argument are what the client wrote, not decoded, and never part of a file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiCall {
    /// The repository or alias, which need not exist; `None` for a function of the server as a whole.
    pub(super) repository: Option<String>,
    /// The first name behind the version.
    pub(super) function: String,
    /// What follows the function and a slash; `None` without slash.
    pub(super) argument: Option<String>,
}

/// A file that may be served, if it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// Which directory `path` is relative to.
    pub(super) place: Place,
    /// Plain names joined by single slashes.
    pub(super) path: String,
    /// What the file is, which decides how long it may be cached.
    pub(super) kind: Kind,
}

/// Where a file lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the storage of the repository with this name or alias.
    Repository(String),
    /// In the directory of server-wide documents.
    Info,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A content-addressed object: the same bytes for ever.
    Object(ObjectId),
    /// The second name of an object, a link at the top of the repository.
    Alternative(ObjectId),
    /// A `.cvmfs…` file that is replaced from time to time.
    Named,
    /// A server-wide JSON document.
    Info,
    /// A file below `stats/`.
    Statistics,
}

/// Finds what `path` names; `None` if it cannot name anything.
pub(super) fn route(path: &str) -> Option<Target> {
    if let Some(rest) = path.strip_prefix("/healthz") {
        return match rest.strip_prefix('/') {
            None => rest.is_empty().then_some(Target::Health(None)),
            Some(name) => is_repository_name(name).then(|| Target::Health(Some(name.to_owned()))),
        };
    }
    if path == "/metrics" {
        return Some(Target::Metrics);
    }
    if let Some(page) = page(path) {
        return Some(Target::Page(page));
    }
    if let Some(inside) = path.strip_prefix("/api/") {
        return api_call(None, inside).map(Target::Api);
    }
    let (repository, inside) = path.strip_prefix("/cvmfs/")?.split_once('/')?;
    if repository == "info" {
        let known = INFO_FILES.contains(&inside);
        return known.then(|| file(Place::Info, inside, Kind::Info));
    }
    if !is_repository_name(repository) {
        return None;
    }
    if let Some(call) = inside.strip_prefix("api/") {
        return api_call(Some(repository), call).map(Target::Api);
    }
    let kind = kind_of(inside)?;
    Some(file(Place::Repository(repository.to_owned()), inside, kind))
}

/// Whether `name` can be a repository or an alias of one.
///
/// Unlike a fully qualified name, an alias needs no dot. `info` is taken by the server-wide documents.
pub(super) fn is_repository_name(name: &str) -> bool {
    name.len() <= REPOSITORY_NAME_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name != "info"
}

/// The path of an object below the repository.
pub(super) fn object_path(id: ObjectId) -> String {
    let name = id.to_string();
    let (shard, rest) = name.split_at(2);
    format!("data/{shard}/{rest}")
}

fn file(place: Place, path: &str, kind: Kind) -> Target {
    Target::File(Resource { place, path: path.to_owned(), kind })
}

/// What the file at `inside` a repository is; `None` for everything that is not published.
fn kind_of(inside: &str) -> Option<Kind> {
    if let Some(object) = inside.strip_prefix("data/") {
        let (shard, rest) = object.split_once('/')?;
        // A slash in `rest` or a shard of another length leaves no valid id, so `data/txn/…` ends here too.
        let id = (shard.len() == 2).then(|| format!("{shard}{rest}").parse().ok())??;
        return Some(Kind::Object(id));
    }
    if let Some(id) = inside.strip_prefix(".cvmfsalt-") {
        return id.parse().ok().map(Kind::Alternative);
    }
    if let Some(below) = inside.strip_prefix("stats/") {
        let plain = below.split('/').all(is_plain_name) && below.split('/').count() <= STATISTICS_DEPTH_MAX;
        return plain.then_some(Kind::Statistics);
    }
    NAMED_FILES.contains(&inside).then_some(Kind::Named)
}

fn is_plain_name(name: &str) -> bool {
    !name.starts_with('.')
        && (1..=FILE_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte))
}

/// Finds the page at `path`. Names of tags and entries are any bytes, so they are decoded here, and only here.
fn page(path: &str) -> Option<Page> {
    match path {
        "/" => return Some(Page::Overview),
        "/style.css" => return Some(Page::Style),
        _ => {}
    }
    let (inside, make): (&str, fn(Entry) -> Page) = match path.strip_prefix("/browse/") {
        Some(inside) => (inside, Page::Entry),
        None => (path.strip_prefix("/download/")?, Page::Download),
    };
    let (repository, inside) = inside.split_once('/').unwrap_or((inside, ""));
    if !is_repository_name(repository) {
        return None;
    }
    let repository = repository.to_owned();
    if inside.is_empty() {
        return path.starts_with("/browse/").then_some(Page::Tags(repository));
    }
    // A slash in a tag is written `%2F`, so that it ends at the first plain one.
    let (tag, path) = inside.split_once('/').unwrap_or((inside, ""));
    let tag = String::from_utf8(percent_decode(tag)?).ok()?;
    let path = RepoPath::from_bytes(&percent_decode(path)?).ok()?;
    Some(make(Entry { repository, tag, path }))
}

/// The bytes that a percent-encoded text stands for.
pub(super) fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || (bytes.next()? as char).to_digit(16);
        decoded.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    Some(decoded)
}

/// Reads `vN.M/<function>/<argument>`; what follows the version is the client's to choose.
fn api_call(repository: Option<&str>, inside: &str) -> Option<ApiCall> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (version, call) = inside.strip_prefix('v')?.split_once('/')?;
    // Functions of a repository have versions of two numbers, those of notification servers of one.
    let known = match version.split_once('.') {
        Some((major, minor)) => number(major) && number(minor),
        None => repository.is_none() && number(version),
    };
    let (function, argument) = match call.split_once('/') {
        Some((function, argument)) => (function, Some(argument.to_owned())),
        None => (call, None),
    };
    let repository = repository.map(str::to_owned);
    known.then(|| ApiCall { repository, function: function.to_owned(), argument })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "ff049c626904064d641feca0e9936e5b211807c6";

    fn kind(path: &str) -> Option<Kind> {
        match route(path) {
            Some(Target::File(resource)) => Some(resource.kind),
            _ => None,
        }
    }

    #[test]
    fn published_files_are_found() {
        for name in NAMED_FILES {
            assert_eq!(kind(&format!("/cvmfs/a.example.org/{name}")), Some(Kind::Named), "{name}");
        }
        for suffix in ["", "C", "P", "H", "X", "M", "L", "-rmd160", "-shake128C"] {
            let id = format!("{ID}{suffix}").parse().unwrap();
            let path = format!("/cvmfs/a.example.org/data/ff/{}{suffix}", &ID[2..]);
            assert_eq!(kind(&path), Some(Kind::Object(id)));
            assert_eq!(format!("/cvmfs/a.example.org/{}", object_path(id)), path);
            assert_eq!(kind(&format!("/cvmfs/a/.cvmfsalt-{ID}{suffix}")), Some(Kind::Alternative(id)));
        }
        assert_eq!(kind("/cvmfs/a.example.org/stats/stats.db"), Some(Kind::Statistics));
        assert_eq!(kind("/cvmfs/a.example.org/stats/plots/size.png"), Some(Kind::Statistics));
        assert_eq!(kind("/cvmfs/info/v1/repositories.json"), Some(Kind::Info));
        assert_eq!(kind("/cvmfs/info/v1/meta.json"), Some(Kind::Info));
        assert_eq!(route("/healthz"), Some(Target::Health(None)));
        assert_eq!(route("/healthz/a.example.org"), Some(Target::Health(Some("a.example.org".to_owned()))));
    }

    #[test]
    fn a_resource_names_its_repository_and_its_path_inside() {
        let expected = Resource {
            place: Place::Repository("b-replica".to_owned()),
            path: ".cvmfspublished".to_owned(),
            kind: Kind::Named,
        };
        assert_eq!(route("/cvmfs/b-replica/.cvmfspublished"), Some(Target::File(expected)));
    }

    #[test]
    fn functions_need_a_version() {
        let call = |repository: Option<&str>, function: &str, argument: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Target::Api(ApiCall {
                repository: owned(repository),
                function: function.to_owned(),
                argument: owned(argument),
            })
        };
        let repository = Some("a.example.org");
        for (path, expected) in [
            ("/cvmfs/a.example.org/api/v1.0/geo/proxy/a,b", call(repository, "geo", Some("proxy/a,b"))),
            ("/cvmfs/a.example.org/api/v1.0/geo/", call(repository, "geo", Some(""))),
            ("/cvmfs/a.example.org/api/v20.13/geo/x/y", call(repository, "geo", Some("x/y"))),
            ("/cvmfs/a.example.org/api/v1.0/bundle", call(repository, "bundle", None)),
            ("/api/v1/notifications/publish", call(None, "notifications", Some("publish"))),
            ("/api/v1.0/x", call(None, "x", None)),
        ] {
            assert_eq!(route(path), Some(expected), "{path}");
        }
        for path in
            ["api/v1/geo/x", "api/v1.x/geo/x", "api/", "api/v1.0", "api/v.1/geo/x", "api/v1./x", "api/1.0/x", "api/v/x"]
        {
            assert_eq!(route(&format!("/cvmfs/a.example.org/{path}")), None, "{path}");
        }
    }

    #[test]
    fn pages_name_any_bytes_but_no_way_out() {
        let entry = |tag: &str, path: &[u8]| {
            let path = RepoPath::from_bytes(path).unwrap();
            Entry { repository: "a.b".to_owned(), tag: tag.to_owned(), path }
        };
        for (path, expected) in [
            ("/", Page::Overview),
            ("/style.css", Page::Style),
            ("/browse/a.b", Page::Tags("a.b".to_owned())),
            ("/browse/a.b/", Page::Tags("a.b".to_owned())),
            ("/browse/a.b/trunk", Page::Entry(entry("trunk", b""))),
            ("/browse/a.b/trunk/", Page::Entry(entry("trunk", b""))),
            ("/browse/a.b/v1%2F2/x/y/", Page::Entry(entry("v1/2", b"x/y"))),
            ("/browse/a.b/t/%ff", Page::Entry(entry("t", b"\xff"))),
            ("/download/a.b/t/%3Cb%3E%22'", Page::Download(entry("t", b"<b>\"'"))),
        ] {
            assert_eq!(route(path), Some(Target::Page(expected)), "{path}");
        }
        for path in [
            "/browse/",
            "/browse",
            "/browse/../x/y",
            "/browse/info/t/x",
            "/browse/a.b/t/..",
            "/browse/a.b/t/x/%2e%2e/y",
            "/browse/a.b/t/%00",
            "/browse/a.b/t/%f",
            "/browse/a.b/t/%gg",
            "/browse/a.b/%ff/x",
            "/download/a.b/",
            "/download/a.b",
            "/style.css/",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
    }

    #[test]
    fn everything_else_names_nothing() {
        let rest = &ID[2..];
        for path in [
            "",
            "*",
            "/cvmfs",
            "/cvmfs/",
            "/cvmfs/a.b",
            "/cvmfs/a.b/",
            "/cvmfs/a.b//.cvmfspublished",
            "//cvmfs/a.b/.cvmfspublished",
            "/cvmfs//.cvmfspublished",
            "/cvmfs/../.cvmfspublished",
            "/cvmfs/.a/.cvmfspublished",
            "/cvmfs/a%2eb/.cvmfspublished",
            "/cvmfs/a.b/.cvmfspublished/",
            "/cvmfs/a.b/.cvmfsempty",
            "/cvmfs/a.b/.htaccess",
            "/cvmfs/a.b/data",
            "/cvmfs/a.b/data/",
            "/cvmfs/a.b/data/ff",
            "/cvmfs/a.b/data/ff/",
            "/cvmfs/a.b/data/txn",
            "/cvmfs/a.b/data/txn/temporary",
            &format!("/cvmfs/a.b/data/f/f{rest}"),
            &format!("/cvmfs/a.b/data/ff0/{}", &ID[3..]),
            &format!("/cvmfs/a.b/data/FF/{rest}"),
            &format!("/cvmfs/a.b/data/ff/{rest}Z"),
            &format!("/cvmfs/a.b/data/ff/{rest}T"),
            &format!("/cvmfs/a.b/data/ff/{rest}CC"),
            &format!("/cvmfs/a.b/data/ff/{rest}-md5"),
            &format!("/cvmfs/a.b/data/ff//{rest}"),
            &format!("/cvmfs/a.b/.cvmfsalt-{rest}"),
            "/cvmfs/a.b/.cvmfsalt-",
            "/cvmfs/a.b/.cvmfsalt-../../x",
            "/cvmfs/a.b/stats/",
            "/cvmfs/a.b/stats/../.cvmfsreflog",
            "/cvmfs/a.b/stats/.hidden",
            "/cvmfs/a.b/stats/a/b/c/d/e",
            "/cvmfs/info/v1/other.json",
            "/cvmfs/info/.cvmfspublished",
            "/healthz/",
            "/api",
            "/api/",
            "/api/v1",
        ] {
            assert_eq!(route(path), None, "{path}");
        }
        assert_eq!(route(&format!("/cvmfs/{}/.cvmfspublished", "a".repeat(61))), None);
        assert!(route(&format!("/cvmfs/{}/.cvmfspublished", "a".repeat(60))).is_some());
    }
}
