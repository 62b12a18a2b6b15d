"""Cached features: what goes in comes out, nothing stale or half-written is taken for whole."""

import concurrent.futures
import dataclasses
import gc
import io
import json
import os
import pickle
import shutil
import time
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from capjax.data import feature_rows, feature_store
from capjax.data.feature_import import import_npz
from capjax.data.feature_store import create_store, open_store
from capjax.errors import CapjaxError
from capjax.types import CaptionRecord, Features
from tests.image_mutations import mutations

F, P = 6, 4
KEY = {"weights_sha256": "abc", "preprocessing": {"image_size": 299, "crop": "center"}}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_store, "ROWS_PER_SHARD", 4)


def records(n, first_id=0):
    return [CaptionRecord(first_id + i, f"{i}.jpg", (f"caption {i}", "ünïcode 🐶")) for i in range(n)]


def fill(store, split, n):
    store.begin_split(split, records(n))
    values = np.random.default_rng(0).normal(size=(n, P + 1, F)).astype(np.float32)
    for rows in store.missing_shards(split):
        store.write_shard(split, rows, Features(values[list(rows), 0], values[list(rows), 1:]))
    return values


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-2)])
def test_round_trip(tmp_path, dtype, tolerance):
    values = fill(create_store(tmp_path, KEY, F, P, dtype), "train", 10)
    store = open_store(tmp_path, KEY)
    assert store.splits == ("train",)
    assert list(store.records("train")) == records(10)
    rows = pickle.loads(pickle.dumps(store.features("train", grid=True)))
    assert len(rows) == 10
    for i, row in enumerate(rows):
        assert row.pooled.dtype == np.float32
        np.testing.assert_allclose(row.pooled, values[i, 0], atol=tolerance)
        np.testing.assert_allclose(row.grid, values[i, 1:], atol=tolerance)
    assert store.features("train")[3].grid is None


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.4), ("float16", 0.8), ("uint8", 1.8)])
def test_a_shard_is_written_as_numpy_has_it_and_hardly_copied(tmp_path, dtype, most):
    grid = np.random.default_rng(0).random((4, 64, 2048), np.float32)
    store = create_store(tmp_path, KEY, 2048, 64, dtype)
    store.begin_split("train", records(4))
    tracemalloc.start()
    store.write_shard("train", range(4), Features(grid[:, 0], grid))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < most * grid.nbytes
    assert np.load(tmp_path / "train" / "grid-00000.npy").dtype == dtype
    if dtype != "uint8":
        np.testing.assert_array_equal(np.load(tmp_path / "train" / "grid-00000.npy"), grid.astype(dtype))


def test_features_come_in_the_dtype_of_the_computation(tmp_path):
    values = np.abs(fill(create_store(tmp_path, KEY, F, P, "float16"), "train", 10))
    rows = pickle.loads(pickle.dumps(open_store(tmp_path, KEY).features("train", True, jnp.dtype("bfloat16"))))
    for row, (pooled, *grid) in zip(rows, values, strict=True):
        assert row.pooled.dtype == row.grid.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.abs(row.pooled.astype(np.float32)), pooled, rtol=2**-8, atol=1e-3)
        np.testing.assert_allclose(np.abs(row.grid.astype(np.float32)), grid, rtol=2**-8, atol=1e-3)


