//! A blob on its way, taken up again where it broke.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::fetch::root_cause;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::Repository;
use super::authorization::shown;
use super::request::{Answer, Ask};
use crate::image::Descriptor;

/// Bytes after which a connection counts as one that gets on.
const PROGRESS: u64 = 1 << 20;

/// The bytes of a blob: exactly as many as its descriptor says.
pub(super) struct Download {
    repository: Repository,
    size: u64,
    /// Where it comes from.
    url: Url,
    answer: Option<Answer>,
    /// Bytes that are here and were not asked for yet.
    chunk: Bytes,
    /// Bytes that came so far.
    received: u64,
    /// Bytes that come again because the other side cannot begin in the middle.
    again: u64,
    repetitions: u32,
    /// What had been received when it was repeated last.
    repeated_at: u64,
    /// Why there is no connection.
    broken: String,
}

impl Download {
    /// Asks the first place that has it.
    pub(super) fn start(repository: Repository, blob: &Descriptor) -> Result<Self> {
        let own = repository.url(&format!("blobs/{}", blob.digest));
        let urls: Vec<_> = blob.urls.iter().filter_map(|text| text.parse::<Url>().ok()).collect();
        let urls: Vec<_> = urls.into_iter().filter(|url| matches!(url.scheme(), "http" | "https")).collect();
        let urls = if urls.is_empty() { vec![own.clone()] } else { urls };
        let mut download = Self {
            repository,
            size: blob.size,
            url: own,
            answer: None,
            chunk: Bytes::new(),
            received: 0,
            again: 0,
            repetitions: 0,
            repeated_at: 0,
            broken: String::new(),
        };
        let shared = Arc::clone(&download.repository.shared);
        let mut failed = None;
        for url in urls {
            download.url = url;
            match shared.connections.block_on(download.connect()) {
                Ok(()) => return Ok(download),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| Error::not_found(blob.digest.to_string())))
    }

    /// Asks for what is missing.
    async fn connect(&mut self) -> Result<()> {
        let mut ask = Ask::new(Method::GET, self.url.clone());
        if self.received > 0 {
            ask = ask.header(RANGE, &format!("bytes={}-", self.received));
        }
        let answer = self.repository.ask(&ask).await?;
        self.again = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                if start != Some(self.received) {
                    let reason = format!("asked for what follows byte {}, got {range:?}", self.received);
                    return Err(Error::malformed(shown(&self.url), reason));
                }
                0
            }
            _ => {
                // Asking for the rest again and again would not make it longer.
                if let Some(length) = answer.response.content_length().filter(|length| *length < self.size) {
                    let reason = format!("it has {length} bytes there, not {}", self.size);
                    return Err(Error::malformed(shown(&self.url), reason));
                }
                self.received
            }
        };
        self.answer = Some(answer);
        Ok(())
    }

    /// Waits for the next bytes.
    async fn next(&mut self) -> Result<Bytes> {
        loop {
            self.broken = match &mut self.answer {
                Some(answer) => match self.repository.or_cancelled(answer.response.chunk()).await? {
                    Ok(Some(chunk)) => {
                        let known = usize::try_from(self.again).unwrap_or(usize::MAX).min(chunk.len());
                        self.again -= known as u64;
                        if known < chunk.len() {
                            return Ok(chunk.slice(known..));
                        }
                        continue;
                    }
                    Ok(None) => format!("it ends after {} of {} bytes", self.received, self.size),
                    Err(error) => root_cause(&error),
                },
                // Whoever asks once more is told the same.
                None => std::mem::take(&mut self.broken),
            };
            self.answer = None;
            if self.received >= self.repeated_at + PROGRESS {
                self.repetitions = 0;
            }
            self.repeated_at = self.received;
            let ask = Ask::new(Method::GET, self.url.clone());
            self.repository.wait(&ask, &mut self.repetitions, &self.broken, None).await?;
            self.connect().await?;
        }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.received).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left + self.chunk.len());
        if wanted == 0 {
            // The turn is over for others to have it.
            self.answer = None;
            return Ok(0);
        }
        if self.chunk.is_empty() {
            let shared = Arc::clone(&self.repository.shared);
            let mut chunk = shared.connections.block_on(self.next()).map_err(io::Error::other)?;
            // What is more than the descriptor says is nobody's business: the digest tells.
            chunk.truncate(left);
            self.received += chunk.len() as u64;
            self.chunk = chunk;
        }
        let count = wanted.min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Download({}, {} of {} bytes)", shown(&self.url), self.received, self.size)
    }
}
