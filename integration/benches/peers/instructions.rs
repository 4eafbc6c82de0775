//! Instructions a proxy executes in user mode for one request, counted by valgrind's callgrind: a figure that does not
//! depend on what else the machine does, and that changes when the data path does.
//!
//! One connection, one request after the other, so that two runs take the same path; two runs of different length, so
//! that starting and stopping the program cancels out.

use std::collections::BTreeMap;

use mesh_integration::load::idle;

use crate::hops::{Hop, Site, Skipped, Traffic, Watched};
use crate::report::Figure;
use crate::rows::Sample;

/// Fills caches and pools.
const FEW: usize = 200;
const COUNTED: usize = 1000;

/// `None` where there is no program to watch.
pub(crate) fn measure(site: &mut Site, hop: Hop) -> Result<Option<Sample>, Skipped> {
    let Some(few) = executed(site, hop, FEW)? else {
        return Ok(None);
    };
    let Some(more) = executed(site, hop, FEW + COUNTED)? else {
        return Ok(None);
    };
    let each = more.saturating_sub(few) as f64 / COUNTED as f64;
    let figures = BTreeMap::from([(Figure::InstructionsPerRequest, each)]);
    Ok(Some(Sample { figures, disturbed: false }))
}

fn executed(site: &mut Site, hop: Hop, requests: usize) -> Result<Option<u64>, Skipped> {
    let Some(proxy) = site.start(hop, Traffic::Http1, Watched::ByCallgrind)? else {
        return Ok(None);
    };
    drop(idle::used(proxy.addr, &proxy.authority, requests)?);
    Ok(proxy.stop_and_count()?)
}
