//! Servers in the order of their distance from a client.
//!
//! ```text
//! origin: name of the proxy ─► CF-Connecting-IP ─► X-Forwarded-For ─► peer    the first that has a place
//! servers: name ─► address ─► place ─► great circle ─► order
//! ```
//!
//! Places come from a MaxMind database of cities. It is loaded anew when its file changes. Names are looked up at most
//! once in five minutes, a limited number at a time and for a limited time each: a name that does not resolve in time
//! has no place, and its server goes to the end of the list.
//!
//! Source: `cvmfs/webapi/cvmfs_geo.py`, `cvmfs/webapi/cvmfs_api.py`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use cvmfs_core::error::{Error, IoContext as _, Result};
use hyper::HeaderMap;
use maxminddb::Reader;
use serde::Deserialize;
use tokio::sync::Semaphore;

/// How long a name keeps its place, and how often the file is looked at.
const KEPT: Duration = Duration::from_mins(5);

/// Names that are remembered.
const NAMES_MAX: usize = 100_000;

/// Longest address or name that is looked up, in bytes.
const NAME_MAX: usize = 256;

/// Names that are looked up at the same time.
const LOOKUPS_MAX: usize = 64;

/// How long looking up a name may take.
const LOOKUP_PATIENCE: Duration = Duration::from_secs(5);

/// Separates servers from the proxies to fall back to.
const PROXY_SEPARATOR: &str = "+PXYSEP+";

/// A caching string that asks for the number of look-ups.
const LOOKUP_COUNT: &str = "_namelookups_";

/// A place on earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Place {
    latitude: f64,
    longitude: f64,
}

/// What we need of a record of the database.
#[derive(Debug, Deserialize)]
struct Record {
    location: Option<Place>,
}

/// A geographic database, and what was looked up in it.
#[derive(Debug)]
pub(super) struct Geo {
    file: PathBuf,
    database: RwLock<Database>,
    places: Mutex<HashMap<String, (Instant, Option<Place>)>>,
    lookups: AtomicU64,
    resolver: Resolver,
}

/// Asks the name servers.
#[derive(Debug)]
struct Resolver {
    slots: Arc<Semaphore>,
    /// Takes as long as they do.
    resolve: fn(&str) -> io::Result<Vec<IpAddr>>,
}

impl Resolver {
    fn new(slots: usize, resolve: fn(&str) -> io::Result<Vec<IpAddr>>) -> Self {
        Self { slots: Arc::new(Semaphore::new(slots)), resolve }
    }

    /// The addresses of a host; `None` if there are none, or not in time.
    async fn addresses(&self, name: &str, patience: Duration) -> Option<Vec<IpAddr>> {
        let look = async {
            let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
            let (resolve, name) = (self.resolve, name.to_owned());
            // The system cannot be told to stop looking, and the thread is one of those that read cold files: however many
            // ask, only so many threads wait for name servers.
            let looking = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                resolve(&name)
            });
            looking.await.ok()?.ok()
        };
        tokio::time::timeout(patience, look).await.ok()?
    }
}

struct Database {
    reader: Arc<Reader<Vec<u8>>>,
    version: Version,
    looked: Instant,
}

/// What differs if a file was written or exchanged. Two files may be written in one tick of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: SystemTime,
    inode: u64,
    size: u64,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Why a request cannot be answered; the words of the reference.
pub(super) type Refusal = &'static str;

impl Geo {
    /// Loads a database file.
    ///
    /// # Errors
    /// `Io`, or `Malformed` if the file is no such database.
    pub(super) fn open(file: &Path) -> Result<Self> {
        Ok(Self {
            file: file.to_owned(),
            database: RwLock::new(load(file)?),
            places: Mutex::default(),
            lookups: AtomicU64::default(),
            resolver: Resolver::new(LOOKUPS_MAX, |name| {
                Ok((name, 80).to_socket_addrs()?.map(|address| address.ip()).collect())
            }),
        })
    }

    /// When the file was written.
    pub(super) fn updated(&self) -> SystemTime {
        self.database.read().unwrap_or_else(PoisonError::into_inner).version.modified
    }

