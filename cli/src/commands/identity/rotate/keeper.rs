//! What a rotation does to an authority, wherever that is kept.

use mesh_tls::Issuer;

use crate::error::CliError;
use crate::local::authority::{Authority, Generation, Root};

pub(super) trait Keeper {
    /// The roots that are trusted.
    async fn roots(&self) -> Result<Vec<Root>, CliError>;
    /// The issuer that signs now.
    async fn issuer(&self) -> Result<Issuer, CliError>;
    /// Makes a next generation, if there is none yet.
    async fn prepare(&self) -> Result<Generation, CliError>;
    /// Has the root trusted, beside all that are.
    async fn trust(&self, root: &Root) -> Result<(), CliError>;
    /// Has no other root trusted.
    async fn trust_only(&self, root: &Root) -> Result<(), CliError>;
    /// Makes the next generation's issuer the one that signs.
    async fn switch_issuer(&self) -> Result<(), CliError>;
    /// The next generation is the present one, and needs no place of its own any more.
    async fn finish(&self) -> Result<(), CliError>;
}

/// That of a local mesh: its files.
impl Keeper for Authority {
    async fn roots(&self) -> Result<Vec<Root>, CliError> {
        self.roots()
    }

    async fn issuer(&self) -> Result<Issuer, CliError> {
        self.issuer()
    }

    async fn prepare(&self) -> Result<Generation, CliError> {
        self.prepare()
    }

    async fn trust(&self, root: &Root) -> Result<(), CliError> {
        self.trust(root)
    }

    async fn trust_only(&self, root: &Root) -> Result<(), CliError> {
        self.trust_only(root)
    }

    async fn switch_issuer(&self) -> Result<(), CliError> {
        self.switch_issuer()
    }

    async fn finish(&self) -> Result<(), CliError> {
        self.finish()
    }
}
