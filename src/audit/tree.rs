//! The Merkle tree over a log (RFC 9162 section 2): its frontier, its proofs, its tiles.
//!
//! Leaves are the envelopes' exact bytes. A `Frontier` holds the roots of the complete subtrees that make up the tree,
//! largest first, which is enough to append and to know the root. A proof is a list of ranges of leaves whose hashes are
//! wanted ([`inclusion`], [`consistency`]); each hash is made from [`Tiles`], 256 hashes each, as C2SP `tlog-tiles` lays
//! them out. Checking a proof needs the proof alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::checkpoint::Checkpoint;
use crate::id::sha256;

/// A SHA-256.
pub type Hash = [u8; 32];

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE: u64 = 256;
/// A tile stands for this many levels of the tree.
const TILE_HEIGHT: u32 = 8;

/// The hash of a leaf.
pub fn leaf(envelope: &[u8]) -> Hash {
    sha256(&[&[0], envelope])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// Roots of the complete subtrees of a tree of `size` leaves.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Frontier {
    size: u64,
    roots: Vec<Hash>,
}

impl Frontier {
    /// Reads a stored frontier; `None` when the number of hashes does not fit the size.
    pub(super) fn read(size: u64, bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<32>();
        let fits = rest.is_empty() && hashes.len() == size.count_ones() as usize;
        fits.then(|| Self { size, roots: hashes.to_vec() })
    }

    /// The stored form: the hashes one after the other.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.roots.concat()
    }

    /// Number of leaves.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf by its hash.
    pub(super) fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        let mut merged = self.size;
        while merged & 1 == 1 {
            if let Some(left) = self.roots.pop() {
                hash = node(&left, &hash);
            }
            merged >>= 1;
        }
        self.roots.push(hash);
        self.size += 1;
    }

    /// What it is the frontier of, as a log says it of itself.
    pub(super) fn of_log(&self, origin: &str) -> Checkpoint {
        Checkpoint { origin: origin.to_owned(), size: self.size, root: self.root() }
    }

    /// The tree's root hash; of an empty tree the hash of nothing.
    pub(super) fn root(&self) -> Hash {
        fold(&self.roots)
    }
}

/// The hash over complete subtrees, largest first.
fn fold(roots: &[Hash]) -> Hash {
    let mut roots = roots.iter().rev();
    let Some(last) = roots.next() else { return sha256(&[]) };
    roots.fold(*last, |right, left| node(left, &right))
}

/// The hash over a power of two of hashes of one level.
fn merge(hashes: &[Hash]) -> Hash {
    match hashes {
        [one] => *one,
        // A tile that was emptied is no tile: its hash fits nothing.
        [] => fold(&[]),
        more => {
            let (left, right) = more.split_at(more.len() / 2);
            node(&merge(left), &merge(right))
        }
    }
}

/// Where a range of leaves is split: at the largest power of two below its length.
fn split(range: &Range<u64>) -> u64 {
    range.start + (1 << (range.end - range.start - 1).ilog2())
}

/// Whose hashes prove that leaf `index` is in the tree of `size` leaves, from its sibling up.
pub fn inclusion(index: u64, size: u64) -> Vec<Range<u64>> {
    let (mut path, mut range) = (Vec::new(), 0..size);
    while range.end - range.start > 1 {
        let middle = split(&range);
        if index < middle {
            path.push(middle..range.end);
            range.end = middle;
        } else {
            path.push(range.start..middle);
            range.start = middle;
        }
    }
    path.reverse();
    path
}

/// Whose hashes prove that the tree of `old` leaves is the beginning of the one of `size`.
pub fn consistency(old: u64, size: u64) -> Vec<Range<u64>> {
    if old == 0 || old >= size {
        return Vec::new();
    }
    let (mut path, mut range, mut is_known) = (Vec::new(), 0..size, true);
    while range.end != old {
        let middle = split(&range);
        if old <= middle {
            path.push(middle..range.end);
            range.end = middle;
        } else {
            path.push(range.start..middle);
            range.start = middle;
            is_known = false;
        }
    }
    if !is_known {
        path.push(range);
    }
    path.reverse();
    path
}

