//! Configuration of LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: what they add to LLaVA's. Owns which tiles an image is
//! cut into and what is left of the grid of their tokens; reading what they share with LLaVA is `config`'s.
//!
//! Source: `LlavaNextConfig`, `LlavaNextVideoConfig`, `LlavaOnevisionConfig`, `select_best_resolution`, `unpad_image` and
//! `pack_image_features` of `transformers`, class defaults included.

use super::fields::Fields;
use super::{FamilyConfig, LlavaConfig, ModelConfig, VisionKind};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// What images of any shape and clips become.
#[derive(Debug, Clone)]
pub struct AnyresConfig {
    /// Heights and widths in pixels; an image is scaled into the one that fits it best and cut into tiles.
    pub pinpoints: Vec<[usize; 2]>,
    /// `anyres_max_N`: a grid of tokens of more than so many tiles is shrunk; none keeps every grid as it is.
    pub max_tiles: Option<usize>,
    /// What clips become; none where the family takes no clips.
    pub clips: Option<ClipConfig>,
}

/// What clips become.
#[derive(Debug, Clone)]
pub struct ClipConfig {
    /// Token id whose rows are replaced by features of clips.
    pub token_id: u32,
    /// How the grid of a frame gets smaller.
    pub pooling: ClipPooling,
}

/// How the grid of a frame gets smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipPooling {
    /// Squares of this side become one place, before the projector; what is left at the edges is dropped.
    Squares(SquarePooling, usize),
    /// Bilinear to half the side, rounded up, after the projector; the newline stands behind the last frame.
    Halves,
}

/// What becomes of a square (`spatial_pool_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SquarePooling {
    /// Its mean.
    Average,
    /// The largest value of each channel.
    Max,
    /// A learned map of all of its values (`vision_resampler.pool`).
    Convolution,
}

impl ClipPooling {
    /// Side of a frame's grid of this side.
    pub fn side(self, grid: usize) -> usize {
        match self {
            ClipPooling::Squares(_, stride) => grid / stride,
            ClipPooling::Halves => grid.div_ceil(2),
        }
    }
}

impl ClipConfig {
    /// Tokens of a clip of so many frames whose grids have this side.
    pub fn tokens(&self, frames: usize, grid: usize) -> usize {
        let side = self.pooling.side(grid);
        frames * side * side + usize::from(self.pooling == ClipPooling::Halves)
    }
}

/// The grid of an image's tokens, all tiles joined, and what of it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Canvas {
    /// Tiles down and across.
    pub tiles: [usize; 2],
    /// Rows and columns that are padding, on either side.
    pub padding: [usize; 2],
    /// Rows and columns between the padding.
    pub size: [usize; 2],
    /// What these are shrunk to.
    pub shrunk: Option<[usize; 2]>,
}

impl AnyresConfig {
    /// The canvas of an image of `source` height and width; tiles have `side` pixels and `grid` tokens a side. None where no
    /// resolution fits, or the best one is not made of whole tiles.
    pub(crate) fn canvas(&self, source: [usize; 2], side: usize, grid: usize) -> Option<Canvas> {
        let best = best_resolution(source, &self.pinpoints)?;
        if best.iter().any(|length| !length.is_multiple_of(side)) {
            return None;
        }
        let tiles = best.map(|length| length / side);
        let whole = tiles.map(|count| count * grid);
        let [height, width] = source.map(|length| length as f64);
        let mut padding = [0, 0];
        // The side along which the image fills the canvas has none.
        let axis = usize::from(width / height <= whole[1] as f64 / whole[0] as f64);
        let scale = whole[1 - axis] as f64 / source[1 - axis] as f64;
        let filled = rounded_down(source[axis] as f64 * scale);
        padding[axis] = (whole[axis] - filled.min(whole[axis])) / 2;
        let size = [0, 1].map(|axis| whole[axis] - 2 * padding[axis]);
        let shrunk = match self.max_tiles {
            Some(most) => {
                let ratio = ((size[0] * size[1]) as f64 / (most * grid * grid) as f64).sqrt();
                (ratio > 1.1).then(|| size.map(|length| whole_part(length as f64, ratio)))
            }
            None => None,
        };
        Some(Canvas { tiles, padding, size, shrunk })
    }
}