    /// Loads the file again if it has changed. A file that cannot be used leaves the database as it is.
    pub(super) fn reload(&self) {
        let version = version(&self.file);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        database.looked = Instant::now();
        if version.is_ok_and(|version| version == database.version) {
            return;
        }
        match load(&self.file) {
            Ok(new) => {
                *database = new;
                self.places.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            Err(error) => tracing::warn!(%error, "cannot load the geographic database again"),
        }
    }

    /// Answers `argument`, which is the caching string, a slash and the names of servers, separated by commas.
    pub(super) async fn order(
        &self,
        argument: &str,
        headers: &HeaderMap,
        client: SocketAddr,
    ) -> std::result::Result<String, Refusal> {
        let (caching, servers) = argument.split_once('/').ok_or("no slash in geo path")?;
        if caching == LOOKUP_COUNT {
            return Ok(format!("{}\n", self.lookups.load(Ordering::Relaxed)));
        }
        self.reload_sometimes();
        let servers: Vec<&str> = servers.split(',').collect();
        let behind_cdn = header(headers, "cf-connecting-ip").is_some();
        let origin = self.origin(caching, headers, client).await.ok_or("remote addr not found in database")?;
        let (order, found) = match servers.iter().position(|server| *server == PROXY_SEPARATOR) {
            None => self.sort(origin, &servers, behind_cdn).await,
            Some(separator) => {
                let (hosts, proxies) = (&servers[..separator], &servers[separator + 1..]);
                // Proxies are sorted as the client sees them, servers as the nearest proxy does.
                let (by_client, found) = self.sort(origin, proxies, false).await;
                let nearest = by_client.first().filter(|_| found).map(|first| proxies[*first]);
                let near_proxy = match nearest {
                    Some(proxy) => self.place_of(proxy).await.unwrap_or(origin),
                    None => origin,
                };
                let (mut order, found) = self.sort(near_proxy, hosts, behind_cdn).await;
                order.extend(by_client.into_iter().map(|index| separator + 1 + index));
                // Upstream: clients want as many numbers as they sent names.
                order.push(separator);
                (order, found)
            }
        };
        if !found {
            return Err("no server addr found in database");
        }
        let numbers: Vec<String> = order.into_iter().map(|index| (index + 1).to_string()).collect();
        Ok(format!("{}\n", numbers.join(",")))
    }

    /// Where the client is, or the proxy that it shares with others.
    async fn origin(&self, caching: &str, headers: &HeaderMap, client: SocketAddr) -> Option<Place> {
        // A client without proxy sends a number of its own, which no name server knows.
        if caching.contains(['.', ':'])
            && !caching.starts_with('.')
            && let Some(place) = self.place_of(caching).await
        {
            return Some(place);
        }
        let forwarded = header(headers, "x-forwarded-for").and_then(|list| list.rsplit([',', ' ']).next());
        let addresses = [header(headers, "cf-connecting-ip"), forwarded];
        let mut addresses = addresses.into_iter().flatten().filter_map(|text| text.trim().parse().ok());
        addresses.find_map(|address| self.place_at(address)).or_else(|| self.place_at(client.ip()))
    }

    /// Indices of `servers`, the nearest first, and whether any of them has a place. Those without come last, in the
    /// order in which they were given.
    async fn sort(&self, origin: Place, servers: &[&str], behind_cdn: bool) -> (Vec<usize>, bool) {
        let mut distances = Vec::new();
        for server in servers {
            let is_name = server.parse::<IpAddr>().is_err();
            let direct = if behind_cdn && is_name { self.place_of(&format!("ip.{server}")).await } else { None };
            let place = match direct {
                Some(place) => Some(place),
                None => self.place_of(server).await,
            };
            distances.push(place.map_or(f64::INFINITY, |place| distance(origin, place)));
        }
        let mut order: Vec<usize> = (0..servers.len()).collect();
        order.sort_by(|one, other| distances[*one].total_cmp(&distances[*other]));
        (order, distances.iter().any(|distance| distance.is_finite()))
    }

    /// The place of a host name or address.
    async fn place_of(&self, name: &str) -> Option<Place> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".:-".contains(&byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(is_plain) {
            return None;
        }
        if let Ok(address) = name.parse() {
            return self.place_at(address);
        }
        let now = Instant::now();
        let known = self.known(name);
        if let Some((looked, place)) = known
            && now.duration_since(looked) < KEPT
        {
            return place;
        }
        // An answer that is too old is better than none.
        let place = self.look_up(name).await.or(known.and_then(|(_, place)| place));
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= NAMES_MAX {
            places.retain(|_, (looked, _)| now.duration_since(*looked) < KEPT);
            if places.len() >= NAMES_MAX {
                places.clear();
            }
        }
        places.insert(name.to_owned(), (now, place));
        place
    }

    fn known(&self, name: &str) -> Option<(Instant, Option<Place>)> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    async fn look_up(&self, name: &str) -> Option<Place> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let addresses = self.resolver.addresses(name, LOOKUP_PATIENCE).await?;
        // Upstream: the database knows more about the older addresses.
        let first = |wanted: fn(&IpAddr) -> bool| addresses.iter().copied().find(wanted);
        let older = first(IpAddr::is_ipv4).and_then(|address| self.place_at(address));
        older.or_else(|| self.place_at(first(IpAddr::is_ipv6)?))
    }

