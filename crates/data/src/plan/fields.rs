//! Owns the table of the `data` section's keys: names, types, defaults and what they mean.

/// One key of the section, for the parser's messages and the reference page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanField {
    /// Path below `data`, such as `num_frames` or `train[].media_dir`.
    pub name: &'static str,
    /// What may be written.
    pub type_name: &'static str,
    /// The default as JSON.
    pub default: &'static str,
    /// What the key means.
    pub doc: &'static str,
    /// Whether it may differ between a run and its resumption, because it changes no number of the training.
    pub free_on_resume: bool,
}

const fn field(name: &'static str, type_name: &'static str, default: &'static str, doc: &'static str) -> PlanField {
    PlanField { name, type_name, default, doc, free_on_resume: false }
}

const fn free(name: &'static str, type_name: &'static str, default: &'static str, doc: &'static str) -> PlanField {
    PlanField { name, type_name, default, doc, free_on_resume: true }
}

/// Every key of the section, in the order of the reference page.
pub const FIELDS: &[PlanField] = &[
    field(
        "train",
        "list of datasets",
        "[]",
        "Training datasets, mixed by `shuffle`, or read one after the other; a text is the `path` of one.",
    ),
    field("eval", "list of datasets", "[]", "Evaluation datasets; needed when an evaluation is asked for."),
    field(
        "train[].path",
        "path, or list of paths",
        "null",
        "A `.json`, `.jsonl` or WebDataset `.tar` file, a `.csv` or `.tsv` table whose header names the fields, a folder of such shards, or a pattern for them: `shards/*.jsonl`, `train-{00000..00011}.tar`. Shards stand in the order of their names' bytes, those of braces and lists as they are written. Required.",
    ),
    field(
        "train[].format",
        "auto | conversation | llava | messages | seq2seq | ego4d | mcq | qa | caption",
        "\"auto\"",
        "Shape of the records; `auto` tells it from the first records. `ego4d` is `llava` with an optional `audio`; `mcq` asks as Video-MME does and learns the letter; a caption answers \"Describe this video.\" or \"Describe this image.\".",
    ),
    field("train[].media_dir", "path", "null", "Folder of relative media paths; the file's own folder otherwise."),
    field("train[].audio_dir", "path", "null", "Folder of relative paths of sound; `media_dir` otherwise."),
    field(
        "train[].weight",
        "number",
        "1.0",
        "How many times an epoch takes the dataset: 0.5 takes half of its records, 2 each of them twice. The epochs go on where the one before stopped, so that all come equally often; with `shuffle` the records of all datasets are mixed.",
    ),
    field(
        "train[].max_samples",
        "count",
        "null",
        "Only the first so many of its records, of those that `video_ids_file` leaves.",
    ),
    field(
        "train[].video_ids_file",
        "path",
        "null",
        "Only the records that this file names, one id a line: a record's id, its clip's, or the name of its file with or without the ending.",
    ),
    field("video_ids_file", "path", "null", "The same for every training dataset that names no such file itself."),
    field(
        "split.ratio",
        "number",
        "null",
        "In place of `eval`: this share of each training dataset, rounded up, is held out for evaluation. By records, so that one clip may be in both parts. What a dataset's choices leave out is no record of the run: the run says how many, and the ledger's counts are of the others.",
    ),
    field("split.seed", "whole number", "null", "Seed of that choice; 42 when not given."),
    field("num_frames", "count", "null", "Frames a clip, where the record does not say; excludes `fps`."),
    field(
        "fps",
        "number",
        "null",
        "Frames a second, where the record does not say; wins over the checkpoint's own count, as `num_frames` does.",
    ),
    field("min_frames", "count", "null", "Fewest frames of a clip when the count follows from `fps`."),
    field("max_frames", "count", "null", "Most frames of a clip."),
    field(
        "frame_rule",
        "transformers | qwen2_vl | qwen3_vl | qwen_vl_utils | stride | segments",
        "null",
        "Which frames; otherwise the rule of the checkpoint's video processor in `transformers`: `qwen2_vl` for Qwen2-VL and Qwen2.5-VL, `qwen3_vl` for Qwen3-VL, `transformers` for the others. How many, where nobody says, that processor's files say too: Qwen3-VL takes 2 frames a second, Qwen2-VL every frame unless `do_sample_frames` is set (at most `max_frames`, 768; longer clips are refused until a count is given). `qwen_vl_utils` repeats the program that Qwen-VL models were trained with: 2 frames a second from 4 to 768, an even count, and its own budget of pixels (128 to 768 tokens a frame, 115200 a clip) in place of the processor's.",
    ),
    field(
        "frame_jitter",
        "true | false",
        "false",
        "Under `frame_rule: segments`: another frame of each segment in every epoch of training.",
    ),
    field(
        "max_length",
        "count",
        "null",
        "Most tokens of a record, pictures included; of source and target each for sequence-to-sequence models.",
    ),
    field(
        "src_lang",
        "text",
        "null",
        "Sequence-to-sequence models: language of the questions, where the record does not say; the checkpoint's own otherwise.",
    ),
    field(
        "tgt_lang",
        "text",
        "null",
        "Sequence-to-sequence models: language of the answers, where the record does not say; the checkpoint's own otherwise, else the question's.",
    ),
    field(
        "on_long",
        "fewer_frames | refuse",
        "\"fewer_frames\"",
        "A record above `max_length` gets fewer frames, or is refused; its text is never cut.",
    ),
    field(
        "packing",
        "true | false",
        "true",
        "Records stand one after the other without padding; the losses are the same either way.",
    ),
    field("pack_tokens", "count", "null", "Fill batches up to this many tokens instead of counting records."),
    field(
        "pack_patches",
        "count",
        "null",
        "With `pack_tokens`: at most this many patches of pictures a batch, which is what the vision tower computes on.",
    ),
    field(
        "pack_window",
        "count",
        "null",
        "With `pack_tokens`: records that are put into batches by best fit at a time; 1 fills them in order. 256 when not given, and 1 with `shuffle: false`.",
    ),
    field(
        "group_by_length",
        "true | false",
        "false",
        "Records of like length side by side, as `LengthGroupedSampler` of `transformers`; all records are measured first, without decoding videos.",
    ),
    field("shuffle", "true | false", "true", "Another order in every epoch of training; otherwise file order."),
    field(
        "on_bad_media",
        "stop | skip",
        "\"stop\"",
        "A bad record stops the run, or is skipped and noted in the ledger.",
    ),
    field(
        "max_skips",
        "count",
        "null",
        "Most records skipped in an epoch; otherwise a tenth of the records, at least 10.",
    ),
    field(
        "image_backend",
        "torchvision | pillow",
        "\"torchvision\"",
        "Whose resize is repeated: `transformers` 5 uses torchvision, version 4 used Pillow for classes without `Fast`.",
    ),
    free(
        "num_workers",
        "count",
        "null",
        "Threads that decode and encode; otherwise one a core (or `--threads`), at most 16.",
    ),
    free("buffer_mb", "count", "512", "Most megabytes of records and batches held ahead."),
    free(
        "frame_cache",
        "path",
        "null",
        "Folder in which the frames of clips are kept, scaled and without loss, so that they are decoded once; several runs may share it. Not used with `frame_jitter`.",
    ),
    free(
        "frame_cache_size",
        "bytes, such as 10GB",
        "\"10GB\"",
        "Most bytes in `frame_cache`. The least recently used frames make room, but none that this run has used itself.",
    ),
    free("cache_dir", "path", "null", "Folder for media that records name by https address."),
    field("limits.max_pixels", "count", "null", "Largest width times height of a picture."),
    field("limits.max_frames", "count", "null", "Most frames that one file may present."),
    field("limits.max_duration_s", "number", "null", "Longest clip in seconds."),
    free("limits.deadline_s", "number", "null", "Longest time for one call on one file in seconds."),
];
