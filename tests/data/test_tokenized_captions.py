"""Tokenised captions in files: equal to tokenising each caption, made once, again when captions change."""

import collections
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from capjax.data.caption_records import CaptionRecords, record_line
from capjax.data.tokenized_captions import TokenizedCaptions, tokenized_captions, write_tokenized
from capjax.errors import CapjaxError
from capjax.host import waiting
from capjax.text.vocabulary import TOKENIZERS, Vocabulary
from capjax.types import CaptionRecord

RECORDS = [
    CaptionRecord(9, "a.jpg", ("A dog runs.", "a dog, a dog")),
    CaptionRecord(4, "b.jpg", ()),
    CaptionRecord(5, "c.jpg", ("two cats <end> <pad>", "", "cats")),
]


def write_records(path, records):
    path.write_text("".join(map(record_line, records)), encoding="utf-8")
    return CaptionRecords(path, "make it again")


@pytest.fixture
def records(tmp_path):
    return write_records(tmp_path / "captions-train.jsonl", RECORDS)


@pytest.mark.parametrize("tokenizer", sorted(TOKENIZERS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.text("ab <>.'é狗", max_size=12), max_size=3), min_size=1, max_size=6),
    min_count=st.integers(1, 2),
)
def test_captions_are_those_that_the_vocabulary_makes(tmp_path_factory, tokenizer, texts, min_count):
    records = [CaptionRecord(100 - i, f"{i}.jpg", tuple(captions)) for i, captions in enumerate(texts)]
    folder = tmp_path_factory.mktemp("tokenized")
    write_tokenized(folder, records, tokenizer)
    found = TokenizedCaptions(folder)
    tokenize = TOKENIZERS[tokenizer]
    counts = collections.Counter(word for of_image in texts for text in of_image for word in tokenize(text))
    assert found.counts == counts
    assert found.words == sorted(counts, key=lambda word: (-counts[word], word))
    assert found.image_ids.tolist() == [record.image_id for record in records]
    for vocabulary in (
        Vocabulary(("<pad>", "<unk>", "<start>", "<end>", "b", "<unused0>", "a"), tokenizer),
        *(
            [Vocabulary.build((text for of_image in texts for text in of_image), tokenizer, min_count)]
            if max(counts.values(), default=0) >= min_count and set(counts) - {"<pad>", "<unk>", "<start>", "<end>"}
            else []
        ),
    ):
        encoded = found.encode(vocabulary)
        assert list(encoded.captioned_images) == [i for i, captions in enumerate(texts) if captions]
        for i, captions in enumerate(texts):
            assert [encoded[n].tolist() for n in encoded.of_image(i)] == [
                vocabulary.encode(caption).tolist() for caption in captions
            ]


def test_waiting_for_another_process_that_tokenises_is_told(records, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "PATIENCE", 0.2)
    with open(records.path, "rb") as other, ThreadPoolExecutor() as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        found, said, deadline = pool.submit(tokenized_captions, records, "words"), "", time.monotonic() + 60
        while f"waiting for another process to tokenise {records.path}" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.05)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert found.result().image_ids.tolist() == [9, 4, 5] and time.monotonic() < deadline


def test_more_words_than_are_held_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("capjax.data.tokenized_captions._WORDS_AT_A_TIME", 7)
    captions = [" ".join(f"w{(i * j) % 13}" for j in range(i % 5)) for i in range(60)]
    write_tokenized(tmp_path, [CaptionRecord(i, "", (c, c)) for i, c in enumerate(captions)], "words")
    found = TokenizedCaptions(tmp_path)
    assert found.counts == collections.Counter(" ".join(captions * 2).split())
    assert found.image_starts.tolist() == list(range(0, 122, 2))
    assert [[found.words[w] for w in found.caption(2 * i)] for i in range(60)] == [c.split() for c in captions]


