//! How to reach a bucket: the reference's configuration file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, IoContext as _, Result};
use crate::server::Variables;

/// Access rights that S3 knows by a name.
const ACLS: [&str; 7] = [
    "private",
    "public-read",
    "public-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
];

/// The checked content of a file with `CVMFS_S3_*` variables, and what the keys of one repository begin with.
///
/// Source: `S3Uploader::ParseSpoolerDefinition` in `cvmfs/upload_s3.cc`.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Config {
    /// What all keys of the repository begin with: its name, sometimes below a path.
    pub alias: String,
    /// `CVMFS_S3_USE_HTTPS`, `CVMFS_S3_HOST` and `CVMFS_S3_PORT`: the service, such as `https://s3.example.org:9000`,
    /// without the name of the bucket.
    pub endpoint: String,
    /// `CVMFS_S3_BUCKET`.
    pub bucket: String,
    /// `CVMFS_S3_DNS_BUCKETS`: whether the bucket is part of the host name, not of the path.
    pub dns_buckets: bool,
    /// `CVMFS_S3_REGION`; servers of one's own rarely care.
    pub region: String,
    /// `CVMFS_S3_ACCESS_KEY`.
    pub access_key: String,
    /// `CVMFS_S3_SECRET_KEY`.
    pub secret_key: String,
    /// `CVMFS_S3_MAX_NUMBER_OF_PARALLEL_CONNECTIONS`: most requests in flight.
    pub max_requests: usize,
    /// `CVMFS_S3_MAX_RETRIES`: how often a request is repeated that may succeed then.
    pub retries: u32,
    /// `CVMFS_S3_TIMEOUT`: how long a connection may take, and the server may be silent.
    pub timeout: Duration,
    /// The longest wait before the first repetition; later ones double it.
    pub backoff_initial: Duration,
    /// The longest wait before any repetition.
    pub backoff_max: Duration,
    /// `CVMFS_S3_PEEK_BEFORE_PUT`: whether objects are looked for before they are sent.
    pub peek: bool,
    /// `CVMFS_S3_X_AMZ_ACL`: who may read; `None` to leave that to the bucket.
    pub acl: Option<String>,
    /// `CVMFS_S3_PROXY`: the way to the service.
    pub proxy: Option<String>,
    /// `CVMFS_S3_CA_BUNDLE`: certificates in PEM form that are trusted besides those of the system; ours.
    pub ca_bundle: Option<PathBuf>,
    /// `CVMFS_S3_CONDITIONAL_PUT`: whether the service knows `If-Match` and `If-None-Match` for PUT; ours. Without them
    /// only one machine may publish.
    pub conditional_put: bool,
    /// Directory for objects on their way.
    pub temporary: PathBuf,
}

impl S3Config {
    /// Reads the file for the repository whose keys begin with `alias`.
    ///
    /// # Errors
    /// `NotFound` if there is no such file, `InvalidInput` naming file and variable, `Unsupported` for the signatures of
    /// AWS before version 4 and for Azure.
    pub fn load(file: &Path, alias: &str, temporary: &Path) -> Result<Self> {
        let variables = Variables::load(file)?;
        let invalid = |key: &str, reason: &str| Error::invalid(format!("{}: {key}", file.display()), reason);
        let name = alias.rsplit('/').next().unwrap_or(alias);
        let optional = |key: &str| variables.get(key).map(|value| value.replace("@fqrn@", name));
        let required = |key: &str| optional(key).ok_or_else(|| invalid(key, "is missing"));
        match optional("CVMFS_S3_FLAVOR").as_deref() {
            None | Some("awsv4") => {}
            Some(flavor @ ("awsv2" | "azure")) => {
                return Err(Error::Unsupported { what: format!("{}: CVMFS_S3_FLAVOR={flavor}", file.display()) });
            }
            Some(_) => return Err(invalid("CVMFS_S3_FLAVOR", "expected awsv4")),
        }
        let acl = match variables.raw("CVMFS_S3_X_AMZ_ACL") {
            None => Some("public-read".to_owned()),
            Some("") => None,
            Some(acl) if ACLS.contains(&acl) => Some(acl.to_owned()),
            Some(_) => return Err(invalid("CVMFS_S3_X_AMZ_ACL", "S3 knows no such access rights")),
        };
        let scheme = if variables.flag("CVMFS_S3_USE_HTTPS", false) { "https" } else { "http" };
        let host = required("CVMFS_S3_HOST")?;
        let port = variables.parse::<u16>("CVMFS_S3_PORT")?.map_or_else(String::new, |port| format!(":{port}"));
        Ok(Self {
            alias: alias.to_owned(),
            endpoint: format!("{scheme}://{host}{port}"),
            bucket: required("CVMFS_S3_BUCKET")?,
            dns_buckets: variables.get("CVMFS_S3_DNS_BUCKETS") != Some("false"),
            region: optional("CVMFS_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned()),
            access_key: required("CVMFS_S3_ACCESS_KEY")?,
            secret_key: required("CVMFS_S3_SECRET_KEY")?,
            max_requests: variables
                .parse("CVMFS_S3_MAX_NUMBER_OF_PARALLEL_CONNECTIONS")?
                .filter(|&number| number > 0)
                .unwrap_or(16),
            retries: variables.parse("CVMFS_S3_MAX_RETRIES")?.unwrap_or(3),
            timeout: Duration::from_secs(variables.parse("CVMFS_S3_TIMEOUT")?.unwrap_or(60)),
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_secs(2),
            peek: variables.flag("CVMFS_S3_PEEK_BEFORE_PUT", true),
            acl,
            proxy: optional("CVMFS_S3_PROXY"),
            ca_bundle: optional("CVMFS_S3_CA_BUNDLE").map(PathBuf::from),
            conditional_put: variables.flag("CVMFS_S3_CONDITIONAL_PUT", true),
            temporary: temporary.to_owned(),
        })
    }

    /// The service with its bucket, as all requests begin.
    pub(super) fn bucket_url(&self) -> Result<String> {
        let Self { endpoint, bucket, .. } = self;
        let invalid = || Error::invalid("CVMFS_S3_HOST", format!("{endpoint:?} is no address"));
        let (scheme, host) = endpoint.split_once("://").ok_or_else(invalid)?;
        let url = if self.dns_buckets { format!("{scheme}://{bucket}.{host}") } else { format!("{endpoint}/{bucket}") };
        reqwest::Url::parse(&url).map_err(|_| invalid())?;
        Ok(url)
    }

    pub(super) fn client(&self) -> Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            // The environment is the binaries' business.
            .no_proxy()
            .referer(false)
            // A redirection would need another signature.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("cvmfs-core/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .read_timeout(self.timeout)
            .pool_max_idle_per_host(self.max_requests);
        if let Some(proxy) = &self.proxy {
            let proxy = reqwest::Proxy::all(proxy).map_err(|_| Error::invalid("CVMFS_S3_PROXY", "cannot be used"))?;
            builder = builder.proxy(proxy);
        }
        if let Some(path) = &self.ca_bundle {
            builder = builder.tls_certs_merge(crate::fetch::certificates(path)?);
        }
        builder.build().map_err(|error| Error::invalid("HTTP client", error.to_string()))
    }

