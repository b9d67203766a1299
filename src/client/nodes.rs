//! The DHT's nodes in the cache folder, from one run to the next.

use std::pin::Pin;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::oneshot;

use crate::discovery::dht::Keep;
use crate::storage::cache::CacheDir;
use crate::storage::pool::{Class, Workers};

/// The file's name.
const NAME: &str = "dht-nodes";

/// Reads and writes them on the storage workers.
pub struct KeptNodes {
    cache: Arc<CacheDir>,
    workers: Arc<Workers>,
}

impl KeptNodes {
    /// In this folder, by these workers.
    pub fn new(cache: Arc<CacheDir>, workers: Arc<Workers>) -> Self {
        Self { cache, workers }
    }
}

impl Keep for KeptNodes {
    fn load(&self) -> Pin<Box<dyn Future<Output = Option<Vec<u8>>> + Send + '_>> {
        let cache = self.cache.clone();
        Box::pin(async move {
            let text = super::on_worker(&self.workers, move || cache.value(NAME)).await??;
            STANDARD.decode(text).ok()
        })
    }

    fn store(&self, bytes: Vec<u8>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let cache = self.cache.clone();
        let (done, over) = oneshot::channel();
        let job = Box::new(move |_: &mut _| {
            if let Err(why) = cache.set_value(NAME, &STANDARD.encode(bytes)) {
                tracing::debug!("the DHT's nodes aren't kept: {why}");
            }
            let _ = done.send(());
        });
        // Refused at the end of all, or when the disk is far behind: the next start finds its way without.
        let _ = self.workers.submit(Class::Background, job);
        // An error says that it won't be done.
        Box::pin(async move { _ = over.await })
    }
}
