//! The control plane: sources feed an index, services answer from it.
