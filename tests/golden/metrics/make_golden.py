"""Make the golden files of the metrics with the published scorer; needs pycocoevalcap and Java.

    python tests/golden/metrics/make_golden.py

`captions.json` in this folder holds captions written for these tests: references and two sets of hypotheses. From them
and from generated nasty text this writes

    published_tokens.json   [caption, tokens of pycocoevalcap's PTBTokenizer] for all captions and 1,500 nasty texts
    published_scores.json   pycocoevalcap's scores, corpus and per image, for both sets of hypotheses
"""

import contextlib
import io
import json
import pathlib
import random

FOLDER = pathlib.Path(__file__).parent

# Everything the tokeniser has a rule for, and things it has none for.
_FRAGMENTS = (
    "a A dog Dog the The cannot gonna 'twas 'tis don't DON'T can't it's it’s she&apos;s we're they've I'll 'em 'n'"
    " rock'n'roll o'clock O'Neil l'eau d'accord Cap'n c'est y'all 80's '80s '05 Dunkin' somethin' ol' 'til 'cause c'mon"
    " e'er Mr. Mrs. Dr. etc. Inc. Co. co. Jan. Dec. U.S. U.S.A. e.g. i.e. a.m. p.m. A. B. I. no. No. fig. pp. St. vs."
    " Ph.D. Ed.D. U.S.-U.K. non-U.S. Canada-U.S. Pty. Ltd. ltd pt. a.k.a. http://www.foo.com/bar?x=1 https://a.b"
    " www.x.org/index.html foo.com foo.net/bar me@x.com <me@x.com> @user #tag # ## 3 12 1/2 3/4 5 7/8 1-2/3 10,000 3.14"
    " -5 +7 1:30 12/25/2014 1-2-2003 (555) 123-4567 555-1234 555.123.4567 +1 800 $5 US$ $ £5 €5 ¢ ¥ 50% ½ ¼ ⅔ ⅛ x² ₂"
    " &amp; &lt; &gt; &quot; &nbsp; &mdash; &#123; &eacute; &agrave;la S&P-500 S&Ls AT&T A&amp;B R+B c++ C# F# pro-"
    " anti- -LRB- black-and-white t-shirt T-shirts 3-D x-y, and/or 1/2-inch a\\/b :) :-) ;) :( :D =) >:( ^_^ -_- (^_^)"
    " (o_o) ... .... ...... . … \x85 -- - --- ---- ----- – — ― ' \" '' `` ` “ ” ‘ ’ „ « » ‹ › ‚ () [] {} < > << >> * **"
    " \\* / \\ | ||| ~ ^ = + % & ; : , ? ! ?! !! ¡ ¿ 。 、 日本 語 한국 Ü über naïve café Русский عربي עברית हिन्दी ไทย"
    " 😀 🐶🐱 👨‍👩‍👧 \xad soft\xadhyphen \u200b \ufeff \xa0 \u3000 \u2003 ſ K İ ı ß file.txt a.zip foo.tar.gz,"
    " x.h index.html? mp3 <br> <br/> </b> <!-- <?xml ?> a_b _ __ snake_case a'b d'ab l'ab's n't N’T ain`t I'm I’d"
    " It's. .5 5. 1. 2) (a) 1st 2nd \x7f \x01 \x00 \x91 \x92 \x93hi\x94 \x96 dog.,cat dog.: word.word! Yes!No"
    " wow?yes 1,2,3 1.a a.1 10-year-old 3-yr.-old 0 ٣ ९ 7,0 ＡＢ Ⅳ ⓐ ™ ® © ° ± × ÷ ∀ → ■ ★ ♥ ☺"
).split(" ")
_SEPARATORS = [" "] * 6 + ["", "", "  ", ".", ",", "'", "-", "/", "\xa0", ". ", ", ", "@", "&", ":", '"', "'s ", "n't "]
_ALPHABETS = (
    [chr(code) for code in range(32, 127)],
    list("aAbnst.'-’ 1,&;/"),
    list("0123456789-./ ,()+:"),
    ["a", "com", "www", ".", "/", "@", "http://", "org", "-", "x1", "'", "<", ">", ";", "!", " ", "?"],
    list("^x=~<>'-_().[]oDP*:;\\ a`"),
)
# Line breaks make the published scorer lose count of its captions; Java lower-cases a capital sigma at the end of a
# word by other rules for what a word is.
_LEFT_OUT = set("\n\r\x0b\x0c\u2028\u2029Σ")


