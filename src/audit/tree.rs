//! The Merkle tree over the log (RFC 9162 section 2), kept as its frontier.
//!
//! A frontier holds the roots of the complete subtrees that make up the tree, largest first: at most one hash per bit of
//! the size. Appending merges equal sizes; the root is folded from the right. Leaves are the envelopes' exact bytes.

use crate::id::sha256;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

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

    /// Adds a leaf.
    pub(super) fn append(&mut self, leaf: &[u8]) {
        let mut hash = sha256(&[&[0], leaf]);
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

    /// The tree's root hash; of an empty tree the hash of nothing.
    pub(super) fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return sha256(&[]) };
        roots.fold(*last, |right, left| node(left, &right))
    }
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ct_merkle::mem_backed_tree::MemoryBackedTree;

    #[test]
    fn a_frontier_agrees_with_a_whole_tree_at_every_size() {
        let mut oracle = MemoryBackedTree::<sha2::Sha256, Vec<u8>>::new();
        let mut frontier = Frontier::default();
        for size in 0..300u32 {
            assert_eq!(frontier.root()[..], oracle.root().as_bytes()[..], "{size}");
            assert_eq!(Frontier::read(frontier.size(), &frontier.bytes()), Some(frontier.clone()));
            let leaf = size.to_be_bytes().to_vec();
            frontier.append(&leaf);
            oracle.push(leaf);
        }
        assert_eq!(Frontier::read(3, &[0; 32]), None);
    }
}
