"""Caption files in every layout, whole and damaged, and the repair of captions."""

import json
import time

import pytest

from capjax.data.caption_files import parse_table, read_captions
from capjax.data.caption_text import clean_caption, decode_text
from capjax.data.findings import Findings, report_json
from capjax.errors import CapjaxError
from tests.source_layouts import coco_json, write


def kinds(found: Findings) -> dict[str, int]:
    return {kind: len(items) for kind, items in found}


def captions_of(path, found=None) -> dict[str, list[str]]:
    return {file.file_name: file.captions for file in read_captions(path, found or Findings())}


EXPECTED = {"a.jpg": ["A dog, running.", "Second one"], "b.jpg": ['He said "go"']}


@pytest.mark.parametrize(
    "name, content",
    [
        ("c.csv", 'image,caption\na.jpg,"A dog, running."\na.jpg,Second one\nb.jpg,"He said ""go"""\n'),
        ("c.csv", '\ufefffile_name;text\r\na.jpg;A dog, running.\r\na.jpg;Second one\r\nb.jpg;"He said ""go"""\r\n'),
        ("c.csv", 'image, caption\na.jpg, "A dog, running."\na.jpg, Second one\nb.jpg, "He said ""go""" \n'),
        ("c.csv", 'caption ,  image\n "A dog, running.", a.jpg\n Second one,a.jpg\n  "He said ""go""", "b.jpg"\n'),
        ("c.csv", 'image;caption\ra.jpg;A dog, running.\ra.jpg;Second one\rb.jpg;"He said ""go"""\r'),
        ("c.tsv", 'image\tcaption\ra.jpg\tA dog, running.\ra.jpg\tSecond one\rb.jpg\tHe said "go"\r'),
        ("c.tsv", 'caption\tfilename\nA dog, running.\ta.jpg\nSecond one\ta.jpg\n"He said ""go"""\tb.jpg\n'),
        ("captions.txt", 'image,caption\na.jpg,A dog, running.\na.jpg,Second one\nb.jpg,"He said ""go"""\n'),
        (
            "results.csv",
            "image_name| comment_number| comment\n"
            'a.jpg| 0| A dog, running.\na.jpg| 1| Second one\nb.jpg| 0| He said "go"\n',
        ),
        ("x.token", 'a.jpg#0\tA dog, running.\na.jpg#1\tSecond one\nb.jpg#0\tHe said "go"\n'),
        (
            "c.jsonl",
            '{"file_name": "a.jpg", "captions": ["A dog, running.", "Second one"]}\n\n'
            '{"image": "b.jpg", "caption": "He said \\"go\\""}\n',
        ),
        ("c.json", json.dumps([{"file_name": n, "caption": c} for n, cs in EXPECTED.items() for c in cs])),
        ("c.json", coco_json(EXPECTED, {"a.jpg": 7, "b.jpg": 3})),
    ],
)
def test_every_layout_gives_the_same_captions(tmp_path, name, content):
    found = Findings()
    assert captions_of(write(tmp_path / name, content), found) == EXPECTED
    assert set(kinds(found)) <= {"byte order mark"}


def test_numbers_of_captions_are_taken_off_names_with_or_without_a_suffix(tmp_path):
    path = write(tmp_path / "c.csv", "image,caption\n10_ab#0,x\n10_ab#1,y\na.jpg#0,z\na.jpg.1#0,w\n")
    assert captions_of(path) == {"10_ab": ["x", "y"], "a.jpg": ["z"], "a.jpg.1": ["w"]}


