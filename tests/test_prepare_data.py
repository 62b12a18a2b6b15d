"""`capjax data` from the outside: nasty sources, restarts after a kill, full disks, contact sheets."""

import argparse
import hashlib
import io
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from capjax import data, prepare_data
from capjax.errors import CapjaxError
from capjax.images import Preprocessing, decode_image, preprocess
from tests.source_layouts import encode, jpeg, photo, rotated_jpeg, write, write_coco

# File name, content, and the kinds of trouble it is; those of `LEFT_OUT` do not reach the dataset.
NASTY = {
    "fine.jpg": (jpeg(0), []),
    "fine.png": (encode(photo(1), "PNG"), []),
    "progressive.jpg": (encode(photo(2), progressive=True), []),
    "grey.jpg": (encode(photo(3).convert("L")), ["greyscale"]),
    "grey16.png": (encode(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"), ["greyscale"]),
    "cmyk.jpg": (encode(photo(4).convert("CMYK")), ["cmyk"]),
    "palette.png": (encode(photo(5).quantize(), "PNG"), ["palette"]),
    "transparent.png": (encode(photo(6).convert("RGBA"), "PNG"), ["transparent"]),
    "rotated.jpg": (rotated_jpeg(7), ["rotated"]),
    "animated.gif": (
        encode(photo(8), "GIF", save_all=True, append_images=[photo(9)]),
        ["other format", "palette", "animated"],
    ),
    "other.webp": (encode(photo(10), "WEBP"), ["other format"]),
    "one.png": (encode(photo(11, (1, 1)), "PNG"), ["too small"]),
    "huge.png": (encode(Image.new("1", (20_000, 20_000)), "PNG"), ["too large"]),
    "truncated.jpg": (jpeg(12)[:-200], ["truncated"]),
    "text.jpg": (b"not an image at all", ["unreadable"]),
    "empty.jpg": (b"", ["unreadable"]),
}
LEFT_OUT = {"one.png", "huge.png", "truncated.jpg", "text.jpg", "empty.jpg"}
# What the captions of some images are; all others have a plain one.
NASTY_CAPTIONS = {
    "fine.jpg": ["A café", "cafÃ©", "word " * 500, ""],
    "fine.png": ["\ufeffA dog\x00 runs"],
}
NASTY_KINDS = {
    "long caption": ["fine.jpg"],
    "empty caption": ["fine.jpg"],
    "mojibake": ["fine.jpg"],
    "control characters": ["fine.png"],
    "caption without image": ["gone.jpg"],
    "image without captions": ["uncaptioned.jpg"],
    "duplicate": ["copy.jpg"],
}


def capjax_data(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    prepare_data.add_arguments(parser)
    return prepare_data.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("nasty")
    rows = []
    for name, (content, _) in NASTY.items():
        write(folder / "images" / name, content)
        rows += [{"file_name": name, "caption": c, "split": "train"} for c in NASTY_CAPTIONS.get(name, ["Plain"])]
    write(folder / "images" / "copy.jpg", NASTY["fine.jpg"][0])
    write(folder / "images" / "uncaptioned.jpg", jpeg(99))
    rows.append({"file_name": "copy.jpg", "caption": "The same again", "split": "val"})
    rows.append({"file_name": "gone.jpg", "caption": "Of nothing", "split": "val"})
    write(folder / "captions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def folder_arguments(folder: pathlib.Path) -> list[str]:
    return ["folder", "--name=nasty", f"--images={folder / 'images'}", f"--captions={folder / 'captions.jsonl'}"]


def expected_kinds() -> dict[str, list[str]]:
    by_kind = {kind: list(names) for kind, names in NASTY_KINDS.items()}
    for name, (_, kinds) in NASTY.items():
        for kind in kinds:
            by_kind.setdefault(kind, []).append(name)
    return by_kind


def found_kinds(report: dict) -> dict[str, list[str]]:
    for entry in report["findings"].values():
        assert entry["count"] == len(entry["items"])
    return {kind: [item["name"] for item in entry["items"]] for kind, entry in report["findings"].items()}


def test_validate_finds_everything_by_name_and_fails(nasty, capsys):
    assert capjax_data("validate", *folder_arguments(nasty), "--json") == 1
    assert found_kinds(json.loads(capsys.readouterr().out)) == expected_kinds()
    assert capjax_data("validate", *folder_arguments(nasty)) == 1
    lines = capsys.readouterr().out
    assert "images cut short (left out): truncated.jpg" in lines
    assert "20,000" not in lines and "huge.png" in lines


def test_prepare_survives_everything_and_says_what_it_did(nasty, tmp_path, capsys):
    assert capjax_data("prepare", *folder_arguments(nasty), "--data_dir", tmp_path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert found_kinds(report) == expected_kinds()
    dataset = data.load("folder/nasty", tmp_path)
    stored = json.loads((dataset.directory / "report.json").read_text())
    assert stored == {key: report[key] for key in stored} and stored["images"] == {"train": 11, "val": 1}
    records, images = dataset.records("train"), dataset.images("train")
    assert [record.file_name for record in records] == [name for name in NASTY if name not in LEFT_OUT]
    assert records[0].captions == ("A café", "café") and records[1].captions == ("A dog  runs",)
    for record, encoded in zip(records, images, strict=True):
        content, kinds = NASTY[record.file_name]
        image = Image.open(io.BytesIO(encoded))
        assert image.format in ("JPEG", "PNG") and image.mode == "RGB"
        if kinds:
            difference = decode_image(encoded).astype(int) - decode_image(content)
            assert np.abs(difference).mean() < 1, record.file_name
        else:
            assert encoded == content
    # What was prepared is in order, but for the copy of a training image.
    assert capjax_data("validate", "folder/nasty", "--data_dir", tmp_path, "--json") == 1
    assert found_kinds(json.loads(capsys.readouterr().out)) == {"duplicate": ["copy.jpg"]}


def test_prepare_does_not_repeat_itself_unless_told(nasty, tmp_path, capsys):
    arguments = ["prepare", *folder_arguments(nasty), "--data_dir", tmp_path]
    (tmp_path / "folder" / "nasty" / "1.0.0").mkdir(parents=True)  # an empty folder is no dataset
    assert capjax_data(*arguments) == 0
    before = data.load("folder/nasty", tmp_path).directory.stat().st_ino
    assert capjax_data(*arguments) == 0
    assert "--overwrite" in capsys.readouterr().out
    assert capjax_data(*arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)  # as when it was made
    assert told["images"] and told["findings"]["truncated"]["count"] and told["notes"] == []
    assert data.load("folder/nasty", tmp_path).directory.stat().st_ino == before
    assert capjax_data(*arguments, "--overwrite") == 0
    assert data.load("folder/nasty", tmp_path).directory.stat().st_ino != before


def run_process(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "capjax", "data", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_prepare_goes_on_after_a_kill(tmp_path):
    write_coco(tmp_path / "coco", {"train2017": range(1, 81), "val2017": [100]})
    # Large enough that examining them all takes a while.
    large, grey = encode(photo(1, (1600, 1200))), encode(photo(1).convert("L"))
    for i in range(1, 81):
        write(tmp_path / "coco" / "train2017" / f"{i:012d}.jpg", grey if i == 1 else large)
    arguments = ("prepare", "coco/2017", "--source", tmp_path / "coco", "--data_dir", tmp_path / "data")
    hidden = tmp_path / "data" / "coco" / "2017" / ".preparing-1.0.0"
    journal = hidden / "journal.jsonl"
    with run_process(*arguments) as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 10):
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    with pytest.raises(CapjaxError, match="not prepared"):
        data.load("coco/2017", tmp_path / "data")
    # As if the kill had come in the middle of a line.
    with open(journal, "a") as file:
        file.write('["000000001')
    seen = journal.read_bytes().count(b"\n")
    with run_process(*arguments) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert f"resuming: {seen:,} images" in err
    dataset = data.load("coco/2017", tmp_path / "data")
    assert [r.image_id for r in dataset.records("train")] == list(range(1, 81))
    encoded = dataset.images("train")
    assert encoded[79] == large and decode_image(encoded[0]).shape == (30, 40, 3)
    assert json.loads((dataset.directory / "report.json").read_text())["findings"]["greyscale"]["count"] == 1
    assert not hidden.exists()


def test_a_disk_that_runs_full_is_one_line_and_leaves_nothing(tmp_path):
    write_coco(tmp_path / "coco", {"train2017": range(1, 200), "val2017": [300]})
    # Files may not grow beyond 64 KiB, so the first shard cannot be written.
    limit = "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from capjax.cli import main; sys.exit(main())"
    arguments = ("data", "prepare", "coco/2017", "--source", tmp_path / "coco", "--data_dir", tmp_path / "data")
    done = subprocess.run([sys.executable, "-c", limit, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("capjax: error: expected room to write")
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "data" / "coco" / "2017").iterdir()] in ([], [".preparing-1.0.0"])


def test_too_little_room_is_said_before_work_begins(tmp_path):
    write_coco(tmp_path / "coco", {"train2017": [1], "val2017": [2]})
    with open(tmp_path / "coco" / "train2017" / f"{1:012d}.jpg", "wb") as file:
        file.truncate(10**13)
    with pytest.raises(CapjaxError, match="GB of room"):
        capjax_data("prepare", "coco/2017", "--source", tmp_path / "coco", "--data_dir", tmp_path / "data")


def test_captions_alone_serve_imported_features(tmp_path, capsys):
    rows = "".join(f"{i}_a.jpg#0\tOf {i} .\n" for i in range(1, 7))
    write(tmp_path / "f" / "Flickr8k.token.txt", rows)
    source = ("--source", tmp_path / "f", "--captions_only")
    assert capjax_data("prepare", "flickr8k", *source, "--data_dir", tmp_path) == 0
    assert "prepared flickr8k/captions in" in capsys.readouterr().out
    dataset = data.load("flickr8k/captions", tmp_path)
    assert sum(len(dataset.records(split)) for split in dataset.splits) == 6
    with pytest.raises(CapjaxError, match="without images"):
        dataset.images(dataset.splits[0])
    with pytest.raises(CapjaxError, match="though flickr8k/captions is"):
        data.load("flickr8k", tmp_path)
    assert capjax_data("validate", "flickr8k/captions", "--data_dir", tmp_path) == 0


def test_inspect_draws_preprocessed_images(tmp_path):
    images = write_coco(tmp_path / "coco", {"train2017": range(1, 10), "val2017": [11]})
    capjax_data("prepare", "coco/2017", "--source", tmp_path / "coco", "--data_dir", tmp_path)
    sheet = tmp_path / "new" / "sheet.png"
    arguments = ["inspect", "coco/2017", "--data_dir", tmp_path, "--out", sheet, "--num=3", "--image_size=30"]
    assert capjax_data(*arguments, "--split=train") == 0
    pixels = np.asarray(Image.open(sheet))
    # The first picture of the sheet is the first image, each of its 30 pixels drawn 10×10.
    expected = preprocess(decode_image(images[f"{1:012d}.jpg"]), Preprocessing(30)).repeat(10, 0).repeat(10, 1)
    tops = range(pixels.shape[0] - 300)
    assert any(np.array_equal(pixels[top : top + 300, 32:332], expected) for top in tops)
    with pytest.raises(CapjaxError, match="out of train, val, got 'dev'"):
        capjax_data(*arguments, "--split=dev")


def test_wrong_arguments_are_one_line(tmp_path):
    for arguments, expected in [
        (["prepare", "cocoa"], "out of"),
        (["prepare", "folder", "--name=.."], "letters"),
        (["prepare", "folder"], "letters"),
        (["prepare", "scenes", "--captions_only"], "out of scenes"),
        (["prepare", "folder/x", "--data_dir", tmp_path], "--images=DIR"),
        (["prepare", "flickr8k", "--data_dir", tmp_path], "--source"),
        (["prepare", "scenes", "--data_dir", tmp_path, "--images=photos"], "no --images: scenes is drawn"),
        (["prepare", "flickr8k", "--data_dir", tmp_path, "--captions=x.csv"], "no --captions: flickr8k takes --source"),
        (["prepare", "folder/x", "--data_dir", tmp_path, "--source=x"], "no --source: folder/x takes --images and"),
        (["prepare", "flickr8k", "--data_dir", tmp_path, "--val_share=0"], "no --val_share: flickr8k takes --source"),
        (["validate", "coco/2014", "--data_dir", tmp_path, "--captions=x.json"], "no --captions: coco/2014 takes --s"),
        (["validate", "scenes", "--data_dir", tmp_path, "--images=photos"], "no --images: scenes is drawn"),
        (["validate", "scenes", "--data_dir", tmp_path], "not prepared"),
        (["validate", "scenes", "--data_dir", tmp_path, "--num_workers=0"], "at least 1"),
        (["inspect", "coco/2014", "--data_dir", tmp_path], "not prepared"),
    ]:
        with pytest.raises(CapjaxError, match=expected) as caught:
            capjax_data(*arguments)
        assert "\n" not in str(caught.value)


def test_photos_of_coco_mini_go_in_byte_for_byte(real_data, tmp_path, capsys):
    source = real_data / "coco-mini"
    assert capjax_data("validate", "coco/2017", "--source", source) == 0
    assert capjax_data("prepare", "coco/2017", "--source", source, "--data_dir", tmp_path) == 0
    dataset = data.load("coco/2017", tmp_path)
    records, images = dataset.records("val"), dataset.images("val")
    assert len(records) == len(images) == 79
    assert all(images[i] == (source / "val2017" / r.file_name).read_bytes() for i, r in enumerate(records))


ODD_NAMES = ["line\u2028separator.jpg", "next\x85line.jpg", "\u2029 first.jpg", "form\x0cfeed.jpg", "a b\u00a0c.jpg"]
ODD_LAYOUTS = {
    "captions.csv": "image,caption\n" + "".join(f'"{name}",Of\u2028{i}\n' for i, name in enumerate(ODD_NAMES)),
    "captions.jsonl": "".join(
        json.dumps({"file_name": name, "caption": f"Of\u2028{i}"}, ensure_ascii=False) + "\r\n"
        for i, name in enumerate(ODD_NAMES)
    ),
    "captions.json": json.dumps(
        {
            "images": [{"id": i, "file_name": name} for i, name in enumerate(ODD_NAMES)],
            "annotations": [{"image_id": i, "caption": f"Of\u2028{i}"} for i in range(len(ODD_NAMES))],
        },
        ensure_ascii=False,
    ),
    "captions.token": "".join(f"{name}#0\tOf\u2028{i}\r\n" for i, name in enumerate(ODD_NAMES)),
}


@pytest.mark.parametrize("layout", ODD_LAYOUTS)
def test_names_with_unusual_line_separators_survive(tmp_path, layout):
    for i, name in enumerate(ODD_NAMES):
        write(tmp_path / "images" / name, jpeg(i))
    captions = write(tmp_path / layout, ODD_LAYOUTS[layout])
    source = [f"--images={tmp_path / 'images'}", f"--captions={captions}", "--val_share=0"]
    assert capjax_data("prepare", "folder/odd", *source, "--data_dir", tmp_path) == 0
    dataset = data.load("folder/odd", tmp_path)
    found = {record.file_name: record.captions for record in dataset.records("train")}
    assert found == {name: (f"Of {i}",) for i, name in enumerate(ODD_NAMES)}
    assert list(dataset.images("train")) == [jpeg(ODD_NAMES.index(name)) for name in found]


def test_flickr_names_with_unusual_line_separators_survive(tmp_path):
    write(tmp_path / "f" / "Flickr8k.token.txt", ODD_LAYOUTS["captions.token"])
    for split, names in (("train", ODD_NAMES[:3]), ("dev", ODD_NAMES[3:])):
        write(tmp_path / "f" / f"Flickr_8k.{split}Images.txt", "".join(f"{name}\r\n" for name in names))
    source = ("--source", tmp_path / "f", "--captions_only")
    assert capjax_data("prepare", "flickr8k", *source, "--data_dir", tmp_path) == 0
    dataset = data.load("flickr8k/captions", tmp_path)
    found = {split: [record.file_name for record in dataset.records(split)] for split in dataset.splits}
    assert found == {"train": ODD_NAMES[:3], "val": ODD_NAMES[3:]}


def test_names_that_lead_out_of_the_folder_are_left_out(tmp_path, capsys):
    names = ["in.jpg", "sub/../also.jpg", "../out.jpg", "/etc/out.jpg", "a/../../out.jpg"]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(name, jpeg(names.index(name)))
    captions = write(tmp_path / "c.csv", "image,caption\n" + "".join(f"{name},Of it\n" for name in names))
    for more in ([f"--images={tmp_path / 'images.zip'}"], ["--captions_only"]):
        arguments = [f"--captions={captions}", "--val_share=0", "--json", "--data_dir", tmp_path, *more]
        assert capjax_data("prepare", "folder/out", *arguments) == 0
        assert found_kinds(json.loads(capsys.readouterr().out)) == {"path outside": names[2:]}
    for name in ("folder/out", "folder/out/captions"):
        assert [record.file_name for record in data.load(name, tmp_path).records("train")] == names[:2]


def test_the_fingerprint_of_images_is_that_of_ids_and_stored_bytes(tmp_path, capsys):
    def prepared(where, change=None):
        write_coco(tmp_path / where, {"train2017": [1, 2, 3], "val2017": [4]})
        grey = encode(photo(1).convert("L"))
        write(tmp_path / where / "train2017" / f"{2:012d}.jpg", grey)
        if change:
            write(tmp_path / where / "train2017" / f"{3:012d}.jpg", change)
        arguments = ["--source", tmp_path / where, "--data_dir", tmp_path / f"{where}-data"]
        assert capjax_data("prepare", "coco/2017", *arguments) == 0
        return data.load("coco/2017", tmp_path / f"{where}-data")

    first, second, changed = prepared("a"), prepared("b"), prepared("c", jpeg(77))
    assert first.images_sha256("train") == second.images_sha256("train") != changed.images_sha256("train")
    assert first.images_sha256("val") == changed.images_sha256("val") != first.images_sha256("train")
    expected = hashlib.sha256()
    for record, image in zip(first.records("train"), first.images("train"), strict=True):
        expected.update(struct.pack("<qQ", record.image_id, len(image)) + image)
    assert first.images_sha256("train") == expected.hexdigest()
    # Datasets of before have no such file; captions alone have no images.
    (first.directory / "fingerprint.json").unlink()
    assert first.images_sha256("train") == expected.hexdigest()
    arguments = ["--source", tmp_path / "a", "--data_dir", tmp_path / "a-data", "--captions_only"]
    assert capjax_data("prepare", "coco/2017", *arguments) == 0
    assert data.load("coco/2017/captions", tmp_path / "a-data").images_sha256("train") == ""