def test_a_grid_in_eight_bits_is_off_by_half_a_step_and_takes_a_quarter_of_the_space(tmp_path):
    values = np.abs(np.random.default_rng(0).normal(size=(10, P + 1, F))).astype(np.float32)
    values[:, 1:, 2] = 0.0  # a feature that no position of the image has
    values[:, 1:, 3] *= 1000.0
    store = create_store(tmp_path, KEY, F, P, "uint8")
    store.begin_split("train", records(10))
    for rows in store.missing_shards("train"):
        store.write_shard("train", rows, Features(values[list(rows), 0], values[list(rows), 1:]))
    rows = pickle.loads(pickle.dumps(open_store(tmp_path, KEY).features("train", grid=True)))
    for row, (pooled, *grid) in zip(rows, values, strict=True):
        np.testing.assert_array_equal(row.pooled, pooled)
        step = np.max(grid, axis=0) / 255
        assert (np.abs(row.grid - grid) <= 0.51 * step).all()
    large = create_store(tmp_path / "large", KEY, 2048, 64, "uint8")
    assert large.bytes_needed(10) < 0.3 * create_store(tmp_path / "float", KEY, 2048, 64).bytes_needed(10)
    with pytest.raises(CapjaxError, match="at least 0"):
        store.write_shard("train", range(0, 4), Features(values[:4, 0], -values[:4, 1:]))


def test_interrupted_extraction_resumes_with_what_is_missing(tmp_path):
    values = fill(create_store(tmp_path, KEY, F, P), "train", 10)
    store = open_store(tmp_path, KEY)
    (tmp_path / "train" / "grid-00001.npy").unlink()
    assert store.missing_shards("train") == [range(4, 8)]
    with pytest.raises(CapjaxError, match="4 are missing"):
        store.features("train")
    store.write_shard("train", range(4, 8), Features(values[4:8, 0], values[4:8, 1:]))
    np.testing.assert_array_equal(store.features("train")[5].pooled, values[5, 0])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (KEY | {"weights_sha256": "other"}, "weights_sha256 = 'other'.*made with 'abc'"),
        (KEY | {"preprocessing": {"image_size": 75, "crop": "center"}}, "image_size = 75.*made with 299"),
    ],
)
def test_stale_store_is_refused(tmp_path, key, message):
    create_store(tmp_path, KEY, F)
    with pytest.raises(CapjaxError, match=message):
        open_store(tmp_path, key)
    with pytest.raises(CapjaxError, match=message):
        create_store(tmp_path, key, F)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((F + 1, None, "float32"), "feature_size = 7.*made with 6"),
        ((F, P, "float32"), "num_positions = 4.*made with None"),
        ((F, None, "float16"), "dtype = 'float16'.*made with 'float32'"),
    ],
)
def test_a_store_of_other_shapes_or_another_dtype_is_not_used_again(tmp_path, shapes, message):
    create_store(tmp_path, KEY, F)
    with pytest.raises(CapjaxError, match=message):
        create_store(tmp_path, KEY, *shapes)


def test_other_images_are_refused(tmp_path):
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(5))
    store.begin_split("train", records(5))
    with pytest.raises(CapjaxError, match="found others"):
        store.begin_split("train", records(5, first_id=1))


def test_images_that_changed_under_their_names_are_refused(tmp_path):
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(5), images_sha256="abc")
    for check in (store.begin_split, store.check_split):
        with pytest.raises(CapjaxError, match="found others"):
            check("train", records(5), "def")


def test_captions_that_changed_are_noticed_and_taken_over_with_the_features_kept(tmp_path):
    store = create_store(tmp_path, KEY, F, P)
    values = fill(store, "train", 5)
    changed = [dataclasses.replace(record, captions=("another",)) for record in records(5)]
    store.check_split("train", records(5), "")
    with pytest.raises(CapjaxError, match="run capjax features once more"):
        store.check_split("train", changed, "")
    store.begin_split("train", changed)
    store.check_split("train", changed, "")
    assert list(store.records("train")) == changed and not store.missing_shards("train")
    np.testing.assert_array_equal(store.features("train")[4].pooled, values[4, 0])


def test_names_and_captions_with_line_separators_come_back(tmp_path):
    odd = [CaptionRecord(7, "a\u2028b\u0085c.jpg", ("one\u2029two\x1dthree",))]
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", odd)
    assert list(store.records("train")) == odd


