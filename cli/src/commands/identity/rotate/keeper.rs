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
    /// Makes the issuer of the next generation, which is that of the root, the one that signs.
    async fn switch_issuer(&self, root: &Root) -> Result<(), CliError>;
    /// The next generation, which is that of the root, is the present one, and needs no place of its own any more.
    async fn finish(&self, root: &Root) -> Result<(), CliError>;
}

/// That of a local mesh: its files, which are locked as long as somebody rotates.
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

    async fn switch_issuer(&self, _root: &Root) -> Result<(), CliError> {
        self.switch_issuer()
    }

    async fn finish(&self, _root: &Root) -> Result<(), CliError> {
        self.finish()
    }
}
