//! What is asked about a scene, and the one right answer. Owns the counterbalance of the wording: options are named in a random order,
//! and every answer is as frequent as its alternatives, so that the text alone says nothing.

use super::rng::Rng;
use super::scene::{Colour, Direction, Kind, MOMENTS, Object, Scene, Shape};

/// A type of question that is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuestionType {
    /// Which colour the one shape has.
    Colour,
    /// Which shape the thing of a given colour is.
    Shape,
    /// How many things there are.
    Count,
    /// Which of two opposite ways something moves: needs time.
    Direction,
    /// Which of two things comes right before or after a third: needs time.
    Order,
}

impl QuestionType {
    /// All of them, in the order of reports.
    pub const ALL: [QuestionType; 5] = [
        QuestionType::Colour,
        QuestionType::Shape,
        QuestionType::Count,
        QuestionType::Direction,
        QuestionType::Order,
    ];

    /// The key in `results.json`.
    pub fn name(self) -> &'static str {
        match self {
            QuestionType::Colour => "colour",
            QuestionType::Shape => "shape",
            QuestionType::Count => "count",
            QuestionType::Direction => "direction",
            QuestionType::Order => "order",
        }
    }

    /// The share of right answers of someone who sees no clip.
    pub fn chance(self) -> f64 {
        match self {
            QuestionType::Colour => 1.0 / Colour::ALL.len() as f64,
            QuestionType::Shape => 1.0 / Shape::ALL.len() as f64,
            QuestionType::Count => 1.0 / MAX_COUNT as f64,
            QuestionType::Direction | QuestionType::Order => 0.5,
        }
    }

    /// Whether the answer lies in the sequence of the frames and in nothing else.
    pub fn needs_time(self) -> bool {
        matches!(self, QuestionType::Direction | QuestionType::Order)
    }
}

/// Most shapes in a clip.
pub const MAX_COUNT: usize = 4;

/// What captions answer.
pub const CAPTION_PROMPT: &str = "Describe the video.";

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// What the user says.
    pub question: String,
    /// What the assistant should say.
    pub answer: String,
}

impl Exchange {
    fn new(question: String, answer: &str) -> Exchange {
        Exchange { question, answer: answer.to_owned() }
    }
}

/// A scene made for one question: the `index`-th of its type, so that every answer comes equally often in a row of them.
/// Under the types that need time, each odd one is the even one before it played backwards, with the same words.
pub fn scene_for(question: QuestionType, rng: &mut Rng, index: usize) -> (Scene, Exchange) {
    match question {
        QuestionType::Colour => {
            let direction = rng.pick(&Direction::ALL);
            let mut scene = Scene::motion(rng, direction, 1);
            scene.objects[0].colour = Colour::ALL[index % Colour::ALL.len()];
            let exchange = ask_colour(&scene.objects[0]);
            (scene, exchange)
        }
        QuestionType::Shape => {
            let count = 1 + rng.below(MAX_COUNT);
            let mut scene = Scene::still(rng, count);
            scene.objects[0].shape = Shape::ALL[index % Shape::ALL.len()];
            let exchange = ask_shape(&scene.objects[0]);
            (scene, exchange)
        }
        QuestionType::Count => {
            let scene = Scene::still(rng, 1 + index % MAX_COUNT);
            let exchange = ask_count(&scene);
            (scene, exchange)
        }
        QuestionType::Direction => {
            let direction = Direction::ALL[index % Direction::ALL.len()];
            let count = 1 + rng.below(2);
            let scene = Scene::motion(rng, direction, count);
            let exchange = ask_direction(rng, &scene.objects[0], direction);
            (scene, exchange)
        }
        QuestionType::Order => {
            let scene = Scene::turns(rng);
            let asked = rng.below(3);
            let exchange = ask_order(rng, &scene, asked);
            (scene, exchange)
        }
    }
}

/// The same words about the clip played backwards, for the types that need time: the other answer is the right one.
pub fn backwards(question: QuestionType, scene: &Scene, exchange: &Exchange) -> Option<(Scene, Exchange)> {
    let reversed = scene.reversed();
    let answer = match question {
        QuestionType::Direction => {
            let given = Direction::ALL.into_iter().find(|direction| direction.word() == exchange.answer)?;
            given.opposite().word()
        }
        QuestionType::Order => {
            let (first, second) = options(&exchange.question)?;
            if first == exchange.answer { second } else { first }
        }
        QuestionType::Colour | QuestionType::Shape | QuestionType::Count => return None,
    };
    Some((reversed, Exchange::new(exchange.question.clone(), answer)))
}

/// The two words that a question ends with, as in `.., red or blue?`.
fn options(question: &str) -> Option<(&str, &str)> {
    let (front, second) = question.strip_suffix('?')?.rsplit_once(" or ")?;
    let (_, first) = front.rsplit_once(' ')?;
    Some((first, second))
}

