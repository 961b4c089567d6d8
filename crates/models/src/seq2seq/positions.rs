//! Sinusoidal positions, computed and never stored: the first half of a row is sines, the second cosines, over wavelengths
//! from 2 pi to 10000 times that. Owns how positions are counted around padding.
//!
//! Source: `M2M100SinusoidalPositionalEmbedding` of `transformers`.

use super::Rows;
use crate::error::Result;
use tensor::{Param, Tape, Tensor, Var};

/// Rows beyond the longest sequence that the table has room for.
const OFFSET: usize = 2;

/// The table for sequences up to the length that the model was made for; longer ones are computed when they come.
pub struct Positions {
    table: Param,
    width: usize,
    padding: u32,
}

impl Positions {
    /// The table of `max_positions` positions; the row of the padding token is zero.
    pub fn new(width: usize, max_positions: usize, padding: u32) -> Result<Positions> {
        let table = Param::new("embed_positions", rows(width, max_positions + OFFSET, padding)?);
        Ok(Positions { table, width, padding })
    }

    /// The row of each token: counted from the number after the padding token's, which itself stands for padding.
    pub fn of(&self, rows: Rows<'_>) -> Vec<u32> {
        let mut positions = Vec::with_capacity(rows.ids.len());
        for bounds in rows.cu_seqlens.windows(2) {
            let mut seen = 0;
            for id in &rows.ids[bounds[0]..bounds[1]] {
                let counts = u32::from(*id != self.padding);
                seen += counts;
                positions.push(seen * counts + self.padding);
            }
        }
        positions
    }

    /// The row of a token behind `num_before` others.
    pub fn next(&self, id: u32, num_before: usize) -> u32 {
        if id == self.padding { self.padding } else { num_before as u32 + 1 + self.padding }
    }

    /// x `[t, width]` with the rows of its positions added.
    pub fn add(&self, t: &Tape, x: &Var, positions: &[u32]) -> Result<Var> {
        let needed = positions.iter().max().map_or(0, |row| *row as usize + 1);
        if needed <= self.table.shape()[0] {
            return Ok(t.add_table(x, positions, &self.table)?);
        }
        let longer = Param::new("embed_positions", rows(self.width, needed, self.padding)?);
        Ok(t.add_table(x, positions, &longer)?)
    }
}

/// The first `count` rows.
fn rows(width: usize, count: usize, padding: u32) -> Result<Tensor> {
    let half = width / 2;
    let step = (10000f64.ln() / (half as f64 - 1.0)) as f32;
    let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * -step).exp()).collect();
    let mut values = Vec::with_capacity(count * width);
    for position in 0..count {
        if position == padding as usize {
            values.resize(values.len() + width, 0.0);
            continue;
        }
        let angles = || frequencies.iter().map(|f| position as f32 * f);
        values.extend(angles().map(f32::sin));
        values.extend(angles().map(f32::cos));
        // An odd width ends in a zero.
        values.resize((position + 1) * width, 0.0);
    }
    Ok(Tensor::from_f32(&values, &[count, width])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_takes_no_position_and_long_sequences_have_the_same_rows() {
        let positions = Positions::new(5, 4, 1).unwrap();
        let of = |ids: &[u32], cu: &[usize]| positions.of(Rows { ids, cu_seqlens: &cu.into() });
        assert_eq!(of(&[7, 8, 1, 9, 7, 1], &[0, 4, 6]), [2, 3, 1, 4, 2, 1]);
        assert_eq!((positions.next(7, 3), positions.next(1, 3)), (5, 1));
        let t = Tape::inference();
        let add = |rows: &[u32]| {
            let x = t.constant(Tensor::from_f32(&vec![0.0; 5 * rows.len()], &[rows.len(), 5]).unwrap());
            positions.add(&t, &x, rows).unwrap().value().to_vec_f32().unwrap()
        };
        let short = add(&[2, 1]);
        assert_eq!(short[5..], [0.0; 5]);
        assert_eq!(add(&[2, 40])[..5], short[..5]);
        let wanted = [2f32.sin(), 2e-4, 2f32.cos(), 1.0, 0.0];
        assert!(short.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-7), "{short:?}");
    }
}
