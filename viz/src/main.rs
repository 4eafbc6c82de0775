//! `mesh-viz`: the dashboard of a mesh, over the API that meshctl uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;

/// Shows the health of every workload and who talks to whom, in a browser
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The control plane's socket (`control.sock` in the state directory of a local mesh)
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Where to serve the page
    #[arg(long, value_name = "IP:PORT", default_value_t = (Ipv4Addr::LOCALHOST, 8084).into())]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    #[expect(clippy::print_stdout, reason = "the one thing its user has to know")]
    {
        println!("http://{}/", listener.local_addr()?);
    }
    mesh_viz::serve(listener, mesh_viz::connect(args.socket)).await;
    Ok(())
}
