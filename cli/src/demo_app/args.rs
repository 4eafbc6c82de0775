//! The command line of `mesh-demo`, and how flags and environment become each role's configuration.
//!
//! The environment wins over flags about where to listen, as the platform decides that. Next: `env.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand};
use http::HeaderValue;
use http::uri::Authority;

use super::client::BaseUrl;
use super::env::{EnvErrors, Environment, both};
use super::{checkout, ledger, load, portal, shipping, tax, web};

/// One service of the sample application.
#[derive(Debug, Parser)]
#[command(name = "mesh-demo", version)]
pub struct Args {
    #[command(subcommand)]
    pub(super) role: Role,
}

#[derive(Debug, Subcommand)]
pub(super) enum Role {
    /// The storefront: GET /, GET /product/{id}, POST /cart, POST /buy
    Web(WebArgs),
    /// Prices and books an order: POST /orders
    Checkout(CheckoutArgs),
    /// GET /tax?cents=N, failing for a share of the requests if told to
    Tax(TaxArgs),
    /// gRPC shop.v1.Shipping, slow if told to
    Shipping(ShippingArgs),
    /// A TCP line protocol in which the server speaks first
    Ledger(LedgerArgs),
    /// GET /reports/today
    Finance(FinanceArgs),
    /// Shows what finance reports: GET /
    Portal(PortalArgs),
    /// The load generator, with its statistics at GET /stats?window=60
    Load(LoadArgs),
}

#[derive(Debug, ClapArgs)]
pub(super) struct ServeArgs {
    /// The port to listen on, unless $PORT is set; the address is $POD_IP or 0.0.0.0
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// How long to go on serving after SIGTERM, not ready any more, in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(..=20_000))]
    linger_ms: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct WebArgs {
    #[command(flatten)]
    serve: ServeArgs,
    #[arg(long, default_value = "http://checkout:8080")]
    checkout: BaseUrl,
}

#[derive(Debug, ClapArgs)]
pub(super) struct CheckoutArgs {
    #[command(flatten)]
    serve: ServeArgs,
    #[arg(long, default_value = "http://tax:8080")]
    tax: BaseUrl,
    /// gRPC; $SHIPPING_SERVICE_HOST and _PORT say where it is reached
    #[arg(long, default_value = "shipping:7000")]
    shipping: Authority,
    /// TCP; $LEDGER_SERVICE_HOST and _PORT say where it is reached
    #[arg(long, default_value = "ledger:7100")]
    ledger: Authority,
    /// Shown in answers, to see a traffic split
    #[arg(long, default_value = "v1")]
    app_version: HeaderValue,
}

#[derive(Debug, ClapArgs)]
pub(super) struct TaxArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Answer 500 to this share of the requests
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=100))]
    fail_percent: u8,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ShippingArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// The port for gRPC, unless $PORT_GRPC is set; --port is for health only
    #[arg(long, default_value_t = 7000)]
    grpc_port: u16,
    /// Wait before the answer to each call, in milliseconds
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=60_000))]
    delay_ms: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LedgerArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct FinanceArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PortalArgs {
    #[command(flatten)]
    serve: ServeArgs,
    #[arg(long, default_value = "http://finance:8080")]
    finance: BaseUrl,
    /// How often to ask finance, in milliseconds
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    every_ms: u64,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LoadArgs {
    #[command(flatten)]
    serve: ServeArgs,
    #[arg(long, default_value = "http://web:8080")]
    target: BaseUrl,
    /// Requests a second, all kinds together
    #[arg(long, default_value = "30", value_parser = rps)]
    rps: f64,
    /// The most requests in flight; beyond, requests are skipped and counted as such
    #[arg(long, default_value = "64", value_parser = concurrency)]
    concurrency: usize,
    /// Send so many requests, print the statistics as JSON, and exit
    #[arg(long)]
    count: Option<u64>,
}

impl Role {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Web(_) => "web",
            Self::Checkout(_) => "checkout",
            Self::Tax(_) => "tax",
            Self::Shipping(_) => "shipping",
            Self::Ledger(_) => "ledger",
            Self::Finance(_) => "finance",
            Self::Portal(_) => "portal",
            Self::Load(_) => "load",
        }
    }

    pub(super) fn linger(&self) -> Duration {
        let serve = match self {
            Self::Web(args) => &args.serve,
            Self::Checkout(args) => &args.serve,
            Self::Tax(args) => &args.serve,
            Self::Shipping(args) => &args.serve,
            Self::Ledger(args) => &args.serve,
            Self::Finance(args) => &args.serve,
            Self::Portal(args) => &args.serve,
            Self::Load(args) => &args.serve,
        };
        Duration::from_millis(serve.linger_ms)
    }
}

