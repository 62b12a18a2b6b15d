"""A longest-match lexer over the token classes of `ptb_rules`; `ptb_tokenizer` is the front door.

At each position every rule is tried, the longest match wins (text that a rule only looks at counts), and among equals
the earlier rule.
"""

import functools
import re

from capjax.text.ptb_rules import SPLIT_WORDS, Rule, all_rules


@functools.lru_cache(maxsize=10_000)
def _rules_at(character: str, present: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in all_rules() if rule.first.match(character) and rule.needs in present)


_SIMPLE_WORD = re.compile("[A-Za-z]++(?=[ \n])")
_SPACES = re.compile("[ \t][ \t\u00a0\u2000-\u200a\u3000]*")


def lex(line: str, following: str = "") -> list[str]:
    """Return the lower-case tokens of a line, punctuation included.

    Args:
      line: text without line breaks.
      following: what stands after the line (beginning with its line break), for the rules that look ahead; "" at the
        end of the file.
    """
    text = _as_utf16(line + following)
    end = len(_as_utf16(line))
    present = "".join(mark for mark in "-./@" if mark in text)
    tokens = []
    position = 0
    while position < end:
        if blank := _SPACES.match(text, position, end):
            position = blank.end()
            continue
        if (plain := _SIMPLE_WORD.match(text, position)) and plain[0].lower() not in SPLIT_WORDS:
            tokens.append(plain[0].lower())
            position = plain.end()
            continue
        best, best_end = None, position
        for rule in _rules_at(text[position], present):
            match = rule.pattern.match(text, position)
            if match and match.end() > best_end:
                best, best_end = (rule, match[1]), match.end()
        if best is None:  # a character the scanner does not know: it drops it
            position += 1
            continue
        rule, matched = best
        token, used = rule.finish(matched)
        position += used
        if token is not None:
            tokens.append(_lower(_from_utf16(token)))
    return tokens


def _lower(token: str) -> str:
    if "Σ" in token:  # Java looks for the end of the word beyond hyphens; U+2060 makes Python do so
        return token.replace("-", "\u2060").lower().replace("\u2060", "-")
    return token.lower()


def _as_utf16(text: str) -> str:
    # The scanner sees UTF-16 units: a character beyond U+FFFF counts as two.
    if text.isascii() or max(text) <= "\uffff":
        return text
    units = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2))


def _from_utf16(token: str) -> str:
    if token.isascii() or not any("\ud800" <= character <= "\udfff" for character in token):
        return token
    return token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
