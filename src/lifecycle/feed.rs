//! What a build tells those who watch it: its steps, the lines of its log, its end. One topic of the bus for each build;
//! those of the last ones are kept, so that who comes late reads how it went.
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

/// A part of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BuildStep {
    /// The base image, made if there is none.
    Image,
    /// The root, made from the image.
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

/// One build's story.
#[derive(Debug)]
pub(super) struct BuildFeed {
    topic: Arc<Topic>,
    step: Mutex<Option<(BuildStep, Instant)>>,
}

/// The topics of the last builds, by workspace.
pub(super) type BuildFeeds = Mutex<VecDeque<(Uuid, Arc<Topic>)>>;

impl Lifecycle {
    /// The events of the workspace's last build; one that has ended already where there was none since the start.
    pub fn build_events(&self, id: Uuid) -> Arc<Topic> {
        let known = lock(&self.feeds).iter().find(|(of, _)| *of == id).map(|(_, topic)| topic.clone());
        known.unwrap_or_else(|| {
            let topic = Topic::new(0, 1);
            topic.end();
            topic
        })
    }

    /// The feed of a build that was accepted.
    pub(super) fn new_feed(&self, id: Uuid) -> Arc<BuildFeed> {
        let mut feeds = lock(&self.feeds);
        let old = feeds.iter().position(|(of, _)| *of == id).and_then(|at| feeds.remove(at));
        // The numbers go on: whoever resumes behind an event of an earlier build misses nothing of this one.
        let last = old.map_or_else(clock::now_unix_ms, |(_, topic)| topic.last());
        let topic = Topic::new(last, limits::TOPIC_EVENTS);
        self.bus.put(&format!("build-{id}"), &topic);
        feeds.push_front((id, topic.clone()));
        feeds.truncate(limits::BUILD_FEEDS);
        drop(feeds);
        Arc::new(BuildFeed { topic, step: Mutex::new(None) })
    }

    /// Says how a build ended, and that nothing more comes.
    pub(super) fn build_ended(&self, record: &WorkspaceRecord) {
        let topic = self.build_events(record.view.id);
        topic.publish("result", result(record));
        topic.end();
    }
}

/// What a build has come to.
pub fn result(record: &WorkspaceRecord) -> Map<String, Value> {
    let shown = &record.view;
    object(json!({"status": shown.status, "error_message": shown.error_message}))
}

impl BuildFeed {
    /// The step before is done, this one begins.
    pub(super) fn begin(&self, step: BuildStep) {
        self.end(None);
        *lock(&self.step) = Some((step, Instant::now()));
        let number = step as usize + 1;
        let data = json!({"step": step.name(), "state": "started", "number": number, "of": BuildStep::COUNT});
        self.topic.publish("step", object(data));
    }

    /// The present step is over, well or with an error.
    pub(super) fn end(&self, error: Option<&Error>) {
        let Some((step, begun)) = lock(&self.step).take() else { return };
        let mut data = json!({
            "step": step.name(),
            "state": if error.is_some() { "failed" } else { "done" },
            "number": step as usize + 1,
            "of": BuildStep::COUNT,
            "duration_secs": begun.elapsed().as_secs_f64(),
        });
        if let Some(error) = error {
            data["message"] = error.message().into();
        }
        self.topic.publish("step", object(data));
    }

    /// A line of the log.
    pub(super) fn line(&self, line: &str) {
        let most = line.len().min(limits::BUILD_LINE_BYTES);
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