/// Reads the configuration of a whole checkpoint.
pub(super) fn read(place: &str, raw: &Value) -> Result<ModelConfig> {
    let f = Fields::new(place, raw)?;
    let model_type = f.str_or("model_type", "")?;
    let is_onevision = model_type == "llava_onevision";
    let is_video = model_type == "llava_next_video";
    let pinpoints = read_pinpoints(&f, is_onevision)?;
    let max_tiles = if is_onevision { Some(read_max_tiles(&f)?) } else { None };
    let pooling = match (is_onevision, is_video) {
        (true, _) => Some(ClipPooling::Halves),
        (_, true) => Some(read_squares(&f)?),
        _ => None,
    };

    // What these classes share with LLaVA's is read as LLaVA's, with their own defaults put in.
    let mut common: Map<String, Value> = raw.as_object().cloned().unwrap_or_default();
    for own in OWN {
        common.remove(own);
    }
    let has = |map: &Map<String, Value>, name: &str| map.get(name).is_some_and(|value| !value.is_null());
    let mut default = |name: &str, value: Value| {
        if !has(&common, name) {
            common.insert(name.to_owned(), value);
        }
    };
    if is_onevision {
        default("vision_config", so400m());
        default("text_config", json!({}));
        default("vision_feature_layer", json!(-1));
        default("vision_feature_select_strategy", json!("full"));
    }
    if !has(&common, "image_token_id") && !has(&common, "image_token_index") {
        let id = if is_onevision { 151_646 } else { 32_000 + usize::from(is_video) };
        common.insert("image_token_index".into(), id.into());
    }
    if is_onevision {
        for (part, usual) in [("vision_config", "siglip_vision_model"), ("text_config", "qwen2")] {
            if let Some(Value::Object(part)) = common.get_mut(part)
                && !has(part, "model_type")
            {
                part.insert("model_type".into(), usual.into());
            }
        }
    }
    let mut config = ModelConfig::read_llava(place, &Value::Object(common))?;
    let FamilyConfig::Causal(causal) = &mut config.family else { return Ok(config) };
    let (text_vocab, tied) = (causal.text.vocab_size, f.bool_or("tie_word_embeddings", false)?);
    if model_type == "llava_next" {
        // This class alone does not look at the text side's own word.
        causal.text.tie_word_embeddings = tied;
    }
    let Some(VisionKind::Llava(llava)) = &mut causal.vision else { return Ok(config) };
    check_grid(&f, llava)?;
    let clips = match pooling {
        Some(pooling) => Some(read_clips(&f, llava, pooling, text_vocab, is_onevision)?),
        None => None,
    };
    llava.anyres = Some(AnyresConfig { pinpoints, max_tiles, clips });
    config.model_type = model_type;
    config.raw = raw.clone();
    Ok(config)
}

/// Fields that LLaVA's class does not have. The classes here never look at the last ones: early copies of LLaVA-NeXT-Video have the
/// text side's rope scaling there by mistake, and the newline is always a parameter.
const OWN: [&str; 11] = [
    "image_grid_pinpoints",
    "vision_aspect_ratio",
    "spatial_pool_mode",
    "spatial_pool_stride",
    "spatial_pool_out_channels",
    "video_token_id",
    "video_token_index",
    "video_seq_length",
    "use_image_newline_parameter",
    "rope_scaling",
    "rope_parameters",
];

/// The tower of `LlavaOnevisionConfig`.
fn so400m() -> Value {
    json!({"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14, "image_size": 384,
        "num_hidden_layers": 26, "num_attention_heads": 16, "vision_use_head": false})
}

