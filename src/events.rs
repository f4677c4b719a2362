//! The event bus. A topic numbers its events and keeps the latest ones. A client that connects late or again receives
//! the events that it missed, or the range of the events that are no longer available. Publishing never waits for a
//! subscriber: each subscriber reads the ring at its own speed, so there is no queue that could fill. The bus does not
//! depend on HTTP or on the meaning of the events.
//!
//! Any thread may use the bus. Locks: the list of topics, and one topic's ring; both are leaves. Waiters are notified
//! after unlocking.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::event::PollFlags;
use serde_json::{Map, Value};

use crate::base::thread::lock;
use crate::base::{Result, clock, limits};
use crate::proc::waiter::{Waiter, WaiterList, WakeReason};

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The event's number in its topic. Numbers increase.
    pub seq: u64,
    pub kind: &'static str,
    /// The event's further fields.
    pub data: Map<String, Value>,
}

#[derive(Debug, Default)]
struct EventRing {
    events: VecDeque<Arc<Event>>,
    /// The number of the newest event, which is the last in `events`.
    last: u64,
    ended: bool,
}

/// A sequence of numbered events.
#[derive(Debug)]
pub struct Topic {
    ring: Mutex<EventRing>,
    waiters: WaiterList,
    keep: usize,
}

/// The next item for a subscriber.
#[derive(Clone, Debug, PartialEq)]
pub enum NextEvent {
    /// The next event of the topic.
    Event(Arc<Event>),
    /// These events are no longer available.
    Missed {
        /// The first missed number.
        from: u64,
        /// The last missed number.
        to: u64,
    },
    /// There is no new event yet.
    Nothing,
    /// The topic has ended, and the subscriber has read all its events.
    Ended,
}

impl Topic {
    /// Creates a topic that keeps the newest `keep` events; its first event gets the number `last + 1`.
    pub fn new(last: u64, keep: usize) -> Arc<Topic> {
        let ring = EventRing { last, ..EventRing::default() };
        Arc::new(Topic { ring: Mutex::new(ring), waiters: WaiterList::default(), keep: keep.max(1) })
    }

    /// Publishes an event and returns its number. Has no effect after [`Topic::end`].
    pub fn publish(&self, kind: &'static str, data: Map<String, Value>) -> u64 {
        let seq = {
            let mut ring = lock(&self.ring);
            if ring.ended {
                return ring.last;
            }
            ring.last += 1;
            let seq = ring.last;
            ring.events.push_back(Arc::new(Event { seq, kind, data }));
            if ring.events.len() > self.keep {
                ring.events.pop_front();
            }
            seq
        };
        self.waiters.notify_all();
        seq
    }

    /// Replaces the data of an event that is still kept, for subscribers that have not read it yet.
    pub fn amend(&self, seq: u64, data: Map<String, Value>) {
        let mut ring = lock(&self.ring);
        let first = ring.last + 1 - ring.events.len() as u64;
        let place = seq.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(event) = place.and_then(|place| ring.events.get_mut(place)) {
            *event = Arc::new(Event { seq, kind: event.kind, data });
        }
    }

    /// Ends the topic: subscribers read the remaining events and then get [`NextEvent::Ended`].
    pub fn end(&self) {
        lock(&self.ring).ended = true;
        self.waiters.notify_all();
    }

    pub fn has_ended(&self) -> bool {
        lock(&self.ring).ended
    }

    /// Returns the number of the newest event.
    pub fn last(&self) -> u64 {
        lock(&self.ring).last
    }

    /// Returns the kept events after number `cursor`, oldest first, and the newest number. If the topic has not reached
    /// `cursor` yet, the number is from before a restart, and all kept events are returned.
    pub fn since(&self, cursor: u64) -> (Vec<Arc<Event>>, u64) {
        let ring = lock(&self.ring);
        let cursor = if cursor > ring.last { 0 } else { cursor };
        (ring.events.iter().filter(|event| event.seq > cursor).cloned().collect(), ring.last)
    }

    /// Subscribes to the events after number `cursor`, or only to future events if `cursor` is `None`.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn follow(self: &Arc<Topic>, cursor: Option<u64>) -> Result<Subscriber> {
        self.follower(cursor, false)
    }

    /// Subscribes as [`Topic::follow`] does, but without a `cursor` the subscriber first gets all kept events.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn follow_kept(self: &Arc<Topic>, cursor: Option<u64>) -> Result<Subscriber> {
        self.follower(cursor, true)
    }

    fn follower(self: &Arc<Topic>, cursor: Option<u64>, kept: bool) -> Result<Subscriber> {
        let waiter = Waiter::new()?;
        self.waiters.add(&waiter);
        let ring = lock(&self.ring);
        let at = match cursor {
            Some(cursor) if cursor <= ring.last => cursor,
            None if !kept => ring.last,
            // Start with all kept events and report no gap. A number that the topic has not reached is from before a
            // restart.
            _ => ring.events.front().map_or(ring.last, |event| event.seq - 1),
        };
        drop(ring);
        Ok(Subscriber { topic: self.clone(), waiter, at })
    }
}

/// A reader of a topic.
#[derive(Debug)]
pub struct Subscriber {
    topic: Arc<Topic>,
    waiter: Arc<Waiter>,
    at: u64,
}