def nasty_captions(seed: int, number: int) -> list[str]:
    """Return random captions of everything that is hard to tokenise."""
    generator = random.Random(seed)
    return ["".join(c for c in _nasty_caption(generator) if c not in _LEFT_OUT) for _ in range(number)]


def _nasty_caption(generator: random.Random) -> str:
    kind = generator.random()
    if kind < 0.5:
        pieces = [
            generator.choice(_FRAGMENTS) + generator.choice(_SEPARATORS) for _ in range(generator.randrange(1, 9))
        ]
        return "".join(pieces)
    if kind < 0.65:
        return "".join(_any_character(generator) for _ in range(generator.randrange(1, 9)))
    alphabet = generator.choice(_ALPHABETS)
    return "".join(generator.choice(alphabet) for _ in range(generator.randrange(0, 18)))


def _any_character(generator: random.Random) -> str:
    first, last = generator.choice(
        [(0x80, 0x800), (0x80, 0x3000), (0x2000, 0x2C00), (0x80, 0x10000), (0x10000, 0x1FFFF)]
    )
    code = generator.randrange(first, last)
    return generator.choice([generator.choice(_FRAGMENTS), "a"]) if 0xD800 <= code < 0xE000 else chr(code)


def published_tokens(captions: list[str]) -> list[list[str]]:
    """Tokenise with pycocoevalcap's PTBTokenizer, all captions in one run."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenised = PTBTokenizer().tokenize({n: [{"caption": caption}] for n, caption in enumerate(captions)})
    return [[token for token in tokenised[n][0].split(" ") if token] for n in range(len(captions))]


def published_scores(
    references: dict[int, list[str]],
    hypotheses: dict[int, str],
    scorers: tuple[str, ...] = ("Bleu", "METEOR", "ROUGE-L", "CIDEr-D"),
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Score raw captions with pycocoevalcap: corpus scores and scores in the order of the references."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in references.items()})
    captions = tokenizer.tokenize({i: [{"caption": hypotheses[i]}] for i in references})
    corpus, per_image = {}, {}
    with contextlib.redirect_stdout(io.StringIO()):
        if "Bleu" in scorers:
            bleu_corpus, bleu_images = Bleu(4).compute_score(truth, captions)
            for n in range(4):
                corpus[f"BLEU-{n + 1}"], per_image[f"BLEU-{n + 1}"] = bleu_corpus[n], list(bleu_images[n])
        for name, scorer in (("METEOR", Meteor), ("ROUGE-L", Rouge), ("CIDEr-D", Cider)):
            if name in scorers:
                score, scores = scorer().compute_score(truth, captions)
                corpus[name], per_image[name] = float(score), [float(value) for value in scores]
    return corpus, per_image


def load_captions() -> tuple[dict[int, list[str]], dict[str, dict[int, str]]]:
    """Return the references and the sets of hypotheses of captions.json."""
    content = json.loads((FOLDER / "captions.json").read_text(encoding="utf-8"))
    references = {number: image["references"] for number, image in enumerate(content)}
    systems = {name: {n: image[name] for n, image in enumerate(content)} for name in ("plain", "nasty")}
    return references, systems


def main() -> None:
    references, systems = load_captions()
    captions = [text for texts in references.values() for text in texts]
    captions += [text for system in systems.values() for text in system.values()]
    captions += nasty_captions(seed=2015, number=1500)
    pairs = [list(pair) for pair in zip(captions, published_tokens(captions), strict=True)]
    scores = {name: published_scores(references, hypotheses) for name, hypotheses in systems.items()}
    tokens_text = "[\n" + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]\n"
    (FOLDER / "published_tokens.json").write_text(tokens_text, encoding="utf-8")
    (FOLDER / "published_scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