def test_two_extractors_at_once_leave_one_whole_store(tmp_path):
    """Each writes every shard, again and again: none meets a half-written one, none trips over the other's files."""
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(8))
    values = np.arange(8 * F, dtype=np.float32).reshape(8, F)

    def write(_):
        for rows in store.shards("train"):
            store.write_shard("train", rows, Features(values[list(rows)]))
        for rows in store.shards("train"):
            np.testing.assert_array_equal(store.features("train")[rows.start].pooled, values[rows.start])

    write(0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    assert {path.name for path in (tmp_path / "train").iterdir()} == {
        "captions.jsonl", "images.sha256", "pooled-00000.npy", "pooled-00001.npy",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (Features(np.zeros((4, F + 1), np.float32)), "shape"),
        (Features(np.full((4, F), 1e6, np.float32)), "float16 cannot hold"),
        (Features(np.full((4, F), np.nan, np.float32)), "finite"),
    ],
)
def test_bad_features_are_refused(tmp_path, features, message):
    store = create_store(tmp_path, KEY, F, dtype="float16")
    store.begin_split("train", records(4))
    with pytest.raises(CapjaxError, match=message):
        store.write_shard("train", range(0, 4), features)
    assert store.missing_shards("train") == [range(0, 4)]


def test_truncated_shard_is_refused(tmp_path):
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(4))
    store.write_shard("train", range(0, 4), Features(np.zeros((4, F), np.float32)))
    path = tmp_path / "train" / "pooled-00000.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CapjaxError, match="damaged"):
        store.features("train")


def shorten(path):
    os.truncate(path, 150)


def put_a_nan(path):
    array = np.load(path)
    array[3, 2] = np.nan
    np.save(path, array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "it ends before row 3"),
        (put_a_nan, "row 3 has values that are not finite"),
        (os.unlink, "No such file"),
        (lambda path: path.write_bytes(b""), "pooled-00001.npy is damaged"),
    ],
)
def test_a_shard_that_changes_after_the_split_was_opened_is_one_clear_error(tmp_path, change, message):
    """The files are opened as rows are read, while a run goes on."""
    values = fill(create_store(tmp_path, KEY, F), "train", 10)
    rows = open_store(tmp_path, KEY).features("train")
    np.testing.assert_array_equal(rows[0].pooled, values[0, 0])
    change(tmp_path / "train" / "pooled-00001.npy")
    with pytest.raises(CapjaxError, match=message) as error:
        rows[7]
    assert "\n" not in str(error.value) and "run capjax features again" in str(error.value)
    np.testing.assert_array_equal(rows[8].pooled, values[8, 0])


def test_a_shard_that_is_cut_off_while_it_is_open_is_one_clear_error_and_can_be_put_back(tmp_path):
    values = fill(create_store(tmp_path, KEY, F), "train", 10)
    rows, path = open_store(tmp_path, KEY).features("train"), tmp_path / "train" / "pooled-00001.npy"
    np.testing.assert_array_equal(rows[7].pooled, values[7, 0])
    whole = path.read_bytes()
    os.truncate(path, 150)
    with pytest.raises(CapjaxError, match="it ends before row 3"):
        rows[7]
    path.write_bytes(whole)
    np.testing.assert_array_equal(rows[7].pooled, values[7, 0])


def test_a_store_of_many_shards_keeps_a_bounded_number_of_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_rows, "_most_files", lambda: 20)
    store = create_store(tmp_path, KEY, F, num_positions=P)
    store.begin_split("train", records(200))
    expected = np.arange(200 * P * F, dtype=np.float32).reshape(200, P, F)
    for rows in store.shards("train"):
        grid = expected[rows.start : rows.stop]
        store.write_shard("train", rows, Features(grid[:, 0], grid))

    def num_open():
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    rows = store.features("train", grid=True)
    assert num_open() == before, "opening the store opens no shard"
    for i in np.random.default_rng(0).permutation(200).tolist():
        np.testing.assert_array_equal(rows[i].grid, expected[i])
    assert num_open() <= before + 20


def test_missing_store_and_split(tmp_path):
    with pytest.raises(CapjaxError, match="found none"):
        open_store(tmp_path / "nowhere", {})
    with pytest.raises(CapjaxError, match="got 'test'"):
        create_store(tmp_path, KEY, F).records("test")


