//! Heads of responses: caching, conditions, ranges. Pure: file facts and a request in, a head out.
//!
//! What may be cached how long follows the web server configuration that the reference installs. Beyond it we
//! send validators, so that a cache which holds a stale copy can ask instead of fetching it again.
//!
//! Source: `cvmfs/server/cvmfs_server_apache.sh`; RFC 9110 (conditions, ranges), RFC 9111 (caching).

use std::time::{Duration, SystemTime};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};

use super::route::Kind;

/// What the `Server` header says.
const SERVER: &str = concat!("cvmfs-replica/", env!("CARGO_PKG_VERSION"));

/// Files that are replaced under the same name. Squid does not cache below its default `minimum_expiry_time` of
/// 60 seconds, hence 61.
const MUTABLE_MAX_AGE: u32 = 61;

/// Objects never change; three days as in the reference, so that caches drop what nobody asks for.
const OBJECT_MAX_AGE: u32 = 259_200;

/// Errors: long enough to take the edge off a stampede, too short to hide an object that has just arrived.
const ERROR_MAX_AGE: u32 = 10;

/// How old a replaceable file must be to get a `Last-Modified`, in seconds.
///
/// The header counts whole seconds. Two manifests of the same second would have the same date, and a cache that
/// got the first one would go on believing it is current.
const LAST_MODIFIED_MIN_AGE: Duration = Duration::from_secs(2);

/// What is known of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes.
    pub(super) size: u64,
    /// Last modification.
    pub(super) modified: SystemTime,
    /// Which file has the name at the moment; replacing it by renaming changes this.
    pub(super) inode: u64,
}

/// A file with everything that its response head needs.
#[derive(Debug)]
pub(super) struct Representation {
    size: u64,
    etag: String,
    last_modified: Option<SystemTime>,
    content_type: &'static str,
    max_age: u32,
    immutable: bool,
    /// Whether a browser would show it.
    is_sandboxed: bool,
}

impl Representation {
    /// Describes the file at `path` as seen at `now`.
    pub(super) fn new(kind: Kind, path: &str, facts: Facts, now: SystemTime) -> Self {
        let age = now.duration_since(facts.modified).ok();
        let (object, content_type, max_age) = match kind {
            Kind::Object(id) => (Some(id), "application/octet-stream", OBJECT_MAX_AGE),
            // Upstream: the rule for names beginning `.cvmfs` comes first and covers these links, too.
            Kind::Alternative(id) => (Some(id), "application/x-cvmfs", MUTABLE_MAX_AGE),
            Kind::Named => (None, "application/x-cvmfs", MUTABLE_MAX_AGE),
            Kind::Info => (None, "application/json", MUTABLE_MAX_AGE),
            // The reference lets statistics be cached for three days, although every publish replaces them.
            Kind::Statistics => (None, statistics_type(path), MUTABLE_MAX_AGE),
        };
        let min_age = if object.is_some() { Duration::ZERO } else { LAST_MODIFIED_MIN_AGE };
        Self {
            size: facts.size,
            etag: object.map_or_else(|| version_tag(facts), |id| format!("\"{id}\"")),
            last_modified: age.filter(|age| *age >= min_age).map(|_| whole_seconds(facts.modified)),
            content_type,
            max_age,
            immutable: object.is_some(),
            is_sandboxed: kind == Kind::Statistics,
        }
    }
}

impl Representation {
    /// Describes content that has no file; `version` differs whenever the content does.
    pub(super) fn made(kind: Kind, size: u64, version: &str) -> Self {
        let content_type = if kind == Kind::Info { "application/json" } else { "application/x-cvmfs" };
        Self {
            size,
            etag: format!("\"{version}\""),
            last_modified: None,
            content_type,
            max_age: MUTABLE_MAX_AGE,
            immutable: false,
            is_sandboxed: false,
        }
    }

    /// Bytes of the whole.
    pub(super) fn size(&self) -> u64 {
        self.size
    }
}

/// Which part of a file a response carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Selection {
    /// Nothing: the client's copy is current.
    NotModified,
    /// All of it.
    Whole,
    /// The bytes from `start` up to, not including, `end`; never empty.
    Part {
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
    },
    /// Nothing: the range begins behind the end.
    Unsatisfiable,
}

