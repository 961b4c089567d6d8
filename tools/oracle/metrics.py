"""Writes fixtures/metrics: what the public Python implementations of metrics say.

Run: python tools/oracle/metrics.py   (needs pycocoevalcap with Java, rouge-score, sacrebleu, torchmetrics, scikit-learn)
"""

import json
import pathlib
import random
from importlib.metadata import version

import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score import rouge_scorer
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torchmetrics.functional.text import squad

OUT = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "metrics"
SEED = 11
VERSIONS = {p: version(p) for p in
            ["pycocoevalcap", "rouge-score", "sacrebleu", "torchmetrics", "scikit-learn"]} | {"seed": SEED}

SENTENCES = r'''
A man's riding a horse, isn't he? Don't look; it's "fast"...
The red circle moves left to right; then it stops!
I cannot do this. I'm gonna go, you'd've seen we'll they're
She paid $5.50 for 1,000 apples (10% off) at 3:30pm.
a t-shirt & jeans / red/blue and/or *bold* #1 @home
Mr. Smith went to Washington D.C. on Jan. 5th, 2019.
e.g. the U.S. economy, i.e. U.S.A. etc. foo.
He said 'hello there' and `hi` -- then left - alone —dash– em
rock 'n' roll, the '90s, 1990s, o'clock, y'all, ma'am
http://www.example.com/a?b=c and me@x.org [brackets] {curly}
café naïve 日本語 über ½ cup 5€ £3 ¥5
under_score snake_case 3x4 10,5 .5 -5 +5 1/2 5-6 x=y a+b ~10 ^up |pipe| back\slash
A cat sat.The dog ran.No space
dogs' tails and James's hat; the boys'.
wanna gotta lemme gimme 'tis 'twas
two   spaces	tab and trailing 
ellipsis… “curly quotes” ‘single’ it’s don’t
what?! really!! no... yes.... so..
high-speed well-known 12-year-old non-
8 p.m. and 9 a.m. vs. them No. 5 Dr. Who St. Louis
A. B. C. d. e.
THIS IS SHOUTING
$ 5 # hash ## 100% %
O'Neil d'Artagnan 'em 'cause I'D I'LL it'S
100m 5kg 3.14159 1.000.000 12:30:45 2/3/2020 555-1234
word,word word;word word:word word!word word?word word.word
I said no.
I said no. Then I left.
It ended at 8 p.m.
plan B.
Plan B. is good
He lives in the U.S.
The U.S. Then
foo, etc.
Mrs. X and Ms. Y and Prof. Z and Gen. Q and Sen. R. and Inc. and Co. and Corp. and Ltd. and Jr. and Sr. and Rev. ok
Feb. Mar. Apr. May. Jun. Jul. Aug. Sept. Oct. Nov. Dec. Mon. Tue. Wed. fig. approx. dept. est. min. max. sec. mt. ft. ave. blvd. rd. cf. al. x
** *** == ++ -- --- ____ // \\ && || ~~ %% @@ $$ <> >> << =>
#tag ##tag @user a_b
mid.dle a.b a.b. c.d.e x.y.z. 
he's she'd we'd've shouldn't mustn't've ain't who's that'll there're
can't won't cannot Cannot, gonna. wanna?
'the cat' 's 've 'll x's' ''quoted'' ``q''
a,b 1,2 1,234,567 12,34 a1,b2 1,a
1:2 a:b 10:30 10:30am 10am 5'4" 6' tall 3" 
$5 5$ £10 €20 $1,000.50 -$5 #5
5-year-old 3-4 3- -3 a- -a -word pre- and post-war
1st 2nd 3D x2 h264 mp4 1.5x 50% 3.5%
"Hello," she said. "Bye!"
(a) (b). [1] {2} (foo-bar) ((x))
a...b a..b ...a a… 
the man ,who is tall , walks .
left/right, up/down; km/h
two-thirds three–four five—six seven -- eight
red,green,blue circle
and&or a&b AT&T R&B
mother-in-law's dogs'.
o' clock of O'Brien's ma'am's
a ' b '' c
12th-century 1990's '80s the 80's
Yes!No What?Yes
!!! ??? !? ?!? . .. ...
naïve’s “a” ‘b’ «c»
a;b a;
http://x.y/z. see www.foo.com, ok (http://a.b)
tom@x.com. and foo@bar
the "big" 'small' `x`
i.e., e.g., etc., vs., a.m., 
Ph.D. M.D. B.A. a.k.a. w/o b/c
the cat sat. the sun. fri. thu. thurs. tues. sun. x
the cat sat.
main st. and on main st.
he is a dr. 
t.v. TV. tv. T.V. set
9am-5pm man-made/other x-ray
30 fps, 24fps; 1080p 4k 16:9 640x480
a (red) square, a [blue] one
"a" "an" 'the' the 'x'
person #1's bike; person 2's
a,b , c ; d : e . f ! g ? h
it.It is. So.what Now.Then
They're we're I've he'd she'll let's
couldn't've y'all're
someone holding something (a cup)...
dog's, cat's. bird's!
the letter a. the letter b. x
u.s.a and u.s.a. today
12.5 12. 3.
100,000 1.5M $3M 10k
a- b -c d-e - f
o'clock. 5 o'clock
man in t-shirt.
"He said: 'go!'" ok
she’ll can’t they’re
the end .
the end ...
the end….
a red square moves from left to right and disappears.
Two blue circles cross; the green star appears first, then the triangle.
A woman in a black-and-white dress is dancing on stage.
Someone pushes [something] from left to right
Pretending to put something onto something else, but it doesn't fit
The video shows 3 people: a man, a woman and a child (about 5 years old).
There is a close-up of the dog's face at 0:12.
Nobody's there, are they?
The player with number 10's jersey scores!!!
He opens the fridge, takes out the milk, and pours it into a glass.
A group of people is standing near St. Mary's church.
The sign reads "STOP" in big, bold letters.
It's 5 o'clock; they've just left.
A man and a woman are talking to each other in a living room with a TV on.
Then, he says: "I don't know what you're talking about."
1. First item 2. Second item
- a dash list item
a cat, a dog, & a bird
who's who of what's what
the camera pans left... then right.
'''


