//! Events of a build: its steps, the lines of its log, its end. Each build has a topic of the bus. The topics of the
//! last builds are kept, so that a late subscriber can read them.
//!
//! Locks: `feeds`, and the step of one feed; leaves.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::Lifecycle;
use crate::base::thread::lock;
use crate::base::{Error, clock, limits};
use crate::events::Topic;
use crate::workspaces::WorkspaceRecord;

/// Number of builds whose events are kept for clients that connect late; the longest take some 1 MB.
const BUILD_FEEDS: usize = 32;
/// Maximum length of a log line in a build's event.
const BUILD_LINE_BYTES: usize = 1000;

/// A step of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuildStep {
    /// The base image, built if it does not exist.
    Image,
    /// The root, created from the image.
    Root,
    /// Skills and tools of the library.
    Sync,
    /// The library's fragments and the skills' setup commands.
    Fragments,
    /// The workspace's own script.
    Script,
}

impl BuildStep {
    fn name(self) -> &'static str {
        match self {
            BuildStep::Image => "image",
            BuildStep::Root => "root",
            BuildStep::Sync => "skills and tools",
            BuildStep::Fragments => "init fragments",
            BuildStep::Script => "init script",
        }
    }

    const COUNT: usize = 5;
}

/// The event feed of one build.
#[derive(Debug)]
pub(super) struct BuildFeed {
    topic: Arc<Topic>,
    step: Mutex<Option<(BuildStep, Instant)>>,
}

/// The topics of the last builds, by workspace.
pub(super) type BuildFeeds = Mutex<VecDeque<(Uuid, Arc<Topic>)>>;

impl Lifecycle {
    /// The events of the workspace's last build, or an ended topic if there was no build since the start.
    pub fn build_events(&self, id: Uuid) -> Arc<Topic> {
        let known = lock(&self.feeds).iter().find(|(of, _)| *of == id).map(|(_, topic)| topic.clone());
        known.unwrap_or_else(|| {
            let topic = Topic::new(0, 1);
            topic.end();
            topic
        })
    }

    /// Creates the feed of an accepted build.
    pub(super) fn new_feed(&self, id: Uuid) -> Arc<BuildFeed> {
        let mut feeds = lock(&self.feeds);
        let old = feeds.iter().position(|(of, _)| *of == id).and_then(|at| feeds.remove(at));
        // Numbering continues, so that a subscriber that resumes after an event of an earlier build misses none of
        // this one.
        let last = old.map_or_else(clock::now_unix_ms, |(_, topic)| topic.last());
        let topic = Topic::new(last, limits::TOPIC_EVENTS);
        self.bus.put(&format!("build-{id}"), &topic);
        feeds.push_front((id, topic.clone()));
        feeds.truncate(BUILD_FEEDS);
        drop(feeds);
        Arc::new(BuildFeed { topic, step: Mutex::new(None) })
    }

    /// Publishes the outcome of a build and ends its topic.
    pub(super) fn build_ended(&self, record: &WorkspaceRecord) {
        let topic = self.build_events(record.view.id);
        topic.publish("result", result(record));
        topic.end();
    }
}

/// The outcome of a build.
pub fn result(record: &WorkspaceRecord) -> Map<String, Value> {
    let shown = &record.view;
    object(json!({"status": shown.status, "error_message": shown.error_message}))
}

impl BuildFeed {
    /// Ends the previous step and begins this one.
    pub(super) fn begin(&self, step: BuildStep) {
        self.end(None);
        *lock(&self.step) = Some((step, Instant::now()));
        let number = step as usize + 1;
        let data = json!({"step": step.name(), "state": "started", "number": number, "of": BuildStep::COUNT});
        self.topic.publish("step", object(data));
    }

    /// Ends the current step, with an error if it failed.
    pub(super) fn end(&self, error: Option<&Error>) {
        let Some((step, started)) = lock(&self.step).take() else { return };
        let mut data = json!({
            "step": step.name(),
            "state": if error.is_some() { "failed" } else { "done" },
            "number": step as usize + 1,
            "of": BuildStep::COUNT,
            "duration_secs": started.elapsed().as_secs_f64(),
        });
        if let Some(error) = error {
            data["message"] = error.message().into();
        }
        self.topic.publish("step", object(data));
    }

    /// Publishes a line of the log.
    pub(super) fn line(&self, line: &str) {
        let most = line.len().min(BUILD_LINE_BYTES);
        let end = (0..=most).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        self.topic.publish("log", object(json!({"line": &line[..end]})));
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
