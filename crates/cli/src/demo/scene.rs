//! What happens in a clip: coloured shapes on a ring-shaped grid that stay, move or take turns in appearing.
//! Owns the counterbalance of the demo: every clip played backwards is another clip that is drawn equally often, and what a single
//! frame shows does not depend on the direction or the order that is asked about. Pixels and questions are elsewhere.

use super::rng::Rng;

/// Cells along each side of the picture. The grid is a ring in both directions: who leaves on one side comes back on the other,
/// so no place and no edge tells where a shape came from.
pub const GRID: usize = 3;

/// Moments of a clip. Each is held for several frames of the file, so that every rule of choosing frames sees the same moments.
pub const MOMENTS: usize = 4;

/// A colour by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Colour {
    /// (230, 50, 50)
    Red,
    /// (50, 200, 80)
    Green,
    /// (60, 110, 250)
    Blue,
    /// (250, 215, 60)
    Yellow,
    /// (190, 80, 220)
    Purple,
}

impl Colour {
    /// All of them.
    pub const ALL: [Colour; 5] = [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple];

    /// The word in questions and answers.
    pub fn word(self) -> &'static str {
        match self {
            Colour::Red => "red",
            Colour::Green => "green",
            Colour::Blue => "blue",
            Colour::Yellow => "yellow",
            Colour::Purple => "purple",
        }
    }

    /// Its place in the rainbow.
    pub fn rainbow(self) -> usize {
        match self {
            Colour::Red => 0,
            Colour::Yellow => 1,
            Colour::Green => 2,
            Colour::Blue => 3,
            Colour::Purple => 4,
        }
    }

    /// Red, green and blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Colour::Red => [230, 50, 50],
            Colour::Green => [50, 200, 80],
            Colour::Blue => [60, 110, 250],
            Colour::Yellow => [250, 215, 60],
            Colour::Purple => [190, 80, 220],
        }
    }
}

/// A shape by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle that stands on its base.
    Triangle,
    /// Two crossed bars.
    Cross,
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 4] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Cross];

    /// The word in questions and answers.
    pub fn word(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Cross => "cross",
        }
    }
}

/// Where a shape moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Towards smaller x.
    Left,
    /// Towards larger x.
    Right,
    /// Towards smaller y.
    Up,
    /// Towards larger y.
    Down,
}

impl Direction {
    /// All of them.
    pub const ALL: [Direction; 4] = [Direction::Left, Direction::Right, Direction::Up, Direction::Down];

    /// The word in questions and answers.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Left => "left",
            Direction::Right => "right",
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }

    /// The same played backwards.
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Left => Direction::Right,
            Direction::Right => Direction::Left,
            Direction::Up => Direction::Down,
            Direction::Down => Direction::Up,
        }
    }

    /// Whether x changes.
    pub fn is_horizontal(self) -> bool {
        matches!(self, Direction::Left | Direction::Right)
    }

    /// The cell `steps` cells further on the ring.
    fn advance(self, cell: Cell, steps: usize) -> Cell {
        let forward = |at: usize| (at + steps) % GRID;
        let backward = |at: usize| (at + GRID - steps % GRID) % GRID;
        match self {
            Direction::Left => Cell { x: backward(cell.x), y: cell.y },
            Direction::Right => Cell { x: forward(cell.x), y: cell.y },
            Direction::Up => Cell { x: cell.x, y: backward(cell.y) },
            Direction::Down => Cell { x: cell.x, y: forward(cell.y) },
        }
    }
}

/// A place on the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Column, 0 on the left.
    pub x: usize,
    /// Row, 0 at the top.
    pub y: usize,
}

/// One shape of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its colour; no two objects of a clip share one.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
    /// Half its width, in cells.
    pub radius: f64,
    /// How far it sits from the middle of its cell, in cells, right and down.
    pub offset: (f64, f64),
    /// Where it is at each moment; `None` while it is not there.
    pub cells: [Option<Cell>; MOMENTS],
    /// Where it moves; `None` for one that does not.
    pub direction: Option<Direction>,
}

/// What kind of thing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One to four shapes that stay where they are.
    Still,
    /// One shape or several that move along parallel lanes.
    Motion,
    /// Three shapes that appear in turn, over and over, one at a time.
    Turns,
}

/// A clip before it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// What happens.
    pub kind: Kind,
    /// The shapes. Under [`Kind::Turns`], in the order in which they appear, which has neither begin nor end.
    pub objects: Vec<Object>,
    /// Colour behind them.
    pub background: [u8; 3],
}