def captions(rng):
    words = "a the man woman dog red blue circle moves left right to and then is on in runs jumps fast table".split()
    sentence = lambda lo, hi: " ".join(rng.choice(words) for _ in range(rng.randint(lo, hi)))

    def near(text):
        tokens = text.split()
        for _ in range(rng.randint(0, 4)):
            if tokens and rng.random() < 0.5:
                tokens.pop(rng.randrange(len(tokens)))
            else:
                tokens.insert(rng.randint(0, len(tokens)), rng.choice(words))
        return " ".join(tokens)

    yield "one word answers", [["left"], ["right"], ["left"]], ["left", "left", "right"], False
    yield "one record", [["a man is on the table", "the man is on a table"]], ["a man is on a table"], False
    yield "equal", [["a red circle moves to the left", "x"], ["the dog runs and jumps fast", "y z"]], \
        ["a red circle moves to the left", "the dog runs and jumps fast"], True
    yield "empty answers and odd spaces", [["a b c d"], ["the dog"], [""], ["a  b"]], ["", "the  dog", "", "b a "], False
    yield "nothing in common", [["a b c d e"], ["f g h i j"]], ["k l m n o", "p q r s t"], False
    yield "repeated words", [["the the the cat", "a the cat the the"], ["on on on on"]], \
        ["the the the the the the", "on on"], False
    for name, count, references, plain in [("small", 12, 1, True), ("many references", 25, 5, False), ("large", 80, 3, False)]:
        refs = [[sentence(4, 14) for _ in range(rng.randint(1, references) if references > 1 else 1)] for _ in range(count)]
        yield name, refs, [near(rng.choice(r)) for r in refs], plain


def caption_fixture():
    rng = random.Random(SEED)
    corpora = []
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for name, references, answers, plain in captions(rng):
        gts = dict(enumerate(references))
        res = {i: [a] for i, a in enumerate(answers)}
        bleu, bleu_records = Bleu(4).compute_score(gts, res, verbose=0)
        rouge, rouge_records = Rouge().compute_score(gts, res)
        cider, cider_records = Cider().compute_score(gts, res)
        entry = {
            "name": name, "references": references, "answers": answers, "bleu": bleu, "bleu_records": bleu_records,
            "rouge_l": float(rouge), "rouge_l_records": rouge_records.tolist(),
            "cider": float(cider), "cider_records": cider_records.tolist(),
            "rouge_score": [max(scorer.score(r, a)["rougeL"].fmeasure for r in refs)
                            for refs, a in zip(references, answers)],
            "sacrebleu": None,
        }
        if plain:
            # One reference stream only, so that both agree on the length that the brevity penalty looks at.
            stream = [r[0] for r in references]
            found = sacrebleu.corpus_bleu(answers, [stream], smooth_method="none", tokenize="none", force=True)
            entry["sacrebleu"] = found.score / 100
        corpora.append(entry)
    return {"versions": VERSIONS, "corpora": corpora}


