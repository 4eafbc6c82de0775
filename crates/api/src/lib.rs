//! The wire: linkerd2-proxy-api and mesh.ext.v1, converted to and from the model.