fn read_pinpoints(f: &Fields<'_>, is_onevision: bool) -> Result<Vec<[usize; 2]>> {
    let name = "image_grid_pinpoints";
    let Some(value) = f.raw(name) else {
        return Ok(match is_onevision {
            true => (0..36).map(|i| [384 * (i / 6 + 1), 384 * (i % 6 + 1)]).collect(),
            false => vec![[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        });
    };
    let pair = |pair: &Value| {
        let pair = pair.as_array().filter(|pair| pair.len() == 2)?;
        let length = |value: &Value| value.as_u64().filter(|&length| length > 0).map(|length| length as usize);
        Some([length(&pair[0])?, length(&pair[1])?])
    };
    let pairs = value.as_array().and_then(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
    pairs
        .filter(|pairs| !pairs.is_empty())
        .ok_or_else(|| f.error(name, format!("expected a list of heights and widths in pixels, found `{value}`")))
}

fn read_max_tiles(f: &Fields<'_>) -> Result<usize> {
    let name = "vision_aspect_ratio";
    let value = f.str_or(name, "anyres_max_9")?;
    // The reference strips these letters from either end and reads what is left.
    let digits = value.trim_matches(|c| "anyres_max_".contains(c));
    match digits.parse() {
        Ok(most) if most > 0 => Ok(most),
        _ => Err(f.error(name, format!("expected `anyres_max_` and a number of tiles, found `{value}`"))),
    }
}

fn read_squares(f: &Fields<'_>) -> Result<ClipPooling> {
    let mode = match f.str_or("spatial_pool_mode", "average")?.as_str() {
        "average" => SquarePooling::Average,
        "max" => SquarePooling::Max,
        "conv" => SquarePooling::Convolution,
        other => {
            return Err(f.error("spatial_pool_mode", format!("expected average, max or conv, found `{other}`")));
        }
    };
    Ok(ClipPooling::Squares(mode, f.size_or("spatial_pool_stride", 2)?))
}

fn check_grid(f: &Fields<'_>, llava: &LlavaConfig) -> Result<()> {
    let (tokens, grid) = (llava.tokens_per_image(), llava.vision.grid());
    if tokens == grid * grid {
        return Ok(());
    }
    let reason = format!(
        "expected the strategy that leaves a token for each of {grid} x {grid} patches (`default` with CLIP, `full` with SigLIP), found one that leaves {tokens}"
    );
    Err(f.error("vision_feature_select_strategy", reason))
}

fn read_clips(
    f: &Fields<'_>,
    llava: &LlavaConfig,
    pooling: ClipPooling,
    vocab_size: usize,
    is_onevision: bool,
) -> Result<ClipConfig> {
    let name = if f.raw("video_token_id").is_some() { "video_token_id" } else { "video_token_index" };
    let id = f.usize_or(name, if is_onevision { 151_647 } else { 32_000 })?;
    if id >= vocab_size {
        return Err(f.error(name, format!("expected an id below the vocabulary of {vocab_size}, found `{id}`")));
    }
    if id == llava.image_token_id as usize {
        return Err(f.error(name, format!("expected another id than that of images, found `{id}` for both")));
    }
    if let ClipPooling::Squares(mode, stride) = pooling {
        let grid = llava.vision.grid();
        if stride > grid {
            let reason = format!("expected at most the {grid} patches of a side, found `{stride}`");
            return Err(f.error("spatial_pool_stride", reason));
        }
        let width = llava.vision.hidden_size;
        let out = f.usize_or("spatial_pool_out_channels", width)?;
        if mode == SquarePooling::Convolution && (out != width || llava.feature_layers.len() != 1) {
            return Err(f.error(
                "spatial_pool_mode",
                format!("`conv` takes one feature layer and keeps its {width} channels, found {} layer(s) and `spatial_pool_out_channels` {out}", llava.feature_layers.len()),
            ));
        }
    }
    Ok(ClipConfig { token_id: id as u32, pooling })
}

/// Of several resolutions the one that keeps the most of an image, and of these the one that wastes the least.
fn best_resolution([height, width]: [usize; 2], pinpoints: &[[usize; 2]]) -> Option<[usize; 2]> {
    let mut best = None;
    for &[to_height, to_width] in pinpoints {
        let scale = (to_width as f64 / width as f64).min(to_height as f64 / height as f64);
        let scaled = |length: usize| (length as f64 * scale) as usize;
        let kept = (scaled(width) * scaled(height)).min(width * height);
        let wasted = to_height * to_width - kept;
        if best.is_none_or(|(most, least, _)| kept > most || (kept == most && wasted < least)) {
            best = Some((kept, wasted, [to_height, to_width]));
        }
    }
    best.map(|(_, _, resolution)| resolution)
}

/// `int(round(x, 7))` of Python.
fn rounded_down(x: f64) -> usize {
    format!("{x:.7}").parse::<f64>().map_or(0, |rounded| rounded as usize)
}

/// `int(x // y)` of Python, for positive numbers.
fn whole_part(x: f64, y: f64) -> usize {
    ((x - x % y) / y).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Value)) -> Result<ModelConfig> {
        let mut value = json!({
            "model_type": "llava_next_video", "image_token_index": 5, "video_token_index": 6, "image_grid_pinpoints": [[8, 16], [16, 8]],
            "vision_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
            "text_config": {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 10}
        });
        change(&mut value);
        ModelConfig::from_json("config.json", value)
    }

    fn onevision(v: &mut Value) {
        v["model_type"] = json!("llava_onevision");
        v["vision_config"]["vision_use_head"] = json!(false);
    }

    #[test]
    fn defaults_are_those_of_the_reference_classes() {
        let read = |model_type: &str, vocab: usize| {
            let value = json!({"model_type": model_type, "text_config": {"vocab_size": vocab}});
            ModelConfig::from_json("config.json", value).unwrap()
        };
        let next = read("llava_next_video", 32064);
        let llava = next.llava().unwrap();
        let anyres = llava.anyres.as_ref().unwrap();
        assert_eq!((next.placeholder_ids(), llava.feature_layers.clone()), (vec![32001, 32000], vec![23]));
        assert_eq!((anyres.pinpoints[3], anyres.pinpoints.len(), anyres.max_tiles), ([1008, 336], 5, None));
        assert_eq!(anyres.clips.as_ref().unwrap().tokens(3, 24), 3 * 144);
        assert_eq!((llava.vision.image_size, next.model_type.as_str()), (336, "llava_next_video"));

        let one = read("llava_onevision", 152_000);
        let llava = one.llava().unwrap();
        let anyres = llava.anyres.as_ref().unwrap();
        assert_eq!((one.placeholder_ids(), llava.tokens_per_image()), (vec![151_646, 151_647], 729));
        assert_eq!((llava.feature_layers.clone(), llava.vision.pooling_head), (vec![26], false));
        assert_eq!((anyres.pinpoints.len(), anyres.pinpoints[7], anyres.max_tiles), (36, [768, 768], Some(9)));
        assert_eq!(anyres.clips.as_ref().unwrap().tokens(2, 27), 2 * 196 + 1);
        assert_eq!(one.causal().unwrap().text.intermediate_size, 22016);

        let plain = read("llava_next", 32064);
        assert_eq!(plain.placeholder_ids(), [32000]);
        assert!(plain.llava().unwrap().anyres.as_ref().unwrap().clips.is_none());
    }

    #[test]
    fn fields_are_refused_by_name() {
        let check = |change: fn(&mut Value), expected: &str| {
            assert_eq!(config(change).map(|_| ()).unwrap_err().to_string(), expected);
        };
        assert!(config(|v| v["rope_scaling"] = json!({"type": "linear", "factor": 2.5})).is_ok());
        check(
            |v| v["image_grid_pinpoints"] = json!([[8, 0]]),
            "`config.json`: field `image_grid_pinpoints`: expected a list of heights and widths in pixels, found `[[8,0]]`",
        );
        check(
            |v| v["spatial_pool_mode"] = json!("median"),
            "`config.json`: field `spatial_pool_mode`: expected average, max or conv, found `median`",
        );
        check(
            |v| v["spatial_pool_stride"] = json!(3),
            "`config.json`: field `spatial_pool_stride`: expected at most the 2 patches of a side, found `3`",
        );
        check(
            |v| v["video_token_index"] = json!(10),
            "`config.json`: field `video_token_index`: expected an id below the vocabulary of 10, found `10`",
        );
        check(
            |v| v["video_token_index"] = json!(5),
            "`config.json`: field `video_token_index`: expected another id than that of images, found `5` for both",
        );
        check(
            |v| v["vision_feature_select_strategy"] = json!("full"),
            "`config.json`: field `vision_feature_select_strategy`: expected the strategy that leaves a token for each of 2 x 2 patches (`default` with CLIP, `full` with SigLIP), found one that leaves 5",
        );
        check(
            |v| v["frames"] = json!(3),
            "`config.json`: field `frames`: is not supported (found `3`); remove it only if it does not change the model",
        );
        check(
            |v| {
                onevision(v);
                v["vision_aspect_ratio"] = json!("anyres");
            },
            "`config.json`: field `vision_aspect_ratio`: expected `anyres_max_` and a number of tiles, found `anyres`",
        );
    }

    /// Sizes of images with what `get_anyres_image_grid_shape`, `unpad_image` and `pack_image_features` make of them.
    #[test]
    fn canvases_are_those_of_the_reference() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/data/llava_next/sizes.json");
        let all: Value = hub::json::read_json(path).unwrap();
        let pair = |value: &Value| [0, 1].map(|i| value[i].as_u64().unwrap() as usize);
        let mut num_shrunk = 0;
        for row in all["rows"].as_array().unwrap() {
            let config = &all["configs"][row["config"].as_u64().unwrap() as usize];
            let [side, grid] = ["side", "grid"].map(|name| config[name].as_u64().unwrap() as usize);
            let anyres = AnyresConfig {
                pinpoints: config["pinpoints"].as_array().unwrap().iter().map(pair).collect(),
                max_tiles: config["max_tiles"].as_u64().map(|most| most as usize),
                clips: None,
            };
            let canvas = anyres.canvas(pair(&row["source"]), side, grid).unwrap();
            assert_eq!((canvas.tiles, canvas.size), (pair(&row["tiles"]), pair(&row["size"])), "{row}");
            let shrunk = row["shrunk"].is_array().then(|| pair(&row["shrunk"]));
            assert_eq!(canvas.shrunk, shrunk, "{row}");
            num_shrunk += usize::from(shrunk.is_some());
            assert_eq!(anyres.canvas(pair(&row["source"]), 100_000, grid), None);
        }
        assert!(num_shrunk > 30);
    }
}