impl Scene {
    /// One to four shapes at rest.
    pub fn still(rng: &mut Rng, num_objects: usize) -> Scene {
        let cells = rng.sample(&all_cells(), num_objects);
        let mut scene = Scene::blank(rng, Kind::Still, num_objects);
        for (object, cell) in scene.objects.iter_mut().zip(cells) {
            object.cells = [Some(cell); MOMENTS];
        }
        scene
    }

    /// Up to [`GRID`] shapes, each on a lane of its own: the first moves in `direction`, every other one that way or the opposite
    /// one, so that many cross. Where each one starts is drawn from the whole ring and does not depend on the direction.
    pub fn motion(rng: &mut Rng, direction: Direction, num_objects: usize) -> Scene {
        let lanes = rng.sample(&std::array::from_fn::<usize, GRID, _>(|lane| lane), num_objects);
        let mut scene = Scene::blank(rng, Kind::Motion, num_objects);
        for (index, (object, lane)) in scene.objects.iter_mut().zip(lanes).enumerate() {
            let start = rng.below(GRID);
            let direction = if index == 0 || rng.coin() { direction } else { direction.opposite() };
            let first = if direction.is_horizontal() { Cell { x: start, y: lane } } else { Cell { x: lane, y: start } };
            object.cells = std::array::from_fn(|moment| Some(direction.advance(first, moment)));
            object.direction = Some(direction);
        }
        scene
    }

    /// Three shapes that appear in turn; which of them opens the clip is drawn.
    pub fn turns(rng: &mut Rng) -> Scene {
        let cells = rng.sample(&all_cells(), 3);
        let mut scene = Scene::blank(rng, Kind::Turns, 3);
        let first = rng.below(3);
        for (index, (object, cell)) in scene.objects.iter_mut().zip(cells).enumerate() {
            object.cells = std::array::from_fn(|moment| ((moment + first) % 3 == index).then_some(cell));
        }
        scene
    }

    /// The clip played backwards.
    pub fn reversed(&self) -> Scene {
        let mut scene = self.clone();
        for object in &mut scene.objects {
            object.cells.reverse();
            object.direction = object.direction.map(Direction::opposite);
        }
        if self.kind == Kind::Turns {
            scene.objects.reverse();
        }
        scene
    }

    /// Under [`Kind::Turns`]: the one that comes right after `index`, and the one right before it.
    #[cfg(test)]
    pub fn neighbours(&self, index: usize) -> (usize, usize) {
        let count = self.objects.len();
        ((index + 1) % count, (index + count - 1) % count)
    }

    /// Under [`Kind::Turns`]: which object shows at a moment.
    pub fn shown_at(&self, moment: usize) -> Option<usize> {
        self.objects.iter().position(|object| object.cells[moment].is_some())
    }

    fn blank(rng: &mut Rng, kind: Kind, num_objects: usize) -> Scene {
        let colours = rng.sample(&Colour::ALL, num_objects);
        let objects = colours.into_iter().map(|colour| Object {
            colour,
            shape: rng.pick(&Shape::ALL),
            radius: rng.between(0.36, 0.46),
            offset: (rng.between(-0.06, 0.06), rng.between(-0.06, 0.06)),
            cells: [None; MOMENTS],
            direction: None,
        });
        let objects: Vec<Object> = objects.collect();
        let level = rng.between(12.0, 36.0);
        let background = std::array::from_fn(|_| (level + rng.between(-8.0, 8.0)).round() as u8);
        Scene { kind, objects, background }
    }
}

