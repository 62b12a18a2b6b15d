"""Batches: right content, static shapes, all images or captions once, the same for any number of processes."""

import io
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from capjax.data import input_pipeline
from capjax.data.input_pipeline import ImageRows, image_batches, pad_captions, training_batches, validation_batches
from capjax.data.tokenized_captions import TokenizedCaptions, write_tokenized
from capjax.errors import CapjaxError
from capjax.images import Preprocessing
from capjax.text.vocabulary import Vocabulary
from capjax.types import SPECIAL_IDS, CaptionRecord, Features

WORDS = ("one", "two", "three", "four", "five")
SIZES = {"batch_size": 4, "captions_per_image": 1, "max_tokens": 6, "seed": 3}

PAD, START, END = SPECIAL_IDS.pad, SPECIAL_IDS.start, SPECIAL_IDS.end


class VectorRows:
    """Features [1] that hold the row's number."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return Features(np.asarray([i], np.float32))


@pytest.fixture(params=["an order of few images", "Grain's order"])
def either_order(request, monkeypatch):
    if request.param == "Grain's order":
        monkeypatch.setattr(input_pipeline, "SLOW_TO_SHUFFLE", 1)


@pytest.fixture
def records():
    """Image i has i % 4 captions; its caption k says the words for i and k."""
    return [CaptionRecord(100 + i, f"{i}.jpg", tuple(f"w{i} {WORDS[k]}" for k in range(i % 4))) for i in range(10)]


@pytest.fixture
def captions(records, vocabulary, tmp_path):
    return encoded(records, vocabulary, tmp_path)


def encoded(records, vocabulary, folder):
    write_tokenized(folder, records, vocabulary.tokenizer)
    return TokenizedCaptions(folder).encode(vocabulary)


@pytest.fixture
def vocabulary(records):
    return Vocabulary.build((c for r in records for c in r.captions), min_count=1)


def test_captions_are_padded_and_cut():
    batch = pad_captions(
        [
            np.asarray([START, 4, END]),
            np.asarray([START, 4, 5, 6, 7, END]),
        ],
        4,
    )
    np.testing.assert_array_equal(batch["tokens"], [[START, 4, END, PAD], [START, 4, 5, 6]])
    np.testing.assert_array_equal(batch["mask"], [[True, True, False], [True, True, True]])


def test_training_captions_belong_to_their_images(records, captions, vocabulary):
    batches = training_batches(captions, VectorRows(10), **SIZES | {"captions_per_image": 2})
    seen = set()
    for _ in range(20):
        batch = next(batches)
        assert batch["features"].pooled.shape == (2, 1)
        assert batch["tokens"].shape == (4, 6) and batch["mask"].shape == (4, 5)
        for n, image_id in enumerate(batch["image_id"]):
            assert batch["features"].pooled[n, 0] == image_id - 100
            captions = [vocabulary.decode(row[1:]) for row in batch["tokens"][2 * n : 2 * n + 2]]
            assert all(caption in records[image_id - 100].captions for caption in captions)
            if (image_id - 100) % 4 > 1:
                assert captions[0] != captions[1]
            seen.update(captions)
    assert seen == {caption for record in records for caption in record.captions}


def test_nothing_is_printed_of_the_data(captions):
    class Unprintable(VectorRows):
        def __repr__(self):
            raise AssertionError("Grain describes what it runs, and would print all captions of a data set")

    next(training_batches(captions, Unprintable(10), **SIZES))


@pytest.mark.usefixtures("either_order")
def test_an_epoch_shows_every_image_with_captions_once_and_epochs_differ(captions):
    batches = training_batches(captions, VectorRows(10), **SIZES | {"batch_size": 1})
    order = [int(next(batches)["image_id"][0]) for _ in range(14)]
    with_captions = {100 + i for i in range(10) if i % 4}
    assert len(with_captions) == 7
    assert set(order[:7]) == set(order[7:]) == with_captions
    assert order[:7] != order[7:]


@pytest.mark.usefixtures("either_order")
def test_the_order_depends_on_the_seed(captions):
    orders = []
    for seed in (3, 4, 3):
        batches = training_batches(captions, VectorRows(10), **SIZES | {"seed": seed})
        orders.append(np.concatenate([next(batches)["image_id"] for _ in range(10)]).tolist())
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.usefixtures("either_order")
def test_processes_share_the_batches_of_one(captions):
    whole = training_batches(captions, VectorRows(10), **SIZES)
    parts = [training_batches(captions, VectorRows(10), **SIZES, process_index=i, process_count=2) for i in (0, 1)]
    for _ in range(6):
        batch, *shares = (next(x) for x in (whole, *parts))
        for name in ("image_id", "tokens", "mask"):
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), batch[name])


class Bfloat16Rows(VectorRows):
    def __getitem__(self, i):
        return Features(np.asarray([i], jnp.bfloat16))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_features_of_half_the_size_come_through_workers(captions, num_workers):
    batch = next(training_batches(captions, Bfloat16Rows(10), **SIZES, num_workers=num_workers))
    assert batch["features"].pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(batch["features"].pooled[:, 0].astype(int), batch["image_id"] - 100)


@pytest.mark.parametrize(("num_workers", "process_count"), [(0, 1), (0, 2), (2, 1)])
@pytest.mark.usefixtures("either_order")
def test_going_on_after_some_batches_is_exact_whoever_reads_them(captions, num_workers, process_count):
    batches = training_batches(captions, VectorRows(10), **SIZES)
    expected = [next(batches) for _ in range(9)][5:]
    resumed = [
        training_batches(
            captions, VectorRows(10), **SIZES, first_batch=5, num_workers=num_workers,
            process_index=i, process_count=process_count,
        )
        for i in range(process_count)
    ]  # fmt: skip
    for batch in expected:
        again = [next(part) for part in resumed]
        for name in ("image_id", "tokens"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in again]), batch[name])


@pytest.mark.parametrize("process_count", [1, 2])
@pytest.mark.parametrize("captions_per_image", [1, 2])
def test_validation_covers_captions_and_their_images_once(records, vocabulary, process_count, captions_per_image):
    seen, counted, shapes = [], [], set()
    for index in range(process_count):
        batches = validation_batches(
            records, VectorRows(10), vocabulary, batch_size=8, captions_per_image=captions_per_image, max_tokens=6,
            process_index=index, process_count=process_count,
        )  # fmt: skip
        for batch in batches:
            shapes.add((batch["tokens"].shape, batch["features"].pooled.shape))
            counted += batch["image_id"][batch["valid"]].tolist()
            for row, tokens in enumerate(batch["tokens"]):
                if batch["mask"][row].any():
                    image = int(batch["features"].pooled[row // captions_per_image, 0])
                    seen.append((image, vocabulary.decode(tokens[1:])))
    assert sorted(seen) == sorted((i, c) for i, r in enumerate(records) for c in r.captions)
    assert sorted(counted) == [record.image_id for record in records if record.captions]
    assert len(shapes) == 1


@pytest.mark.parametrize("process_count", [1, 2])
def test_decoding_covers_every_image_once(records, process_count):
    seen = []
    for index in range(process_count):
        for batch in image_batches(
            records, VectorRows(10), batch_size=4, process_index=index, process_count=process_count
        ):
            assert batch["valid"].shape == (4 // process_count,)
            seen += list(batch["image_id"][batch["valid"]])
    assert sorted(seen) == [record.image_id for record in records]


def test_decoding_reads_one_batch_ahead_and_no_more():
    class CountingRows(VectorRows):
        num_read = 0

        def __getitem__(self, i):
            self.num_read += 1
            return super().__getitem__(i)

    rows = CountingRows(400)
    batches = image_batches([CaptionRecord(i, "", ()) for i in range(400)], rows, batch_size=20)
    for taken in range(20, 120, 20):
        next(batches)
        deadline = time.monotonic() + 10
        while rows.num_read < taken + 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert taken + 20 <= rows.num_read <= taken + 22, "a batch, and what two threads hold"


def encode_image(colour, size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_images_and_random_crops(captions):
    rows = ImageRows([encode_image((20 * i, 0, 0)) for i in range(10)], Preprocessing(image_size=16))
    for augment in (False, True):
        batch = next(training_batches(captions, rows, **SIZES, augment=augment))
        assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
        np.testing.assert_array_equal(batch["image"][:, 8, 8, 0], 20 * (batch["image_id"] - 100))


def test_random_crops_lie_anywhere_in_an_image_a_little_larger():
    # 19 = 16 · 346/299, rounded: it is not resized, so that each pixel tells where it was.
    image = np.stack([*np.indices((19, 19)), np.zeros((19, 19))], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    rows, rng = ImageRows([buffer.getvalue()], Preprocessing(image_size=16)), np.random.default_rng(0)
    corners = set()
    for _ in range(200):
        crop = rows.random_crop(0, rng)
        top, left = crop[0, 0, :2].tolist()
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 16])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(4) for left in range(4)}


def test_nothing_to_train_on_is_an_error(vocabulary, tmp_path):
    with pytest.raises(CapjaxError, match="the split has none"):
        training_batches(encoded([CaptionRecord(1, "a.jpg", ())], vocabulary, tmp_path), VectorRows(1), **SIZES)


def test_augmented_features_are_refused(captions):
    with pytest.raises(CapjaxError, match=r"train\.augment"):
        training_batches(captions, VectorRows(10), **SIZES, augment=True)


def test_batch_that_does_not_divide_is_refused(records, captions):
    with pytest.raises(CapjaxError, match="multiple of 3 captions"):
        training_batches(captions, VectorRows(10), **SIZES | {"captions_per_image": 3})
    for batch_size in (0, 5):
        with pytest.raises(CapjaxError, match=f"multiple of 2 processes, got {batch_size}"):
            image_batches(records, VectorRows(10), batch_size=batch_size, process_count=2)
