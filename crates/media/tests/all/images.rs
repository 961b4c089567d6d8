//! Still pictures equal Pillow's, pixel for pixel (`tools/oracle/media_images.py`).

use crate::common::{fixture, json, sha256};
use media::{Limits, load_image};

#[test]
fn pictures_equal_pillow() {
    let expected = json("images.json");
    let images = expected["images"].as_array().unwrap();
    assert!(images.len() > 100);
    let mut wrong = Vec::new();
    for entry in images {
        let name = entry["file"].as_str().unwrap();
        match load_image(&fixture("images").join(name), &Limits::default()) {
            Ok(image) => {
                let size = (u64::from(image.width), u64::from(image.height));
                if size != (entry["width"].as_u64().unwrap(), entry["height"].as_u64().unwrap()) {
                    wrong.push(format!("{name}: {size:?}"));
                } else if sha256(&image) != entry["sha256"].as_str().unwrap() {
                    wrong.push(format!("{name}: pixels"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), images.len(), wrong.join("\n"));
}
