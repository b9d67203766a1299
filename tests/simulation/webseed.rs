//! A simulated webseed and our requests to it: what it takes for blocks to come by HTTP.
//!
//! Our end takes the blocks it was asked for in order and makes requests of them, each for a run of blocks that follow
//! each other, up to four at a time. A request takes a round trip before its first byte; then the responses share the
//! line, block by block. A response can't leave blocks out: what is taken back comes all the same unless it stands at
//! the response's end, and one of which nothing is wanted any more is cut.
//!
//! A server that is down loses its responses: our end backs off, which it says as a choke, and is back some time later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use torrentfs::metainfo::geometry::{BLOCK_LEN, BlockRef, Geometry};
use torrentfs::peer::PeerKey;
use torrentfs::peer::buffer::PieceBuffer;
use torrentfs::peer::event::Item;
use torrentfs::torrent::effects::Event;
use torrentfs::webseed::slices;

use super::clock::Time;
use super::world::{Happening, World, ZEROS};

/// Requests at a time.
const ABREAST: usize = 4;
/// After a failure nothing is tried for so long.
const BACK_OFF: Duration = Duration::from_secs(1);
/// What a bad block holds.
static ONES: [u8; 16384] = [1; 16384];

/// A webseed as a scenario describes it.
#[derive(Debug, Clone)]
pub struct WebseedSpec {
    /// Bytes per second, all responses together.
    pub rate: u64,
    /// From one end to the other.
    pub delay: Duration,
    /// When it takes part.
    pub joins: Time,
    /// When it is down, and for how long.
    pub down: Vec<(Time, Duration)>,
    /// Pieces of which it sends other bytes.
    pub bad: fn(u32) -> bool,
}

impl WebseedSpec {
    /// A good one of this rate, 10 ms away.
    pub fn new(rate: u64) -> Self {
        Self { rate, delay: Duration::from_millis(10), joins: Time::ZERO, down: Vec::new(), bad: |_| false }
    }
}

/// A block that is wanted, its length, and where it goes.
type Asked = (BlockRef, u32, Arc<PieceBuffer>);
/// The least of what is queued that each of several requests gets.
const GATHER: u64 = 256 << 10;
/// With no more than this left to come the next request is made, however small.
const NEARLY_DONE: u64 = 128 << 10;

/// A block of a response.
struct Coming {
    asked: Asked,
    /// It was taken back.
    unwanted: bool,
}

/// A request under way.
struct Response {
    /// What is still to come.
    blocks: VecDeque<Coming>,
    /// Its first byte isn't here before.
    from: Time,
}

/// See the module's text.
pub struct Webseed {
    /// What it is.
    pub spec: WebseedSpec,
    /// Its key, while it takes part.
    pub key: Option<PeerKey>,
    /// Bytes that came from it.
    pub sent: u64,
    /// Requests made, and those of them that were cut.
    pub requests: u64,
    /// See above.
    pub cut: u64,
    /// Files that were not believed of it.
    pub distrusted: Vec<u32>,
    /// What is urgent, and what isn't.
    queues: [VecDeque<Asked>; 2],
    responses: VecDeque<Response>,
    /// The block that is on the line.
    on_line: Option<Asked>,
    /// Blocks that won't come, not told yet.
    taken_back: Vec<BlockRef>,
    /// When it is to be looked at again.
    look_at: Option<Time>,
    waits: bool,
}

impl Webseed {
    /// One that doesn't take part yet.
    pub fn new(spec: WebseedSpec) -> Self {
        Self {
            spec,
            key: None,
            sent: 0,
            requests: 0,
            cut: 0,
            distrusted: Vec::new(),
            queues: Default::default(),
            responses: VecDeque::new(),
            on_line: None,
            taken_back: Vec::new(),
            look_at: None,
            waits: false,
        }
    }

    /// Until when it is down, if it is.
    fn down_until(&self, now: Time) -> Option<Time> {
        let down = self.spec.down.iter().find(|(from, lasts)| (*from..*from + *lasts).contains(&now));
        down.map(|(from, lasts)| *from + *lasts)
    }

    /// It is to be asked for a block.
    pub fn ask(&mut self, asked: Asked, urgent: bool) {
        self.queues[usize::from(!urgent)].push_back(asked);
    }