def test_a_store_of_an_older_format_says_how_to_go_on(tmp_path):
    create_store(tmp_path, KEY, F)
    header = tmp_path / "store.json"
    header.write_text(header.read_text().replace('"format_version": 2', '"format_version": 1'))
    for attempt in (lambda: open_store(tmp_path, KEY), lambda: create_store(tmp_path, KEY, F)):
        with pytest.raises(CapjaxError, match="got 1; delete that folder and run capjax features"):
            attempt()
    shutil.rmtree(tmp_path)
    create_store(tmp_path, KEY, F)


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.pop("key"), "usable 'key'"),
        (lambda h: h.update(key=[1]), "usable 'key'"),
        (lambda h: h.pop("feature_size"), "usable 'feature_size'"),
        (lambda h: h.update(feature_size="6"), "usable 'feature_size'"),
        (lambda h: h.update(feature_size=-1), "usable 'feature_size'"),
        (lambda h: h.pop("num_positions"), "usable 'num_positions'"),
        (lambda h: h.update(num_positions=1.5), "usable 'num_positions'"),
        (lambda h: h.update(dtype="O"), "usable 'dtype'"),
        (lambda h: h.update(dtype=["float32"]), "usable 'dtype'"),
    ],
)
def test_a_header_that_cannot_be_used_is_one_line(tmp_path, edit, message):
    create_store(tmp_path, KEY, F)
    change(tmp_path / "store.json", edit)
    with pytest.raises(CapjaxError, match=message) as caught:
        open_store(tmp_path, KEY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "[" * 100_000, b"\xff\xfe", "9" * 5000])
def test_a_header_of_something_else_is_one_line(tmp_path, content):
    create_store(tmp_path, KEY, F)
    (tmp_path / "store.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CapjaxError, match=r"expected .* in .*store\.json"):
        open_store(tmp_path, KEY)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "[" * 100_000,
        b"\xff",
        '{"image_id": 1, "file_name": "a.jpg"}',
        '{"image_id": "1", "file_name": "a.jpg", "captions": []}',
        '{"image_id": 1, "file_name": 2, "captions": []}',
        '{"image_id": 1, "file_name": "a.jpg", "captions": "not a list"}',
        '{"image_id": 1, "file_name": "a.jpg", "captions": [1]}',
    ],
)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_damaged_captions_are_one_line(tmp_path, line, end):
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(3))
    with open(tmp_path / "train" / "captions.jsonl", "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + end)
    with pytest.raises(CapjaxError, match=r"caption record in each line of .*captions\.jsonl") as caught:
        list(store.records("train"))
    assert "\n" not in str(caught.value)


def test_captions_cut_short_or_a_fingerprint_of_other_bytes_are_one_line(tmp_path):
    store = create_store(tmp_path, KEY, F)
    store.begin_split("train", records(3), "abc")
    captions, images = (tmp_path / "train" / name for name in ("captions.jsonl", "images.sha256"))
    images.write_bytes(b"\xff\xfe")
    with pytest.raises(CapjaxError, match="found others"):
        store.check_split("train", records(3), "abc")
    images.write_text("abc")
    captions.write_text(captions.read_text()[:-3])
    with pytest.raises(CapjaxError, match="in line 3"):
        store.check_split("train", records(3), "abc")


@pytest.mark.parametrize(
    "other", [np.zeros((2, 2 * F), np.float32), np.zeros((4, F), np.int32), b"\x93NUMPY\1\0\2\0(\n"]
)
def test_a_shard_of_other_rows_is_refused(tmp_path, other):
    fill(create_store(tmp_path, KEY, F), "train", 4)
    shard = tmp_path / "train" / "pooled-00000.npy"
    size = shard.stat().st_size
    if isinstance(other, bytes):
        shard.write_bytes(other.ljust(size, b"\0"))
    else:
        np.save(shard, other)
    assert shard.stat().st_size == size, "so that its size does not tell"
    with pytest.raises(CapjaxError, match=r"pooled-00000\.npy is damaged"):
        open_store(tmp_path, KEY).features("train")[0]


def test_importing_features_matches_by_file_name(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{i}.jpg" for i in reversed(range(6))]
    pooled = rng.normal(size=(6, F)).astype(np.float16)
    grid = rng.integers(0, 255, (6, P, F)).astype(np.uint8)
    scale = rng.random(F).astype(np.float32)
    np.savez(tmp_path / "x.npz", file_name=np.asarray(names), pooled=pooled, grid=grid, grid_scale=scale)
    counts = import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(8), "val": records(2)})
    assert counts == {"train": (6, 2), "val": (2, 0)}
    store = open_store(tmp_path / "store", {"dataset": "toys"})
    rows = store.features("train", grid=True)
    for i, record in enumerate(store.records("train")):
        at = names.index(record.file_name)
        np.testing.assert_array_equal(rows[i].pooled, pooled[at].astype(np.float32))
        np.testing.assert_allclose(rows[i].grid, grid[at] * scale, rtol=1e-6)


