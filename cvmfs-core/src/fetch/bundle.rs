//! Bundles: many small objects in one answer.
//!
//! A server that has them says so in its answer to `.cvmfspublished`:
//!
//! ```text
//! X-CVMFS-Bundle: api/v1.0/bundle; max-objects=1000; max-bytes=16777216
//! ```
//!
//! The path is relative to the repository. A POST with object names, one a line, is answered with records:
//!
//! ```text
//! <name> <size>\n<size bytes>     the object
//! <name> -\n                      it is not there
//! <name> +\n                      it is there, but to be asked for singly: it is large
//! ```
//!
//! Every object is verified like any other. What a bundle does not deliver, for whatever reason, is asked for singly.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use reqwest::Url;

use super::HttpOptions;
use super::failure::{Blame, Failure, Kind};
use super::request::{SpeedGauge, next_chunk};
use crate::error::{Error, Result};
use crate::hash::ObjectId;

/// The header by which a server offers bundles.
pub const OFFER_HEADER: &str = "x-cvmfs-bundle";
/// The type of a bundle.
pub const CONTENT_TYPE: &str = "application/x-cvmfs-bundle";
/// Larger objects are not taken out of bundles.
pub const OBJECT_SIZE_MAX: usize = 1 << 20;
/// The longest line before an object: a name, a blank and a size.
const LINE_MAX: usize = 64;
/// Most objects that are asked for at once, whatever a server offers.
const OBJECTS_MAX: usize = 1000;

/// Where a server has bundles, and how large they may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleOffer {
    /// The path to post to, relative to the repository.
    pub path: String,
    /// Most names in one request.
    pub max_objects: usize,
    /// Most bytes of objects in one answer.
    pub max_bytes: u64,
}

impl BundleOffer {
    /// Reads the value of the header; `None` if it is no offer that can be taken up.
    pub fn parse(value: &str) -> Option<Self> {
        let mut parts = value.split(';').map(str::trim);
        let path = parts.next()?;
        let is_plain = |name: &str| {
            !name.is_empty()
                && !name.starts_with('.')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let mut offer = Self { path: path.to_owned(), max_objects: 0, max_bytes: 0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name {
                "max-objects" => offer.max_objects = value.parse::<usize>().ok()?.min(OBJECTS_MAX),
                "max-bytes" => offer.max_bytes = value.parse().ok()?,
                _ => {}
            }
        }
        let usable = path.split('/').all(is_plain) && offer.max_objects > 1 && offer.max_bytes > 0;
        usable.then_some(offer)
    }

    /// The address at the repository with this URL.
    pub(super) fn url(&self, repository: &Url) -> Url {
        let mut url = repository.clone();
        let path = format!("{}/{}", url.path().trim_end_matches('/'), self.path);
        url.set_path(&path);
        url
    }
}

impl std::fmt::Display for BundleOffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; max-objects={}; max-bytes={}", self.path, self.max_objects, self.max_bytes)
    }
}

/// The body of a request for these objects.
pub fn names(ids: &[ObjectId]) -> String {
    ids.iter().map(|id| format!("{id}\n")).collect()
}

/// Takes a bundle apart while it arrives.
///
/// Only objects that were asked for, each once, and whose hash is right come out of it.
#[derive(Debug)]
pub struct BundleParser {
    /// What was asked for and is not there yet.
    expected: HashSet<ObjectId>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// In a line.
    Line(Vec<u8>),
    /// In the bytes of an object of this size.
    Object(ObjectId, usize, Vec<u8>),
}

impl BundleParser {
    /// Expects these objects.
    pub fn new(ids: impl IntoIterator<Item = ObjectId>) -> Self {
        Self { expected: ids.into_iter().collect(), state: State::Line(Vec::new()) }
    }

