"""The English stemmer of the Snowball project (Porter 2001, "Porter2"), by which METEOR matches inflected words.

Written from the published description (snowballstem.org, algorithms/english). A word is cut in regions: R1 begins after
the first non-vowel that follows a vowel, R2 is the R1 of R1; most suffixes go only where they lie in one of them.
"""

import functools
import re

_IRREGULAR = {
    "skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl", "gently": "gentl",
    "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl", "sky": "sky", "news": "news", "howe": "howe",
    "atlas": "atlas", "cosmos": "cosmos", "bias": "bias", "andes": "andes",
}  # fmt: skip
_FINISHED = {"inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"}
_STEP_2 = {
    "tional": "tion", "enci": "ence", "anci": "ance", "abli": "able", "entli": "ent", "izer": "ize", "ization": "ize",
    "ational": "ate", "ation": "ate", "ator": "ate", "alism": "al", "aliti": "al", "alli": "al", "fulness": "ful",
    "ousli": "ous", "ousness": "ous", "iveness": "ive", "iviti": "ive", "biliti": "ble", "bli": "ble", "ogi": "og",
    "fulli": "ful", "lessli": "less", "li": "",
}  # fmt: skip
_STEP_3 = {
    "tional": "tion", "ational": "ate", "alize": "al", "icate": "ic", "iciti": "ic", "ical": "ic", "ful": "",
    "ness": "", "ative": "",
}  # fmt: skip
_STEP_4 = "al ance ence er ic able ible ant ement ment ent ism ate iti ous ive ize ion".split()
_LONG_PREFIX = re.compile("gener|commun|arsen")
_REGION = re.compile("[aeiouy][^aeiouy]")
_VOWEL = re.compile("[aeiouy]")
_SHORT_SYLLABLE = re.compile("(?:[^aeiouy][aeiouy][^aeiouywxY]|^[aeiouy][^aeiouy])$")
_DOUBLE = re.compile("(?:bb|dd|ff|gg|mm|nn|pp|rr|tt)$")


@functools.lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return the stem of a lower-case word."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = word.removeprefix("'")
    word = re.sub("^y|(?<=[aeiouy])y", "Y", word) if "y" in word else word  # a Y is no vowel
    r1, r2 = _regions(word)
    word = _step_1a(_without_longest(word, ("'", "'s", "'s'")))
    if word in _FINISHED:
        return word
    word = _step_1b(word, r1)
    if len(word) > 2 and word[-1] in "yY" and not _VOWEL.match(word[-2]):
        word = word[:-1] + "i"
    word = _step_2(word, r1)
    word = _step_3(word, r1, r2)
    word = _step_4(word, r2)
    return _step_5(word, r1, r2).replace("Y", "y")


def _regions(word: str) -> tuple[int, int]:
    if prefix := _LONG_PREFIX.match(word):
        r1 = prefix.end()
    else:
        r1 = match.end() if (match := _REGION.search(word)) else len(word)
    r2 = match.end() if (match := _REGION.search(word, r1)) else len(word)
    return r1, r2


def _longest(word: str, suffixes: tuple[str, ...] | dict[str, str] | list[str]) -> str:
    return max((suffix for suffix in suffixes if word.endswith(suffix)), key=len, default="")


def _without_longest(word: str, suffixes: tuple[str, ...]) -> str:
    return word.removesuffix(_longest(word, suffixes))


def _step_1a(word: str) -> str:
    suffix = _longest(word, ("sses", "ied", "ies", "us", "ss", "s"))
    if suffix == "sses":
        return word[:-2]
    if suffix in ("ied", "ies"):
        return word[:-2] if len(word) > 4 else word[:-1]
    if suffix == "s" and _VOWEL.search(word[:-2]):
        return word[:-1]
    return word


def _step_1b(word: str, r1: int) -> str:
    suffix = _longest(word, ("eed", "eedly", "ed", "edly", "ing", "ingly"))
    rest = word.removesuffix(suffix)
    if suffix in ("eed", "eedly"):
        return rest + "ee" if len(rest) >= r1 else word
    if not suffix or not _VOWEL.search(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if _DOUBLE.search(rest):
        return rest[:-1]
    return rest + "e" if len(rest) == r1 and _SHORT_SYLLABLE.search(rest) else rest


def _step_2(word: str, r1: int) -> str:
    suffix = _longest(word, _STEP_2)
    rest = word.removesuffix(suffix)
    if not suffix or len(rest) < r1:
        return word
    if (suffix == "ogi" and not rest.endswith("l")) or (suffix == "li" and rest[-1:] not in set("cdeghkmnrt")):
        return word
    return rest + _STEP_2[suffix]


def _step_3(word: str, r1: int, r2: int) -> str:
    suffix = _longest(word, _STEP_3)
    rest = word.removesuffix(suffix)
    if not suffix or len(rest) < (r2 if suffix == "ative" else r1):
        return word
    return rest + _STEP_3[suffix]


def _step_4(word: str, r2: int) -> str:
    suffix = _longest(word, _STEP_4)
    rest = word.removesuffix(suffix)
    if not suffix or len(rest) < r2 or (suffix == "ion" and not rest.endswith(("s", "t"))):
        return word
    return rest


def _step_5(word: str, r1: int, r2: int) -> str:
    rest = word[:-1]
    if word.endswith("e") and (len(rest) >= r2 or (len(rest) >= r1 and not _SHORT_SYLLABLE.search(rest))):
        return rest
    if word.endswith("l") and len(rest) >= r2 and rest.endswith("l"):
        return rest
    return word