def test_ids_and_splits_are_read(tmp_path):
    path = write(tmp_path / "c.csv", "image_id,image,caption,split\n5,a.jpg,x,val\nnone,b.jpg,y,\n")
    a, b = read_captions(path, Findings())
    assert (a.image_id, a.split, b.image_id, b.split) == (5, "val", None, None)
    path = write(tmp_path / "c.csv", "image_id,image,caption\n7.0,a.jpg,x\n7.5,b.jpg,y\n")
    assert [file.image_id for file in read_captions(path, Findings())] == [7, None]
    for written, image_id in ((12, 12), ("12", 12), (12.0, 12), (12.5, None), ("k12", None), (2**63, None)):
        path = write(tmp_path / "c.json", coco_json({"a.jpg": ["x"]}, {"a.jpg": written}))
        (c,) = read_captions(path, Findings())
        assert (c.image_id, c.captions) == (image_id, ["x"])


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("c.csv", "image,caption\na.jpg,fine\nb.jpg\n,lonely\n", {"malformed row": 2}),
        (
            "c.jsonl",
            '{"file_name": "a.jpg", "caption": "fine"}\n{"file_name"\n[1]\n{"caption": "x"}\n',
            {"malformed row": 3},
        ),
        ("x.token", "a.jpg#0\tfine\nb.jpg without number\n", {"malformed row": 1}),
        (
            "c.json",
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2}],
                    "annotations": [
                        {"image_id": 1, "caption": "fine"},
                        {"image_id": 1, "caption": None},
                        {"image_id": 9, "caption": "of no image"},
                    ],
                }
            ),
            {"malformed row": 2, "caption without image": 1},
        ),
    ],
)
def test_bad_rows_are_noted_and_the_rest_is_read(tmp_path, name, content, expected):
    found = Findings()
    assert captions_of(write(tmp_path / name, content), found) == {"a.jpg": ["fine"]}
    assert kinds(found) == expected


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("c.csv", "", "header"),
        ("c.csv", "a,b\n1,2\n", "image and a caption column"),
        ("c.csv", "image,caption\n", "rows below the header"),
        ("c.csv", b"\x00\x01\x02", "binary"),
        ("c.json", "{", "JSON"),
        ("c.json", '{"info": 1}', "COCO captions layout"),
        ("c.jsonl", "not json\n", "found none"),
        ("c.xlsx", "x", "xlsx"),
        ("c.json", "[" * 100_000, "JSON"),
        ("c.jsonl", "[" * 100_000, "found none"),
    ],
)
def test_files_that_make_no_sense_are_refused_in_one_line(tmp_path, name, content, expected):
    with pytest.raises(CapjaxError, match=expected) as caught:
        read_captions(write(tmp_path / name, content), Findings())
    assert "\n" not in str(caught.value)


def test_many_captions_of_one_image_are_read_in_proportion():
    def seconds(number):
        data = b"image,caption\n" + b"a.jpg,text\n" * number
        start = time.process_time()
        (file,) = parse_table(data, "c.csv", Findings())
        assert len(file.captions) == number
        return time.process_time() - start

    few, many = min(seconds(5000) for _ in range(3)), seconds(50_000)
    assert many < 30 * few, "each caption copies those before it"


STRAY = [
    "0.jpg\tfirst",
    '1.jpg\t"a sign, says stop',
    "2.jpg\ta dog",
    '3.jpg\t"STOP" says the sign',
    '4.jpg\tthey call it "art"',
    '5.jpg\t"a whole cell, as it should be"',
    '6.jpg\t"two\nlines"',
    '7.jpg\t"open to the end',
]


@pytest.mark.parametrize("delimiter", "\t,;")
@pytest.mark.parametrize("repeats", [1, 5000])
def test_a_quotation_mark_that_opens_no_cell_swallows_no_rows(delimiter, repeats):
    lines = [line.replace("\t", delimiter, 1).replace(".jpg", f"-{i}.jpg") for i in range(repeats) for line in STRAY]
    found = Findings()
    files = parse_table(("\n".join([f"image{delimiter}caption", *lines]) + "\n").encode(), "x.csv", found)
    assert kinds(found) == {}
    expected = [line.split("\t")[1] for line in STRAY]
    expected[5:7] = ["a whole cell, as it should be", "two\nlines"]
    assert [file.captions for file in files] == [[text] for text in expected] * repeats
    assert [file.file_name for file in files[:2]] == ["0-0.jpg", "1-0.jpg"]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('a.jpg,"a, dog" ,train', ["a.jpg", "a, dog", "train"]),
        ('a.jpg,"a dog"\t,train', ["a.jpg", "a dog", "train"]),
        ('"a.jpg","two" lines,train', ["a.jpg", '"two" lines', "train"]),
        ('"a,b.jpg","say ""x""",', ["a,b.jpg", 'say "x"', ""]),
    ],
)
def test_one_odd_cell_takes_no_quotation_marks_from_the_others(line, cells):
    found = Findings()
    (file,) = parse_table(f"image,caption,split\n{line}\n".encode(), "x.csv", found)
    assert [file.file_name, *file.captions, file.split or ""] == cells
    assert kinds(found) == {}


def test_cells_that_never_end_are_read_in_proportion():
    def seconds(num_rows: int) -> float:
        rows = "".join(f'{i}.jpg","A dog runs, fast\n' for i in range(num_rows))
        start = time.perf_counter()
        assert len(parse_table(f"image,caption\n{rows}".encode(), "x.csv", Findings())) == num_rows
        return time.perf_counter() - start

    few, many = (min(seconds(num_rows) for _ in range(3)) for num_rows in (1_000, 16_000))
    assert many < 64 * few  # 16 × if all goes well, 256 × if each is read to the end


