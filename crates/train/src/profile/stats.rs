//! Statistics of a list of numbers. Owns the rule of percentiles; knows nothing of what is measured.

use serde::Serialize;

/// Mean, median, 95th percentile and range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many numbers.
    pub count: usize,
    /// Their sum divided by their number.
    pub mean: f64,
    /// The 50th percentile.
    pub median: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of these numbers; `None` where there is none.
    pub fn of(mut values: Vec<f64>) -> Option<Summary> {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.sort_by(f64::total_cmp);
        let at = |q| percentile(&values, q);
        Some(Summary { count: values.len(), mean, median: at(50.0)?, p95: at(95.0)?, min: at(0.0)?, max: at(100.0)? })
    }
}

/// The `q`-th percentile of ascending numbers: the number at place `q / 100 * (n - 1)`, counted from 0, on the straight line
/// between the two numbers beside that place. This is what `numpy.percentile` does by default (`method="linear"`). `None`
/// without numbers.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = q.clamp(0.0, 100.0) / 100.0 * last as f64;
    // At most `last`, so it fits.
    let below = place.floor() as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    Some(low + (high - low) * (place - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places by hand: 50 % of [10, 20, 40] is place 1; of [10, 20, 40, 80] place 1.5, halfway from 20 to 40; 95 % of five
    /// numbers is place 3.8, of 21 numbers place 19.
    #[test]
    fn percentiles_are_those_of_the_rule() {
        let close = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() <= 1e-12 * expected.abs(), "{found:?} instead of {expected}");
        };
        close(percentile(&[10.0, 20.0, 40.0], 50.0), 20.0);
        close(percentile(&[10.0, 20.0, 40.0, 80.0], 50.0), 30.0);
        close(percentile(&[1.0, 2.0, 3.0, 4.0, 10.0], 95.0), 4.0 + 0.8 * 6.0);
        let many: Vec<f64> = (0..21).map(|i| f64::from(i * i)).collect();
        close(percentile(&many, 95.0), 361.0);
        close(percentile(&[7.0], 95.0), 7.0);
        close(percentile(&[3.0, 9.0], 0.0), 3.0);
        close(percentile(&[3.0, 9.0], 100.0), 9.0);
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn a_summary_sorts_for_itself() {
        let summary = Summary::of(vec![4.0, 1.0, 10.0, 2.0, 3.0]).unwrap();
        assert_eq!((summary.count, summary.mean, summary.median), (5, 4.0, 3.0));
        assert_eq!((summary.min, summary.max), (1.0, 10.0));
        assert!((summary.p95 - 8.8).abs() < 1e-12, "{}", summary.p95);
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
