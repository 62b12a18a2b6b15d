"""Damage to files of any kind, drawn from a `random.Random`: of bytes, JSON values, lines, members of archives.

A fixed seed repeats it; hypothesis' own `randoms()` shrinks it.
"""

import codecs
import io
import json
import math
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ufeff",
    "\ud800",
    "\udcff.jpg",
    "\u2028",
    "é",
    "e\u0301",
    "ð\x9f\x98\x80",
    "..",
    "../../outside.jpg",
    "/etc/passwd",
    "a/../../b",
    "C:\\x.jpg",
    "nul",
    "[" * 2000,
    "9" * 5000 + ".jpg",
    "x" * 300,
    "x" * 70_000,
    "word " * 3000,
    "1e999",
    "nan",
    "None",
    "train",
    "float16",
    "O",
    "V",
    "<f4",
    "uint8",
)
ODD_NUMBERS = (0, 1, -1, 7, 255, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324)
ODD_NUMBERS += (math.nan, math.inf, -math.inf)


def damaged_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Flip bits, overwrite bytes, cut short, leave out, repeat, or go on with another file."""
    out = bytearray(data)
    # Half of the damage goes to the header, where it does most.
    reach = max(1, len(out) if rng.random() < 0.5 else min(len(out), 200))
    start, length = rng.randrange(reach), rng.randint(1, 32)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 8)):
                at = rng.randrange(reach)
                out[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in out[at : at + 1])
        case 1:
            out[start : start + 4] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])] * 4)
        case 2:
            del out[start:]
        case 3:
            del out[start : start + length]
        case 4:
            out[start:start] = out[start : start + length]
        case 5:
            out[start:] = other[min(start, max(0, len(other) - 1)) :]
    return bytes(out)


def odd_value(rng: random.Random) -> Any:
    """Draw a value that JSON can hold and that few expect."""
    match rng.randrange(6):
        case 0:
            return rng.choice([None, True, False, [], {}])
        case 1:
            return rng.choice(ODD_NUMBERS)
        case 2 | 3:
            return rng.choice(ODD_TEXTS)
        case 4:
            return [odd_value(rng) for _ in range(rng.randrange(3))]
        case _:
            return {rng.choice(["id", "key", *ODD_TEXTS[:8]]): odd_value(rng)}


def changed(value: Any, rng: random.Random) -> Any:
    """Change one place of a JSON value: another value there, a part left out, added, repeated or exchanged."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return odd_value(rng)
    value = value.copy()
    places = list(value) if isinstance(value, dict) else range(len(value))
    at = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del value[at]
        case 1:
            value[at] = value[rng.choice(places)]
        case 2 if isinstance(value, list):
            value.insert(at, odd_value(rng))
        case 3 if isinstance(value, list):
            value.append(value[at])
        case 2 | 3:
            value[rng.choice(ODD_TEXTS)] = odd_value(rng)
        case _:
            value[at] = changed(value[at], rng)
    return value


def replaced(value: Any, new: Any, rng: random.Random) -> Any:
    """Put `new` in one place of a JSON value."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return new
    value = value.copy()
    at = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    value[at] = replaced(value[at], new, rng)
    return value


def _json_text(value: Any, rng: random.Random) -> str:
    """Write JSON, now and then as no serialiser would: numbers too long, too deep, keys given twice."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    if rng.random() < 0.15:
        odd = rng.choice(["9" * 5000, "-" + "9" * 5000, "1e999", "-NaN", "[" * 990 + "]" * 990, "[" * 100_000])
        at = rng.randrange(max(1, text.count(":")))
        parts = text.split(":")
        text = ":".join(parts[: at + 1]) + ":" + odd + "," + ":".join(parts[at + 1 :])
        if rng.random() < 0.5:  # in the place of a value, so that the rest is JSON
            text = json.dumps(changed(value, random.Random(rng.random()))).replace("null", odd).replace('""', odd)
    if rng.random() < 0.1 and "{" in text:
        text = text.replace("{", '{"id": 3, "image_id": "x", "words": 1, "config": 2, ', 1)
    return text