    /// A file in memory, and on disk if it grows.
    pub(super) fn spool(&self) -> Result<tempfile::SpooledTempFile> {
        std::fs::create_dir_all(&self.temporary).at(&self.temporary)?;
        Ok(tempfile::spooled_tempfile_in(super::PART_SIZE, &self.temporary))
    }
}

impl fmt::Debug for S3Config {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Config({}, bucket {}, {})", self.endpoint, self.bucket, self.alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<S3Config> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("s3.conf");
        std::fs::write(&file, text).unwrap();
        S3Config::load(&file, "test.example.org", directory.path())
    }

    const REQUIRED: &str =
        "CVMFS_S3_HOST=s3.example.org\nCVMFS_S3_ACCESS_KEY=a\nCVMFS_S3_SECRET_KEY='s=1'\nCVMFS_S3_BUCKET=b\n";

    #[test]
    fn the_defaults_are_those_of_the_reference() {
        let config = load(REQUIRED).unwrap();
        assert_eq!(config.bucket_url().unwrap(), "http://b.s3.example.org");
        assert_eq!((config.max_requests, config.retries, config.timeout), (16, 3, Duration::from_mins(1)));
        assert_eq!((config.peek, config.acl.as_deref(), &config.secret_key[..]), (true, Some("public-read"), "s=1"));
        assert!(!format!("{config:?}").contains("s=1"));
    }

    #[test]
    fn all_variables_are_read() {
        let config = load(&format!(
            "{REQUIRED}CVMFS_S3_PORT=9000\nCVMFS_S3_USE_HTTPS=on\nCVMFS_S3_DNS_BUCKETS=false\nCVMFS_S3_REGION=cern\n\
             CVMFS_S3_MAX_NUMBER_OF_PARALLEL_CONNECTIONS=40\nCVMFS_S3_MAX_RETRIES=7\nCVMFS_S3_TIMEOUT=5\n\
             CVMFS_S3_PEEK_BEFORE_PUT=off\nCVMFS_S3_X_AMZ_ACL=\nCVMFS_S3_FLAVOR=awsv4\nCVMFS_S3_PROXY=http://p:1\n"
        ));
        let config = config.unwrap();
        assert_eq!(config.bucket_url().unwrap(), "https://s3.example.org:9000/b");
        assert_eq!((config.max_requests, config.retries, config.timeout), (40, 7, Duration::from_secs(5)));
        assert_eq!((config.peek, config.acl, &config.region[..]), (false, None, "cern"));
        assert_eq!(config.proxy.as_deref(), Some("http://p:1"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            "CVMFS_S3_HOST=",
            "CVMFS_S3_BUCKET=",
            "CVMFS_S3_FLAVOR=azure",
            "CVMFS_S3_FLAVOR=x",
            "CVMFS_S3_X_AMZ_ACL=all",
            "CVMFS_S3_TIMEOUT=soon",
        ] {
            assert!(load(&format!("{REQUIRED}{line}\n")).is_err(), "{line}");
        }
    }
}