/// "What colour is the shape?"
pub fn ask_colour(object: &Object) -> Exchange {
    Exchange::new("What colour is the shape?".to_owned(), object.colour.word())
}

/// "What shape is the red one?"
pub fn ask_shape(object: &Object) -> Exchange {
    Exchange::new(format!("What shape is the {} one?", object.colour.word()), object.shape.word())
}

/// "How many shapes are there?"
pub fn ask_count(scene: &Scene) -> Exchange {
    Exchange::new("How many shapes are there?".to_owned(), &scene.objects.len().to_string())
}

/// "Does the red one move left or right?", with the options in random order.
pub fn ask_direction(rng: &mut Rng, object: &Object, direction: Direction) -> Exchange {
    let mut options = [direction, direction.opposite()];
    rng.shuffle(&mut options);
    let [first, second] = options.map(Direction::word);
    Exchange::new(format!("Does the {} one move {first} or {second}?", object.colour.word()), direction.word())
}

/// "What comes right after red, blue or green?", with the options in random order.
pub fn ask_order(rng: &mut Rng, scene: &Scene, asked: usize) -> Exchange {
    let (after, before) = scene.neighbours(asked);
    let (word, answer) = if rng.coin() { ("after", after) } else { ("before", before) };
    let mut options = [after, before];
    rng.shuffle(&mut options);
    let [first, second] = options.map(|index| scene.objects[index].colour.word());
    Exchange::new(
        format!("What comes right {word} {}, {first} or {second}?", scene.objects[asked].colour.word()),
        scene.objects[answer].colour.word(),
    )
}

/// "In which column is the red one in frame 2?" For a shape that moves, the axis is the one along which it moves.
pub fn ask_place(rng: &mut Rng, object: &Object) -> Option<Exchange> {
    let moment = rng.below(MOMENTS);
    let cell = object.cells[moment]?;
    let by_column = object.direction.map_or_else(|| rng.coin(), Direction::is_horizontal);
    let (axis, place) = if by_column { ("column", cell.x) } else { ("row", cell.y) };
    let question = format!("In which {axis} is the {} one in frame {}?", object.colour.word(), moment + 1);
    Some(Exchange::new(question, &(place + 1).to_string()))
}

/// "What colour is in frame 2?", for clips in which one shape shows at a time.
pub fn ask_shown(rng: &mut Rng, scene: &Scene) -> Option<Exchange> {
    let moment = rng.below(MOMENTS);
    let shown = scene.shown_at(moment)?;
    Some(Exchange::new(format!("What colour is in frame {}?", moment + 1), scene.objects[shown].colour.word()))
}

/// "A red circle moves left and a blue cross moves right."
pub fn describe(scene: &Scene) -> Exchange {
    let name = |object: &Object| format!("a {} {}", object.colour.word(), object.shape.word());
    let text = match scene.kind {
        Kind::Still => {
            let mut objects: Vec<&Object> = scene.objects.iter().collect();
            objects.sort_by_key(|object| object.cells[0].map(|cell| (cell.y, cell.x)));
            let phrase = |object: &&Object| match object.cells[0] {
                Some(cell) => format!("{} in row {} column {}", name(object), cell.y + 1, cell.x + 1),
                None => name(object),
            };
            objects.iter().map(phrase).collect::<Vec<_>>().join(" and ")
        }
        Kind::Motion => {
            let mut objects: Vec<&Object> = scene.objects.iter().collect();
            // From the first lane to the last; the place along the lane changes, the lane does not.
            objects.sort_by_key(|object| {
                let is_horizontal = object.direction.is_some_and(Direction::is_horizontal);
                object.cells[0].map(|cell| if is_horizontal { cell.y } else { cell.x })
            });
            let phrase = |object: &&Object| {
                let way = object.direction.map(Direction::word).unwrap_or_default();
                let is_horizontal = object.direction.is_some_and(Direction::is_horizontal);
                let axis = if is_horizontal { "columns" } else { "rows" };
                let cells = object.cells.iter().flatten();
                let path: Vec<String> =
                    cells.map(|cell| (1 + if is_horizontal { cell.x } else { cell.y }).to_string()).collect();
                format!("{} moves {way} through {axis} {}", name(object), path.join(" "))
            };
            objects.iter().map(phrase).collect::<Vec<_>>().join(" and ")
        }
        Kind::Turns => {
            let shown = (0..MOMENTS).filter_map(|moment| scene.shown_at(moment));
            shown.map(|index| name(&scene.objects[index])).collect::<Vec<_>>().join(" then ")
        }
    };
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let text: String = first.into_iter().chain(letters).chain(['.']).collect();
    Exchange::new(CAPTION_PROMPT.to_owned(), &text)
}

