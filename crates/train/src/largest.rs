//! Owns the search for the largest micro-batch of a run: from the sizes of all records where `train.preflight` asks for it, else
//! from those of a sample. It refuses to plan or to run what it finds.

use data::{DataError, EncodeOptions, Encoded, OnBadMedia, largest_batches, measure_records};

use crate::error::Result;
use crate::plan::Plan;
use crate::setup::DataSide;

/// Records that are measured, spread evenly over the training set, where not all of them are.
const MEASURED: u64 = 256;
/// The longest of these are encoded; a larger batch repeats them.
const ENCODED: usize = 4;

/// Micro-batches, one of which is the largest.
///
/// # Errors
/// A record that would stop the run.
pub(crate) fn largest_micro_batches(plan: &Plan, data: &DataSide) -> Result<Vec<Vec<Encoded>>> {
    if !plan.train.preflight {
        return Ok(vec![longest_of_sample(plan, data)]);
    }
    let mut batches = Vec::new();
    let epochs = 0..data.count.num_epochs();
    for outline in largest_batches(&data.dataset, &data.processor, &data.options, epochs)? {
        let mut records = Vec::new();
        for index in outline.records {
            match encode(data, index) {
                Ok(record) => records.push(record),
                Err(error) if error.is_one_record() && data.options.on_bad_media == OnBadMedia::Skip => {}
                Err(error) => return Err(error.into()),
            }
        }
        batches.push(records);
    }
    Ok(batches)
}

fn encode(data: &DataSide, index: u64) -> std::result::Result<Encoded, DataError> {
    // A look at records is no part of the run.
    let options = EncodeOptions { skip_frame_cache: true, ..data.options.encode.clone() };
    data.processor.encode(&data.dataset.get(index)?, &options)
}

/// A micro-batch of the longest records of a sample. Records that cannot be encoded are the run's business, each in its place.
fn longest_of_sample(plan: &Plan, data: &DataSide) -> Vec<Encoded> {
    let num_records = data.dataset.len();
    let num_measured = MEASURED.min(num_records);
    let indices: Vec<u64> = (0..num_measured).map(|i| i * num_records / num_measured).collect();
    let sizes = measure_records(&data.dataset, &data.processor, &data.options, &indices);
    let mut known: Vec<_> = indices.iter().zip(sizes).filter_map(|(&index, size)| Some((size?, index))).collect();
    known.sort_by_key(|(size, index)| (std::cmp::Reverse((size.tokens, size.patches)), *index));
    let records: Vec<Encoded> = known
        .iter()
        .filter_map(|&(_, index)| encode(data, index).ok())
        .filter(|r| r.num_supervised() > 0)
        .take(ENCODED)
        .collect();
    let num_records = match plan.data.pack_tokens {
        None => plan.train.per_device_train_batch_size,
        Some(tokens) => records.first().map_or(0, |record| (tokens / record.ids.len().max(1)).max(1)),
    };
    let wanted = if records.is_empty() { 0 } else { num_records };
    records.iter().cycle().take(wanted).cloned().collect()
}
