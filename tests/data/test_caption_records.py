"""Records read from their file one by one: right rows, clear errors, no memory."""

import json
import tracemalloc

import pytest

from capjax.data.caption_records import CaptionRecords, record_line
from capjax.errors import CapjaxError
from capjax.types import CaptionRecord

RECORDS = [
    CaptionRecord(7, "a.jpg", ("a dog", "two\u2028dogs")),
    CaptionRecord(3, "b\n.jpg", ()),
    CaptionRecord(2**62, "狗.jpg", ('a "cat"',)),
    CaptionRecord(-1, "d.jpg", ("x",) * 5),
]


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(map(record_line, RECORDS)), encoding="utf-8")
    return CaptionRecords(path, "make it again")


def test_records_come_back_by_place_by_slice_and_in_order(records):
    assert len(records) == 4
    assert list(records) == RECORDS
    assert [records[i] for i in (2, -1, 0)] == [RECORDS[2], RECORDS[-1], RECORDS[0]]
    assert list(records[1:3]) == RECORDS[1:3] and records[1:][1] == RECORDS[2] and len(records[:99]) == 4
    with pytest.raises(IndexError):
        records[4]
    assert list(records.of_images({3, -1})) == [RECORDS[1], RECORDS[3]]
    assert list(records.of_images({3, -1})[1:]) == [RECORDS[3]]
    assert len(records.of_images(set())) == 0


def test_a_file_may_lack_its_last_line_break_or_be_empty(records):
    records.path.write_bytes(records.path.read_bytes()[:-1])
    assert list(records) == RECORDS
    records.path.write_bytes(b"")
    assert list(CaptionRecords(records.path, "")) == []


def test_the_same_records_may_be_written_in_another_way(records, tmp_path):
    other = CaptionRecords(tmp_path / "other.jsonl", "")
    other.path.write_text("".join(json.dumps(vars(record), indent=None) + " \n" for record in RECORDS))
    assert records.path.read_bytes() != other.path.read_bytes()
    assert records.same_as(other) and records.same_as(RECORDS) and records.same_as(records)
    assert not records.same_as(other[:3]) and not records.same_as(records[1:]) and not records.same_as(RECORDS[::-1])
    other.path.write_text(records.path.read_text().replace("a dog", "a fox"))
    assert not records.same_as(CaptionRecords(other.path, ""))
    other.path.write_bytes(b"")
    assert not records.same_as(CaptionRecords(other.path, "")) and not CaptionRecords(other.path, "").same_as(records)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        "null",
        "[" * 100_000,
        '{"image_id": 1, "file_name": "a.jpg"}',
        '{"image_id": "1", "file_name": "a.jpg", "captions": []}',
        '{"image_id": true, "file_name": "a.jpg", "captions": []}',
        '{"image_id": 1, "file_name": 2, "captions": []}',
        '{"image_id": 1, "file_name": "a.jpg", "captions": [3]}',
        '{"image_id": 1, "file_name": "a.jpg", "captions": 3}',
        f'{{"image_id": {2**63}, "file_name": "a.jpg", "captions": []}}',
        f'{{"image_id": {"9" * 5000}, "file_name": "a.jpg", "captions": []}}',
    ],
)
def test_a_line_that_is_no_record_is_named(records, line):
    with open(records.path, "a") as file:
        file.write(line + "\n")
    assert list(records[:4]) == RECORDS
    with pytest.raises(CapjaxError, match=r"captions\.jsonl, got .* in line 5; make it again"):
        list(records)


def test_a_file_that_vanished_or_was_cut_off_is_one_line(records):
    assert len(records) == 4
    records.path.write_bytes(records.path.read_bytes()[:100])
    with pytest.raises(CapjaxError, match="in line 4; make it again"):
        records[3]
    records.path.unlink()
    with pytest.raises(CapjaxError, match="No such file or directory; make it again"):
        len(CaptionRecords(records.path, "make it again"))


def test_going_through_many_records_takes_no_memory_for_them(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(record_line(CaptionRecord(1, "a.jpg", ("word " * 20,) * 5)) * 20_000)
    assert path.stat().st_size > 10_000_000
    records = CaptionRecords(path, "")
    len(records)
    tracemalloc.start()
    assert sum(len(record.captions) for record in records) == 100_000
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