NAMES = np.asarray(["0.jpg", "1.jpg"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        b"PK\x03\x04 no archive",
        {"pooled": np.zeros((2, 3))},
        {"file_name": np.asarray(["a"]), "pooled": np.zeros((2, 3))},
        {"file_name": np.asarray("a"), "pooled": np.zeros((1, 3))},
        {"file_name": NAMES, "pooled": np.full((2, 3), "x")},
        {"file_name": NAMES, "pooled": np.asarray([object()] * 2)},
        {"file_name": NAMES, "pooled": np.zeros((2, 0))},
        {"file_name": NAMES, "pooled": np.zeros((2, 3)), "grid": np.zeros((2, 0, 3))},
        {"file_name": NAMES, "pooled": np.zeros((2, 3)), "grid": np.zeros((2, 4, 3)), "grid_scale": np.zeros(2)},
    ],
)
def test_importing_something_else_is_a_clear_error(tmp_path, content):
    path = tmp_path / "x.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(CapjaxError, match=r"x\.npz"):
        import_npz(path, tmp_path / "store", "toys", {"train": records(2)})


def test_importing_again_takes_no_rows_of_other_names_for_done(tmp_path):
    pooled = np.arange(2 * F, dtype=np.float32).reshape(2, F)
    np.savez(tmp_path / "x.npz", file_name=NAMES, pooled=pooled)
    for _ in range(2):
        assert import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)}) == {"train": (2, 0)}
    np.savez(tmp_path / "x.npz", file_name=NAMES[::-1], pooled=pooled)
    with pytest.raises(CapjaxError, match="choose another folder or delete this one"):
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})


def test_features_of_one_kind_are_not_looked_for_in_a_store_of_the_other(tmp_path):
    np.savez(tmp_path / "x.npz", file_name=NAMES, pooled=np.ones((2, F), np.float32))
    create_store(tmp_path / "computed", {"dataset": "toys", "encoder": {"image_size": 8}}, F)
    with pytest.raises(CapjaxError, match=r"expected features that another program made .* that an encoder computed"):
        import_npz(tmp_path / "x.npz", tmp_path / "computed", "toys", {"train": records(2)})
    import_npz(tmp_path / "x.npz", tmp_path / "imported", "toys", {"train": records(2)})
    with pytest.raises(CapjaxError, match=r"that an encoder computed .* that another program made"):
        create_store(tmp_path / "imported", {"dataset": "toys", "encoder": {"image_size": 8}}, F)


def test_names_as_bytes_are_read_and_repeated_ones_refused(tmp_path):
    np.savez(tmp_path / "x.npz", file_name=NAMES.astype("S"), pooled=np.zeros((2, F)))
    assert import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)}) == {"train": (2, 0)}
    np.savez(tmp_path / "y.npz", file_name=NAMES[[0, 1, 0]], pooled=np.zeros((3, F)))
    with pytest.raises(CapjaxError, match=r"each file_name once in .*got 0\.jpg twice"):
        import_npz(tmp_path / "y.npz", tmp_path / "other", "toys", {"train": records(2)})