    /// Whether nothing is asked of it.
    fn is_idle(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty) && self.responses.is_empty() && self.on_line.is_none()
    }

    /// A read waits for a block that was asked for before.
    pub fn hurry(&mut self, block: BlockRef) {
        if let Some(at) = self.queues[1].iter().position(|(b, ..)| *b == block) {
            let asked = self.queues[1].remove(at);
            self.queues[0].extend(asked);
        }
    }

    /// A block is taken back.
    pub fn cancel(&mut self, block: BlockRef) {
        for queue in &mut self.queues {
            if let Some(at) = queue.iter().position(|(b, ..)| *b == block) {
                queue.remove(at);
                return self.taken_back.push(block);
            }
        }
        for response in &mut self.responses {
            if let Some(found) = response.blocks.iter_mut().find(|coming| coming.asked.0 == block) {
                found.unwanted = true;
            }
            while response.blocks.back().is_some_and(|last| last.unwanted) {
                self.taken_back.extend(response.blocks.pop_back().map(|last| last.asked.0));
            }
        }
        let before = self.responses.len();
        self.responses.retain(|response| !response.blocks.is_empty());
        self.cut += (before - self.responses.len()) as u64;
    }

    /// Makes requests of what is wanted, as long as more may be under way.
    fn claim(&mut self, now: Time, geometry: &Geometry) {
        while self.responses.len() < ABREAST && !self.waits {
            let urgent = !self.queues[0].is_empty();
            let bytes = |blocks: usize| blocks as u64 * u64::from(BLOCK_LEN);
            let queued = bytes(self.queues.iter().map(VecDeque::len).sum());
            let coming = bytes(self.responses.iter().map(|response| response.blocks.len()).sum());
            let share = ((queued + coming) / ABREAST as u64).max(GATHER);
            let each = self.spec.rate / ABREAST as u64;
            let most = slices::size(each, urgent, geometry.piece_length()).min(share);
            if !urgent && coming > NEARLY_DONE && queued < most {
                return;
            }
            let most = most / u64::from(BLOCK_LEN);
            let Some(first) = self.queues[usize::from(!urgent)].pop_front() else { return };
            let mut last = first.0;
            let mut blocks = VecDeque::from([Coming { asked: first, unwanted: false }]);
            while blocks.len() < most as usize {
                let mut next = last;
                next.block.0 += 1;
                if next.block.0 >= geometry.blocks_in(last.piece) {
                    (next.piece.0, next.block.0) = (next.piece.0 + 1, 0);
                }
                let found = self.queues.iter_mut().find_map(|queue| {
                    let at = queue.iter().position(|(b, ..)| *b == next)?;
                    queue.remove(at)
                });
                let Some(asked) = found else { break };
                blocks.push_back(Coming { asked, unwanted: false });
                last = next;
            }
            self.requests += 1;
            self.responses.push_back(Response { blocks, from: now + self.spec.delay * 2 });
        }
    }
}

impl World {
    /// A webseed takes part.
    pub fn webseed_joins(&mut self, n: usize) {
        let key = self.new_key();
        self.webseeds[n].key = Some(key);
        self.apply(Event::Webseed { key, url: format!("http://{n}.example/") });
    }

    /// Which of the webseeds this is.
    pub fn webseed(&mut self, key: PeerKey) -> Option<&mut Webseed> {
        self.webseeds.iter_mut().find(|seed| seed.key == Some(key))
    }

    /// Goes on with what was asked of a webseed: called when something changed, and when a block has left the line.
    pub fn webseed_goes_on(&mut self, n: usize) {
        let now = self.now;
        let Some(key) = self.webseeds[n].key else { return };
        if self.webseeds[n].look_at.take_if(|at| *at <= now).is_some()
            && let Some(asked) = self.webseeds[n].on_line.take()
        {
            self.webseed_sent(n, key, asked);
        }
        let taken_back = std::mem::take(&mut self.webseeds[n].taken_back);
        if !taken_back.is_empty() {
            let items = taken_back.into_iter().map(Item::Recalled).collect();
            self.apply(Event::Said { key, items });
        }
        if self.webseeds[n].key != Some(key) {
            return;
        }
        let seed = &mut self.webseeds[n];
        if let Some(until) = seed.down_until(now)
            && !seed.waits
            && !seed.is_idle()
        {
            seed.waits = true;
            seed.look_at = None;
            let coming = seed.responses.drain(..).flat_map(|r| r.blocks).map(|coming| coming.asked);
            let queued = seed.queues.iter_mut().flat_map(|queue| queue.drain(..));
            let lost = coming.chain(queued).chain(seed.on_line.take());
            let rejected = lost.map(|(block, ..)| Item::Rejected(block));
            let items = [Item::Choked(true)].into_iter().chain(rejected).collect();
            self.agenda.put(until.max(now + BACK_OFF), Happening::WebseedBack(n));
            return self.apply(Event::Said { key, items });
        }
        let info = self.info.clone();
        let seed = &mut self.webseeds[n];
        seed.claim(now, &info.geometry);
        if seed.on_line.is_some() || seed.look_at.is_some_and(|at| at > now) {
            return;
        }
        // The responses take turns.
        let at = match seed.responses.iter().position(|response| response.from <= now) {
            Some(ready) => {
                let Some(mut response) = seed.responses.remove(ready) else { return };
                seed.on_line = response.blocks.pop_front().map(|coming| coming.asked);
                if !response.blocks.is_empty() {
                    seed.responses.push_back(response);
                }
                let len = seed.on_line.as_ref().map_or(0, |(_, len, _)| *len);
                now + Duration::from_secs_f64(f64::from(len) / seed.spec.rate as f64)
            }
            None => match seed.responses.iter().map(|response| response.from).min() {
                Some(from) => from,
                None => return,
            },
        };
        seed.look_at = Some(at);
        self.agenda.put(at, Happening::Webseed(n));
    }

    /// A block has come whole. One that was taken back is welcome, too.
    fn webseed_sent(&mut self, n: usize, key: PeerKey, (block, len, buffer): Asked) {
        self.webseeds[n].sent += u64::from(len);
        self.count(block, len);
        let bad = (self.webseeds[n].spec.bad)(block.piece.0);
        let data: &'static [u8] = if bad { &ONES } else { &ZEROS };
        buffer.put(block.block, Bytes::from_static(&data[..len as usize]), key);
        self.said(key, Item::Block { block, buffer });
    }

    /// A webseed has waited long enough after a failure.
    pub fn webseed_back(&mut self, n: usize) {
        self.webseeds[n].waits = false;
        if let Some(key) = self.webseeds[n].key {
            self.said(key, Item::Choked(false));
        }
    }
}