    /// Takes the next bytes, and hands over the objects that they complete: verified stored bytes.
    ///
    /// # Errors
    /// `Malformed` if this is no bundle, or one of something else; nothing can follow then.
    pub fn push(&mut self, mut bytes: &[u8], object: &mut dyn FnMut(ObjectId, Vec<u8>)) -> Result<()> {
        loop {
            match &mut self.state {
                State::Line(line) => {
                    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
                        line.extend_from_slice(bytes);
                        return if line.len() <= LINE_MAX { Ok(()) } else { Err(malformed("a line is too long")) };
                    };
                    line.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    if line.len() > LINE_MAX {
                        return Err(malformed("a line is too long"));
                    }
                    let (id, size) = parse_line(line)?;
                    if !self.expected.contains(&id) {
                        return Err(malformed("it has an object that was not asked for, or has it twice"));
                    }
                    self.state = match size {
                        Some(size) => State::Object(id, size, Vec::new()),
                        None => State::Line(Vec::new()),
                    };
                }
                State::Object(id, size, stored) => {
                    let missing = *size - stored.len();
                    let (now, later) = bytes.split_at(missing.min(bytes.len()));
                    stored.extend_from_slice(now);
                    if now.len() < missing {
                        return Ok(());
                    }
                    bytes = later;
                    // What is wrong may be right when it is asked for around caches.
                    if id.hash.algorithm().hash(stored) == id.hash {
                        self.expected.remove(id);
                        object(*id, std::mem::take(stored));
                    }
                    self.state = State::Line(Vec::new());
                }
            }
        }
    }

    /// What did not come.
    pub fn into_missing(self) -> HashSet<ObjectId> {
        self.expected
    }
}

/// Reads `<name> <size>`, without a size if the object is not in the bundle.
fn parse_line(line: &[u8]) -> Result<(ObjectId, Option<usize>)> {
    let text = str::from_utf8(line).map_err(|_| malformed("a line is no text"))?;
    let (name, size) = text.split_once(' ').ok_or_else(|| malformed("a line has no size"))?;
    let id = name.parse()?;
    if size == "-" || size == "+" {
        return Ok((id, None));
    }
    let size =
        Some(size).filter(|size| size.bytes().all(|byte| byte.is_ascii_digit())).and_then(|size| size.parse().ok());
    match size {
        Some(size) if size <= OBJECT_SIZE_MAX => Ok((id, Some(size))),
        _ => Err(malformed("a line has no sensible size")),
    }
}

fn malformed(reason: &str) -> Error {
    Error::malformed("bundle", reason)
}

/// A bundle on its way.
#[derive(Debug)]
pub(super) struct Bundle {
    body: Incoming,
    nearest: Blame,
    speed: SpeedGauge,
    options: Arc<HttpOptions>,
    parser: BundleParser,
    left: u64,
}

impl Bundle {
    /// Looks at the head of the answer to a request for `ids`.
    pub(super) fn begin(
        response: Response<Incoming>,
        nearest: Blame,
        options: Arc<HttpOptions>,
        offer: &BundleOffer,
        ids: &[ObjectId],
    ) -> Result<Self, Failure> {
        let failure = Failure::of_answer(response.status(), response.headers(), nearest, options.retry_after_max);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let content_type = response.headers().get(hyper::header::CONTENT_TYPE);
        if response.status() != StatusCode::OK
            || content_type.is_none_or(|value| value.as_bytes() != CONTENT_TYPE.as_bytes())
        {
            return Err(Failure::server(Kind::BadAnswer("the answer is no bundle".to_owned())));
        }
        // The lines come on top of the objects.
        let left = offer.max_bytes.saturating_add(((LINE_MAX + 1) * ids.len()) as u64);
        let parser = BundleParser::new(ids.iter().copied());
        Ok(Self { speed: SpeedGauge::new(&options), body: response.into_body(), nearest, options, parser, left })
    }

