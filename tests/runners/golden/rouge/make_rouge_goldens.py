"""Makes the golden files of the ROUGE tests with rouge-score 0.1.2: pip install rouge-score==0.1.2, then run this.

pairs.jsonl: a reference, a candidate, and precision, recall, F of the four scores without (`plain`) and with (`stemmed`)
the stemmer. stems.txt: a word and its stem a line.
"""

import importlib.metadata
import json
import pathlib
import random

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
FOLDER = pathlib.Path(__file__).parent

BASES = """act adapt agree ally analog annoy appl archaeo argu arriv bas beauti bend blur bod bull bus busi buy call can car
care chem chron class clean collect communi comp compar condition conform connect consist control cool cop creat cry cut
cycl dance deci decid defens depend die differ digit direct discuss do double drop dry duck eas edit effect electr employ
enjoy equal equi even exist expect face fail fair fall feed fil final fish fit fizz fly form fox free fulfil fuss gas gener
geo give glass grass hap happ heal help hesit hiss hop hope horse house humbl image improv index infer inn instal intens
irrit jump kind know lab law lay lean leg level lie lik lit liv log logic love machin man measur mess model mount move nation
natur need network normal not obey observ occur oper opposit out paint party pay perform phas phys play plaster pleas point
pool pos precis predic press probat process product program proof pyramid quick radic rain rat ratio reason recogn refer
relat relev repeat represent research revers reviv roll run sad scor see select sens sentenc short show siz sky sparse spy
stat stop stud succeed summar system tan technolog test theo tie tool toy train transform treat try tun type understand use
valid valu vari vehic vietnam vil want wed whil will wish work writ yell yoy zeal""".split()

ENDINGS = """ed ing s es ies ied ly er ers est ment ments ement ance ances ence ences ant ent able ible ably ibly al ally
alli alism alist ality aliti alize alized alizing ation ations ational ator ators ate ated ating ates ion ions ional ic ical
ically icate iciti icity ify ism ist ity iti ive ively iveness ivity iviti ize ized izer izers izing ization izations ful
fully fulli fulness less ness nesses ous ously ousli ousness ou y ying ys e ee eed eeding eli enci ency anci ancy entli
ently logi logy bli bility biliti sses ss ll lled lling tional sion tion""".split()

ODD_WORDS = """sky skies dying lying tying news innings inning outings outing cannings canning howe proceed exceed succeed
proceeds exceeded succeeding a i as is by my ox yy yyy yyyy yyyyyyyyyyyyyyyyyyyy ayayay yaya syzygy ies ied eed ing ed s ss
sss ssss died dies lies flies spied spies feed freed agreed bled sing string bring thing king ate rate cease roll controll
tttt eeee oooo aing bing eing 1ing 11ed a11ing 1990s 2nd 3d 100 x86s covid19 h2o 0000 1st 12eed 7ly 9y ab1y""".split()

SEPARATORS = [" ", " ", " ", " ", " ", ", ", ". ", ".\n", "\n", "\n\n", " - ", "'", "  ", "\t", "\r\n"]

UNICODE = ["caf\u00e9", "na\u00efve", "\u0130stanbul", "TA\u0130L", "\u212aelvin", "100\u212a", "stra\u00dfe", "\u0391\u03a3",
           "\u03c0r2", "\u65e5\u672c\u8a9e", "\u2028line", "\u00a0", "\u2019s", "\U0001f600", "e\u0301clair", "\ufb01n",
           "\uff21\uff22", "\u0661\u0662", "x\u00b2", "\u01c5", "a\u0085b", "\x0b", "\x00", "\ufffd", "\u00c5ngstr\u00f6m"]


def make_words(rng):
    words = set(ODD_WORDS)
    words.update(BASES)
    for base in BASES:
        for ending in rng.sample(ENDINGS, 14):
            words.add(base + ending)
            if rng.random() < 0.15:
                words.add(base + base[-1] + ending)
    for ending in ENDINGS:
        words.add(ending)
        for stem in ["x", "y", "ay", "by", "ab", "tr", "tro", "oat", "ivy", "abab", "ball", "1", "a1"]:
            words.add(stem + ending)
    for _ in range(700):
        letters = rng.choice(["abcdefghijklmnopqrstuvwxyz", "aeioubly", "aeiyst", "ab1y"])
        words.add("".join(rng.choice(letters) for _ in range(rng.randint(1, 9))) + rng.choice(ENDINGS + [""]))
    return sorted(words)


