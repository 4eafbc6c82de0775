//! TLS for the mesh: reading a ClientHello, identities, certificates.
