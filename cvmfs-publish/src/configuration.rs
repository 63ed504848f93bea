//! Configuration files of a repository, as the reference's tools write and read them.
//!
//! Source: `create_config_files_for_new_repository` in `cvmfs/server/cvmfs_server_common.sh`.

use std::fs;
use std::path::Path;

use cvmfs_core::compression::Compression;
use cvmfs_core::durable;
use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::server::{RepositoryConfig, ServerRoot};
use cvmfs_core::storage::StoragePlace;

/// Layout of configuration and spool area that the reference's tools of today use.
const CREATOR_VERSION: u32 = 143;

/// Where a repository is kept, and the URL under which clients find it.
///
/// With `s3`, a file with `CVMFS_S3_*` variables, it is in that bucket, and `url` is the URL of the bucket without the name of
/// the repository; else it is in `directory`, or at the usual place.
///
/// # Errors
/// `InvalidInput` for a bucket without URL.
pub(crate) fn place(
    root: &ServerRoot,
    name: &RepositoryName,
    directory: Option<&Path>,
    s3: Option<&Path>,
    url: Option<&str>,
) -> Result<(StoragePlace, String)> {
    let Some(file) = s3 else {
        let url = url.map_or_else(|| format!("http://localhost/cvmfs/{name}"), str::to_owned);
        let directory = match directory {
            Some(directory) => std::path::absolute(directory).at(directory)?,
            None => root.storage_dir(name),
        };
        return Ok((StoragePlace::Local(directory), url));
    };
    let url = url.ok_or_else(|| Error::invalid("URL of the bucket", "clients cannot find it without"))?;
    StoragePlace::in_bucket(file, root.spool_dir(name).join("tmp"), name, url)
}

/// Writes `server.conf` and `client.conf`. `url` is where clients of this server find the storage.
///
/// The server's file comes last, and as a whole: it is what makes the repository known.
pub(crate) fn write(root: &ServerRoot, config: &RepositoryConfig, url: &str) -> Result<()> {
    let directory = root.config_dir(&config.name);
    fs::create_dir_all(&directory).at(&directory)?;
    let write = |file: &str, text: &str| {
        let path = directory.join(file);
        durable::replace_public(&path, text.as_bytes())
    };
    write("client.conf", &client_conf(root, config, url))?;
    write("server.conf", &server_conf(config, url))
}

fn server_conf(config: &RepositoryConfig, url: &str) -> String {
    let RepositoryConfig { name, owner, algorithm, auto_tag, external, .. } = config;
    let (storage, spool) = (config.storage.definition(), config.spool.display());
    let compression = match config.compression {
        Compression::Zlib => "default",
        Compression::None => "none",
    };
    let (collectable, auto_catalogs) = (config.garbage_collectable, config.nesting.automatic.is_some());
    let mut server = format!(
        "# Created by cvmfs-publish.
CVMFS_CREATOR_VERSION={CREATOR_VERSION}
CVMFS_REPOSITORY_NAME={name}
CVMFS_REPOSITORY_TYPE=stratum0
CVMFS_USER={owner}
CVMFS_UNION_DIR=/cvmfs/{name}
CVMFS_SPOOL_DIR={spool}
CVMFS_STRATUM0={url}
CVMFS_UPSTREAM_STORAGE={storage}
CVMFS_USE_FILE_CHUNKING=true
CVMFS_MIN_CHUNK_SIZE=4194304
CVMFS_AVG_CHUNK_SIZE=8388608
CVMFS_MAX_CHUNK_SIZE=16777216
CVMFS_UNION_FS_TYPE=overlayfs
CVMFS_HASH_ALGORITHM={algorithm}
CVMFS_COMPRESSION_ALGORITHM={compression}
CVMFS_EXTERNAL_DATA={external}
CVMFS_AUTO_TAG={auto_tag}
CVMFS_AUTO_TAG_TIMESPAN=\"\"
CVMFS_GARBAGE_COLLECTION={collectable}
CVMFS_AUTO_REPAIR_MOUNTPOINT=true
CVMFS_AUTOCATALOGS={auto_catalogs}
CVMFS_ASYNC_SCRATCH_CLEANUP=true
CVMFS_PRINT_STATISTICS=false
CVMFS_UPLOAD_STATS_DB=false
CVMFS_UPLOAD_STATS_PLOTS=false
CVMFS_IGNORE_XDIR_HARDLINKS=true
CVMFS_INCLUDE_XATTRS=true
CVMFS_ENABLE_MTIME_NS=true
"
    );
    if let Some(ttl) = config.ttl {
        server.push_str(&format!("CVMFS_REPOSITORY_TTL={ttl}\n"));
    }
    if config.shortcuts {
        server.push_str("CVMFS_CATALOG_ALT_PATHS=true\n");
    }
    server
}

/// For a mount on this server, by the reference's tools.
fn client_conf(root: &ServerRoot, config: &RepositoryConfig, url: &str) -> String {
    let RepositoryConfig { name, owner, .. } = config;
    let (spool, public_key) = (config.spool.display(), root.key_file(name, "pub"));
    format!(
        "# Created by cvmfs-publish.
CVMFS_CACHE_BASE={spool}/cache
CVMFS_RELOAD_SOCKETS={spool}/cache
CVMFS_QUOTA_LIMIT=4000
CVMFS_MOUNT_DIR=/cvmfs
CVMFS_SERVER_URL={url}
CVMFS_HTTP_PROXY=DIRECT
CVMFS_PUBLIC_KEY={public_key}
CVMFS_CHECK_PERMISSIONS=yes
CVMFS_IGNORE_SIGNATURE=no
CVMFS_AUTO_UPDATE=no
CVMFS_NFS_SOURCE=no
CVMFS_MAGIC_XATTRS_VISIBILITY=never
CVMFS_FOLLOW_REDIRECTS=yes
CVMFS_SERVER_CACHE_MODE=yes
CVMFS_NFILES=65536
CVMFS_TALK_SOCKET={spool}/cvmfs_io
CVMFS_TALK_OWNER={owner}
CVMFS_USE_SSL_SYSTEM_CA=true
",
        public_key = public_key.display()
    )
}
