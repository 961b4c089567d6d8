//! What is asked about a scene, and the one right answer. Owns the counterbalance of the wording: options are named in a random order,
//! and every answer is as frequent as its alternatives, so that the text alone says nothing.

use super::rng::Rng;
use super::scene::{Colour, Direction, GRID, Kind, MOMENTS, Object, Scene, Shape};

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
    /// Whether things come in the order of the rainbow or the other way round: needs time.
    Order,
}

impl QuestionType {
    /// All of them, in the order of reports.
    pub const ALL: [QuestionType; 5] =
        [QuestionType::Colour, QuestionType::Shape, QuestionType::Count, QuestionType::Direction, QuestionType::Order];

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

/// Every word of questions, answers and captions, and every sign between them: the vocabulary of the demo's tokenizer.
pub fn words() -> Vec<String> {
    const REST: &str = "Describe the video . , ? What shape colour is one How many shapes are there Does Do move or colours come in rainbow order \
                        yes no When there in Where frame : A a and moves then";
    let numbers = (1..=MAX_COUNT.max(GRID).max(MOMENTS)).map(|number| number.to_string());
    let named = Colour::ALL
        .map(Colour::word)
        .into_iter()
        .chain(Shape::ALL.map(Shape::word))
        .chain(Direction::ALL.map(Direction::word))
        .chain(PLACES);
    REST.split_whitespace().chain(named).map(str::to_owned).chain(numbers).collect()
}

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
            let exchange = ask_order(&scene);
            (scene, exchange)
        }
    }
}

/// The same words about the clip played backwards, for the types that need time: the other answer is the right one.
pub fn backwards(question: QuestionType, scene: &Scene, exchange: &Exchange) -> Option<(Scene, Exchange)> {
    let reversed = scene.reversed();
    let given = verdict(&exchange.answer);
    let answer = match question {
        QuestionType::Direction => {
            let given = Direction::ALL.into_iter().find(|direction| direction.word() == given)?;
            let word = given.opposite().word();
            reasoned(&places(&reversed.objects[0]), &[word; MOMENTS - 1], word)
        }
        QuestionType::Order => {
            let exchange = ask_order(&reversed);
            return Some((reversed, exchange));
        }
        QuestionType::Colour | QuestionType::Shape | QuestionType::Count => return None,
    };
    Some((reversed, Exchange { question: exchange.question.clone(), answer }))
}

/// The two words that a question ends with, as in `.. left or right?`.
#[cfg(test)]
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

/// "Does the red one move left or right?", with the options in random order; the answer tells the places and the
/// steps between them before the direction.
pub fn ask_direction(rng: &mut Rng, object: &Object, direction: Direction) -> Exchange {
    let mut options = [direction, direction.opposite()];
    rng.shuffle(&mut options);
    let [first, second] = options.map(Direction::word);
    Exchange {
        question: format!("Does the {} one move {first} or {second}?", object.colour.word()),
        answer: reasoned(&places(object), &[direction.word(); MOMENTS - 1], direction.word()),
    }
}

/// What was seen, with the step that led to each but the first, then what follows from it. Only the [`verdict`] is judged.
fn reasoned(seen: &[&str], steps: &[&str], word: &str) -> String {
    let later = seen.iter().skip(1).zip(steps).map(|(seen, step)| format!(", {seen} {step}"));
    format!("{}{}: {word}", seen.first().unwrap_or(&""), later.collect::<String>())
}

/// The judged part of an answer: what follows the colon, or all of it where there is none.
pub fn verdict(answer: &str) -> &str {
    answer.rsplit(':').next().unwrap_or(answer).trim()
}

/// Where an object is at each moment.
fn places(object: &Object) -> Vec<&'static str> {
    object.cells.iter().flatten().map(|cell| PLACES[cell.y * GRID + cell.x]).collect()
}

/// "Do the colours come in rainbow order?", in clips of three colours in turn that begin anywhere: each one follows the next of the
/// three in the rainbow, or each one the last. The answer first tells the colours and where each step goes in the rainbow.
pub fn ask_order(scene: &Scene) -> Exchange {
    let ranks: Vec<usize> = scene.objects.iter().map(|object| object.colour.rainbow()).collect();
    let steps_up = (0..ranks.len()).filter(|index| ranks[*index] < ranks[(index + 1) % ranks.len()]).count();
    let verdict = if steps_up + 1 == ranks.len() { YES } else { NO };
    let shown: Vec<Colour> =
        (0..MOMENTS).filter_map(|moment| scene.shown_at(moment)).map(|index| scene.objects[index].colour).collect();
    let step = |pair: &[Colour]| if pair[0].rainbow() < pair[1].rainbow() { "up" } else { "down" };
    let steps: Vec<&str> = shown.windows(2).map(step).collect();
    let seen: Vec<&str> = shown.into_iter().map(Colour::word).collect();
    Exchange { question: "Do the colours come in rainbow order?".to_owned(), answer: reasoned(&seen, &steps, verdict) }
}

