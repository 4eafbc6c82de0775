//! How much a port takes, and how clients treat a Service: the policies as users write them, carried out
//! by real proxies.

mod backend;
mod faults;
mod server;