/// The root that a proof of inclusion leads to; `None` when it is too long or too short for any.
pub fn root_of_inclusion(leaf: Hash, index: u64, size: u64, proof: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// Whether a proof shows that the tree of `old` leaves and that root is the beginning of the other.
pub fn is_consistent(old: (u64, Hash), new: (u64, Hash), proof: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == new_size {
        return proof.is_empty() && old_root == new_root;
    }
    if old_size == 0 || old_size > new_size {
        return old_size == 0 && proof.is_empty() && old_root == fold(&[]);
    }
    let mut rest = proof.iter();
    // A complete subtree proves itself.
    let first = if old_size.is_power_of_two() { Some(&old_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let (mut at, mut last) = (old_size - 1, new_size - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            old_hash = node(sibling, &old_hash);
            new_hash = node(sibling, &new_hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new_hash = node(&new_hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old_hash == old_root && new_hash == new_root
}

/// Which tile: its level, and its number in the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TileId {
    /// 0: its hashes are those of leaves.
    pub level: u8,
    /// Counted from 0.
    pub number: u64,
}

impl TileId {
    /// How many hashes it has in a tree of `size` leaves.
    pub fn width(self, size: u64) -> u64 {
        let shift = TILE_HEIGHT * u32::from(self.level);
        let hashes = if shift < u64::BITS { size >> shift } else { 0 };
        hashes.saturating_sub(self.number.saturating_mul(TILE)).min(TILE)
    }

    /// The tile its own hash stands in.
    pub fn above(self) -> Self {
        Self { level: self.level + 1, number: self.number / TILE }
    }
}

/// A full tile as it is stored; `None`: it is none.
pub fn read_tile(bytes: &[u8]) -> Option<&[Hash]> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    (rest.is_empty() && hashes.len() as u64 == TILE).then_some(hashes)
}

/// The hash of a full tile, as the level above holds it.
pub fn tile_root(hashes: &[Hash]) -> Hash {
    merge(hashes)
}

/// Tiles that were read.
pub type Tiles = BTreeMap<TileId, Vec<Hash>>;

/// A complete subtree: 2^`height` leaves from `number` times as many on.
struct Subtree {
    height: u32,
    number: u64,
}

impl Subtree {
    fn tile(&self) -> TileId {
        let level = u8::try_from(self.height / TILE_HEIGHT).unwrap_or(u8::MAX);
        TileId { level, number: self.first() / TILE }
    }

    /// Its first hash in its tile's level.
    fn first(&self) -> u64 {
        self.number << (self.height % TILE_HEIGHT)
    }

    fn hash(&self, tiles: &Tiles) -> Option<Hash> {
        let from = usize::try_from(self.first() % TILE).ok()?;
        let hashes = tiles.get(&self.tile())?.get(from..from + (1 << (self.height % TILE_HEIGHT)))?;
        Some(merge(hashes))
    }
}

/// The complete subtrees that make up a range, as proofs ask for it.
fn subtrees(range: &Range<u64>) -> Vec<Subtree> {
    let (mut from, length) = (range.start, range.end - range.start);
    let mut found = Vec::new();
    for height in (0..u64::BITS).rev().filter(|height| length >> height & 1 == 1) {
        found.push(Subtree { height, number: from >> height });
        from += 1 << height;
    }
    found
}

/// The tiles that hashes of these ranges are made of.
pub fn tiles_of(ranges: &[Range<u64>]) -> BTreeSet<TileId> {
    ranges.iter().flat_map(subtrees).map(|subtree| subtree.tile()).collect()
}

/// The hash of a range of leaves; `None` when a tile is missing or too narrow.
pub fn hash_of(range: &Range<u64>, tiles: &Tiles) -> Option<Hash> {
    let roots: Option<Vec<Hash>> = subtrees(range).iter().map(|subtree| subtree.hash(tiles)).collect();
    roots.map(|roots| fold(&roots))
}

#[cfg(test)]
mod tests;
