//! Telling a web server what happens to images: each event is sent to it with POST, as JSON.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, IoContext as _, Result};
use cvmfs_core::fetch::Backoff;
use reqwest::{Client, StatusCode, Url, header, redirect};
use tokio::runtime::{Builder, Runtime};

use super::notify::{Event, Listener};

/// Events that wait for a slow server; more are lost.
const BACKLOG: usize = 1000;
/// How often an event is sent, unless the one before could not be.
const ATTEMPTS: u32 = 4;
/// How long the server may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait between attempts, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));
/// How long the last events may take when everything else has ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// Sends events from a thread of its own: nobody waits for the server, and nothing fails with it.
///
/// Dropping it waits a moment for what was not sent yet. Only the host of the URL is ever printed, because the rest may
/// be a secret.
pub struct Webhook {
    url: Url,
    /// Taken only by `drop`.
    events: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    /// Set by `drop`.
    until: Arc<OnceLock<Instant>>,
}

impl Webhook {
    /// Prepares to send events to a URL.
    ///
    /// # Errors
    /// `InvalidInput` if it is no URL of a web server; `Io` if the system gives no thread.
    pub fn start(url: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid("the webhook", reason);
        let url: Url = url.parse().map_err(|_| invalid("it is no URL".to_owned()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(invalid("it is no URL of a web server".to_owned()));
        }
        let agent = concat!("cvmfs-ingest/", env!("CARGO_PKG_VERSION"));
        let client = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).user_agent(agent).build();
        let client = client.map_err(|error| invalid(error.to_string()))?;
        let runtime = Builder::new_current_thread().enable_all().build().at("tokio runtime")?;
        let (sender, events) = sync_channel(BACKLOG);
        let until = Arc::<OnceLock<Instant>>::default();
        let courier = Courier { url: url.clone(), client, runtime, until: Arc::clone(&until) };
        let thread = thread::Builder::new().name("webhook".to_owned()).spawn(move || courier.send_all(&events));
        Ok(Self { url, events: Some(sender), thread: Some(thread.at("thread")?), until })
    }
}

impl Listener for Webhook {
    fn hear(&self, event: &Event) {
        let text = serde_json::to_string(event).expect("strings can be written as JSON");
        let sent = self.events.as_ref().map_or(Ok(()), |events| events.try_send(text));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sent {
            tracing::warn!(host = self.url.host_str(), "an event is lost: too many wait for the webhook");
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        let _ = self.until.set(Instant::now() + FAREWELL);
        self.events = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({})", self.url.host_str().unwrap_or_default())
    }
}

/// The thread that sends.
struct Courier {
    url: Url,
    client: Client,
    runtime: Runtime,
    until: Arc<OnceLock<Instant>>,
}

/// Why an event was not taken.
struct Refusal {
    reason: String,
    /// Whether it may be taken later.
    is_temporary: bool,
}

impl Courier {
    fn send_all(&self, events: &Receiver<String>) {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut attempts = ATTEMPTS;
        for event in events {
            let sent = self.send(&event, attempts, &backoff);
            if let Err(reason) = &sent {
                tracing::warn!(host = self.url.host_str(), reason, "an event was not sent");
            }
            // A server that is away is asked once an event, until it is back.
            attempts = if sent.is_ok() { ATTEMPTS } else { 1 };
        }
    }

    fn send(&self, event: &str, attempts: u32, backoff: &Backoff) -> Result<(), String> {
        let mut repetition = 0;
        loop {
            if self.until.get().is_some_and(|until| *until < Instant::now()) {
                return Err("the program ends".to_owned());
            }
            match self.runtime.block_on(self.attempt(event)) {
                Ok(()) => return Ok(()),
                Err(refusal) if refusal.is_temporary && repetition + 1 < attempts => {
                    thread::sleep(backoff.delay(repetition));
                    repetition += 1;
                }
                Err(refusal) => return Err(refusal.reason),
            }
        }
    }

    async fn attempt(&self, event: &str) -> Result<(), Refusal> {
        let request =
            self.client.post(self.url.clone()).header(header::CONTENT_TYPE, "application/json").body(event.to_owned());
        let answer = request.send().await;
        let answer = answer.map_err(|error| Refusal { reason: error.without_url().to_string(), is_temporary: true })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let is_temporary =
            status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        Err(Refusal { reason: format!("HTTP status {status}"), is_temporary })
    }
}
