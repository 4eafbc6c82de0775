//! Leads a pod's TCP connections through its proxy, with one table of nf_tables that is programmed over
//! netlink: no shell, no `nft` or `iptables` binary, nothing but the capability NET_ADMIN is needed.
//!
//! [`Redirect`] says what is wanted and [`Table`] which rules that makes: plain data that prints itself in
//! `nft`'s syntax. `encode` turns a table into one transaction, `netlink` frames its messages, and `socket`
//! is the only part that talks to the kernel. Linux only.
//!
//! The framing is our own hundred lines: the published encoders either are copyleft, need C libraries, or
//! lack the expressions a redirect is made of. One of them decodes our messages in the tests.

mod encode;
mod netlink;
mod rules;
mod skip;
mod socket;

pub use self::encode::Batch;
pub use self::rules::{
    Chain, Hook, Match, PROXY_PORTS, Redirect, Rule, TABLE, Table, TooManyRules, Verdict,
};
pub use self::skip::{BadPorts, BadSubnet, Ports, Subnet};
pub use self::socket::{RedirectError, send};

/// Puts the redirect in force in this thread's network namespace, in place of what was there, in one
/// transaction: at no time is there half of it, and doing it twice changes nothing.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn install(redirect: &Redirect) -> Result<(), RedirectError> {
    send(&Batch::replace(&redirect.table()?))
}

/// Removes the redirect from this thread's network namespace, if there is one.
///
/// # Errors
/// When the kernel refuses; then nothing has changed.
pub fn uninstall() -> Result<(), RedirectError> {
    send(&Batch::delete(TABLE))
}