impl WebArgs {
    pub(super) fn resolve(self, env: &Environment) -> Result<(SocketAddr, web::Config), EnvErrors> {
        let (listen, proxy) = both(env.listen(None, self.serve.port), env.http_proxy())?;
        Ok((listen, web::Config { checkout: self.checkout, proxy }))
    }
}

impl CheckoutArgs {
    pub(super) fn resolve(
        self,
        env: &Environment,
    ) -> Result<(SocketAddr, checkout::Config), EnvErrors> {
        let ((listen, proxy), (shipping, ledger)) = both(
            both(env.listen(None, self.serve.port), env.http_proxy()),
            both(env.upstream(&self.shipping, "grpc"), env.upstream(&self.ledger, "tcp-ledger")),
        )?;
        let config = checkout::Config {
            tax: self.tax,
            proxy,
            shipping,
            ledger,
            version: self.app_version,
            pod: env.pod_name(),
        };
        Ok((listen, config))
    }
}

impl TaxArgs {
    pub(super) fn resolve(self, env: &Environment) -> Result<(SocketAddr, tax::Config), EnvErrors> {
        let listen = env.listen(None, self.serve.port)?;
        Ok((listen, tax::Config { fail_percent: self.fail_percent }))
    }
}

impl ShippingArgs {
    /// The addresses for health and for gRPC.
    pub(super) fn resolve(
        self,
        env: &Environment,
    ) -> Result<((SocketAddr, SocketAddr), shipping::Config), EnvErrors> {
        let addresses =
            both(env.listen(None, self.serve.port), env.listen(Some("grpc"), self.grpc_port))?;
        let delay = Duration::from_millis(self.delay_ms);
        Ok((addresses, shipping::Config { delay, pod: env.pod_name() }))
    }
}

impl LedgerArgs {
    pub(super) fn resolve(
        self,
        env: &Environment,
    ) -> Result<(SocketAddr, ledger::Config), EnvErrors> {
        Ok((env.listen(None, self.serve.port)?, ledger::Config { pod: env.pod_name() }))
    }
}

impl FinanceArgs {
    pub(super) fn resolve(self, env: &Environment) -> Result<SocketAddr, EnvErrors> {
        env.listen(None, self.serve.port)
    }
}

impl PortalArgs {
    pub(super) fn resolve(
        self,
        env: &Environment,
    ) -> Result<(SocketAddr, portal::Config), EnvErrors> {
        let (listen, proxy) = both(env.listen(None, self.serve.port), env.http_proxy())?;
        let every = Duration::from_millis(self.every_ms);
        Ok((listen, portal::Config { finance: self.finance, proxy, every }))
    }
}

impl LoadArgs {
    pub(super) fn resolve(
        self,
        env: &Environment,
    ) -> Result<(SocketAddr, load::Config), EnvErrors> {
        let (listen, proxy) = both(env.listen(None, self.serve.port), env.http_proxy())?;
        let config = load::Config {
            target: self.target,
            proxy,
            rps: self.rps,
            concurrency: self.concurrency,
            count: self.count,
        };
        Ok((listen, config))
    }
}

fn rps(text: &str) -> Result<f64, String> {
    let rps = text.parse().ok().filter(|rps| *rps >= 0.01 && *rps <= load::MAX_RPS);
    rps.ok_or_else(|| format!("not a number from 0.01 to {}", load::MAX_RPS))
}

fn concurrency(text: &str) -> Result<usize, String> {
    let bound = text.parse().ok().filter(|bound| (1..=load::MAX_CONCURRENCY).contains(bound));
    bound.ok_or_else(|| format!("not a whole number from 1 to {}", load::MAX_CONCURRENCY))
}