def test_ids_of_cocos_layout_are_compared_as_numbers_and_taken_once(tmp_path):
    images = [{"id": i, "file_name": name} for i, name in ((1.0, "a.jpg"), ("2", "b.jpg"), (2, "b.jpg"), (1, "c.jpg"))]
    captions = [{"image_id": i, "caption": f"of {i}"} for i in (1, 2.0)]
    write(tmp_path / "x.json", json.dumps({"images": images, "annotations": captions}))
    found = Findings()
    assert captions_of(tmp_path / "x.json", found) == {"a.jpg": ["of 1"], "b.jpg": ["of 2.0"]}
    assert dict(found)["malformed row"] == [("x.json, image 3", "id 1 is that of a.jpg")]


def test_what_a_terminal_would_obey_is_shown_as_escapes(tmp_path):
    found = Findings()
    read_captions(write(tmp_path / "c.csv", "image,caption\n\x1b[2J.jpg\nb.jpg,fine\n"), found)
    found.add("caption without image", "a\nb.jpg", "\x1b[2J \udcff")
    assert [line.isprintable() for line in found.lines()] == [True, True]
    assert r"a\nb.jpg (\x1b[2J ?)" in found.lines()[0]
    report_json(found.to_dict()).encode()


def test_a_missing_caption_file_is_one_line(tmp_path):
    with pytest.raises(CapjaxError, match="No such file"):
        read_captions(tmp_path / "nowhere.csv", Findings())


@pytest.mark.parametrize(
    "data, text, kind",
    [
        ("naïve café".encode(), "naïve café", None),
        ("naïve café".encode("utf-8-sig"), "naïve café", "byte order mark"),
        ("naïve café".encode("utf-16"), "naïve café", "byte order mark"),
        ("ü\n".encode() + "naïve “café”".encode("cp1252"), "ü\nnaïve “café”", "not UTF-8"),
        (b"a \x81 b", "a \x81 b", "not UTF-8"),
    ],
)
def test_text_is_decoded_from_the_usual_encodings(data, text, kind):
    found = Findings()
    assert decode_text(data, "file", found) == text
    assert kinds(found) == ({kind: 1} if kind else {})


@pytest.mark.parametrize(
    "text",
    [
        "A café in Málaga, 5 €",
        "“Quoted” — naïve …",
        "日本の犬 🐕",
        "Ångström à côté",
        "Ã la carte",
        "Собака бежит",
        "I ❤️ dogs",
        "câțiva copii și un câine",
        "một con chó nhỏ",
        # Letters before quotation marks, dots and blanks that could be mojibake of letters which nobody writes.
        "„Viel Spaß“",
        "heiß…",
        "«\xa0Le Café\xa0»",
        "il dit café\xa0»",
        "UN CAFÉ\xa0!",
        "«CAFÉ»",
        "Fuß–Ball",
        "à\xa0«",
        "“MAÇÔ",
    ],
)
def test_good_captions_stay_as_they_are(text):
    found = Findings()
    assert clean_caption(text, "a.jpg", found) == text
    assert kinds(found) == {}
    # What misreads it as Windows-1252 is turned back.
    misread = b"".join(bytes([b]) for b in text.encode()).decode("cp1252", errors="ignore")
    if misread.encode("cp1252") == text.encode():
        assert clean_caption(misread, "a.jpg", found) == text
        assert kinds(found) == ({"mojibake": 1} if misread != text else {})


@pytest.mark.parametrize(
    "text", ["日本の犬", "개가 달린다", "一只狗在跑", "כלב רץ", "कुत्ता दौड़ता है", "A \ufffd dog", "\ufeffA dog"]
)
def test_mojibake_of_other_scripts_and_marks_is_turned_back(text):
    as_cp1252 = {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(256)}
    misread = "".join(as_cp1252[byte] for byte in text.encode())
    found = Findings()
    assert clean_caption(misread, "a.jpg", found) == text.strip("\ufeff")
    assert kinds(found)["mojibake"] == 1


@pytest.mark.parametrize(
    "text, cleaned, kind",
    [
        ("A dog\x00 runs\x07", "A dog  runs", "control characters"),
        ("\ufeffA dog", "A dog", "control characters"),
        ("A dog\r\nruns\t fast\n", "A dog runs  fast", None),
        ("A d\ufffdg", "A d\ufffdg", "lost characters"),
        ("half \ud83d", "half \ufffd", "lost characters"),
        (" . ", None, "empty caption"),
        ("", None, "empty caption"),
        ("word " * 500, None, "long caption"),
    ],
)
def test_captions_are_repaired_or_left_out(text, cleaned, kind):
    found = Findings()
    assert clean_caption(text, "a.jpg", found) == cleaned
    assert kinds(found) == ({kind: 1} if kind else {})
