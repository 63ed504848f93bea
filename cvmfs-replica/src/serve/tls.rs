//! TLS for listeners that want it.
//!
//! Clients of CernVM-FS verify what they read and rarely need it; people who look at pages do.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use cvmfs_core::error::{Error, Result};
use openssl::error::ErrorStack;
use openssl::ssl::{AlpnError, Ssl, SslAcceptor, SslFiletype, SslMethod, select_next_proto};
use tokio_openssl::SslStream;

use super::socket::Socket;

/// The one protocol that is spoken, as ALPN names it.
const PROTOCOLS: &[u8] = b"\x08http/1.1";

/// Files with the identity of the server, in PEM form.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Its certificate, followed by those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

/// The identity of the server at the moment.
pub(super) struct Tls {
    files: TlsFiles,
    acceptor: RwLock<SslAcceptor>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Loads certificate and key.
    ///
    /// # Errors
    /// `InvalidInput` naming the file that cannot be used.
    pub(super) fn open(files: TlsFiles) -> Result<Self> {
        let acceptor = RwLock::new(load(&files)?);
        Ok(Self { files, acceptor })
    }

    /// Loads them again, for connections to come. Files that cannot be used leave everything as it is.
    pub(super) fn reload(&self) {
        match load(&self.files) {
            Ok(acceptor) => *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor,
            Err(error) => tracing::error!(%error, "cannot load the certificate again"),
        }
    }

    /// Shakes hands within `patience`.
    pub(super) async fn accept(&self, stream: Socket, patience: Duration) -> std::io::Result<SslStream<Socket>> {
        let ssl = Ssl::new(self.acceptor.read().unwrap_or_else(PoisonError::into_inner).context())?;
        let mut stream = SslStream::new(ssl, stream)?;
        tokio::time::timeout(patience, Pin::new(&mut stream).accept()).await?.map_err(std::io::Error::other)?;
        Ok(stream)
    }
}

fn load(files: &TlsFiles) -> Result<SslAcceptor> {
    let unfit = |file: &Path| {
        let file = file.display().to_string();
        move |error: ErrorStack| Error::invalid(file, error.to_string())
    };
    let mut builder =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).map_err(unfit(&files.certificate))?;
    builder.set_certificate_chain_file(&files.certificate).map_err(unfit(&files.certificate))?;
    builder.set_private_key_file(&files.key, SslFiletype::PEM).map_err(unfit(&files.key))?;
    builder.check_private_key().map_err(unfit(&files.key))?;
    builder.set_alpn_select_callback(|_, offered| select_next_proto(PROTOCOLS, offered).ok_or(AlpnError::NOACK));
    Ok(builder.build())
}
