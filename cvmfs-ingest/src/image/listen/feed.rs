//! Events for whoever listens now.

use std::fmt;
use std::sync::Arc;

use tokio::sync::broadcast;

use crate::image::notify::{Event, Listener};

/// Events that a slow listener may be behind.
const BACKLOG: usize = 256;

/// Passes events on.
#[derive(Clone)]
pub(super) struct Feed(broadcast::Sender<Arc<str>>);

impl Feed {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    /// Events from now on, as they go over the wire.
    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<str>> {
        self.0.subscribe()
    }

    /// How many listen.
    pub(super) fn listeners(&self) -> usize {
        self.0.receiver_count()
    }
}

impl Listener for Feed {
    fn hear(&self, event: &Event) {
        let data = serde_json::to_string(event).expect("strings can be written as JSON");
        // Without listeners nobody is told.
        drop(self.0.send(format!("event: {}\ndata: {data}\n\n", event.action).into()));
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}
