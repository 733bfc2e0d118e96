//! Full tiles of the tree, written with the entries that complete them.
//!
//! A tile that completes the one above it is followed by that one. A log that was written before there were tiles, or was
//! copied, gets them when it is opened.

use crate::store::{self, Database};

use super::super::tree::{Hash, TILE, TileId, leaf, read_tile, tile_root};

/// Tiles made in one transaction where they are missing.
const AT_ONCE: u64 = 64;

/// Keeps a tile of leaves that is complete now, and those above it that it completes.
pub(super) async fn keep(
    database: &mut Database,
    origin: &str,
    number: u64,
    leaves: &[Hash],
) -> Result<(), store::Error> {
    let mut id = TileId { level: 0, number };
    let mut hashes = leaves.to_vec();
    loop {
        database.put_tile(origin, id.level, id.number, &hashes.concat()).await?;
        if id.number % TILE != TILE - 1 {
            return Ok(());
        }
        let above = id.above();
        let below = database.tiles(origin, id.level, above.number * TILE..(above.number + 1) * TILE).await?;
        hashes = below.iter().filter_map(|(_, bytes)| read_tile(bytes).map(tile_root)).collect();
        id = above;
    }
}

/// Makes the tiles that a log of that size lacks, and returns the leaves after the last full one.
pub(in crate::audit) async fn catch_up(
    database: &mut Database,
    origin: &str,
    size: u64,
) -> Result<Vec<Hash>, store::Error> {
    let (mut next, full) = (database.tile_count(origin).await?, size / TILE);
    while next < full {
        database.begin().await?;
        for number in next..full.min(next + AT_ONCE) {
            let leaves = leaves(database, origin, number * TILE, TILE).await?;
            keep(database, origin, number, &leaves).await?;
        }
        database.commit().await?;
        next = full.min(next + AT_ONCE);
    }
    leaves(database, origin, full * TILE, size % TILE).await
}

async fn leaves(
    database: &mut Database,
    origin: &str,
    from: u64,
    count: u64,
) -> Result<Vec<Hash>, store::Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let entries = database.entries_of(origin, from).await?;
    let leaves: Vec<Hash> = (from..from + count)
        .zip(&entries)
        .take_while(|(index, entry)| entry.index == *index)
        .map(|(_, entry)| leaf(&entry.envelope))
        .collect();
    if leaves.len() as u64 == count {
        return Ok(leaves);
    }
    let missing = from + leaves.len() as u64;
    Err(store::Error::Fatal(format!(
        "entry {missing} of the log {origin} is missing; `patchwarden verify` says more"
    )))
}