/// Decides what to send, in the order of precedence of RFC 9110, section 13.2.2.
pub(super) fn select(method: &Method, headers: &HeaderMap, file: &Representation) -> Selection {
    if headers.contains_key(header::IF_NONE_MATCH) {
        if matches_any(headers, &file.etag) {
            return Selection::NotModified;
        }
    } else if unmodified_since(headers, file) {
        return Selection::NotModified;
    }
    // A range has no meaning for HEAD.
    match headers.get(header::RANGE).and_then(|range| range.to_str().ok()) {
        Some(range) if method == Method::GET && range_applies(headers, file) => parse_range(range, file.size),
        _ => Selection::Whole,
    }
}

/// The head of a response that sends `selection` of `file`, with the length that GET would send.
pub(super) fn file_head(selection: Selection, file: &Representation, now: SystemTime) -> Response<()> {
    let (status, length) = match selection {
        Selection::NotModified => (StatusCode::NOT_MODIFIED, None),
        Selection::Whole => (StatusCode::OK, Some(file.size)),
        Selection::Part { start, end } => (StatusCode::PARTIAL_CONTENT, Some(end - start)),
        Selection::Unsatisfiable => {
            let mut head = error_head(StatusCode::RANGE_NOT_SATISFIABLE, 0, now);
            put(&mut head, header::CONTENT_RANGE, format!("bytes */{}", file.size));
            return head;
        }
    };
    let mut head = bare_head(status, now);
    expire_after(&mut head, file.max_age, now);
    put(&mut head, header::ETAG, file.etag.clone());
    if let Some(modified) = file.last_modified {
        put(&mut head, header::LAST_MODIFIED, httpdate::fmt_http_date(modified));
    }
    if let Some(length) = length {
        head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
        head.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        head.headers_mut().insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if file.is_sandboxed {
        // Whatever is in there, it is not a part of our own pages.
        let policy = HeaderValue::from_static("default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox");
        head.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        head.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    if let Selection::Part { start, end } = selection {
        put(&mut head, header::CONTENT_RANGE, format!("bytes {start}-{}/{}", end - 1, file.size));
    }
    head
}

/// The head of an error with `length` bytes of plain text.
pub(super) fn error_head(status: StatusCode, length: u64, now: SystemTime) -> Response<()> {
    let mut head = text_head(status, length, now);
    if status.is_server_error() {
        head.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    } else {
        expire_after(&mut head, ERROR_MAX_AGE, now);
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        head.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    head
}

/// The head of the answer to a function that cannot be carried out; clients ask the next server.
pub(super) fn bad_request_head(length: u64, now: SystemTime) -> Response<()> {
    let mut head = text_head(StatusCode::BAD_REQUEST, length, now);
    expire_after(&mut head, 300, now); // Upstream: `cvmfs/webapi/cvmfs_api.py`
    head
}

/// The head of the answer to a health check, which no cache may give.
pub(super) fn health_head(status: StatusCode, length: u64, now: SystemTime) -> Response<()> {
    let mut head = text_head(status, length, now);
    head.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head
}

/// How long an answer may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caching {
    /// Not at all.
    Never,
    /// So many seconds.
    Seconds(u32),
}

/// The head of an answer that is made for the request; without length it is sent in chunks.
pub(super) fn content_head(
    status: StatusCode,
    content_type: &'static str,
    length: Option<u64>,
    caching: Caching,
    now: SystemTime,
) -> Response<()> {
    let mut head = bare_head(status, now);
    head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(length) = length {
        head.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    match caching {
        Caching::Never => {
            head.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        Caching::Seconds(seconds) => expire_after(&mut head, seconds, now),
    }
    head
}

fn text_head(status: StatusCode, length: u64, now: SystemTime) -> Response<()> {
    let mut head = bare_head(status, now);
    head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    head.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    head
}

fn bare_head(status: StatusCode, now: SystemTime) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = status;
    head.headers_mut().insert(header::SERVER, HeaderValue::from_static(SERVER));
    // hyper would add a date that is up to a second old; `Expires` is to be exactly `max-age` after it.
    put(&mut head, header::DATE, httpdate::fmt_http_date(now));
    head
}

fn expire_after(head: &mut Response<()>, max_age: u32, now: SystemTime) {
    put(head, header::CACHE_CONTROL, format!("max-age={max_age}"));
    put(head, header::EXPIRES, httpdate::fmt_http_date(now + Duration::from_secs(max_age.into())));
}

fn put(head: &mut Response<()>, name: HeaderName, value: String) {
    let value = HeaderValue::try_from(value).expect("dates, numbers, tags and hashes are visible ASCII");
    head.headers_mut().insert(name, value);
}

/// The tag of a file that is replaced under its name: differs whenever the file does.
fn version_tag(facts: Facts) -> String {
    let since_epoch = facts.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("\"{:x}-{:x}-{:x}\"", facts.size, since_epoch.as_nanos(), facts.inode)
}

/// Cuts off what a date in a header cannot express.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())
}

fn statistics_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("html") => "text/html",
        Some("txt") => "text/plain",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// Whether `If-None-Match` names `etag` or any version; weak tags count, as the RFC asks for here.
fn matches_any(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

fn unmodified_since(headers: &HeaderMap, file: &Representation) -> bool {
    match (date(headers, &header::IF_MODIFIED_SINCE), file.last_modified) {
        (Some(since), Some(modified)) if file.immutable => modified <= since,
        // A file that is replaced may also become older, when a replica is turned back: only the same is the same.
        (Some(since), Some(modified)) => modified == since,
        _ => false,
    }
}

/// Whether `If-Range`, if there, says that the client holds another part of this very version.
fn range_applies(headers: &HeaderMap, file: &Representation) -> bool {
    match headers.get(header::IF_RANGE) {
        None => true,
        Some(tag) if tag == file.etag.as_str() => true,
        Some(_) => date(headers, &header::IF_RANGE).is_some_and(|date| file.last_modified == Some(date)),
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Reads a `Range` header for a file of `size` bytes.
///
/// What is not understood (another unit, several ranges, nonsense) is ignored and gets the whole file, which a
/// client has to expect anyway.
fn parse_range(range: &str, size: u64) -> Selection {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-')) else {
        return Selection::Whole;
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => (first, size),
        // The last bytes, or all if there are fewer.
        (None, Some(0)) if first.is_empty() => return Selection::Unsatisfiable,
        (None, Some(count)) if first.is_empty() && size > 0 => (size.saturating_sub(count), size),
        _ => return Selection::Whole,
    };
    if start < size { Selection::Part { start, end } } else { Selection::Unsatisfiable }
}

/// Reads digits only: `u64::from_str` alone would take a plus sign. A number too large stands for "the end".
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "ff049c626904064d641feca0e9936e5b211807c6";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn facts() -> Facts {
        Facts { size: 100, modified: at(1_000) + Duration::from_millis(500), inode: 7 }
    }

    fn object() -> Representation {
        Representation::new(Kind::Object(ID.parse().unwrap()), "", facts(), at(5_000))
    }

    fn manifest() -> Representation {
        Representation::new(Kind::Named, ".cvmfspublished", facts(), at(5_000))
    }

    fn ask(file: &Representation, headers: &[(HeaderName, &str)]) -> Selection {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        select(&Method::GET, &headers, file)
    }

    #[test]
    fn ranges_follow_the_rfc() {
        let part = |start, end| Selection::Part { start, end };
        for (range, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-99", part(0, 100)),
            ("bytes=0-100", part(0, 100)),
            ("bytes=10-19", part(10, 20)),
            ("bytes=99-", part(99, 100)),
            ("bytes=0-", part(0, 100)),
            ("bytes=-1", part(99, 100)),
            ("bytes=-100", part(0, 100)),
            ("bytes=-101", part(0, 100)),
            ("bytes=5-99999999999999999999999", part(5, 100)),
            ("bytes=100-", Selection::Unsatisfiable),
            ("bytes=100-200", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=0-1,5-6", Selection::Whole),
            ("bytes=9-8", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=1", Selection::Whole),
            ("lines=1-2", Selection::Whole),
        ] {
            assert_eq!(ask(&object(), &[(header::RANGE, range)]), expected, "{range}");
        }
        assert_eq!(parse_range("bytes=-5", 0), Selection::Whole);
        assert_eq!(parse_range("bytes=0-", 0), Selection::Unsatisfiable);
    }

    #[test]
    fn a_range_of_another_version_gets_the_whole_file() {
        let tag = format!("\"{ID}\"");
        let weak = format!("W/{tag}");
        let range = (header::RANGE, "bytes=0-9");
        for (if_range, applies) in [
            (tag.as_str(), true),
            (weak.as_str(), false),
            ("\"other\"", false),
            ("Thu, 01 Jan 1970 00:16:40 GMT", true),
            ("Thu, 01 Jan 1970 00:16:41 GMT", false),
            ("nonsense", false),
        ] {
            let expected = if applies { Selection::Part { start: 0, end: 10 } } else { Selection::Whole };
            assert_eq!(ask(&object(), &[range.clone(), (header::IF_RANGE, if_range)]), expected, "{if_range}");
        }
    }

    #[test]
    fn a_current_copy_is_not_sent_again() {
        let tag = version_tag(facts());
        let weak = format!("W/{tag}");
        let list = format!("\"a\", {tag}");
        for (value, current) in [(tag.as_str(), true), (&weak, true), (&list, true), ("*", true), ("\"a\"", false)] {
            let expected = if current { Selection::NotModified } else { Selection::Whole };
            assert_eq!(ask(&manifest(), &[(header::IF_NONE_MATCH, value)]), expected, "{value}");
        }
        let same_date = (header::IF_MODIFIED_SINCE, "Thu, 01 Jan 1970 00:16:40 GMT");
        let later = (header::IF_MODIFIED_SINCE, "Thu, 01 Jan 1970 01:00:00 GMT");
        assert_eq!(ask(&manifest(), std::slice::from_ref(&same_date)), Selection::NotModified);
        assert_eq!(ask(&manifest(), std::slice::from_ref(&later)), Selection::Whole);
        assert_eq!(ask(&object(), std::slice::from_ref(&later)), Selection::NotModified);
        // The tag decides where both are given.
        assert_eq!(ask(&manifest(), &[same_date, (header::IF_NONE_MATCH, "\"a\"")]), Selection::Whole);
    }

    #[test]
    fn a_file_of_this_second_gets_no_date() {
        for (now, dated) in [(1_000, false), (1_001, false), (1_002, false), (1_003, true)] {
            let fresh = Representation::new(Kind::Named, ".cvmfspublished", facts(), at(now));
            assert_eq!(fresh.last_modified.is_some(), dated, "{now}");
        }
        // A file from the future has no date, whatever it is.
        let early = Representation::new(Kind::Object(ID.parse().unwrap()), "", facts(), at(999));
        assert_eq!(early.last_modified, None);
    }

    #[test]
    fn every_change_of_a_file_changes_its_tag() {
        let tag = version_tag(facts());
        assert_ne!(version_tag(Facts { size: 101, ..facts() }), tag);
        assert_ne!(version_tag(Facts { inode: 8, ..facts() }), tag);
        assert_ne!(version_tag(Facts { modified: facts().modified + Duration::from_nanos(1), ..facts() }), tag);
    }

    #[test]
    fn heads_say_how_long_to_keep_them() {
        let head = file_head(Selection::Whole, &object(), at(5_000));
        assert_eq!(head.headers()[header::CACHE_CONTROL], "max-age=259200");
        assert_eq!(head.headers()[header::DATE], "Thu, 01 Jan 1970 01:23:20 GMT");
        assert_eq!(head.headers()[header::EXPIRES], "Sun, 04 Jan 1970 01:23:20 GMT");
        assert_eq!(head.headers()[header::LAST_MODIFIED], "Thu, 01 Jan 1970 00:16:40 GMT");
        let head = file_head(Selection::NotModified, &manifest(), at(5_000));
        assert_eq!(head.headers()[header::CACHE_CONTROL], "max-age=61");
        assert_eq!(head.headers()[header::EXPIRES], "Thu, 01 Jan 1970 01:24:21 GMT");
        assert!(!head.headers().contains_key(header::CONTENT_LENGTH));
        assert_eq!(
            error_head(StatusCode::INTERNAL_SERVER_ERROR, 0, at(0)).headers()[header::CACHE_CONTROL],
            "no-store"
        );
    }
}
