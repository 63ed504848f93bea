//! A monitor by other authors looks at our servers and finds everything that it wants to know.

#[path = "../../cvmfs-replica/tests/replica/harness/mmdb.rs"]
mod mmdb;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::net::Ipv6Addr;

use cvmfs_server_scraper::{
    GeoapiHosts, GeoapiOutcome, GeoapiProbe, OptionalFetch, RepositoryOutcome, ScrapeOptions, Server, ServerBackendType,
    ServerReport, ServerType,
};
use support::replica::{Replica, Source};
use support::{NAME, Site};

/// Addresses for documentation, and where the test's database puts them; this machine is in Geneva.
const FAR: &str = "203.0.113.1";
const NEAR: &str = "198.51.100.1";

/// What the monitor reports of the server at `url`, which is that of a directory with repositories.
fn scrape(url: &str, kind: ServerType) -> ServerReport {
    let server = Server::new(kind, ServerBackendType::CVMFS, url.trim_end_matches("/cvmfs").parse().expect("an endpoint"));
    let hosts = [FAR, NEAR].map(|name| name.parse().expect("a name"));
    let hosts = GeoapiHosts::new(hosts.into()).expect("hosts");
    let options = ScrapeOptions::default().with_geoapi(GeoapiProbe::Enabled(hosts));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(server.scrape(options)).into_report().expect("a report")
}

#[test]
fn a_monitor_accepts_both_kinds_of_server() {
    let site = Site::with_repository(&[]);
    let tree = site.path("tree");
    fs::create_dir(&tree).expect("mkdir");
    fs::write(tree.join("file"), "content").expect("write");
    site.publish(&["publish", "--from", tree.to_str().expect("UTF-8")]).ok();
    let revision = site.manifest_field('S');
    let source = Source::start(&site);

    let report = scrape(source.url.trim_end_matches(&format!("/{NAME}")), ServerType::Stratum0);
    assert_eq!(report.repository_outcome(), RepositoryOutcome::Complete, "{:?}", report.failed_repositories());
    let [repository] = report.repositories() else { panic!("one repository: {report:?}") };
    assert_eq!((repository.name().to_string(), repository.revision().to_string()), (NAME.to_owned(), revision.clone()));
    assert!(matches!(report.contact(), OptionalFetch::Available(_)), "{:?}", report.contact());

    let replica = Replica::of(&site, &source, &[]);
    replica.snapshot();
    let place = replica.site.root().join("var/lib/cvmfs-server/geo");
    fs::create_dir_all(&place).expect("mkdir");
    let v4 = |bytes| Ipv6Addr::from(u128::from(u32::from_be_bytes(bytes)));
    let networks = [
        (v4([127, 0, 0, 0]), 104, [46.2, 6.15]),
        (v4([203, 0, 113, 0]), 120, [-33.87, 151.21]),
        (v4([198, 51, 100, 0]), 120, [48.85, 2.35]),
    ];
    fs::write(place.join("GeoLite2-City.mmdb"), mmdb::database(&networks)).expect("database");
    let server = replica.site.serve();
    let report = scrape(&server.url, ServerType::Stratum1);
    assert_eq!(report.repository_outcome(), RepositoryOutcome::Complete, "{:?}", report.failed_repositories());
    let [repository] = report.repositories() else { panic!("one replica: {report:?}") };
    assert_eq!((repository.name().to_string(), repository.revision().to_string()), (NAME.to_owned(), revision));
    assert!(repository.last_snapshot().is_some_and(|time| time.datetime().is_some()), "{repository:?}");
    assert!(report.metadata().last_geodb_update().is_some_and(|time| time.datetime().is_some()));
    let GeoapiOutcome::Available(query) = report.geoapi() else { panic!("an order: {:?}", report.geoapi()) };
    let order: Vec<String> = query.ordering().ordered_hosts().map(ToString::to_string).collect();
    assert_eq!(order, [NEAR, FAR]);
}