def test_what_is_not_finite_is_told_with_its_image(tmp_path):
    pooled = np.zeros((2, F), np.float32)
    pooled[1, 2] = np.nan
    np.savez(tmp_path / "x.npz", file_name=NAMES, pooled=pooled)
    with pytest.raises(CapjaxError, match=r"finite pooled features of 1\.jpg, got NaN or infinity"):
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})


def test_importing_a_single_array_is_a_clear_error(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros((2, 3)))
    with pytest.raises(CapjaxError, match=r"x\.npz"):
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})


@pytest.mark.parametrize("member", [b"no array", b"\x93NUMPY\1\0\4\0'''\n", b"\x93NUMPY\1\0\2\0(\n"])
def test_importing_members_that_are_no_arrays_is_a_clear_error(tmp_path, member):
    np.savez(tmp_path / "x.npz", file_name=NAMES)
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("pooled.npy", member)
    with pytest.raises(CapjaxError, match=r"x\.npz") as caught:
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})
    assert "\n" not in str(caught.value)


def test_importing_what_inflates_without_end_is_a_clear_error_in_little_memory(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", file_name=NAMES, pooled=np.zeros((2, 10_000_000), np.float32))
    tracemalloc.start()
    try:
        with pytest.raises(CapjaxError, match="inflates to at most 100 times"):
            import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_importing_pickled_objects_runs_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    np.savez(tmp_path / "x.npz", file_name=NAMES, pooled=np.asarray([Trap()] * 2, object))
    with pytest.raises(CapjaxError, match=r"x\.npz"):
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})
    assert not (tmp_path / "executed").exists()


def test_importing_features_of_absurd_size_is_a_clear_error(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2, 10**14)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("pooled.npy", header.getvalue())
        archive.writestr("file_name.npy", header.getvalue())
    with pytest.raises(CapjaxError, match=r"x\.npz") as caught:
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_importing_damaged_features_ends_in_clear_errors(tmp_path, save):
    save(tmp_path / "whole.npz", file_name=NAMES, pooled=np.ones((2, F)), grid=np.ones((2, P, F), np.float16))
    whole, num_refused = (tmp_path / "whole.npz").read_bytes(), 0
    for name, data in mutations({"npz": whole}, 150, seed=0):
        (tmp_path / "x.npz").write_bytes(data)
        try:
            import_npz(tmp_path / "x.npz", tmp_path / "stores" / name, "toys", {"train": records(2)})
        except CapjaxError as error:
            assert "\n" not in str(error), name
            num_refused += 1
    assert num_refused > 50


def test_importing_features_of_other_images_is_an_error(tmp_path):
    np.savez(tmp_path / "x.npz", file_name=np.asarray(["z.jpg"]), pooled=np.zeros((1, F)))
    with pytest.raises(CapjaxError, match="none of its file names"):
        import_npz(tmp_path / "x.npz", tmp_path / "store", "toys", {"train": records(2)})


def test_threads_may_open_shards_at_once(tmp_path):
    """Python 3.11 counts how deep its parser is for all threads together, and takes two of them for a mistake."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "0.npy", array)
    threshold = gc.get_threshold()

    def pause(phase, info):
        time.sleep(1e-5)  # another thread goes on, in the middle of what this one parses

    def open_often(threshold):
        gc.set_threshold(threshold)
        return [feature_rows._Shard(tmp_path / "0.npy", (4,), np.dtype(np.float32))[2] for _ in range(50)]

    gc.callbacks.append(pause)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            rows = [row for opened in pool.map(open_often, list(range(1, 17)) * 4) for row in opened]
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(pause)
    assert len(rows) == 3200 and (np.stack(rows) == array[2]).all()