def ptb_fixture():
    sentences = [s for s in SENTENCES.split("\n") if s.strip()]
    out = PTBTokenizer().tokenize({i: [{"caption": s}] for i, s in enumerate(sentences)})
    pairs = [[s, [t for t in out[i][0].split(" ") if t]] for i, s in enumerate(sentences)]
    return {"versions": VERSIONS | {"tokenizer": "stanford-corenlp-3.4.1"}, "sentences": pairs}


def answers_fixture():
    cases = [
        (["red"], "Red."), (["the red circle"], "red circle"), (["red circle"], "a  Red-circle!"), (["left"], "right"),
        (["left", "to the left"], "To left"), (["two"], "2"), (["an apple"], "apple"), (["theatre"], "the theatre"),
        (["a"], "the"), ([""], "the"), (["yes"], ""), ([""], ""), (["U.S."], "us"), (["it's"], "its"),
        (["don't know"], "dont know"), (["red red blue"], "red blue blue"), (["red red blue"], "red red red"),
        (["the man walks to the door"], "a man is walking to a door"), (["50%"], "50 %"), (["3.5"], "35"),
        (["a_b"], "ab"), (["naïve café"], "Naïve café."), (["ÉCOLE"], "école"), (["x – y"], "x y"), (["left\nright"], "left right"),
        (["the"], "THE "), (["anthem"], "an them"), (["a-the-b"], "b"), (["'the'"], "the"), (["one", "two", "three"], "Three!"),
        (["blue square", "square"], "the big blue square"), (["¿qué?"], "qué"), (["x the"], "x"), (["the_x"], "x"),
    ]
    rng = random.Random(SEED)
    words = "a an the red blue left right man dog runs, runs. 3 two".split()
    for _ in range(40):
        text = lambda: " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))
        cases.append(([text() for _ in range(rng.randint(1, 3))], text()))
    out = []
    for references, answer in cases:
        found = squad({"prediction_text": answer, "id": "x"},
                      {"answers": {"answer_start": [0] * len(references), "text": references}, "id": "x"})
        out.append({"references": references, "answer": answer, "exact": float(found["exact_match"]) == 100.0,
                    "f1": float(found["f1"]) / 100})
    return {"versions": VERSIONS, "answers": out}


def classes_fixture():
    rng = random.Random(SEED)
    cases = []
    for count, truths, guesses, missing in [(5, ["a", "b"], ["a", "b"], 0.0), (200, ["up", "down", "left", "right"],
                                            ["up", "down", "left", "other"], 0.1), (1, ["x"], ["x"], 0.0),
                                            (6, ["x", "y"], ["z"], 0.3), (50, ["a", "b", "c"], ["a"], 0.0)]:
        truth = [rng.choice(truths) for _ in range(count)]
        predicted = [t if rng.random() < 0.5 and t in guesses else rng.choice(guesses) for t in truth]
        predicted = [None if rng.random() < missing else p for p in predicted]
        labels = sorted(set(truth) | {p for p in predicted if p is not None})
        named = ["\0none" if p is None else p for p in predicted]
        scores = precision_recall_fscore_support(truth, named, labels=labels, zero_division=0)
        macro = precision_recall_fscore_support(truth, named, labels=labels, zero_division=0, average="macro")
        cases.append({"truth": truth, "predicted": predicted, "accuracy": float(accuracy_score(truth, named)),
                      "macro_f1": float(macro[2]),
                      "classes": [[l, float(p), float(r), float(f), int(s)] for l, p, r, f, s in zip(labels, *scores)]})
    return {"versions": VERSIONS, "cases": cases}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, make in [("captions", caption_fixture), ("ptb", ptb_fixture), ("answers", answers_fixture),
                       ("classes", classes_fixture)]:
        (OUT / f"{name}.json").write_text(json.dumps(make(), ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
