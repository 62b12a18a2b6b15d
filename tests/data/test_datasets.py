"""The dataset contract: names, records, images, pickling, and the builder that all sources share."""

import json
import pickle
import sys

import pytest

from capjax import data
from capjax.cli import main
from capjax.data.caption_builder import CaptionBuilder, SplitExamples, prepare, workspace
from capjax.errors import CapjaxError
from capjax.images import decode_image
from capjax.types import CaptionRecord
from tests.source_layouts import encode, jpeg, photo


def example(i: int) -> tuple[CaptionRecord, bytes]:
    return CaptionRecord(10**12 - i, f"päth/{i}.jpg", (f"caption {i}", "zweite „Zeile“ 犬")), jpeg(i)


class Tiny(CaptionBuilder):
    """A dataset of as many pictures as asked for; named as a real one so that `load` finds it."""

    name = "scenes"

    def __init__(self, sizes, **kwargs):
        super().__init__(**kwargs)
        self._sizes = sizes

    def caption_splits(self):
        return {split: SplitExamples(size, map(example, range(size))) for split, size in self._sizes.items()}


def prepare_tiny(tmp_path, **sizes) -> data.CaptionDataset:
    target = data.target_directory(data.parse_name("scenes"), tmp_path, "1.0.0")
    prepare(lambda folder: Tiny(sizes, data_dir=folder), target)
    return data.load("scenes", tmp_path)


def test_records_and_images_come_back_in_order(tmp_path):
    # Enough that an order by hash or by string would show.
    dataset = prepare_tiny(tmp_path, val=3, train=120)
    assert dataset.splits == ("train", "val")
    assert list(dataset.records("train")) == [example(i)[0] for i in range(120)]
    images = dataset.images("train")
    assert [images[i] for i in range(120)] == [example(i)[1] for i in range(120)]
    assert (len(images), images[-1], len(list(images))) == (120, example(119)[1], 120)
    with pytest.raises(IndexError):
        images[120]
    copy = pickle.loads(pickle.dumps(images))
    assert copy[7] == images[7] and len(pickle.dumps(images)) < 1000
    assert [p.name for p in dataset.directory.parent.iterdir()] == ["1.0.0"]


def test_tfds_reads_the_shards_as_its_own(tmp_path):
    import tensorflow_datasets as tfds

    dataset = prepare_tiny(tmp_path, train=5)
    source = tfds.builder_from_directory(str(dataset.directory)).as_data_source("train[1:3]")
    assert [row["image_id"] for row in source] == [10**12 - 1, 10**12 - 2]
    assert (source[0]["image"] == decode_image(jpeg(1))).all()
    assert source[0]["captions"][1].decode() == "zweite „Zeile“ 犬"
    assert "tensorflow" not in sys.modules


def test_an_empty_split_is_one_line_and_the_older_dataset_stays(tmp_path):
    before = list(prepare_tiny(tmp_path, train=2).records("train"))
    with pytest.raises(CapjaxError, match="split 'val' of scenes"):
        prepare_tiny(tmp_path, train=4, val=0)
    assert list(data.load("scenes", tmp_path).records("train")) == before
    assert len(data.load("scenes", tmp_path).images("train")) == 2


def test_preparing_again_replaces_the_older_dataset(tmp_path):
    prepare_tiny(tmp_path, train=2, val=1)
    dataset = prepare_tiny(tmp_path, train=4)
    assert dataset.splits == ("train",) and len(dataset.images("train")) == 4


def test_a_kill_between_the_two_moves_loses_nothing(tmp_path):
    dataset = prepare_tiny(tmp_path, train=2)
    hidden = dataset.directory.parent / ".preparing-1.0.0"
    hidden.mkdir()
    dataset.directory.rename(hidden / "old")
    with pytest.raises(CapjaxError, match="none to use"):
        prepare_tiny(tmp_path, train=0)
    assert len(data.load("scenes", tmp_path).images("train")) == 2


