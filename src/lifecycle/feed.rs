//! The events of a build: its steps, the lines of its log, and its outcome. Each build has a topic of the bus. The
//! topics of the most recent builds are kept, so that a subscriber that connects late can read them.
//!
//! Locks: `feeds`, and the step of one feed; both are leaves.

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

/// The number of builds whose events are kept for clients that connect late. The events of a long build take about 1
/// MB.
const BUILD_FEEDS: usize = 32;
/// The maximum length of a log line in a build's event.
const BUILD_LINE_BYTES: usize = 1000;

/// A step of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuildStep {
    /// Choosing the base image, and building the image if it does not exist.
    Image,
    /// Creating the root from the image.
    Root,
    /// Syncing skills and tools from the library.
    Sync,
    /// Running the library's fragments and the skills' setup commands.
    Fragments,
    /// Running the workspace's own script.
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

/// The topics of the most recent builds, with the id of each build's workspace.
pub(super) type BuildFeeds = Mutex<VecDeque<(Uuid, Arc<Topic>)>>;

impl Lifecycle {
    /// Returns the events of the workspace's most recent build. If the workspace was not built since the server's
    /// start, returns a topic that has ended.
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
        // The numbering of events continues that of the previous build, so that a subscriber that resumes after an
        // event of the previous build misses no event of this build.
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

/// Returns the outcome of a build, as clients receive it.
pub fn result(record: &WorkspaceRecord) -> Map<String, Value> {
    let shown = &record.view;
    object(json!({"status": shown.status, "error_message": shown.error_message}))
}

impl BuildFeed {
    /// Ends the previous step and begins `step`.
    pub(super) fn begin(&self, step: BuildStep) {
        self.end(None);
        *lock(&self.step) = Some((step, Instant::now()));
        let number = step as usize + 1;
        let data = json!({"step": step.name(), "state": "started", "number": number, "of": BuildStep::COUNT});
        self.topic.publish("step", object(data));
    }

    /// Ends the current step. `error` is the reason if the step failed.
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

    /// Publishes a line of the build log.
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
