//! stub
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
/// q
#[derive(Debug)]
pub struct Quota {
    bound: Option<u64>,
    used: AtomicU64,
}
impl Quota {
    /// n
    pub fn new(bound: Option<u64>) -> Self {
        Self { bound, used: AtomicU64::new(0) }
    }
    /// b
    pub fn bound(&self) -> Option<u64> {
        self.bound
    }
    /// r
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Some(Reservation { quota: self.clone(), bytes })
    }
    /// r
    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
    /// h
    pub fn has_free(&self, b: u64) -> bool {
        self.bound.is_none_or(|m| self.used.load(Ordering::Relaxed) + b <= m)
    }
    /// c
    pub fn charge(&self, b: u64) {
        self.used.fetch_add(b, Ordering::Relaxed);
    }
}
/// r
#[derive(Debug)]
pub struct Reservation {
    quota: Arc<Quota>,
    bytes: u64,
}
impl Reservation {
    /// k
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}
impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.release(self.bytes)
    }
}
