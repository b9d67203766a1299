//! stub
use crate::storage::quota::{Quota, Reservation};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
/// s
#[derive(Debug, Clone)]
pub struct Stuck {
    /// r
    pub reason: Arc<str>,
    /// d
    pub disk: bool,
}
/// s
#[derive(Debug, Clone, Default)]
pub struct RoomState {
    /// s
    pub stuck: Option<Stuck>,
}
/// r
#[derive(Debug, Clone)]
pub struct Room {
    quota: Arc<Quota>,
    state: Arc<watch::Sender<RoomState>>,
}
impl Room {
    /// n
    pub fn new(quota: Arc<Quota>) -> Self {
        Self { quota, state: Arc::new(watch::Sender::new(RoomState::default())) }
    }
    /// w
    pub fn watch(&self) -> watch::Receiver<RoomState> {
        self.state.subscribe()
    }
    /// t
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        self.quota.reserve(bytes)
    }
    /// r
    pub fn release(&self, bytes: u64) {
        self.quota.release(bytes)
    }
    /// a
    pub fn ask(&self, _slot: u32, _bytes: u64, _since: Option<Instant>) {}
    /// w
    pub fn withdraw(&self, _slot: u32) {}
    /// d
    pub fn disk_full(&self) {}
    /// q
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }
}
