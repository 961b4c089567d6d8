//! Owns the contact sheet: frames in a grid with their times written under them, for people to look at.
//! It refuses general text: its letters are those of a label.

use crate::resize::{Filter, pillow};
use crate::{Frame, RgbImage};

/// Pixels between cells.
const GAP: u32 = 4;
/// Pixels of a glyph's dot.
const DOT: u32 = 2;
/// Dots of a glyph, and of the space behind it.
const GLYPH_WIDTH: u32 = 3;
const GLYPH_HEIGHT: u32 = 5;
const BACKGROUND: [u8; 3] = [24, 24, 28];
const TEXT: [u8; 3] = [235, 235, 235];

/// A grid of `columns` frames a row, each `cell_width` pixels wide, with `#index seconds` under each. All cells have the
/// first frame's shape. `None` without frames, columns or width.
pub fn contact_sheet(frames: &[Frame], columns: u32, cell_width: u32) -> Option<RgbImage> {
    let first = &frames.first()?.image;
    if columns == 0 || cell_width == 0 {
        return None;
    }
    let cell_height = (u64::from(first.height) * u64::from(cell_width) / u64::from(first.width)).max(1) as u32;
    let label_height = (GLYPH_HEIGHT + 2) * DOT;
    let columns = columns.min(frames.len() as u32);
    let rows = (frames.len() as u32).div_ceil(columns);
    let (step_x, step_y) = (cell_width + GAP, cell_height + label_height + GAP);
    let mut sheet = RgbImage::filled(columns * step_x + GAP, rows * step_y + GAP, BACKGROUND);
    for (i, frame) in frames.iter().enumerate() {
        let (x, y) = (GAP + i as u32 % columns * step_x, GAP + i as u32 / columns * step_y);
        paste(&mut sheet, &pillow(&frame.image, cell_width, cell_height, Filter::Bilinear), x, y);
        let label = label(frame, cell_width);
        write(&mut sheet, &label, x, y + cell_height + DOT);
    }
    Some(sheet)
}

/// `#index seconds`, or as much of it as fits: the time alone, then nothing.
fn label(frame: &Frame, width: u32) -> String {
    let time = format!("{:.2}S", frame.seconds);
    let whole = format!("#{} {time}", frame.index);
    [whole, time].into_iter().find(|text| text.len() as u32 * (GLYPH_WIDTH + 1) * DOT <= width).unwrap_or_default()
}

fn paste(sheet: &mut RgbImage, image: &RgbImage, x: u32, y: u32) {
    let row = image.width as usize * 3;
    for (i, source) in image.data.chunks_exact(row).enumerate() {
        let at = ((y as usize + i) * sheet.width as usize + x as usize) * 3;
        sheet.data[at..at + row].copy_from_slice(source);
    }
}

fn write(sheet: &mut RgbImage, text: &str, x: u32, y: u32) {
    for (i, letter) in text.chars().enumerate() {
        let left = x + i as u32 * (GLYPH_WIDTH + 1) * DOT;
        for (row, dots) in glyph(letter).into_iter().enumerate() {
            for column in 0..GLYPH_WIDTH {
                if dots >> (GLYPH_WIDTH - 1 - column) & 1 == 1 {
                    for dot in 0..DOT * DOT {
                        let (dx, dy) = (dot % DOT, dot / DOT);
                        sheet.set_pixel(left + column * DOT + dx, y + row as u32 * DOT + dy, TEXT);
                    }
                }
            }
        }
    }
}

/// Rows of three dots, the left one in the highest bit.
fn glyph(letter: char) -> [u8; GLYPH_HEIGHT as usize] {
    match letter {
        '0' => [0b111, 0b101, 0b101, 0b101, 0b111],
        '1' => [0b010, 0b110, 0b010, 0b010, 0b111],
        '2' => [0b111, 0b001, 0b111, 0b100, 0b111],
        '3' => [0b111, 0b001, 0b011, 0b001, 0b111],
        '4' => [0b101, 0b101, 0b111, 0b001, 0b001],
        '5' => [0b111, 0b100, 0b111, 0b001, 0b111],
        '6' => [0b111, 0b100, 0b111, 0b101, 0b111],
        '7' => [0b111, 0b001, 0b010, 0b010, 0b010],
        '8' => [0b111, 0b101, 0b111, 0b101, 0b111],
        '9' => [0b111, 0b101, 0b111, 0b001, 0b111],
        '.' => [0b000, 0b000, 0b000, 0b000, 0b010],
        '-' => [0b000, 0b000, 0b111, 0b000, 0b000],
        '#' => [0b101, 0b111, 0b101, 0b111, 0b101],
        'S' => [0b000, 0b011, 0b010, 0b001, 0b011],
        _ => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_and_labels_lie_where_they_should() {
        let frame = |index: usize, rgb| Frame {
            image: RgbImage::filled(64, 32, rgb),
            index,
            seconds: index as f64 / 4.0,
            damaged: false,
        };
        let frames = [frame(0, [200, 0, 0]), frame(7, [0, 200, 0]), frame(12, [0, 0, 200])];
        let sheet = contact_sheet(&frames, 2, 96).unwrap();
        assert_eq!((sheet.width, sheet.height), (2 * 100 + 4, 2 * (48 + 14 + 4) + 4));
        assert_eq!(sheet.pixel(50, 20), [200, 0, 0]);
        assert_eq!(sheet.pixel(150, 20), [0, 200, 0]);
        assert_eq!(sheet.pixel(50, 90), [0, 0, 200]);
        assert_eq!(sheet.pixel(150, 90), BACKGROUND);
        // The label of the second cell, `#7 1.75S`, begins with `#`: dots at the left and right, none between.
        let y = 4 + 48 + DOT;
        assert_eq!([sheet.pixel(104, y), sheet.pixel(106, y), sheet.pixel(108, y)], [TEXT, BACKGROUND, TEXT]);
        let num_lit = sheet.data.chunks_exact(3).filter(|pixel| *pixel == TEXT).count();
        let dots: u32 = ["#0 0.00S", "#7 1.75S", "#12 3.00S"]
            .iter()
            .flat_map(|text| text.chars().flat_map(glyph))
            .map(u8::count_ones)
            .sum();
        assert_eq!(num_lit as u32, dots * DOT * DOT);
        assert!(contact_sheet(&[], 2, 96).is_none() && contact_sheet(&frames, 0, 96).is_none());
        assert_eq!(contact_sheet(&frames, 9, 5).unwrap().width, 3 * 9 + 4);
    }
}