/// A dialogue of several turns for training, about one matter, so that no answer can be read from an earlier one.
/// Questions about order are left out: they are the type that the first stage never sees.
pub fn dialogue(rng: &mut Rng, scene: &Scene) -> Vec<Exchange> {
    let mut objects: Vec<&Object> = scene.objects.iter().collect();
    rng.shuffle(&mut objects);
    let mut turns = match (scene.kind, rng.below(3)) {
        (Kind::Turns, 0) | (Kind::Still, 0) => objects.iter().take(2).map(|object| ask_shape(object)).collect(),
        (Kind::Turns, _) => (0..3).filter_map(|_| ask_shown(rng, scene)).collect(),
        (Kind::Motion, 0) => objects.iter().filter_map(|object| Some(ask_direction(rng, object, object.direction?))).collect(),
        (Kind::Still | Kind::Motion, 1) => (0..3).filter_map(|_| ask_place(rng, objects[0])).collect(),
        (Kind::Still | Kind::Motion, _) if objects.len() == 1 => {
            vec![ask_count(scene), if rng.coin() { ask_colour(objects[0]) } else { ask_shape(objects[0]) }]
        }
        (Kind::Still | Kind::Motion, _) => vec![ask_count(scene), ask_shape(objects[0])],
    };
    rng.shuffle(&mut turns);
    turns
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_answer_of_a_type_is_equally_frequent() {
        for question in QuestionType::ALL {
            let mut rng = Rng::new(1, question.name());
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for index in 0..240 {
                *counts.entry(scene_for(question, &mut rng, index).1.answer).or_default() += 1;
            }
            if question == QuestionType::Order {
                // Colours are drawn here; what counts is which of the two options is right, checked below.
                continue;
            }
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            assert_eq!(least, most, "{counts:?}");
        }
    }

    #[test]
    fn the_place_of_an_option_in_the_question_says_nothing() {
        for question in [QuestionType::Direction, QuestionType::Order] {
            let mut rng = Rng::new(2, question.name());
            let draws = 4000;
            let named_first = (0..draws).filter(|index| {
                let (_, exchange) = scene_for(question, &mut rng, *index);
                let (first, second) = options(&exchange.question).unwrap();
                assert!(first == exchange.answer || second == exchange.answer, "{exchange:?}");
                first == exchange.answer
            });
            // Mean 2000, deviation 32.
            assert!((named_first.count() as i64 - 2000).abs() < 160);
        }
    }

    #[test]
    fn backwards_the_other_option_is_right() {
        let mut rng = Rng::new(3, "test");
        for index in 0..200 {
            let (scene, exchange) = scene_for(QuestionType::Direction, &mut rng, index);
            let (back, other) = backwards(QuestionType::Direction, &scene, &exchange).unwrap();
            assert_ne!(exchange.answer, other.answer);
            assert_eq!(back.objects[0].direction.unwrap().word(), other.answer);

            let (scene, exchange) = scene_for(QuestionType::Order, &mut rng, index);
            let (back, other) = backwards(QuestionType::Order, &scene, &exchange).unwrap();
            let words: Vec<&str> = exchange.question.split([' ', ',', '?']).collect();
            let asked = back.objects.iter().position(|object| object.colour.word() == words[4]).unwrap();
            let (after, before) = back.neighbours(asked);
            let right = if words[3] == "after" { after } else { before };
            assert_eq!(back.objects[right].colour.word(), other.answer, "{exchange:?}");
            assert_ne!(exchange.answer, other.answer);
        }
    }

    #[test]
    fn captions_read_like_sentences() {
        let mut rng = Rng::new(4, "test");
        let scene = Scene::motion(&mut rng, Direction::Up, 2);
        let caption = describe(&scene).answer;
        assert!(caption.starts_with("A ") && caption.ends_with('.'), "{caption}");
        assert!(caption.contains(" moves up") && caption.contains(" moves down"), "{caption}");
        assert_eq!(describe(&Scene::turns(&mut rng)).answer.matches(" then ").count(), MOMENTS - 1);
    }

    #[test]
    fn a_dialogue_asks_about_what_is_there_and_never_about_order() {
        let mut rng = Rng::new(5, "test");
        for _ in 0..200 {
            let direction = rng.pick(&Direction::ALL);
            let count = 1 + rng.below(2);
            for scene in [Scene::motion(&mut rng, direction, count), Scene::still(&mut rng, 3), Scene::turns(&mut rng)] {
                let turns = dialogue(&mut rng, &scene);
                assert!(!turns.is_empty());
                assert!(turns.iter().all(|turn| !turn.question.contains(" after ") && !turn.question.contains(" before ")));
            }
        }
    }
}