impl Subscriber {
    /// Returns the number of the event that was read last.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Returns the next item. If an event is published after this call, the next [`Subscriber::wait`] returns at once.
    pub fn read_next(&mut self) -> NextEvent {
        self.waiter.arm();
        let ring = lock(&self.topic.ring);
        if self.at >= ring.last {
            return if ring.ended { NextEvent::Ended } else { NextEvent::Nothing };
        }
        // Numbers are consecutive, so the index of an event is the difference to the first number.
        let first = ring.last + 1 - ring.events.len() as u64;
        if self.at + 1 < first {
            let missed = NextEvent::Missed { from: self.at + 1, to: first - 1 };
            self.at = first - 1;
            return missed;
        }
        let place = usize::try_from(self.at + 1 - first).unwrap_or(usize::MAX);
        match ring.events.get(place) {
            Some(event) => {
                self.at = event.seq;
                NextEvent::Event(event.clone())
            }
            None => NextEvent::Nothing,
        }
    }

    /// Waits until a new event may exist, `other` is ready, or the deadline passes.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> Result<WakeReason> {
        self.waiter.wait(other, deadline)
    }
}

/// The topics by name. A topic to which no other reference exists is removed, together with its events.
#[derive(Debug, Default)]
pub struct Bus(Mutex<Topics>);

#[derive(Debug, Default)]
struct Topics {
    by_name: HashMap<String, Weak<Topic>>,
    closed: bool,
}

impl Bus {
    /// Returns the topic with this name, and creates it if necessary. The numbers of a new topic start with the time in
    /// Unix milliseconds, so that they are not reused after a restart.
    pub fn topic(&self, name: &str) -> Arc<Topic> {
        let mut topics = lock(&self.0);
        if let Some(topic) = topics.by_name.get(name).and_then(Weak::upgrade) {
            return topic;
        }
        let topic = Topic::new(clock::now_unix_ms(), limits::TOPIC_EVENTS);
        topics.add(name, &topic);
        topic
    }

    /// Returns the topic with this name, if it is in use.
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        lock(&self.0).by_name.get(name).and_then(Weak::upgrade)
    }

    /// Registers a topic under this name for later lookups.
    pub fn put(&self, name: &str, topic: &Arc<Topic>) {
        lock(&self.0).add(name, topic);
    }

    /// Ends all topics, including topics that are created later.
    pub fn close(&self) {
        let topics: Vec<Arc<Topic>> = {
            let mut topics = lock(&self.0);
            topics.closed = true;
            topics.by_name.values().filter_map(Weak::upgrade).collect()
        };
        topics.iter().for_each(|topic| topic.end());
    }
}

impl Topics {
    fn add(&mut self, name: &str, topic: &Arc<Topic>) {
        self.by_name.retain(|_, topic| topic.strong_count() > 0);
        self.by_name.insert(name.to_owned(), Arc::downgrade(topic));
        if self.closed {
            topic.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn publish(topic: &Topic, count: usize) {
        for _ in 0..count {
            topic.publish("tick", Map::new());
        }
    }

    fn read(follower: &mut Subscriber) -> Vec<u64> {
        let mut seen = Vec::new();
        while let NextEvent::Event(event) = follower.read_next() {
            seen.push(event.seq);
        }
        seen
    }

    #[test]
    fn subscriber_resumes_without_gap_or_repetition() {
        let topic = Topic::new(10, 100);
        publish(&topic, 3);
        let mut all = topic.follow(Some(10)).unwrap();
        assert_eq!(read(&mut all), [11, 12, 13]);
        assert_eq!(topic.follow(Some(12)).unwrap().read_next(), topic.follow(Some(12)).unwrap().read_next());
        let mut later = topic.follow(None).unwrap();
        publish(&topic, 2);
        assert_eq!(read(&mut later), [14, 15]);
        assert_eq!(read(&mut all), [14, 15]);
        assert_eq!(
            read(&mut topic.follow(Some(999)).unwrap()),
            [11, 12, 13, 14, 15],
            "a cursor from before a restart"
        );
        assert_eq!(topic.since(13).0.len(), 2);
        assert_eq!((topic.since(999).0.len(), topic.since(0).1), (5, 15));
    }

    #[test]
    fn slow_subscriber_learns_which_events_it_missed() {
        let topic = Topic::new(0, 4);
        let mut slow = topic.follow(Some(0)).unwrap();
        publish(&topic, 10);
        assert_eq!(slow.read_next(), NextEvent::Missed { from: 1, to: 6 });
        assert_eq!(read(&mut slow), [7, 8, 9, 10]);
    }

    #[test]
    fn subscriber_is_notified_of_events_and_the_end() {
        let bus = Bus::default();
        let topic = bus.topic("a");
        assert!(Arc::ptr_eq(&topic, &bus.topic("a")));
        let mut follower = topic.follow(None).unwrap();
        assert_eq!(follower.read_next(), NextEvent::Nothing);
        publish(&topic, 1);
        let soon = || Instant::now() + Duration::from_secs(5);
        assert_eq!(follower.wait(None, soon()).unwrap(), WakeReason::Notified);
        assert_eq!(read(&mut follower).len(), 1);
        bus.close();
        assert_eq!(follower.wait(None, soon()).unwrap(), WakeReason::Notified);
        assert_eq!(follower.read_next(), NextEvent::Ended);
        publish(&topic, 1);
        assert_eq!(follower.read_next(), NextEvent::Ended);
        assert!(bus.topic("b").has_ended());
        drop((topic, follower));
        assert!(bus.find("a").is_none());
    }
}