def test_the_fingerprint_is_of_ids_and_captions_in_order(records):
    content = "".join(json.dumps([record.image_id, list(record.captions)]) for record in RECORDS)
    expected = hashlib.sha256(content.encode()).hexdigest()
    assert tokenized_captions(records, "words").records_sha256 == expected
    assert tokenized_captions(records, "ptb").records_sha256 == expected


def test_they_are_made_once_and_again_when_the_captions_change(records):
    first = tokenized_captions(records, "words")
    (made,) = (records.path.parent / "captions-train.words").iterdir()
    before = (made / "header.json").stat()
    again = tokenized_captions(records, "words")
    assert (made / "header.json").stat().st_mtime_ns == before.st_mtime_ns
    assert again.counts == first.counts
    changed = tokenized_captions(write_records(records.path, RECORDS[:1]), "words")
    assert changed.counts == {"a": 3, "dog": 3, "runs": 1}
    assert len(list((records.path.parent / "captions-train.words").iterdir())) == 1  # the older ones are gone


def test_they_are_made_again_when_captions_change_to_others_of_the_same_length(records):
    tokenized_captions(records, "words")
    status = records.path.stat()
    edited = write_records(records.path, [CaptionRecord(9, "a.jpg", ("A cat runs.", "a cat, a dog")), *RECORDS[1:]])
    os.utime(records.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert records.path.stat().st_size == status.st_size
    counts = tokenized_captions(edited, "words").counts
    assert (counts["cat"], counts["dog"]) == (2, 1)


def test_what_a_kill_left_is_made_anew(records):
    found = tokenized_captions(records, "words")
    (made,) = (records.path.parent / "captions-train.words").iterdir()
    (made / "header.json").unlink()
    made.rename(made.with_name(f".{made.name}.tmp"))
    assert tokenized_captions(records, "words").counts == found.counts
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_a_place_that_cannot_be_written_to_is_no_obstacle(records):
    (records.path.parent / "captions-train.words").write_text("in the way")
    found = tokenized_captions(records, "words")
    assert found.counts["dog"] == 3
    folder = found._folder
    assert folder.exists() and pickle.loads(pickle.dumps(found)).counts == found.counts
    del found
    assert not folder.exists()


def test_sent_to_a_worker_they_are_a_path(records):
    vocabulary = Vocabulary.build(["a dog runs"], min_count=1)
    encoded = tokenized_captions(records, "words").encode(vocabulary)
    sent = pickle.dumps(encoded)
    assert len(sent) < 1000
    assert pickle.loads(sent)[1].tolist() == vocabulary.encode("a dog, a dog").tolist()


def _count(path, waits):
    waits.wait()
    return sum(tokenized_captions(CaptionRecords(path, ""), "words").counts.values())


def test_processes_that_come_at_once_find_one_result(records):
    with multiprocessing.get_context("spawn").Manager() as manager:
        waits = manager.Barrier(2)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            counts = [pool.apply_async(_count, (records.path, waits)) for _ in range(2)]
            assert [count.get(60) for count in counts] == [12, 12]
    assert len(list((records.path.parent / "captions-train.words").iterdir())) == 1


@pytest.mark.parametrize("name", ["tokens", "image_ids", "header.json"])
def test_damage_is_one_line_and_mended_by_deleting(records, name):
    tokenized_captions(records, "words")
    (made,) = (records.path.parent / "captions-train.words").iterdir()
    (made / name).write_bytes((made / name).read_bytes()[:-4])
    with pytest.raises(CapjaxError, match="delete that folder, it is made again"):
        tokenized_captions(records, "words")
    shutil.rmtree(made)
    assert tokenized_captions(records, "words").counts["dog"] == 3


def test_a_damaged_record_leaves_nothing_that_looks_whole(records):
    # Far behind many, of which the tests' check of annotations reads one at random.
    records.path.write_text(500 * records.path.read_text() + "{\n")
    with pytest.raises(CapjaxError, match="in line 1501; make it again"):
        tokenized_captions(CaptionRecords(records.path, "make it again"), "words")
    write_records(records.path, RECORDS)
    assert np.array_equal(tokenized_captions(records, "words").image_ids, [9, 4, 5])