def test_two_processes_do_not_prepare_the_same_dataset(tmp_path):
    with workspace(tmp_path / "scenes" / "1.0.0"):
        with pytest.raises(CapjaxError, match="wait"):
            prepare_tiny(tmp_path, train=1)
    prepare_tiny(tmp_path, train=1)


def test_names_are_taken_apart():
    for text, parts in {
        "scenes": ("scenes", None, False),
        "coco/karpathy": ("coco", "karpathy", False),
        "coco/2014/captions": ("coco", "2014", True),
        "flickr8k/captions": ("flickr8k", None, True),
        "folder/mine": ("folder", "mine", False),
    }.items():
        name = data.parse_name(text)
        assert (name.source, name.variant, name.captions_only) == parts
        assert str(name) == text


@pytest.mark.parametrize(
    "text", ["cocoa", "coco", "coco/2015", "scenes/x", "scenes/captions", "coco/2014/captions/more", ""]
)
def test_unknown_names_list_what_exists(text):
    with pytest.raises(CapjaxError, match=r"expected a dataset out of .*, got"):
        data.parse_name(text)


@pytest.mark.parametrize("text", ["folder", "folder/..", "folder/a b"])
def test_a_folder_dataset_needs_a_plain_name(text):
    with pytest.raises(CapjaxError, match="folder/NAME"):
        data.parse_name(text)


def test_what_is_not_there_is_said_with_the_command_that_helps(tmp_path):
    with pytest.raises(CapjaxError, match=r"not prepared .*capjax data prepare coco/2014 --data_dir"):
        data.load("coco/2014", tmp_path)
    dataset = prepare_tiny(tmp_path, train=2)
    with pytest.raises(CapjaxError, match="out of train, got 'valid'"):
        dataset.records("valid")
    with pytest.raises(CapjaxError, match="out of train, got 'test'"):
        dataset.images("test")


def test_damaged_files_are_one_line(tmp_path):
    dataset = prepare_tiny(tmp_path, train=40)
    (shard,) = dataset.directory.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(CapjaxError, match="prepare it again"):
        dataset.images("train")[0]
    sidecar = dataset.directory / "captions-train.jsonl"
    sidecar.write_text(sidecar.read_text()[:-20])
    with pytest.raises(CapjaxError, match=r"captions-train\.jsonl.* in line 40; prepare scenes again"):
        list(dataset.records("train"))


def test_images_whose_shards_go_while_a_run_reads_them(tmp_path):
    dataset = prepare_tiny(tmp_path, train=40)
    (shard,) = dataset.directory.glob("*.array_record-*")
    images = dataset.images("train")
    assert images[0] == example(0)[1]
    shard.unlink()
    assert list(images) == [example(i)[1] for i in range(40)]  # an open file is still there
    with pytest.raises(CapjaxError, match=r"expected image 0 of split train .*prepare it again"):
        pickle.loads(pickle.dumps(images))[0]  # as it reaches a worker that starts now


@pytest.mark.parametrize("num_usable, lengths", [(10, [3, 3, 3, 1]), (5, [3, 2, 0, 0])])
def test_large_splits_are_dealt_to_shards_in_order(tmp_path, num_usable, lengths):
    class Large(Tiny):
        name = "scenes"

        def caption_splits(self):
            return {"train": SplitExamples(10, map(example, range(num_usable)), total_bytes=500_000_000)}

    prepare(lambda folder: Large({}, data_dir=folder), tmp_path / "scenes" / "1.0.0")
    dataset = data.load("scenes", tmp_path)
    images = dataset.images("train")
    assert list(images) == [jpeg(i) for i in range(num_usable)]
    assert list(dataset.records("train")) == [example(i)[0] for i in range(num_usable)]
    info = json.loads((dataset.directory / "dataset_info.json").read_text())
    assert [int(length) for length in info["splits"][0]["shardLengths"]] == lengths


