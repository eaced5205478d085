//! XOR parity over rows of blocks.

use crate::base::mutant::{self, Mutant};
use crate::base::units::BLOCK_SIZE;

/// Adds `source` to `target`, bit by bit without carry. Both have the same length, a multiple of 8.
pub fn xor_into(target: &mut [u8], source: &[u8]) {
    assert_eq!(target.len(), source.len());
    let (target, rest) = target.as_chunks_mut::<64>();
    assert!(rest.is_empty(), "parity works on whole blocks");
    for (target, source) in target.iter_mut().zip(source.as_chunks::<64>().0) {
        for (target, source) in target.iter_mut().zip(source) {
            *target ^= source;
        }
    }
}

/// Writes the parity of `columns` into `parity`, row by row. A column is a list of whole blocks, and
/// all columns have as many blocks as `parity`.
pub fn of_columns(parity: &mut [u8], columns: &[Vec<bytes::Bytes>]) {
    let height = parity.len() / BLOCK_SIZE;
    debug_assert!(columns.iter().all(|column| column.len() == height));
    let height = height - usize::from(mutant::is(Mutant::ParityMissesLastRow));
    for row in 0..height {
        let target = &mut parity[row * BLOCK_SIZE..(row + 1) * BLOCK_SIZE];
        target.copy_from_slice(&columns[0][row]);
        for column in &columns[1..] {
            xor_into(target, &column[row]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_xor_over_a_row_and_its_parity_is_zero() {
        let block =
            |seed: u8| Bytes::from((0..BLOCK_SIZE).map(|i| seed.wrapping_mul(i as u8)).collect::<Vec<_>>());
        let columns = vec![vec![block(1), block(2)], vec![block(3), block(4)], vec![block(5), block(6)]];
        let mut parity = vec![0u8; 2 * BLOCK_SIZE];
        of_columns(&mut parity, &columns);
        for row in 0..2 {
            let mut sum = parity[row * BLOCK_SIZE..(row + 1) * BLOCK_SIZE].to_vec();
            columns.iter().for_each(|column| xor_into(&mut sum, &column[row]));
            assert!(sum.iter().all(|byte| *byte == 0));
        }
    }
}
