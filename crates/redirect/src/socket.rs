//! Sends a transaction to the kernel and reads what it says of it.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use crate::encode::Batch;
use crate::netlink::answers;
use crate::rules::TooManyRules;

/// The kernel answers before the call that asks returns; this is for one that does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Holds the longest answer: a refusal repeats the message it is about.
const ANSWER_LEN: usize = 16 * 1024;

/// Why the redirect is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    #[error(
        "changing the network's rules is not permitted: this process lacks the capability NET_ADMIN \
         (securityContext.capabilities.add: [\"NET_ADMIN\"], and runAsUser: 0)"
    )]
    NotPermitted,
    #[error(
        "the kernel has no nf_tables, or not all that a redirect needs ({about}: {source}): load the \
         modules nf_tables, nft_chain_nat and nft_redir on the node, which has to run Linux 5.2 or later"
    )]
    Unsupported { about: String, source: io::Error },
    #[error("the kernel refused {about}: {source}")]
    Refused { about: String, source: io::Error },
    #[error("cannot talk to the kernel's netfilter: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    TooManyRules(#[from] TooManyRules),
}

/// Sends a transaction and waits for its end, in this thread's network namespace.
///
/// # Errors
/// What the kernel objects to first; then it has done nothing of it.
pub fn send(batch: &Batch) -> Result<(), RedirectError> {
    let of_socket = |errno: Errno| match errno {
        Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => RedirectError::Unsupported {
            about: "netlink of netfilter".to_owned(),
            source: errno.into(),
        },
        Errno::PERM | Errno::ACCESS => RedirectError::NotPermitted,
        errno => RedirectError::Socket(errno.into()),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )
    .map_err(of_socket)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))
        .map_err(of_socket)?;
    let kernel = SocketAddrNetlink::new(0, 0);
    let datagram = batch.messages().concat();
    rustix::net::sendto(&socket, &datagram, SendFlags::empty(), &kernel).map_err(of_socket)?;
    let mut buffer = vec![0; ANSWER_LEN];
    loop {
        let received = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty());
        let (read, _) = match received {
            Err(Errno::INTR) => continue,
            received => received.map_err(of_socket)?,
        };
        for answer in answers(&buffer[..read]) {
            if answer.error != 0 {
                return Err(refusal(
                    batch.about(answer.seq),
                    Errno::from_raw_os_error(answer.error),
                ));
            }
            if answer.seq == batch.last() {
                return Ok(());
            }
        }
    }
}

fn refusal(about: &str, errno: Errno) -> RedirectError {
    let (about, source) = (about.to_owned(), io::Error::from(errno));
    match errno {
        Errno::PERM | Errno::ACCESS => RedirectError::NotPermitted,
        Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => {
            RedirectError::Unsupported { about, source }
        }
        _ => RedirectError::Refused { about, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let told = |errno| refusal("chain output", errno).to_string();
        assert!(told(Errno::PERM).contains("NET_ADMIN"));
        for errno in [Errno::NOENT, Errno::OPNOTSUPP] {
            assert!(told(errno).contains("nft_redir"), "{}", told(errno));
        }
        assert_eq!(
            told(Errno::NOMEM),
            "the kernel refused chain output: Cannot allocate memory (os error 12)"
        );
    }
}