def test_png_images_are_stored_as_they_are(tmp_path):
    class Png(Tiny):
        name = "scenes"

        def caption_splits(self):
            return {"train": SplitExamples(1, [(example(0)[0], encode(photo(0), "PNG"))])}

    prepare(lambda folder: Png({}, data_dir=folder), tmp_path / "scenes" / "1.0.0")
    assert data.load("scenes", tmp_path).images("train")[0] == encode(photo(0), "PNG")


def test_version_and_fingerprint_of_a_dataset(tmp_path):
    dataset = prepare_tiny(tmp_path, train=3, val=2)
    assert dataset.version == "1.0.0"
    assert json.loads((dataset.directory / "fingerprint.json").read_text()) == {
        split: dataset.images_sha256(split) for split in ("train", "val")
    }
    with pytest.raises(CapjaxError, match="out of train, val, got 'test'"):
        dataset.images_sha256("test")


def test_a_fingerprint_of_more_records_than_images_is_one_line(tmp_path):
    dataset = prepare_tiny(tmp_path, train=3)
    (dataset.directory / "fingerprint.json").unlink()
    sidecar = dataset.directory / "captions-train.jsonl"
    sidecar.write_text(sidecar.read_text() * 2)
    with pytest.raises(CapjaxError, match="got 3 and 6; prepare scenes again"):
        dataset.images_sha256("train")


@pytest.mark.parametrize("kept", [2, 0])
def test_captions_that_lost_a_line_are_not_paired_with_other_images(tmp_path, capsys, kept):
    dataset = prepare_tiny(tmp_path, train=3)
    sidecar = dataset.directory / "captions-train.jsonl"
    sidecar.write_text("".join(sidecar.read_text().splitlines(keepends=True)[3 - kept :]))
    with pytest.raises(CapjaxError, match=f"got 3 and {kept}; prepare scenes again"):
        dataset.images("train")
    for command in ("validate", "inspect"):
        assert main(["data", command, "scenes", f"--data_dir={tmp_path}"]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("capjax: error: expected as many images as captioned records in split train")


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", "[" * 100_000, '{"val": "x"}', '{"train": 3}', '{"train": "not hexadecimal"}']
)
def test_a_damaged_fingerprint_is_one_line(tmp_path, content):
    dataset = prepare_tiny(tmp_path, train=3)
    (dataset.directory / "fingerprint.json").write_text(content)
    with pytest.raises(CapjaxError, match=r"fingerprint\.json.*prepare scenes again") as caught:
        dataset.images_sha256("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_a_dataset_imports_no_module_that_its_features_name(tmp_path, monkeypatch, key):
    dataset = prepare_tiny(tmp_path, train=3)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    features = dataset.directory / "features.json"
    text = "tensorflow_datasets.core.features.text_feature.Text"
    assert text in features.read_text()
    features.write_text(features.read_text().replace(f'"pythonClassName": "{text}"', f'"{key}": "evil.Text"', 1))
    with pytest.raises(CapjaxError, match=r"names 'evil\.Text'; do not trust"):
        dataset.images("train")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("place", ["../elsewhere/scenes", "/etc/scenes"])
def test_a_dataset_reads_no_shards_elsewhere(tmp_path, place):
    dataset = prepare_tiny(tmp_path, train=3)
    info = dataset.directory / "dataset_info.json"
    for old, new in (("{DATASET}", place), ('"name": "scenes"', f'"name": "{place}"')):
        whole = info.read_text()
        info.write_text(whole.replace(old, new))
        assert info.read_text() != whole
        with pytest.raises(CapjaxError, match=r"expected the shards beside.*do not trust"):
            dataset.images("train")
        info.write_text(whole)
    assert dataset.images("train")[0]


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"splits": 3}', '{"featuresDict": 3}', '{"shardLengths": ["x"]}']
)
def test_a_damaged_description_is_one_line(tmp_path, name, content):
    dataset = prepare_tiny(tmp_path, train=3)
    (dataset.directory / name).write_text(content)
    with pytest.raises(CapjaxError, match="prepare it again") as caught:
        dataset.images("train")
    assert str(caught.value).isprintable()
