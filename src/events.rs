//! The bus: what happens, told to whoever follows. A topic numbers its events and keeps the last of them, so that who
//! comes late or was away gets what it missed, and is told what is not kept any more. Nobody waits for a follower: each
//! reads the ring at its own speed, so there is no queue that could fill.
//! Knows nothing of what the events mean, nor of HTTP.
//!
//! Threads: any. Locks: the list of topics, then one topic's ring; both leaves, bells ring after unlocking.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::event::PollFlags;
use serde_json::{Map, Value};

use crate::base::thread::lock;
use crate::base::{Result, clock, limits};
use crate::proc::waiter::{Waiter, WaiterList, WakeReason};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number in its topic; a later one has a larger number.
    pub seq: u64,
    /// What kind.
    pub kind: &'static str,
    /// The rest.
    pub data: Map<String, Value>,
}

#[derive(Debug, Default)]
struct EventRing {
    events: VecDeque<Arc<Event>>,
    /// The number of the newest event; what is kept ends with it.
    last: u64,
    ended: bool,
}

/// Events of one kind of thing, in order.
#[derive(Debug)]
pub struct Topic {
    ring: Mutex<EventRing>,
    bells: WaiterList,
    keep: usize,
}

/// What a follower finds.
#[derive(Clone, Debug, PartialEq)]
pub enum NextEvent {
    /// The next event.
    Event(Arc<Event>),
    /// These numbers are not kept any more.
    Missed {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Nothing new yet.
    Nothing,
    /// Nothing will come any more.
    Ended,
}

impl Topic {
    /// A topic whose first event has the number `last + 1`; the newest `keep` events stay.
    pub fn new(last: u64, keep: usize) -> Arc<Topic> {
        let ring = EventRing { last, ..EventRing::default() };
        Arc::new(Topic { ring: Mutex::new(ring), bells: WaiterList::default(), keep: keep.max(1) })
    }

    /// Tells everybody; returns the event's number. After [`Topic::end`] nothing is told.
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
        self.bells.notify_all();
        seq
    }

    /// Replaces the data of an event that is still kept, for followers that have not read it yet.
    pub fn amend(&self, seq: u64, data: Map<String, Value>) {
        let mut ring = lock(&self.ring);
        let first = ring.last + 1 - ring.events.len() as u64;
        let place = seq.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(event) = place.and_then(|place| ring.events.get_mut(place)) {
            *event = Arc::new(Event { seq, kind: event.kind, data });
        }
    }

    /// Nothing will come any more: followers read what there is and end.
    pub fn end(&self) {
        lock(&self.ring).ended = true;
        self.bells.notify_all();
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        lock(&self.ring).ended
    }

    /// The number of the newest event.
    pub fn last(&self) -> u64 {
        lock(&self.ring).last
    }

    /// What is kept of the events after number `cursor`, oldest first, and the newest number. A number that does not
    /// exist yet is from another time: all is news then.
    pub fn since(&self, cursor: u64) -> (Vec<Arc<Event>>, u64) {
        let ring = lock(&self.ring);
        let cursor = if cursor > ring.last { 0 } else { cursor };
        (ring.events.iter().filter(|event| event.seq > cursor).cloned().collect(), ring.last)
    }

    /// Follows from behind number `cursor` on; `None`: from now on.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn follow(self: &Arc<Topic>, cursor: Option<u64>) -> Result<Subscriber> {
        self.follower(cursor, false)
    }

    /// The same, but without a `cursor` everything that is kept comes first.
    ///
    /// # Errors
    /// As above.
    pub fn follow_kept(self: &Arc<Topic>, cursor: Option<u64>) -> Result<Subscriber> {
        self.follower(cursor, true)
    }

    fn follower(self: &Arc<Topic>, cursor: Option<u64>, kept: bool) -> Result<Subscriber> {
        let bell = Waiter::new()?;
        self.bells.add(&bell);
        let ring = lock(&self.ring);
        let at = match cursor {
            Some(cursor) if cursor <= ring.last => cursor,
            None if !kept => ring.last,
            // All that is kept; nothing that we know of was missed. A number that does not exist yet is from before a
            // restart.
            _ => ring.events.front().map_or(ring.last, |event| event.seq - 1),
        };
        drop(ring);
        Ok(Subscriber { topic: self.clone(), bell, at })
    }
}

/// One reader of a topic, at its own speed.
#[derive(Debug)]
pub struct Subscriber {
    topic: Arc<Topic>,
    bell: Arc<Waiter>,
    at: u64,
}

impl Subscriber {
    /// The number of what was read last.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// What comes next. A later [`Subscriber::wait`] hears whatever happens after this.
    pub fn read_next(&mut self) -> NextEvent {
        self.bell.arm();
        let ring = lock(&self.topic.ring);
        if self.at >= ring.last {
            return if ring.ended { NextEvent::Ended } else { NextEvent::Nothing };
        }
        // Numbers are consecutive, so a place in the ring is a difference.
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

    /// Waits until there may be more, for `other`, or until the deadline.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&self, other: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> Result<WakeReason> {
        self.bell.wait(other, deadline)
    }
}

/// The topics by name. One that nobody holds any more is forgotten with its events.
#[derive(Debug, Default)]
pub struct Bus(Mutex<Topics>);

#[derive(Debug, Default)]
struct Topics {
    by_name: HashMap<String, Weak<Topic>>,
    closed: bool,
}

impl Bus {
    /// The topic of this name; made if need be. Its numbers start with the time in Unix milliseconds, so that none comes
    /// twice, not even after a restart.
    pub fn topic(&self, name: &str) -> Arc<Topic> {
        let mut topics = lock(&self.0);
        if let Some(topic) = topics.by_name.get(name).and_then(Weak::upgrade) {
            return topic;
        }
        let topic = Topic::new(clock::now_unix_ms(), limits::TOPIC_EVENTS);
        topics.add(name, &topic);
        topic
    }

    /// The topic of this name, if somebody holds it.
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        lock(&self.0).by_name.get(name).and_then(Weak::upgrade)
    }

    /// Puts this one under the name, for whoever looks from now on.
    pub fn put(&self, name: &str, topic: &Arc<Topic>) {
        lock(&self.0).add(name, topic);
    }

    /// Ends every topic, those to come as well.
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
    fn a_follower_resumes_without_gap_or_repetition() {
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
            "from before a restart"
        );
        assert_eq!(topic.since(13).0.len(), 2);
        assert_eq!((topic.since(999).0.len(), topic.since(0).1), (5, 15));
    }

    #[test]
    fn who_is_too_slow_is_told_what_it_missed() {
        let topic = Topic::new(0, 4);
        let mut slow = topic.follow(Some(0)).unwrap();
        publish(&topic, 10);
        assert_eq!(slow.read_next(), NextEvent::Missed { from: 1, to: 6 });
        assert_eq!(read(&mut slow), [7, 8, 9, 10]);
    }

    #[test]
    fn a_bell_rings_and_an_end_is_heard() {
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
