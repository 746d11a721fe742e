//! Medians and percentiles of small samples.

/// What a sample says, in the unit it was taken in.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Summary {
    /// How many values.
    pub(crate) count: usize,
    /// Smallest.
    pub(crate) min: f64,
    /// Half are below.
    pub(crate) median: f64,
    /// 99 of 100 are below; of fewer than 100 values, the largest.
    pub(crate) p99: f64,
    /// Largest.
    pub(crate) max: f64,
}

// === impl Summary ===

impl Summary {
    /// Sums up `values`; `None` of an empty sample.
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        let p99 = sorted[(sorted.len() * 99).div_ceil(100).saturating_sub(1)];
        Some(Summary { count: sorted.len(), min, median, p99, max })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_median_of_an_even_sample_lies_between_the_two_in_the_middle() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((summary.median, summary.min, summary.p99, summary.max), (2.5, 1.0, 4.0, 4.0));
        assert_eq!(Summary::of(&[]), None);
    }

    proptest! {
        #[test]
        fn the_figures_of_a_sample_are_in_order(values in prop::collection::vec(-1e9f64..1e9, 1..300)) {
            let s = Summary::of(&values).unwrap();
            prop_assert!(s.min <= s.median && s.median <= s.p99 && s.p99 <= s.max);
            prop_assert!(values.contains(&s.p99));
        }
    }
}
