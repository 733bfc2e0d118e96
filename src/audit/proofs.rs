//! Proofs of a log, made from its store.
//!
//! A [`Tree`] is a log at one of its sizes. Tiles that are full are read as they are stored; the others are made from what
//! is below them, down to the envelopes themselves. So a store whose tiles were lost is slow here, and nothing else.

use std::ops::Range;

use super::tree::{self, Hash, TILE, TileId, Tiles};
use crate::store::{CheckpointRow, Error, Reader, StoredEntry};

/// A log at one of its sizes.
pub struct Tree<'a> {
    /// Where it is read.
    pub reader: &'a Reader,
    /// Its name.
    pub origin: &'a str,
    /// Number of entries.
    pub size: u64,
}

impl Tree<'_> {
    /// Root hash.
    pub async fn root(&self) -> Result<Hash, Error> {
        let whole = 0..self.size;
        Ok(self.hashes(std::slice::from_ref(&whole)).await?[0])
    }

    /// Proves that an entry is in it.
    pub async fn inclusion(&self, index: u64) -> Result<Vec<Hash>, Error> {
        self.hashes(&tree::inclusion(index, self.size)).await
    }

    /// Proves that it begins with what it was at an earlier size.
    pub async fn consistency(&self, old: u64) -> Result<Vec<Hash>, Error> {
        self.hashes(&tree::consistency(old, self.size)).await
    }

    async fn hashes(&self, ranges: &[Range<u64>]) -> Result<Vec<Hash>, Error> {
        let mut tiles = Tiles::new();
        for id in tree::tiles_of(ranges) {
            tiles.insert(id, self.tile(id).await?);
        }
        let hashes: Option<_> = ranges.iter().map(|range| tree::hash_of(range, &tiles)).collect();
        hashes.ok_or_else(|| self.damaged("a tile is too narrow"))
    }

    /// A tile, as wide as it is at this size; empty when there is none.
    pub async fn tile(&self, id: TileId) -> Result<Vec<Hash>, Error> {
        let width = id.width(self.size);
        let first = id.number.saturating_mul(TILE);
        if width == TILE
            && let Some(hashes) = self.stored(id.level, id.number..id.number + 1).await?.pop()
        {
            return Ok(hashes.1);
        }
        if id.level == 0 {
            return Ok(self
                .envelopes(first..first + width)
                .await?
                .iter()
                .map(|one| tree::leaf(one))
                .collect());
        }
        let mut below = self.stored(id.level - 1, first..first + width).await?.into_iter().peekable();
        let mut hashes = Vec::new();
        for number in first..first + width {
            let tile = match below.next_if(|(stored, _)| *stored == number) {
                Some((_, tile)) => tile,
                None => Box::pin(self.tile(TileId { level: id.level - 1, number })).await?,
            };
            hashes.push(tree::tile_root(&tile));
        }
        Ok(hashes)
    }

    /// The envelopes with these numbers.
    pub async fn envelopes(&self, numbers: Range<u64>) -> Result<Vec<Vec<u8>>, Error> {
        let found = self.reader.envelopes(self.origin, numbers.clone()).await?;
        let is_whole = numbers.clone().eq(found.iter().map(|(index, _)| *index));
        is_whole.then(|| found.into_iter().map(|(_, envelope)| envelope).collect()).ok_or_else(|| {
            self.damaged(&format!("entries {} to {} are not all there", numbers.start, numbers.end))
        })
    }

    async fn stored(&self, level: u8, numbers: Range<u64>) -> Result<Vec<(u64, Vec<Hash>)>, Error> {
        let tiles = self.reader.tiles(self.origin, level, numbers).await?;
        // One that is damaged is as good as none: it is made from what is below.
        let read = |(number, bytes): (u64, Vec<u8>)| Some((number, tree::read_tile(&bytes)?.to_vec()));
        Ok(tiles.into_iter().filter_map(read).collect())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Fatal(format!("the log {} is damaged: {what}; `patchwarden verify` says where", self.origin))
    }
}

/// A log of a store, to be asked.
pub struct Log {
    reader: Reader,
    origin: String,
}

impl Log {
    pub(super) fn new(reader: Reader, origin: String) -> Self {
        Self { reader, origin }
    }

    /// Its name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Number of its entries now; `None`: the store has no such log.
    pub async fn size(&self) -> Result<Option<u64>, Error> {
        let logs = self.reader.logs().await?;
        Ok(logs.into_iter().find(|log| log.origin == self.origin).map(|log| log.size))
    }

    /// The signed head of that size, or the newest.
    pub async fn checkpoint(&self, size: Option<u64>) -> Result<Option<CheckpointRow>, Error> {
        let Some(size) = size else { return self.reader.newest_checkpoint(&self.origin).await };
        let found = self.reader.checkpoints(&self.origin, size, 1).await?.pop();
        Ok(found.filter(|head| head.size == size))
    }

    /// It, when it had so many entries.
    pub fn tree(&self, size: u64) -> Tree<'_> {
        Tree { reader: &self.reader, origin: &self.origin, size }
    }

    /// Entries with their payloads from a number on, at most so many.
    pub async fn entries(&self, from: u64, limit: u32) -> Result<Vec<StoredEntry>, Error> {
        self.reader.entries_of(&self.origin, from, limit).await
    }
}
