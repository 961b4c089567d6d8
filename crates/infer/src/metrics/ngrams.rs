//! Counted n-grams of a tokenised sentence, in the order of their first appearance so that sums have one order.

use std::collections::HashMap;

/// Highest order counted.
pub(super) const MAX_ORDER: usize = 4;

/// The n-grams of one sentence.
pub(super) struct Ngrams<'a> {
    /// Number of words.
    pub num_words: usize,
    /// Every distinct n-gram of 1 to 4 words with its count.
    pub counts: Vec<(Vec<&'a str>, usize)>,
    place: HashMap<Vec<&'a str>, usize>,
}

impl<'a> Ngrams<'a> {
    /// Counts the n-grams of `text`, whose tokens are separated by white space.
    pub fn of(text: &'a str) -> Ngrams<'a> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut ngrams = Ngrams { num_words: words.len(), counts: Vec::new(), place: HashMap::new() };
        for order in 1..=MAX_ORDER {
            for gram in words.windows(order) {
                match ngrams.place.get(gram) {
                    Some(&at) => ngrams.counts[at].1 += 1,
                    None => {
                        ngrams.place.insert(gram.to_vec(), ngrams.counts.len());
                        ngrams.counts.push((gram.to_vec(), 1));
                    }
                }
            }
        }
        ngrams
    }

    /// Where `gram` stands in `counts`.
    pub fn place(&self, gram: &[&str]) -> Option<usize> {
        self.place.get(gram).copied()
    }

    /// How often `gram` occurs.
    pub fn count(&self, gram: &[&str]) -> usize {
        self.place(gram).map_or(0, |at| self.counts[at].1)
    }
}