def _encoded(text: str, rng: random.Random) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    match rng.randrange(16):
        case 0:
            return text.encode("utf-16", "surrogatepass")
        case 1:
            return codecs.BOM_UTF8 + data
        case 2:
            return text.encode("utf-32", "surrogatepass")
        case 3:
            return text.encode("cp1252", "replace")
        case 4:
            return data.replace(b"\n", b"\r")
        case _:
            return data


def damaged_json(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change a JSON document in one to three places."""
    del other
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        value = changed(value, rng)
    return _encoded(_json_text(value, rng), rng)


def damaged_lines(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change lines of a text: their order and number, their cells, and values where they are JSON."""
    del other
    lines = data.decode().split("\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                del lines[at]
                lines = lines or [""]
            case 1:
                lines.insert(at, rng.choice(ODD_TEXTS))
            case 2:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 3:
                lines[at] = lines[at].replace(rng.choice(',\t|#"'), rng.choice(ODD_TEXTS), rng.randint(1, 3))
            case _:
                lines[at] = _changed_line(lines[at], rng)
    return _encoded("\n".join(lines), rng)


def _changed_line(line: str, rng: random.Random) -> str:
    if line.startswith(("{", "[")):
        try:
            return _json_text(changed(json.loads(line), rng), rng).replace("\n", "")
        except (ValueError, RecursionError):
            return line
    cells = line.split(separator := max("\t|,", key=line.count))
    cells[rng.randrange(len(cells))] = rng.choice(ODD_TEXTS)
    return separator.join(cells)


def damaged_zip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Pack an archive again, its check sums right: a member damaged, renamed, given twice, compressed, or a link."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    mode, method = 0o100644, rng.choice([zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    match rng.randrange(8):
        case 0:
            members[at] = (rng.choice(ODD_TEXTS)[:30_000].encode("utf-8", "replace").decode(), content)
        case 1:
            members.insert(rng.randrange(len(members)), members[at])
        case 2:
            members[at] = (name, b"/etc/passwd")
            mode = 0o120777
        case 3:
            del members[at]
        case 4:
            members[at] = (name, bytes(1_000_000))
        case _:
            members[at] = (name, damaged_bytes(content, other, rng))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, content)
    packed = bytearray(buffer.getvalue())
    if rng.random() < 0.2:  # headers that announce another size
        signature, offset = rng.choice([(b"PK\x03\x04", 22), (b"PK\x01\x02", 24), (b"PK\x01\x02", 20)])
        place = packed.find(signature) + offset
        struct.pack_into("<I", packed, place, rng.choice([0, 1, 1000, 2**31, 2**32 - 1]))
    return bytes(packed)


def damaged_safetensors(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or the JSON in its metadata."""
    del other
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.7:
        key = rng.choice(list(metadata))
        metadata[key] = _json_text(changed(json.loads(metadata[key]), rng), rng)
        text = json.dumps(header)
    else:
        text = _json_text(changed(header, rng), rng)
    encoded = text.encode("utf-8", "replace")
    size = rng.choice([len(encoded)] * 9 + [2**40])
    return size.to_bytes(8, "little") + encoded + data[8 + length :]


Damage = Callable[[bytes, bytes, random.Random], bytes]

DAMAGES: Mapping[str, tuple[Damage, ...]] = {
    "bytes": (damaged_bytes,),
    "json": (damaged_bytes, damaged_json, damaged_json, damaged_json),
    "lines": (damaged_bytes, damaged_lines, damaged_lines, damaged_lines),
    "zip": (damaged_bytes, damaged_zip, damaged_zip),
    "safetensors": (damaged_bytes, damaged_safetensors, damaged_safetensors),
}
"""What is done to a file of a kind."""


def damaged(kind: str, data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage a file of a kind in `DAMAGES`; `other` is a file that it may be mixed with."""
    return rng.choice(DAMAGES[kind])(data, other, rng)
