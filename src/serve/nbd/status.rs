//! Which parts of a range are holes.

use super::reply::Extent;
use crate::error::Result;
use crate::serve::Export;

/// Most extents of one reply: who wants more asks on from there.
const MOST: usize = 8192;
/// Most runs that are looked at for one reply, whatever they come to.
const MOST_RUNS: usize = 1 << 16;

/// The extents from `at` on, neighbours of a kind joined: as many as `len` bytes have and a reply takes, at least one.
pub(super) fn extents(export: &Export, at: u64, len: u32, one: bool) -> Result<Vec<Extent>> {
    let most = if one { 1 } else { MOST };
    let (mut extents, mut seen) = (Vec::<Extent>::new(), 0);
    export.runs(at..at + u64::from(len), |len, data| {
        // No run is longer than the range.
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        seen += 1;
        let room = extents.len() < most;
        match extents.last_mut() {
            Some(last) if last.hole != data => last.len += len,
            _ if room => extents.push(Extent { len, hole: !data }),
            _ => return false,
        }
        seen < MOST_RUNS
    })?;
    Ok(extents)
}
