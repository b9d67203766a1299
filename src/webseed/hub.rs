//! What all webseeds of the program share: the HTTP clients, and how many requests there may be.

use std::sync::Arc;

use crate::sync::timeouts;

/// What a hub is made with.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Most requests to one webseed at a time.
    pub per_seed: usize,
    /// Most requests to one host (a name and a port) at a time, of all webseeds together.
    pub per_host: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        // A browser opens six connections to a host; more than four to fetch one torrent gains nothing on any line
        // that we have seen, and two torrents of one host are still served at once.
        Self { per_seed: 4, per_host: 8 }
    }
}

/// See the module's text.
pub struct Hub {
    pub(super) options: HubOptions,
    pub(super) client: reqwest::Client,
}

impl Hub {
    /// A hub without any webseed. Reads the system's certificates, so it is made at the start.
    ///
    /// # Errors
    /// When TLS can't be set up at all. Without any certificates on the system it warns, and only HTTPS fails.
    pub fn new(options: HubOptions) -> Result<Arc<Self>, reqwest::Error> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("torrentfs/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .no_proxy()
                .connect_timeout(timeouts::WEBSEED_CONNECT)
        };
        let client = builder().build().or_else(|error| {
            tracing::warn!("HTTPS webseeds won't work, the system's certificates can't be read ({error}); install ca-certificates");
            builder().tls_certs_only([]).build()
        })?;
        Ok(Arc::new(Self { options, client }))
    }
}
