//! Against `ct-merkle`, which was written by others.

use super::*;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
use sha2::Sha256;

type Oracle = MemoryBackedTree<Sha256, Vec<u8>>;

fn bytes(leaf: u64) -> Vec<u8> {
    leaf.to_be_bytes().to_vec()
}

/// All tiles of a tree of `size` leaves, the partial ones too.
fn tiles(size: u64) -> Tiles {
    let mut all = Tiles::new();
    let mut hashes: Vec<Hash> = (0..size).map(|index| leaf(&bytes(index))).collect();
    for level in 0.. {
        if hashes.is_empty() {
            break;
        }
        for (number, tile) in (0..).zip(hashes.chunks(256)) {
            let id = TileId { level, number };
            assert_eq!(id.width(size), tile.len() as u64);
            all.insert(id, tile.to_vec());
        }
        hashes = hashes.as_chunks::<256>().0.iter().map(|tile| tile_root(tile)).collect();
    }
    all
}

fn hashes(ranges: &[Range<u64>], tiles: &Tiles) -> Vec<Hash> {
    assert!(tiles_of(ranges).iter().all(|id| tiles.contains_key(id)));
    ranges.iter().map(|range| hash_of(range, tiles).unwrap()).collect()
}

#[test]
fn a_frontier_agrees_with_a_whole_tree_at_every_size() {
    let mut oracle = Oracle::new();
    let mut frontier = Frontier::default();
    for size in 0..300 {
        assert_eq!(frontier.root()[..], oracle.root().as_bytes()[..], "{size}");
        assert_eq!(Frontier::read(frontier.size(), &frontier.bytes()), Some(frontier.clone()));
        frontier.push(leaf(&bytes(size)));
        oracle.push(bytes(size));
    }
    assert_eq!(Frontier::read(3, &[0; 32]), None);
}

#[test]
fn proofs_of_inclusion_are_the_ones_others_make() {
    let mut oracle = Oracle::new();
    for size in 1..=70u64 {
        oracle.push(bytes(size - 1));
        let (tiles, root) = (tiles(size), oracle.root());
        for index in 0..size {
            let proof = hashes(&inclusion(index, size), &tiles);
            let theirs = oracle.prove_inclusion(usize::try_from(index).unwrap());
            assert_eq!(proof.concat(), theirs.as_bytes(), "{index} in {size}");
            let at = leaf(&bytes(index));
            assert_eq!(root_of_inclusion(at, index, size, &proof).unwrap()[..], root.as_bytes()[..]);
            let foreign = InclusionProof::<Sha256>::try_from_bytes(proof.concat()).unwrap();
            root.verify_inclusion(&bytes(index), index, &foreign).unwrap();
        }
    }
}

#[test]
fn proofs_of_consistency_are_the_ones_others_make() {
    let mut oracle = Oracle::new();
    let mut roots: Vec<RootHash<Sha256>> = vec![oracle.root()];
    let hash = |root: &RootHash<Sha256>| Hash::try_from(&root.as_bytes()[..]).unwrap();
    for size in 1..=70u64 {
        oracle.push(bytes(size - 1));
        roots.push(oracle.root());
        let (tiles, new) = (tiles(size), oracle.root());
        for old in 1..=size {
            let proof = hashes(&consistency(old, size), &tiles);
            let added = usize::try_from(size - old).unwrap();
            let old_root = &roots[usize::try_from(old).unwrap()];
            assert!(is_consistent((old, hash(old_root)), (size, hash(&new)), &proof), "{old} in {size}");
            if added > 0 {
                let theirs = oracle.prove_consistency(added);
                assert_eq!(proof.concat(), theirs.as_bytes(), "{old} in {size}");
                let foreign = ConsistencyProof::<Sha256>::try_from_bytes(proof.concat()).unwrap();
                new.verify_consistency(old_root, &foreign).unwrap();
            }
        }
    }
}

#[test]
fn tiles_of_three_levels_give_the_same_hashes_as_the_leaves() {
    let size = 66_000;
    let (all, mut frontier) = (tiles(size), Frontier::default());
    (0..size).for_each(|index| frontier.push(leaf(&bytes(index))));
    assert_eq!(hash_of(&(0..size), &all), Some(frontier.root()));
    for index in [0, 255, 256, 40_000, 65_535, 65_536, 65_999] {
        let proof = hashes(&inclusion(index, size), &all);
        let at = leaf(&bytes(index));
        assert_eq!(root_of_inclusion(at, index, size, &proof), Some(frontier.root()), "{index}");
        assert!(tiles_of(&inclusion(index, size)).len() <= 6);
    }
    let mut old = Frontier::default();
    (0..65_537).for_each(|index| old.push(leaf(&bytes(index))));
    let proof = hashes(&consistency(65_537, size), &all);
    assert!(is_consistent((65_537, old.root()), (size, frontier.root()), &proof));
    assert_eq!(hash_of(&(0..size + 1), &all), None, "one leaf more than there are");
}

#[test]
fn a_proof_that_was_altered_proves_nothing() {
    let (tiles, size) = (tiles(21), 21);
    let root = hash_of(&(0..size), &tiles).unwrap();
    let at = leaf(&bytes(7));
    let proof = hashes(&inclusion(7, size), &tiles);
    for place in 0..proof.len() {
        let mut wrong = proof.clone();
        wrong[place][0] ^= 1;
        assert_ne!(root_of_inclusion(at, 7, size, &wrong), Some(root));
        wrong.remove(place);
        assert_ne!(root_of_inclusion(at, 7, size, &wrong), Some(root));
    }
    let longer = [&proof[..], &[[0; 32]]].concat();
    assert_eq!(root_of_inclusion(at, 7, size, &longer), None);
    assert_ne!(root_of_inclusion(at, 6, size, &proof), Some(root));
    assert_eq!(root_of_inclusion(at, 21, size, &proof), None);
    let old = hash_of(&(0..13), &tiles).unwrap();
    let proof = hashes(&consistency(13, size), &tiles);
    for place in 0..proof.len() {
        let mut wrong = proof.clone();
        wrong[place][31] ^= 1;
        assert!(!is_consistent((13, old), (size, root), &wrong));
        wrong.truncate(place);
        assert!(!is_consistent((13, old), (size, root), &wrong));
    }
    assert!(!is_consistent((14, old), (size, root), &proof));
    assert!(!is_consistent((13, root), (size, root), &proof));
    assert!(!is_consistent((22, old), (size, root), &proof));
    assert!(is_consistent((0, hash_of(&(0..0), &tiles).unwrap()), (size, root), &[]));
}
