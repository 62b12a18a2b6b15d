"""The lines of every image hold what a page shows of it, as JSON that any program reads."""

import json
import math
import pathlib

from capjax.report import CaptionRow, write_per_image


def test_every_text_and_number_of_a_row_is_in_its_line(tmp_path: pathlib.Path) -> None:
    rows = [
        CaptionRow(
            image_id=7,
            file_name="7.jpg",
            image=b"a picture",
            caption='a "dog"\n\u2028\ud800',
            references=("a dog", "dogs"),
            log_prob=-2.5,
            scores={"BLEU-4": 0.25, "CIDEr-D": 1.5},
            alternatives=(("a cat", -3.0), ("", -math.inf)),
            verdict="right",
            ailments=("repetition",),
        ),
        CaptionRow(8, "8.jpg", None, "", log_prob=-math.inf, scores={"CIDEr-D": math.nan}),
    ]
    write_per_image(tmp_path / "per_image.jsonl", rows)
    content = (tmp_path / "per_image.jsonl").read_bytes()
    assert content.isascii() and content.count(b"\n") == 2
    first, second = map(json.loads, content.splitlines())
    assert first == {
        "image_id": 7,
        "file_name": "7.jpg",
        "caption": 'a "dog"\n\u2028\ud800',
        "log_prob": -2.5,
        "references": ["a dog", "dogs"],
        "alternatives": [["a cat", -3.0], ["", None]],
        "verdict": "right",
        "ailments": ["repetition"],
        "BLEU-4": 0.25,
        "CIDEr-D": 1.5,
    }
    assert second["image_id"] == 8 and second["log_prob"] is None and "CIDEr-D" not in second
