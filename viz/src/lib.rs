//! The dashboard: a server over the statistics API, and its page.