    fn place_at(&self, address: IpAddr) -> Option<Place> {
        let reader = Arc::clone(&self.database.read().unwrap_or_else(PoisonError::into_inner).reader);
        let found = reader.lookup(address).ok()?;
        found.decode::<Record>().ok()??.location
    }

    fn reload_sometimes(&self) {
        let looked = self.database.read().unwrap_or_else(PoisonError::into_inner).looked;
        if looked.elapsed() > KEPT {
            self.reload();
        }
    }
}

fn load(file: &Path) -> Result<Database> {
    let version = version(file)?;
    let malformed = |error: maxminddb::MaxMindDbError| Error::malformed(file.display().to_string(), error.to_string());
    let reader = Arc::new(Reader::open_readfile(file).map_err(malformed)?);
    Ok(Database { reader, version, looked: Instant::now() })
}

fn version(file: &Path) -> Result<Version> {
    let metadata = std::fs::metadata(file).at(file)?;
    Ok(Version { modified: metadata.modified().at(file)?, inode: metadata.ino(), size: metadata.len() })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(name).iter().next_back().and_then(|value| value.to_str().ok())
}

/// The angle between two places as seen from the middle of the earth.
fn distance(one: Place, other: Place) -> f64 {
    let (first, second) = (one.latitude.to_radians(), other.latitude.to_radians());
    let between = (one.longitude - other.longitude).to_radians();
    let cosine = first.sin() * second.sin() + first.cos() * second.cos() * between.cos();
    // Rounding may take it out of the range, and the angle would be no number.
    cosine.clamp(-1.0, 1.0).acos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_up_has_its_slot_until_it_ends() {
        let resolver = Resolver::new(1, |_| {
            std::thread::sleep(Duration::from_millis(500));
            Ok(Vec::new())
        });
        let begun = Instant::now();
        assert_eq!(resolver.addresses("slow.example.org", Duration::from_millis(50)).await, None);
        assert_eq!(resolver.slots.available_permits(), 0);
        assert_eq!(resolver.addresses("other.example.org", Duration::from_mins(1)).await, Some(Vec::new()));
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }

    /// Expected values: the haversine formula on a sphere with a radius of 6371 km.
    #[test]
    fn distances_are_great_circles() {
        let geneva = Place { latitude: 46.2, longitude: 6.15 };
        let chicago = Place { latitude: 41.88, longitude: -87.63 };
        let sydney = Place { latitude: -33.87, longitude: 151.21 };
        for (one, other, kilometres) in [(geneva, chicago, 7049.1), (geneva, sydney, 16_773.8), (geneva, geneva, 0.0)] {
            let found = distance(one, other) * 6371.0;
            assert!((found - kilometres).abs() < 0.1, "{found} {kilometres}");
        }
        let opposite = Place { latitude: -46.2, longitude: -173.85 };
        assert!((distance(geneva, opposite) - std::f64::consts::PI).abs() < 1e-6);
    }
}
