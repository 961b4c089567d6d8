//! Scenes to pixels: anti-aliased shapes on a plain background. Owns no meaning.

use media::RgbImage;

use super::scene::{GRID, Object, Scene, Shape};

/// Sample points along each side of a pixel.
const SUBPIXELS: u32 = 4;

/// Draws one moment of a scene.
pub fn draw(scene: &Scene, moment: usize, width: u32, height: u32) -> RgbImage {
    let mut data: Vec<u8> = scene.background.repeat(width as usize * height as usize);
    for object in &scene.objects {
        if let Some(cell) = object.cells[moment] {
            let cell_side = (f64::from(width) / GRID as f64, f64::from(height) / GRID as f64);
            let centre = (
                (cell.x as f64 + 0.5 + object.offset.0) * cell_side.0,
                (cell.y as f64 + 0.5 + object.offset.1) * cell_side.1,
            );
            paint(&mut data, width, height, object, centre, cell_side);
        }
    }
    RgbImage { width, height, data }
}

/// Blends an object over the picture; its radius is measured along each side of the cell, so that a picture squeezed to a
/// square shows what it shows at its own size.
fn paint(data: &mut [u8], width: u32, height: u32, object: &Object, centre: (f64, f64), cell: (f64, f64)) {
    let radius = (object.radius * cell.0, object.radius * cell.1);
    let range = |middle: f64, radius: f64, side: u32| {
        let low = (middle - radius).floor().max(0.0) as u32;
        let high = ((middle + radius).ceil().max(0.0) as u32).min(side);
        low..high
    };
    let colour = object.colour.rgb();
    for y in range(centre.1, radius.1, height) {
        for x in range(centre.0, radius.0, width) {
            let coverage = coverage(object.shape, x, y, centre, radius);
            if coverage > 0.0 {
                let at = (y as usize * width as usize + x as usize) * 3;
                for (channel, value) in data[at..at + 3].iter_mut().zip(colour) {
                    let old = f64::from(*channel);
                    *channel = (old + (f64::from(value) - old) * coverage).round() as u8;
                }
            }
        }
    }
}

/// How much of a pixel the shape covers, 0 to 1.
fn coverage(shape: Shape, x: u32, y: u32, centre: (f64, f64), radius: (f64, f64)) -> f64 {
    let point = |at: u32, sub: u32| f64::from(at) + (f64::from(sub) + 0.5) / f64::from(SUBPIXELS);
    let mut inside = 0;
    for sub_y in 0..SUBPIXELS {
        for sub_x in 0..SUBPIXELS {
            let u = (point(x, sub_x) - centre.0) / radius.0;
            let v = (point(y, sub_y) - centre.1) / radius.1;
            inside += u32::from(contains(shape, u, v));
        }
    }
    f64::from(inside) / f64::from(SUBPIXELS * SUBPIXELS)
}

/// Whether a shape of radius 1 around the origin covers a point; y grows downwards.
fn contains(shape: Shape, x: f64, y: f64) -> bool {
    match shape {
        Shape::Circle => x * x + y * y <= 1.0,
        Shape::Square => x.abs() <= 0.86 && y.abs() <= 0.86,
        Shape::Triangle => y <= 0.85 && x.abs() <= (y + 1.0) * 0.54,
        Shape::Cross => (x.abs() <= 0.34 && y.abs() <= 1.0) || (y.abs() <= 0.34 && x.abs() <= 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::rng::Rng;
    use crate::demo::scene::{Cell, Direction, MOMENTS};

    #[test]
    fn the_middle_of_a_shape_has_its_colour_and_a_corner_of_the_picture_has_not() {
        let mut rng = Rng::new(1, "draw");
        for shape in Shape::ALL {
            let mut scene = Scene::still(&mut rng, 1);
            scene.objects[0].shape = shape;
            scene.objects[0].cells = [Some(Cell { x: 1, y: 2 }); MOMENTS];
            let image = draw(&scene, 0, 80, 64);
            let pixel = |x: usize, y: usize| &image.data[(y * 80 + x) * 3..][..3];
            // The middle of the second column and of the last row of three.
            assert_eq!(pixel(40, 53), scene.objects[0].colour.rgb());
            assert_eq!(pixel(79, 0), scene.background);
        }
    }

    #[test]
    fn shapes_cover_areas_that_tell_them_apart() {
        let area = |shape| {
            let side = 40_u32;
            let total: f64 =
                (0..side * side).map(|at| coverage(shape, at % side, at / side, (20.0, 20.0), (20.0, 20.0))).sum();
            total / f64::from(side * side)
        };
        assert!((area(Shape::Circle) - std::f64::consts::PI / 4.0).abs() < 0.01);
        assert!((area(Shape::Square) - 0.86 * 0.86).abs() < 0.01);
        assert!((area(Shape::Cross) - (0.34 + 0.34 - 0.34 * 0.34)).abs() < 0.01);
        assert!((area(Shape::Triangle) - 1.85 * 1.85 * 0.54 / 4.0).abs() < 0.01);
    }

    #[test]
    fn a_moving_shape_changes_the_picture_and_a_still_one_does_not() {
        let mut rng = Rng::new(2, "draw");
        let moving = Scene::motion(&mut rng, Direction::Left, 1);
        assert_ne!(draw(&moving, 0, 64, 64).data, draw(&moving, 1, 64, 64).data);
        let still = Scene::still(&mut rng, 3);
        assert_eq!(draw(&still, 0, 64, 64).data, draw(&still, 3, 64, 64).data);
    }
}