/// Answers to questions about order.
const YES: &str = "yes";
const NO: &str = "no";

/// Names of the cells, row by row.
const PLACES: [&str; GRID * GRID] =
    ["northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast"];

/// "Where is the red one in frame 2?", answered as on a map.
pub fn ask_place(rng: &mut Rng, object: &Object) -> Option<Exchange> {
    let moment = rng.below(MOMENTS);
    let cell = object.cells[moment]?;
    let question = format!("Where is the {} one in frame {}?", object.colour.word(), moment + 1);
    Some(Exchange::new(question, PLACES[cell.y * GRID + cell.x]))
}

/// "When is the red one there?", for clips in which one shape shows at a time; not asked about a shape that shows twice.
pub fn ask_when(scene: &Scene, asked: usize) -> Option<Exchange> {
    let mut moments = (0..MOMENTS).filter(|moment| scene.shown_at(*moment) == Some(asked));
    let (moment, again) = (moments.next()?, moments.next());
    let question = format!("When is the {} one there?", scene.objects[asked].colour.word());
    again.is_none().then(|| Exchange::new(question, &format!("in frame {}", moment + 1)))
}

/// "What colour is in frame 2?", for clips in which one shape shows at a time.
pub fn ask_shown(rng: &mut Rng, scene: &Scene) -> Option<Exchange> {
    let moment = rng.below(MOMENTS);
    let shown = scene.shown_at(moment)?;
    Some(Exchange::new(format!("What colour is in frame {}?", moment + 1), scene.objects[shown].colour.word()))
}

