"""The text of captions: decoded from any encoding, and repaired where a program before has spoilt it."""

import re

from capjax.data.findings import Findings

MAX_CAPTION_WORDS = 200

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\u200b\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# UTF-8 sequences of two to four bytes, seen through Windows-1252.
_CP1252_HIGH = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\u0080-\u00bf"
_SEQUENCE = f"[\u00c2-\u00df][{_CP1252_HIGH}]|[\u00e0-\u00ef][{_CP1252_HIGH}]{{2}}|ð[{_CP1252_HIGH}]{{3}}"
_MOJIBAKE = re.compile(f"(?:{_SEQUENCE})+")
# What a sequence that stands alone may be: a letter of a European language or of Vietnamese, an accent, punctuation, a
# sign, an emoji, a byte order mark. Others are more likely a letter before a quotation mark, a dash or a dot, as in
# "heiß…" and "CAFÉ»". Other scripts come in runs.
_LIKELY = re.compile(
    "[\u0080-\u017f\u0218-\u021b\u0300-\u036f\u0370-\u04ff\u1e00-\u20cf\u2100-\u2bff\ufe0f\ufeff\ufffd"
    "\U0001f000-\U0001faff]*|.{2,}"
)


def decode_text(data: bytes, name: str, found: Findings) -> str:
    """Decode a text file: UTF-8, UTF-16 with a byte order mark, else Windows-1252."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        found.add("byte order mark", name, "UTF-16")
        return data.decode("utf-16", errors="replace")
    if data.startswith(b"\xef\xbb\xbf"):
        found.add("byte order mark", name)
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found.add("not UTF-8", name, f"line {line}")
    # Line by line: most of such files are UTF-8 with a few lines pasted from elsewhere.
    return "".join(_decode_line(line) for line in data.splitlines(keepends=True))


def _decode_line(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")


def text_lines(text: str) -> list[str]:
    """Split a text at line feeds alone: `str.splitlines` does so at characters that names and captions may hold."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def clean_caption(text: str, name: str, found: Findings) -> str | None:
    """Repair a caption, or give None if it is unusable; what was wrong is noted under `name`.

    Mojibake is turned back, control characters and line breaks become spaces; everything else stays as published.
    """
    repaired = _repair_mojibake(text)
    if repaired != text:
        found.add("mojibake", name, _excerpt(text))
        text = repaired
    if _CONTROL.search(text):
        found.add("control characters", name, _excerpt(_CONTROL.sub("·", text)))
        text = _CONTROL.sub(" ", text)
    # Halves of characters outside the basic plane, which JSON can hold and UTF-8 cannot.
    text = _SURROGATE.sub("\ufffd", text)
    if "\ufffd" in text:
        found.add("lost characters", name, _excerpt(text))
    text = re.sub(r"[\r\n\t]+", " ", text).strip()
    if not any(character.isalnum() for character in text):
        found.add("empty caption", name, _excerpt(text))
        return None
    if (num_words := len(text.split())) > MAX_CAPTION_WORDS:
        found.add("long caption", name, f"{num_words} words")
        return None
    return text


def _repair_mojibake(text: str) -> str:
    """Turn back a caption of which everything that is not ASCII is mojibake; return others as they are."""
    if text.isascii() or not "".join(_MOJIBAKE.split(text)).isascii():
        return text
    is_likely = all(_LIKELY.fullmatch(_turned_back(match)) for match in _MOJIBAKE.finditer(text))
    return _MOJIBAKE.sub(_turned_back, text) if is_likely else text


def _turned_back(match: re.Match[str]) -> str:
    # Windows-1252 leaves five bytes undefined; software passes them through as control characters.
    raw = b"".join(c.encode("latin-1") if ord(c) < 256 else c.encode("cp1252") for c in match[0])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