fn all_cells() -> Vec<Cell> {
    (0..GRID * GRID).map(|index| Cell { x: index % GRID, y: index / GRID }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Outline = (Colour, Shape, [Option<Cell>; MOMENTS], Option<Direction>);

    /// What a clip shows, without what only decorates it.
    fn outline(scene: &Scene) -> Vec<Outline> {
        let mut rows: Vec<_> =
            scene.objects.iter().map(|object| (object.colour, object.shape, object.cells, object.direction)).collect();
        rows.sort();
        rows
    }

    #[test]
    fn backwards_twice_is_forwards() {
        let mut rng = Rng::new(1, "test");
        for direction in Direction::ALL {
            let scene = Scene::motion(&mut rng, direction, 2);
            assert_eq!(scene.reversed().reversed(), scene);
            assert_ne!(outline(&scene.reversed()), outline(&scene));
        }
        let scene = Scene::turns(&mut rng);
        assert_eq!(scene.reversed().reversed(), scene);
    }

    /// All motions of one shape, by how often they are drawn: each reversal must be among them, and as frequent.
    #[test]
    fn a_motion_played_backwards_is_drawn_equally_often() {
        let mut rng = Rng::new(2, "test");
        let mut counts: BTreeMap<_, i64> = BTreeMap::new();
        let draws = 4000 * GRID * GRID;
        for _ in 0..draws {
            let direction = rng.pick(&Direction::ALL);
            let scene = Scene::motion(&mut rng, direction, 1);
            *counts.entry((scene.objects[0].cells, scene.objects[0].direction)).or_default() += 1;
        }
        // Four directions, and each lane and start of the grid.
        assert_eq!(counts.len(), 4 * GRID * GRID);
        for ((cells, direction), count) in &counts {
            let mut backwards = *cells;
            backwards.reverse();
            let twin = counts.get(&(backwards, direction.map(Direction::opposite))).copied().unwrap_or_default();
            // Each count has mean 1000 and deviation 31.
            assert!((count - 1000).abs() < 160 && (twin - 1000).abs() < 160, "{cells:?}: {count} and {twin}");
        }
    }

    #[test]
    fn turns_played_backwards_are_turns_in_the_other_order() {
        let mut rng = Rng::new(3, "test");
        for _ in 0..200 {
            let scene = Scene::turns(&mut rng);
            let back = scene.reversed();
            for moment in 0..MOMENTS {
                let shown = scene.shown_at(moment).unwrap();
                let in_back = back.shown_at(MOMENTS - 1 - moment).unwrap();
                assert_eq!(scene.objects[shown].colour, back.objects[in_back].colour);
                // Right after it in one clip is right before it in the other.
                let (after, _) = scene.neighbours(shown);
                let (_, before) = back.neighbours(in_back);
                assert_eq!(scene.objects[after].colour, back.objects[before].colour);
                if moment + 1 < MOMENTS {
                    assert_eq!(scene.shown_at(moment + 1), Some(after));
                }
            }
        }
    }

    /// At every moment every cell is as likely for one direction as for its opposite: no single frame helps.
    #[test]
    fn a_single_frame_does_not_depend_on_the_direction() {
        let mut rng = Rng::new(4, "test");
        for pair in [Direction::Left, Direction::Up] {
            let mut counts = [[[0_i64; GRID * GRID]; MOMENTS]; 2];
            let draws = 1000 * GRID * GRID;
            for _ in 0..draws {
                for (side, direction) in [pair, pair.opposite()].into_iter().enumerate() {
                    let scene = Scene::motion(&mut rng, direction, 2);
                    for (cell, row) in scene.objects[0].cells.iter().zip(&mut counts[side]) {
                        if let Some(cell) = cell {
                            row[cell.y * GRID + cell.x] += 1;
                        }
                    }
                }
            }
            // Mean 1000, deviation 31.
            assert!(counts.iter().flatten().flatten().all(|count| (count - 1000).abs() < 160), "{counts:?}");
        }
    }

    /// At every moment the object asked about, the one after it and the one before it show equally often.
    #[test]
    fn a_single_frame_does_not_depend_on_the_order() {
        let mut rng = Rng::new(5, "test");
        let mut counts = [[0_i64; 3]; MOMENTS];
        for _ in 0..12_000 {
            let scene = Scene::turns(&mut rng);
            let asked = rng.below(3);
            let (after, _) = scene.neighbours(asked);
            for (moment, row) in counts.iter_mut().enumerate() {
                let shown = scene.shown_at(moment).unwrap();
                row[if shown == asked {
                    0
                } else if shown == after {
                    1
                } else {
                    2
                }] += 1;
            }
        }
        // Mean 4000, deviation 52.
        assert!(counts.iter().flatten().all(|count| (count - 4000).abs() < 260), "{counts:?}");
    }

    #[test]
    fn objects_of_a_clip_never_share_a_colour_or_a_cell() {
        let mut rng = Rng::new(6, "test");
        for round in 0..300 {
            let direction = rng.pick(&Direction::ALL);
            let scene = match round % 3 {
                0 => Scene::still(&mut rng, 4),
                1 => Scene::motion(&mut rng, direction, 2),
                _ => Scene::turns(&mut rng),
            };
            for (index, a) in scene.objects.iter().enumerate() {
                for b in &scene.objects[index + 1..] {
                    assert_ne!(a.colour, b.colour);
                    assert!((0..MOMENTS).all(|moment| a.cells[moment].is_none() || a.cells[moment] != b.cells[moment]));
                }
            }
        }
    }
}
