//! Images in directories and archives: what `skopeo`, `podman save`, `docker save` and `umoci` write.
//!
//! Archives are not unpacked: one pass notes where their members are, and these are read in place.

mod docker;
mod files;
mod oci;

use std::sync::Arc;

use cvmfs_core::error::Result;

pub use docker::DockerArchive;
pub use oci::OciLayout;

use super::reference::Transport;
use super::source::ImageStore;

/// Opens a directory or archive, and finds the digest of the image that is meant; `None` for an image of a registry.
///
/// # Errors
/// `NotFound` if there is no such file or image, `Malformed` if the file is damaged, `InvalidInput` if it has several images
/// and none was named.
pub fn open(transport: &Transport) -> Result<Option<(Arc<dyn ImageStore>, String)>> {
    let (store, digest): (Arc<dyn ImageStore>, _) = match transport {
        Transport::Registry(_) => return Ok(None),
        Transport::OciLayout(path, tag) => {
            let layout = OciLayout::directory(path)?;
            let digest = layout.find(tag.as_deref())?;
            (Arc::new(layout), digest)
        }
        Transport::OciArchive(path, tag) => {
            let layout = OciLayout::archive(path)?;
            let digest = layout.find(tag.as_deref())?;
            (Arc::new(layout), digest)
        }
        Transport::DockerArchive(path, name) => {
            let archive = DockerArchive::open(path)?;
            let digest = archive.find(name.as_deref())?;
            (Arc::new(archive), digest)
        }
    };
    Ok(Some((store, digest.to_string())))
}
