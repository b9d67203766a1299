//! Parked reads: replies that wait for content, without a thread. All of it is in [`table`], which `tests/models` runs
//! as it is; here are the tests of what it does when nothing races, and of what only real threads show.

mod table;

pub(crate) use table::ParkedRead;
pub use table::{ParkedReads, ReadReply, WaitingRead};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::content::{ContentError, ReadDone, Stream, Ticket, TryRead};
    use crate::errno::Errno;
    use crate::lock::{Rank, RankedMutex, assert_none_held};
    use crate::tree::NodeId;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

    /// Keeps what it is asked, to be answered by hand.
    #[derive(Default)]
    struct Slow {
        asked: Arc<RankedMutexOption>,
        withdrawn: Arc<AtomicUsize>,
        at_once: Option<Result<Vec<u8>, ContentError>>,
    }
    type RankedMutexOption = Holder;
    struct Holder(RankedMutex<Vec<ReadDone>>);
    impl Default for Holder {
        fn default() -> Self {
            Holder(RankedMutex::new(Rank::Leaf, "asked", Vec::new()))
        }
    }
    impl Stream for Slow {
        fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
            TryRead::NotNow
        }
        fn read(&self, _: u64, _: usize, done: ReadDone) -> Ticket {
            match &self.at_once {
                Some(Ok(bytes)) => done(Ok(bytes)),
                Some(Err(error)) => done(Err(error.clone())),
                None => self.asked.0.lock().push(done),
            }
            let withdrawn = self.withdrawn.clone();
            Ticket::new(move || {
                assert_none_held("a ticket's drop");
                withdrawn.fetch_add(1, Ordering::SeqCst);
            })
        }
    }

    type Answered = Receiver<Result<Vec<u8>, Errno>>;

    fn reply() -> (ReadReply, Answered) {
        let (sender, receiver) = channel();
        let reply: ReadReply = Box::new(move |result| {
            assert_none_held("a reply");
            sender.send(result.map(<[u8]>::to_vec)).unwrap();
        });
        (reply, receiver)
    }

    fn park(parked: &Arc<ParkedReads>, stream: &Slow) -> Answered {
        let (reply, answered) = reply();
        parked.park(stream, NodeId::new(1, 1), 8, 4, 0, reply);
        answered
    }

    fn once(answered: &Answered) -> Result<Vec<u8>, Errno> {
        let result = answered.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(answered.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected), "once only");
        result
    }

    #[test]
    fn data_answers_and_gives_the_ticket_back() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        assert_eq!(parked.len(), 1);
        let waiting = parked.waiting();
        assert_eq!((waiting[0].node, waiting[0].offset, waiting[0].len), (NodeId::new(1, 1), 8, 4));
        assert!(parked.any_in_slot(1) && !parked.any_in_slot(2));
        let done = stream.asked.0.lock().pop().unwrap();
        done(Ok(b"data"));
        assert_eq!(once(&answered), Ok(b"data".to_vec()));
        assert!(parked.is_empty() && parked.waiting().is_empty());
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_answer_before_the_ticket_is_fine() {
        for (at_once, expected) in [
            (Ok(b"data".to_vec()), Ok(b"data".to_vec())),
            (Err(ContentError::Gone), Err(Errno::ESTALE)),
            (Ok(b"sho".to_vec()), Err(Errno::EIO)),
        ] {
            let stream = Slow { at_once: Some(at_once), ..Slow::default() };
            let parked = ParkedReads::new(8);
            assert_eq!(once(&park(&parked, &stream)), expected, "a short answer is an error");
            assert!(parked.is_empty());
            assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn whoever_comes_second_does_nothing() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        let read = parked.all().pop().unwrap();
        assert!(parked.answer(&read, Err(Errno::EINTR)));
        assert!(!parked.answer(&read, Err(Errno::EIO)));
        let done = stream.asked.0.lock().pop().unwrap();
        done(Ok(b"data"));
        assert_eq!(once(&answered), Err(Errno::EINTR));
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_request_that_is_dropped_ends_in_an_error() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let answered = park(&parked, &stream);
        let dropped = stream.asked.0.lock().pop();
        drop(dropped);
        assert_eq!(once(&answered), Err(Errno::EIO));
        assert!(parked.is_empty());
    }

    #[test]
    fn f3_refusal_is_sticky() {
        let (parked, stream) = (ParkedReads::new(8), Slow::default());
        let before: Vec<_> = (0..50).map(|_| park(&parked, &stream)).collect();
        parked.refuse();
        for answered in &before {
            assert_eq!(once(answered), Err(Errno::EIO));
        }
        assert_eq!(once(&park(&parked, &stream)), Err(Errno::EIO));
        parked.refuse();
        assert!(parked.is_empty() && parked.is_refusing());
        assert_eq!(stream.withdrawn.load(Ordering::SeqCst), 50);
    }

    #[test]
    fn answers_race_and_one_wins() {
        let parked = ParkedReads::new(8);
        for round in 0..200 {
            let stream = Slow::default();
            let answered = park(&parked, &stream);
            let done = stream.asked.0.lock().pop().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for read in parked.all() {
                        parked.answer(&read, Err(Errno::EINTR));
                    }
                });
                scope.spawn(move || done(Ok(b"data")));
            });
            let result = once(&answered);
            assert!(result == Ok(b"data".to_vec()) || result == Err(Errno::EINTR), "round {round}");
        }
        assert!(parked.is_empty());
    }

    #[test]
    fn a_panic_in_the_content_answers_too() {
        struct Broken;
        impl Stream for Broken {
            fn try_read(&self, _: u64, _: &mut [u8]) -> TryRead {
                TryRead::NotNow
            }
            fn read(&self, _: u64, _: usize, _: ReadDone) -> Ticket {
                std::panic::panic_any("planned")
            }
        }
        let parked = ParkedReads::new(8);
        let (reply, answered) = reply();
        let parking = std::panic::AssertUnwindSafe(|| parked.park(&Broken, NodeId::ROOT, 0, 1, 0, reply));
        assert!(std::panic::catch_unwind(parking).is_err());
        assert_eq!(once(&answered), Err(Errno::EIO));
        assert!(parked.is_empty());
    }
}