/// "A red circle and a blue cross move."
pub fn describe(scene: &Scene) -> Exchange {
    let name = |object: &Object| format!("a {} {}", object.colour.word(), object.shape.word());
    let text = match scene.kind {
        Kind::Still => {
            let mut objects: Vec<&Object> = scene.objects.iter().collect();
            objects.sort_by_key(|object| object.cells[0].map(|cell| (cell.y, cell.x)));
            objects.iter().map(|object| name(object)).collect::<Vec<_>>().join(" and ")
        }
        Kind::Motion => {
            let mut objects: Vec<&Object> = scene.objects.iter().collect();
            // From the first lane to the last; the place along the lane changes, the lane does not.
            objects.sort_by_key(|object| {
                let is_horizontal = object.direction.is_some_and(Direction::is_horizontal);
                object.cells[0].map(|cell| if is_horizontal { cell.y } else { cell.x })
            });
            let verb = if objects.len() == 1 { "moves" } else { "move" };
            let names: Vec<String> = objects.iter().map(|object| name(object)).collect();
            format!("{} {verb}", names.join(" and "))
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

/// A dialogue of several turns for training, in random order. What moves is asked for its direction first: the types
/// that need time take most of the training. Questions about order are left out: the first stage never sees that type.
pub fn dialogue(rng: &mut Rng, scene: &Scene, num_turns: usize) -> Vec<Exchange> {
    if scene.kind == Kind::Motion {
        let mut objects: Vec<&Object> = scene.objects.iter().collect();
        rng.shuffle(&mut objects);
        let shape = ask_shape(objects[0]);
        let directions = objects.into_iter().filter_map(|asked| Some(ask_direction(rng, asked, asked.direction?)));
        return directions.chain([shape]).collect();
    }
    let mut turns: Vec<Exchange> = Vec::new();
    for _ in 0..16 * num_turns {
        if turns.len() >= num_turns {
            break;
        }
        let chosen = rng.below(scene.objects.len());
        let asked = &scene.objects[chosen];
        let exchange = match (scene.kind, rng.below(5)) {
            (Kind::Turns, 0) => Some(ask_shape(asked)),
            (Kind::Turns, 1 | 2) => ask_when(scene, chosen),
            (Kind::Turns, _) => ask_shown(rng, scene),
            (_, 0) if scene.objects.len() == 1 && rng.coin() => Some(ask_colour(asked)),
            (_, 0) => Some(ask_count(scene)),
            (_, 1 | 2) => Some(ask_shape(asked)),
            (_, _) => ask_place(rng, asked),
        };
        turns.extend(exchange.filter(|exchange| !turns.contains(exchange)));
    }
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
                let answer = scene_for(question, &mut rng, index).1.answer;
                *counts.entry(verdict(&answer).to_owned()).or_default() += 1;
            }
            if question == QuestionType::Order {
                // Drawn, not dealt; held-out clips come in pairs with both answers. Mean 120, deviation 7.7.
                assert!(counts.values().all(|count| (90..150).contains(count)), "{counts:?}");
                continue;
            }
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            assert_eq!(least, most, "{counts:?}");
        }
    }

    #[test]
    fn the_place_of_an_option_in_the_question_says_nothing() {
        let mut rng = Rng::new(2, "test");
        let draws = 4000;
        let named_first = (0..draws).filter(|index| {
            let (_, exchange) = scene_for(QuestionType::Direction, &mut rng, *index);
            let (first, second) = options(&exchange.question).unwrap();
            let right = verdict(&exchange.answer);
            assert!(first == right || second == right, "{exchange:?}");
            first == right
        });
        // Mean 2000, deviation 32.
        assert!((named_first.count() as i64 - 2000).abs() < 160);
    }

    #[test]
    fn backwards_the_other_option_is_right() {
        let mut rng = Rng::new(3, "test");
        for index in 0..200 {
            let (scene, exchange) = scene_for(QuestionType::Direction, &mut rng, index);
            let (back, other) = backwards(QuestionType::Direction, &scene, &exchange).unwrap();
            assert_ne!(exchange.answer, other.answer);
            assert_eq!(back.objects[0].direction.unwrap().word(), verdict(&other.answer));

            let (scene, exchange) = scene_for(QuestionType::Order, &mut rng, index);
            let (back, other) = backwards(QuestionType::Order, &scene, &exchange).unwrap();
            assert_eq!(other.answer, ask_order(&back).answer);
            assert_eq!(exchange.question, other.question);
            assert_ne!(verdict(&exchange.answer), verdict(&other.answer));
        }
    }

    #[test]
    fn rainbow_order_has_neither_begin_nor_end() {
        let mut rng = Rng::new(7, "test");
        let mut scene = Scene::turns(&mut rng);
        for (colours, verdict) in [
            ([Colour::Red, Colour::Green, Colour::Purple], "yes"),
            ([Colour::Green, Colour::Purple, Colour::Red], "yes"),
            ([Colour::Purple, Colour::Yellow, Colour::Blue], "yes"),
            ([Colour::Green, Colour::Red, Colour::Purple], "no"),
            ([Colour::Blue, Colour::Yellow, Colour::Red], "no"),
        ] {
            for (object, colour) in scene.objects.iter_mut().zip(colours) {
                object.colour = colour;
            }
            assert!(ask_order(&scene).answer.ends_with(&format!(": {verdict}")), "{colours:?}");
        }
        for (moment, object) in [0, 1, 2, 0].into_iter().enumerate() {
            for index in 0..3 {
                let cell = crate::demo::scene::Cell { x: index, y: 0 };
                scene.objects[index].cells[moment] = (index == object).then_some(cell);
            }
        }
        assert_eq!(ask_order(&scene).answer, "blue, yellow down, red down, blue up: no");
    }

    #[test]
    fn captions_read_like_sentences() {
        let mut rng = Rng::new(4, "test");
        let scene = Scene::motion(&mut rng, Direction::Up, 2);
        let caption = describe(&scene).answer;
        assert!(caption.starts_with("A ") && caption.ends_with('.'), "{caption}");
        assert!(caption.contains(" and a ") && caption.ends_with(" move."), "{caption}");
        assert_eq!(describe(&Scene::turns(&mut rng)).answer.matches(" then ").count(), MOMENTS - 1);
    }

    #[test]
    fn every_word_is_in_the_vocabulary() {
        let known = words();
        let mut rng = Rng::new(6, "test");
        let check = |exchange: &Exchange| {
            for text in [&exchange.question, &exchange.answer] {
                for word in text.split_inclusive([' ', ',', '.', '?', ':']) {
                    let word = word.trim_end_matches([' ', ',', '.', '?', ':']);
                    assert!(word.is_empty() || known.iter().any(|one| one == word), "`{word}` of `{text}`");
                }
            }
        };
        for index in 0..300 {
            for question in QuestionType::ALL {
                let (scene, exchange) = scene_for(question, &mut rng, index);
                check(&exchange);
                check(&describe(&scene));
                dialogue(&mut rng, &scene, 4).iter().for_each(check);
            }
        }
    }

    #[test]
    fn a_dialogue_asks_about_what_is_there_and_never_about_order() {
        let mut rng = Rng::new(5, "test");
        for _ in 0..200 {
            let direction = rng.pick(&Direction::ALL);
            let count = 1 + rng.below(2);
            for scene in [Scene::motion(&mut rng, direction, count), Scene::still(&mut rng, 3), Scene::turns(&mut rng)]
            {
                let turns = dialogue(&mut rng, &scene, 4);
                assert!(!turns.is_empty());
                assert!(turns.iter().all(|turn| !turn.question.contains("rainbow")));
            }
        }
    }
}