    /// Waits for more; true until the end. `objects` gets what is complete and verified.
    pub(super) async fn next(&mut self, objects: &mut Vec<(ObjectId, Vec<u8>)>) -> Result<bool, Failure> {
        let Some(bytes) = next_chunk(&mut self.body, self.nearest, &mut self.speed, &self.options).await? else {
            return Ok(false);
        };
        let bad = |error: Error| Failure::server(Kind::BadAnswer(error.to_string()));
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| bad(malformed("it is too large")))?;
        self.parser.push(&bytes, &mut |id, stored| objects.push((id, stored))).map_err(bad)?;
        Ok(true)
    }

    /// What did not come.
    pub(super) fn into_missing(self) -> HashSet<ObjectId> {
        self.parser.into_missing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Algorithm, ObjectKind};

    fn id(content: &[u8]) -> ObjectId {
        ObjectId::of(Algorithm::Sha1, ObjectKind::File, content)
    }

    fn parse(ids: &[ObjectId], pieces: &[&[u8]]) -> (Result<()>, Vec<Vec<u8>>, HashSet<ObjectId>) {
        let mut parser = BundleParser::new(ids.iter().copied());
        let mut objects = Vec::new();
        let result = pieces.iter().try_for_each(|piece| {
            parser.push(piece, &mut |id, stored| {
                assert_eq!(id.hash, id.hash.algorithm().hash(&stored));
                objects.push(stored);
            })
        });
        (result, objects, parser.into_missing())
    }

    #[test]
    fn objects_come_out_however_the_bundle_arrives() {
        let (first, second, empty, absent, large) = (id(b"first\n1 -"), id(b"second"), id(b""), id(b"?"), id(b"large"));
        let wrong = id(b"promised");
        let ids = [first, second, empty, absent, large, wrong];
        let bundle =
            format!("{first} 9\nfirst\n1 -{absent} -\n{second} 6\nsecond{large} +\n{wrong} 9\ndelivered{empty} 0\n");
        let expected: Vec<Vec<u8>> = vec![b"first\n1 -".to_vec(), b"second".to_vec(), Vec::new()];
        let missing = HashSet::from([absent, large, wrong]);
        for size in [1, 2, 3, 7, 50, 1000] {
            let pieces: Vec<_> = bundle.as_bytes().chunks(size).collect();
            let (result, objects, left) = parse(&ids, &pieces);
            assert!(result.is_ok(), "{result:?}");
            assert_eq!((&objects, &left), (&expected, &missing), "{size}");
        }
    }

    #[test]
    fn a_bundle_that_ends_early_lacks_the_rest() {
        let (first, second) = (id(b"first"), id(b"second"));
        let bundle = format!("{first} 5\nfirst{second} 6\nsecon");
        let (result, objects, left) = parse(&[first, second], &[bundle.as_bytes()]);
        assert!(result.is_ok());
        assert_eq!((objects, left), (vec![b"first".to_vec()], HashSet::from([second])));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let first = id(b"first");
        for bundle in [
            "<html>\n".to_owned(),
            "x".repeat(LINE_MAX + 1),
            format!("{}\n", "x".repeat(LINE_MAX + 1)),
            format!("{first}\n"),
            format!("{first} \n"),
            format!("{first} +5\n"),
            format!("{first} 1048577\n"),
            format!("{first} 99999999999999999999\n"),
            format!("{first}  5\n"),
            format!("{} 5\nother", id(b"other")),
            format!("{first} 5\nfirst{first} 5\nfirst"),
        ] {
            assert!(matches!(parse(&[first], &[bundle.as_bytes()]).0, Err(Error::Malformed { .. })), "{bundle}");
        }
    }

    #[test]
    fn an_offer_is_a_plain_path_with_limits() {
        let offer = BundleOffer { path: "api/v1.0/bundle".to_owned(), max_objects: 800, max_bytes: 1 << 20 };
        let text = "api/v1.0/bundle; max-objects=800; max-bytes=1048576";
        assert_eq!(offer.to_string(), text);
        assert_eq!(BundleOffer::parse(text), Some(offer.clone()));
        assert_eq!(
            BundleOffer::parse("api/v1.0/bundle;max-bytes=1048576 ; later=1; max-objects=800"),
            Some(offer.clone())
        );
        assert_eq!(
            BundleOffer::parse("b; max-objects=100000000; max-bytes=1").map(|offer| offer.max_objects),
            Some(1000)
        );
        for root in ["http://h/cvmfs/r.example.org", "http://h/cvmfs/r.example.org/"] {
            let url = offer.url(&root.parse().unwrap());
            assert_eq!(url.as_str(), "http://h/cvmfs/r.example.org/api/v1.0/bundle");
        }
        for text in [
            "",
            "api/v1.0/bundle",
            "api/v1.0/bundle; max-objects=800",
            "api/v1.0/bundle; max-objects=1; max-bytes=1048576",
            "api/v1.0/bundle; max-objects=x; max-bytes=1048576",
            "/api/v1.0/bundle; max-objects=800; max-bytes=1048576",
            "../other/api; max-objects=800; max-bytes=1048576",
            "api?x=1; max-objects=800; max-bytes=1048576",
            "http://elsewhere/; max-objects=800; max-bytes=1048576",
        ] {
            assert_eq!(BundleOffer::parse(text), None, "{text}");
        }
    }
}
