//! Published sizes, from their configurations alone: as many parameters as the reference counts, without a weight.

use models::{ModelConfig, Part};
use serde_json::Value;
use std::collections::BTreeSet;
use tensor::{DType, memory};

/// Families whose reference class is not in `transformers`, which alone can count.
const WITHOUT_REFERENCE: &[&str] = &[
    "llavaonevision1_5",
    "llava_onevision1_5",
    "llava_llama",
    "llava_mistral",
    "llava_qwen",
    "llava_qwen2",
    "llava_qwen3",
    "llava_phi3",
    "egogpt_qwen",
];

fn published() -> Value {
    let path = crate::fixture::root().join("full_size.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn published_sizes_have_as_many_parameters_as_the_reference_counts() {
    let file = published();
    let mut families = BTreeSet::new();
    for (name, entry) in file["models"].as_object().unwrap() {
        let config = ModelConfig::from_json(name, entry["config"].clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
        families.insert(config.model_type.clone());
        let planned = memory::plan(|| {
            let model = models::random(config, 0, DType::BF16).unwrap();
            let count = |is_counted: &dyn Fn(Part) -> bool| -> u64 {
                let params = model.params();
                params.iter().filter(|p| is_counted(p.part)).map(|p| p.param.value().num_elements() as u64).sum()
            };
            (count(&|_| true), count(&|part| part == Part::Vision))
        });
        let (total, vision) = planned.value;
        let expected = &entry["parameters"];
        assert_eq!(Some(total), expected["total"].as_u64(), "{name}");
        // The reference counts a merger to the tower, and layers behind the last one that is used.
        assert!(Some(vision) <= expected["vision"].as_u64(), "{name}: {vision} in the tower");
    }
    for family in models::FAMILIES {
        assert!(families.contains(*family) || WITHOUT_REFERENCE.contains(family), "no published size of `{family}`");
    }
}