def text(rng, words, length, odd=0.0):
    parts = []
    for _ in range(length):
        word = rng.choice(UNICODE) if rng.random() < odd else rng.choice(words)
        parts.append(rng.choice([word, word, word, word.capitalize(), word.upper()]))
        parts.append(rng.choice(SEPARATORS))
    return "".join(parts)


def mutate(rng, original, words):
    """A candidate that shares runs with the reference, as a summary does."""
    tokens = original.split(" ")
    for _ in range(1 + len(tokens) // 4):
        place = rng.randrange(len(tokens))
        change = rng.randrange(4)
        if change == 0:
            tokens[place] = rng.choice(words)
        elif change == 1 and len(tokens) > 1:
            del tokens[place]
        elif change == 2:
            tokens.insert(place, rng.choice(tokens))
        else:
            other = rng.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
    return " ".join(tokens)


def make_pairs(rng, words):
    pairs = [("", ""), ("", "a"), ("a", ""), ("\n\n", "a"), ("...", "!?"), ("a", "a"), ("a a a", "a"), ("a", "a a a"),
             ("a b", "b a"), ("a b c d e", "a c e b d"), ("a\nb", "b\na"), ("one two\nthree", "three\none two"),
             ("the the the\nthe", "the"), ("running runs ran", "run runner running"), ("1 2 3", "3 2 1"),
             ("flies\n\nflies", "fly fly"), ("x\ry", "x y"), ("a\u2028b", "a b"), ("\u0130\u0130", "i i"),
             ("\u212a", "k"), ("don't", "don t"), ("snake_case", "snake case"), ("sky skies", "skies sky")]
    pairs += [(f"x {odd} y", mutate(rng, f"X {odd}\ny", ["x", "y"])) for odd in UNICODE]
    few = ["a", "b", "c", "run", "running"]
    for _ in range(70):
        pairs.append((text(rng, few, rng.randint(0, 12)), text(rng, few, rng.randint(0, 12))))
    for _ in range(70):
        some = rng.sample(words, rng.randint(2, 15))
        pairs.append((text(rng, some, rng.randint(1, 25), 0.1), text(rng, some, rng.randint(1, 25), 0.1)))
    for _ in range(70):
        reference = text(rng, words, rng.randint(1, 30), 0.03)
        pairs.append((reference, mutate(rng, reference, words)))
    # Lines of about 64 and 128 words meet the limits of a machine word.
    for length in [62, 63, 64, 65, 66, 127, 128, 129, 200, 300]:
        some = rng.sample(words, 20)
        line = " ".join(rng.choice(some) for _ in range(length))
        pairs.append((line, mutate(rng, line, some)))
        pairs.append((text(rng, some, length), text(rng, some, length + rng.randint(-9, 9))))
    return pairs


def figures(scorer, reference, candidate):
    scores = scorer.score(reference, candidate)
    return [float(figure) for kind in KINDS for figure in scores[kind]]


def main():
    version = importlib.metadata.version("rouge-score")
    if version != "0.1.2":
        raise SystemExit(f"rouge-score {version} is installed, but the golden files are those of 0.1.2")
    rng = random.Random(20090551)
    words = make_words(rng)
    stemmer = PorterStemmer()
    (FOLDER / "stems.txt").write_text("".join(f"{word} {stemmer.stem(word)}\n" for word in words))
    plain, stemmed = RougeScorer(KINDS), RougeScorer(KINDS, use_stemmer=True)
    with open(FOLDER / "pairs.jsonl", "w", encoding="utf-8") as file:
        for reference, candidate in make_pairs(rng, words):
            record = {"reference": reference, "candidate": candidate,
                      "plain": figures(plain, reference, candidate),
                      "stemmed": figures(stemmed, reference, candidate)}
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
