"""COCO, Flickr and folder sources: official layouts, splits, ids, and what does not belong together."""

import hashlib
import json
import os
import zipfile

import pytest

from capjax.data import coco, flickr, folder, parse_name
from capjax.data.caption_files import CaptionedFile
from capjax.data.listing import SourceOptions
from capjax.errors import CapjaxError
from tests.source_layouts import coco_json, jpeg, write, write_coco

# In Karpathy's validation and test split; 133 is in val2014 and in neither ("restval").
KARPATHY_VAL, KARPATHY_TEST = 184613, 391895


def names(listing) -> dict[str, list[str]]:
    return {split: [record.file_name for record in records] for split, records in listing.splits.items()}


def ids(listing) -> dict[str, list[int]]:
    return {split: [record.image_id for record in records] for split, records in listing.splits.items()}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("year", ["2014", "2017"])
def test_coco_from_folders_and_zips(tmp_path, zipped, year):
    images = write_coco(tmp_path, {f"train{year}": [9, 25], f"val{year}": [42]}, zipped)
    listing = coco.open_source(parse_name(f"coco/{year}"), SourceOptions(source=tmp_path))
    assert ids(listing) == {"train": [9, 25], "val": [42]}
    assert listing.splits["train"][1].captions == ("photo 25 once", "photo 25 twice")
    assert {name: file.read() for name, file in listing.files.items()} == images
    assert sum(map(listing.total_bytes, listing.splits)) == sum(map(len, images.values()))
    assert any("incomplete: 2 of" in note for note in listing.notes)
    assert list(listing.found) == []


@pytest.mark.parametrize("year", ["2014", "2017"])
def test_karpathys_split_from_either_year(tmp_path, year):
    write_coco(tmp_path, {f"train{year}": [9], f"val{year}": [KARPATHY_TEST, 133, KARPATHY_VAL]})
    listing = coco.open_source(parse_name("coco/karpathy"), SourceOptions(source=tmp_path))
    assert ids(listing) == {"train": [9, 133], "val": [KARPATHY_VAL], "test": [KARPATHY_TEST]}


def test_karpathys_counts_on_a_complete_list_of_ids():
    split_ids = json.loads((coco.importlib.resources.files("capjax.data") / "karpathy_split.json").read_text())
    val2014 = set(split_ids["val"]) | set(split_ids["test"])
    assert len(val2014) == 10_000
    others = (i for i in range(10**7) if i not in val2014)
    files = [CaptionedFile(str(i), image_id=i) for i in val2014] + [
        CaptionedFile("x", image_id=next(others)) for _ in range(82_783 + 40_504 - 10_000)
    ]
    assert {split: len(part) for split, part in coco.split_karpathy(files).items()} == coco.NUM_KARPATHY


def test_shipped_ids_are_the_published_ones(real_data):
    split_ids = json.loads((coco.importlib.resources.files("capjax.data") / "karpathy_split.json").read_text())
    for split in ("val", "test"):
        published = (real_data / "coco" / f"karpathy_{split}_image_ids.txt").read_text().split()
        assert set(split_ids[split]) == set(map(int, published)) and len(published) == 5000


def test_coco_mini_keeps_every_photo_and_caption(real_data):
    listing = coco.open_source(parse_name("coco/2017"), SourceOptions(source=real_data / "coco-mini"))
    official = json.loads((real_data / "coco-mini" / "annotations" / "captions_val2017.json").read_text())
    by_id: dict[int, list[str]] = {}
    for annotation in official["annotations"]:
        by_id.setdefault(annotation["image_id"], []).append(annotation["caption"].split())
    # Line breaks, which a few captions contain, become spaces.
    assert {r.image_id: [caption.split() for caption in r.captions] for r in listing.splits["val"]} == by_id
    assert (len(listing.splits["train"]), len(listing.splits["val"])) == (80, 79)


def test_what_coco_lacks_is_said_in_one_line(tmp_path):
    with pytest.raises(CapjaxError, match=r"captions_train2017\.json"):
        coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path))
    write(tmp_path / "annotations" / "captions_val2017.json", coco_json({"000000000009.jpg": ["x"]}))
    with pytest.raises(CapjaxError, match=r"val2017 or val2017.zip.*captions_only"):
        coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path))
    write(tmp_path / "val2017.zip", b"PK\x03\x04 cut short")
    with pytest.raises(CapjaxError, match="complete zip archive"):
        coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path))
    listing = coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path, captions_only=True))
    assert names(listing) == {"val": ["000000000009.jpg"]} and listing.files is None


def test_karpathys_split_takes_the_year_whose_images_are_there(tmp_path):
    write_coco(tmp_path, {"train2017": [9], "val2017": [KARPATHY_VAL]})
    for part in ("train2014", "val2014"):
        write(tmp_path / "annotations" / f"captions_{part}.json", coco_json({f"COCO_{part}_000000000009.jpg": ["x"]}))
    listing = coco.open_source(parse_name("coco/karpathy"), SourceOptions(source=tmp_path))
    assert ids(listing) == {"train": [9], "val": [KARPATHY_VAL]}
    captions_only = coco.open_source(parse_name("coco/karpathy"), SourceOptions(source=tmp_path, captions_only=True))
    assert len(captions_only.splits["train"]) >= 1


def test_complete_coco_downloads_are_taken_without_a_network(tmp_path, monkeypatch):
    write_coco(tmp_path, {"train2017": [9], "val2017": [42]}, zipped=True)
    written = {
        name: file._replace(size=len(data := path.read_bytes()), digest=f"sha256:{hashlib.sha256(data).hexdigest()}")
        for name, file in coco.DOWNLOADS.items()
        if (path := tmp_path / name).exists()
    }
    monkeypatch.setattr(coco, "DOWNLOADS", written)
    listing = coco.open_source(parse_name("coco/2017"), SourceOptions(download_dir=tmp_path))
    assert ids(listing) == {"train": [9], "val": [42]}


FLICKR_NAMES = ["1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg", "1002674143_1b742ab4b8.jpg", "3_aa.jpg"]


def write_flickr8k(path) -> None:
    tokens = "".join(f"{name}#{i}\tCaption {i} of {name} .\n" for name in FLICKR_NAMES for i in range(2))
    # The published file has captions of a photo that does not exist.
    write(path / "text" / "Flickr8k.token.txt", tokens + "2258277193_586949ec62.jpg.1#0\tpeople waiting\n")
    for split, name in zip(("train", "dev", "test"), FLICKR_NAMES, strict=False):
        write(path / "text" / f"Flickr_8k.{split}Images.txt", f"{name}\n")
    for i, name in enumerate(FLICKR_NAMES):
        write(path / "Flicker8k_Dataset" / name, jpeg(i))


def test_official_flickr8k(tmp_path):
    write_flickr8k(tmp_path)
    listing = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path))
    assert names(listing) == {"train": FLICKR_NAMES[:1], "val": FLICKR_NAMES[1:2], "test": FLICKR_NAMES[2:3]}
    assert listing.splits["train"][0].image_id == 1000268201
    assert listing.splits["train"][0].captions == tuple(f"Caption {i} of {FLICKR_NAMES[0]} ." for i in range(2))
    assert any("2 captioned photos are in none of the split lists" in note for note in listing.notes)
    assert list(listing.found) == []


def test_kaggle_flickr8k_with_images_in_a_zip(tmp_path):
    rows = "".join(f'{name},"A, {name}"\n' for name in FLICKR_NAMES)
    write(tmp_path / "captions.txt", "image,caption\n" + rows)
    with zipfile.ZipFile(tmp_path / "Images.zip", "w") as archive:
        for i, name in enumerate(FLICKR_NAMES):
            archive.writestr(f"Images/{name}", jpeg(i))
    listing = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path))
    assert sorted(name for part in names(listing).values() for name in part) == sorted(FLICKR_NAMES)
    assert listing.files[FLICKR_NAMES[2]].read() == jpeg(2)
    assert any("not the official ones" in note for note in listing.notes)
    assert any("incomplete: captions of" in note and "of 8,000" in note for note in listing.notes)
    again = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path))
    assert again.splits == listing.splits


def test_kaggle_flickr30k_with_split_lists(tmp_path):
    rows = "".join(f"{i}.jpg| {n}| Caption {n}, of {i} .\n" for i in (11, 12, 13) for n in range(2))
    table = "image_name| comment_number| comment\n" + rows + "13.jpg| 4   odd\n"
    write(tmp_path / "flickr30k_images" / "results.csv", table)
    for split, i in (("train", 11), ("val", 12), ("test", 13)):
        write(tmp_path / f"{split}.txt", f"{i}\n")
        write(tmp_path / "flickr30k_images" / "flickr30k_images" / f"{i}.jpg", jpeg(i))
    listing = flickr.open_source(parse_name("flickr30k"), SourceOptions(source=tmp_path))
    assert ids(listing) == {"train": [11], "val": [12], "test": [13]}
    assert listing.splits["val"][0].captions == ("Caption 0, of 12 .", "Caption 1, of 12 .")
    assert [kind for kind, _ in listing.found] == ["malformed row"]


def test_karpathys_flickr_file(tmp_path):
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"of {i}"}]}
        for i, split in ((1, "train"), (2, "val"), (3, "test"))
    ]
    write(tmp_path / "dataset_flickr30k.json", json.dumps({"images": images}))
    listing = flickr.open_source(parse_name("flickr30k"), SourceOptions(source=tmp_path, captions_only=True))
    assert ids(listing) == {"train": [1], "val": [2], "test": [3]}
    with pytest.raises(CapjaxError, match=r"captions of flickr8k.*dataset_flickr8k\.json"):
        flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path, captions_only=True))


@pytest.mark.parametrize("files", [("Flickr8k.token.txt", "results_20130124.token"), ("captions.txt", "results.csv")])
def test_the_two_flickr_datasets_may_lie_in_one_folder(tmp_path, files):
    for i, name in enumerate(files):
        content = f"{i}.jpg#0\ttext\n" if "token" in name else f"image,caption\n{i}.jpg,text\n"
        write(tmp_path / f"set{i}" / name, content)
        write(tmp_path / f"set{i}" / f"Flickr_{('8k', '30k')[i]}.trainImages.txt", f"{i}.jpg\n")
    for i, name in enumerate(("flickr8k", "flickr30k")):
        listing = flickr.open_source(parse_name(name), SourceOptions(source=tmp_path, captions_only=True))
        assert names(listing) == {"train": [f"{i}.jpg"]}


def test_flickr_in_cocos_layout_keeps_ids_and_the_captions_of_files_listed_more_than_once(tmp_path):
    images = [{"id": i, "file_name": name} for i, name in enumerate(["7_aa.jpg", "8_bb.jpg", "8_bb.jpg"])]
    captions = [{"image_id": i, "caption": f"caption {i}"} for i in range(3)]
    write(tmp_path / "captions_train.json", json.dumps({"images": images, "annotations": captions}))
    listing = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path, captions_only=True))
    assert ids(listing) == {"train": [0, 1]} and list(listing.found) == []
    assert [record.captions for record in listing.splits["train"]] == [("caption 0",), ("caption 1", "caption 2")]


def test_photos_that_several_files_could_be_are_not_guessed(tmp_path):
    write_flickr8k(tmp_path)
    write(tmp_path / "copies" / FLICKR_NAMES[0], jpeg(0))  # the same once more
    write(tmp_path / "thumbs" / "readme.jpg", jpeg(1))
    write(tmp_path / "other" / "readme.jpg", jpeg(1) + b"longer")  # which no caption names
    flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path))
    write(tmp_path / "thumbs" / FLICKR_NAMES[1], jpeg(1) + b"longer")
    with pytest.raises(CapjaxError, match=rf"Flicker8k_Dataset/{FLICKR_NAMES[1]} and .*thumbs/"):
        flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path))
    write(tmp_path / "broken.zip", b"PK\x03\x04 half a download")
    captions_only = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path, captions_only=True))
    assert names(captions_only)["train"] == FLICKR_NAMES[:1]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "null",
        '{"images": null}',
        '{"images": [3]}',
        '{"images": [{"filename": 3, "split": "train", "sentences": []}]}',
        '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": null}]}]}',
        '{"images": [{"filename": "a.jpg", "split": "restval", "sentences": []}]}',
    ],
)
def test_karpathys_layout_with_something_else_in_it_is_one_line(tmp_path, content):
    write(tmp_path / "dataset_flickr8k.json", content)
    with pytest.raises(CapjaxError, match="expected Karpathy's layout") as caught:
        flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path, captions_only=True))
    assert "\n" not in str(caught.value)


def test_numbers_of_photos_that_no_id_can_be_are_replaced(tmp_path):
    names_of_photos = ["9" * 5000 + ".jpg", "9" * 30 + "_aa.jpg", "7_aa.jpg"]
    write(tmp_path / "Flickr8k.token.txt", "".join(f"{name}#0\ttext\n" for name in names_of_photos))
    listing = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=tmp_path, captions_only=True))
    found = {record.file_name: record.image_id for part in listing.splits.values() for record in part}
    assert found["7_aa.jpg"] == 7 and all(0 < image_id < 2**48 for image_id in found.values()) and len(found) == 3


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "a\0b.jpg"])
def test_karpathys_names_do_not_lead_out_of_the_folder(tmp_path, name):
    images = [
        {"filename": file_name, "filepath": "../..", "split": "train", "sentences": [{"raw": "text"}]}
        for file_name in (name, "a.jpg")
    ]
    write(tmp_path / "flickr" / "dataset_flickr8k.json", json.dumps({"images": images}))
    write(tmp_path / "secret.jpg", jpeg(0))
    write(tmp_path / "flickr" / "a.jpg", jpeg(1))
    for captions_only in (False, True):
        listing = flickr.open_source(
            parse_name("flickr8k"), SourceOptions(source=tmp_path / "flickr", captions_only=captions_only)
        )
        assert names(listing) == {"train": ["a.jpg"]} and listing.found.count("path outside") == 1


def test_flickr8k_with_the_photos_that_are_there(real_data):
    source = real_data / "flickr8k"
    listing = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=source))
    folders = {"train": "train", "val": "dev"}
    present = {split: len(list((source / "images" / name).glob("*.jpg"))) for split, name in folders.items()}
    assert {split: len(records) for split, records in listing.splits.items()} == present
    assert listing.found.count("caption without image") == 5997 + 1000 - sum(present.values())
    captions_only = flickr.open_source(parse_name("flickr8k"), SourceOptions(source=source, captions_only=True))
    assert {split: len(records) for split, records in captions_only.splits.items()} == {"train": 5997, "val": 1000}


def test_flickr_without_files_is_one_line(tmp_path):
    for source, expected in ((None, "--source"), (tmp_path / "no", "there is none"), (tmp_path, "Flickr8k.token.txt")):
        with pytest.raises(CapjaxError, match=expected):
            flickr.open_source(parse_name("flickr8k"), SourceOptions(source=source))


def folder_options(tmp_path, name="captions.csv", **changes) -> SourceOptions:
    return SourceOptions(images=(tmp_path / "images",), captions=tmp_path / name, **changes)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cats/1.jpg", "cats/1.jpg"),
        ("dogs/1.jpg", None),  # another photo than cats/1.jpg
        ("cats/1", "cats/1.jpg"),
        ("photos/cats/1.jpg", "cats/1.jpg"),
        ("./photos//cats/./1.jpg", "cats/1.jpg"),
        ("a/" * 20_000 + "cats/1.jpg", "cats/1.jpg"),
        ("/home/me/photos/cats/1.jpg", "cats/1.jpg"),
        ("C:\\photos\\cats\\1.jpg", "cats/1.jpg"),
        ("2.jpg", "birds/small/2.jpg"),
        ("small/2.jpg", "birds/small/2.jpg"),
        ("birds/2.jpg", None),
        ("3.jpg", None),  # one of two
        ("all/a/3.jpg", "a/3.jpg"),
        ("4.jpg", "4.jpg"),  # though there is b/4.jpg
        ("b/4.jpg", "b/4.jpg"),
        ("c/b/4.jpg", "b/4.jpg"),
        ("c/4.jpg", "4.jpg"),
    ],
)
def test_a_caption_goes_to_the_photo_that_its_path_can_mean(tmp_path, name, expected):
    photos = ["cats/1.jpg", "birds/small/2.jpg", "a/3.jpg", "b/3.jpg", "4.jpg", "b/4.jpg", "sure.jpg"]
    for i, photo in enumerate(photos):
        write(tmp_path / "images" / photo, jpeg(i))
    write(tmp_path / "captions.csv", f"image,caption\nsure.jpg,a photo\n{name},the photo\n")
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, val_share=0.0))
    captioned = {record.file_name: record.captions for record in listing.splits["train"]}
    assert captioned == {"sure.jpg": ("a photo",)} | ({expected: ("the photo",)} if expected else {})
    assert listing.found.count("caption without image") == (expected is None)


def test_one_name_in_two_folders_of_images_is_refused(tmp_path):
    for place in ("one", "two"):
        write(tmp_path / place / "a.jpg", jpeg(0))
        write(tmp_path / place / "logo.jpg", jpeg(1))  # which no caption names
    write(tmp_path / "two" / "logo.jpg", jpeg(1) + b"longer")
    write(tmp_path / "captions.csv", "image,caption\na.jpg,text\n")
    options = SourceOptions(images=(tmp_path / "one", tmp_path / "two"), captions=tmp_path / "captions.csv")
    assert names(folder.open_source(parse_name("folder/mine"), options)) == {"train": ["a.jpg"]}  # the same twice
    for other in (jpeg(0) + b"longer", jpeg(0)[::-1]):
        write(tmp_path / "two" / "a.jpg", other)
        with pytest.raises(CapjaxError, match=r"one image a\.jpg, .*one/a\.jpg and .*two/a\.jpg differ; move"):
            folder.open_source(parse_name("folder/mine"), options)


def test_the_image_that_stands_in_for_validation_has_a_file(tmp_path):
    for i in range(3):
        write(tmp_path / "images" / f"{i}.jpg", jpeg(i))
    for gone in range(20):  # whatever is drawn
        write(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{n}.jpg,x\n" for n in (0, 1, 2, 100 + gone)))
        listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, val_share=0.01))
        assert len(listing.splits["val"]) == 1 and listing.found.count("caption without image") == 1


def test_rows_of_one_image_that_name_two_splits_are_told(tmp_path):
    rows = ["a.jpg,once,train", "a.jpg,twice,test", "images/a.jpg,thrice,val", "a.jpg,as before,Training"]
    rows += ["b.jpg,x,val", "b.jpg,y,"]
    write(tmp_path / "captions.csv", "image,caption,split\n" + "\n".join(rows))
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / "images" / name, jpeg(0))
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path))
    assert names(listing) == {"train": ["a.jpg"], "val": ["b.jpg"]}
    assert listing.splits["train"][0].captions == ("once", "twice", "as before", "thrice")
    found = [name_and_detail for kind, items in listing.found for name_and_detail in items if kind == "several splits"]
    assert found == [("a.jpg", "test, first train"), ("a.jpg", "val, first train")]


def test_a_folder_finds_names_by_path_base_name_and_stem(tmp_path):
    for i, name in enumerate(["a.jpg", "sub/b.png", "sub/c.webp", "x/twin.jpg", "y/twin.jpg", "uncaptioned.jpg"]):
        write(tmp_path / "images" / name, jpeg(i))
    write(tmp_path / "images" / "notes.doc", "no image")
    rows = ["images/a.jpg", "b.png", "c", "./x/twin.jpg", "twin.jpg", "gone.jpg"]
    write(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{name},Of {name}\n" for name in rows))
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, val_share=0.0))
    assert names(listing) == {"train": ["a.jpg", "sub/b.png", "sub/c.webp", "x/twin.jpg"]}
    found = {kind: [name for name, _ in items] for kind, items in listing.found}
    assert found == {
        "image without captions": ["uncaptioned.jpg", "y/twin.jpg"],
        "caption without image": ["twin.jpg", "gone.jpg"],
    }


def test_names_that_are_spelt_in_two_ways_are_one(tmp_path):
    write(tmp_path / "images" / "cafe\u0301.jpg", jpeg(0))
    write(tmp_path / "captions.csv", "image,caption\ncaf\u00e9.jpg,A coffee house\n")
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, val_share=0.0))
    assert names(listing) == {"train": ["cafe\u0301.jpg"]} and list(listing.found) == []


def test_shares_that_have_no_use_are_told(tmp_path):
    write(tmp_path / "captions.csv", "image,caption,split\na.jpg,A,train\nb.jpg,B,train\n")
    told = {}
    for shares in ({}, {"val_share": 0.5}, {"test_share": 0.0}):
        options = folder_options(tmp_path, captions_only=True, **shares)
        told[tuple(shares)] = folder.open_source(parse_name("folder/mine"), options).notes
    assert told[()] == [] and all("had no use" in notes[0] for shares, notes in told.items() if shares)


def test_given_splits_are_used(tmp_path):
    splits = ["train", "Validation", "test", ""]
    rows = "".join(f"{i}.jpg,Of {i},{split}\n" for i, split in enumerate(splits))
    write(tmp_path / "captions.csv", "image,caption,split\n" + rows)
    for i in range(4):
        write(tmp_path / "images" / f"{i}.jpg", jpeg(i))
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path))
    assert names(listing) == {"train": ["0.jpg", "3.jpg"], "val": ["1.jpg"], "test": ["2.jpg"]}
    write(tmp_path / "captions.csv", "image,caption,split\n0.jpg,x,holdout\n")
    with pytest.raises(CapjaxError, match="holdout"):
        folder.open_source(parse_name("folder/mine"), folder_options(tmp_path))


def test_drawn_splits_depend_on_the_name_alone():
    files = [CaptionedFile(f"{i}.jpg") for i in range(2000)]
    splits = folder.draw_splits(files, 0.1, 0.2)
    sizes = {split: len(part) for split, part in splits.items()}
    assert sum(sizes.values()) == 2000
    assert 160 < sizes["val"] < 240 and 340 < sizes["test"] < 460
    half = folder.draw_splits(files[::-2], 0.1, 0.2)
    for split, part in half.items():
        assert {f.file_name for f in part} <= {f.file_name for f in splits[split]}
    assert [len(part) for part in folder.draw_splits(files[:3], 0.001, 0.0).values()] == [2, 1, 0]
    assert [len(part) for part in folder.draw_splits(files[:1], 0.001, 0.0).values()] == [1, 0, 0]


def test_a_folder_without_anything_to_use_is_one_line(tmp_path):
    with pytest.raises(CapjaxError, match="--images=DIR"):
        folder.open_source(parse_name("folder/mine"), SourceOptions())
    write(tmp_path / "captions.csv", "image,caption\na.jpg,A\n")
    with pytest.raises(CapjaxError, match="there is none"):
        folder.open_source(parse_name("folder/mine"), folder_options(tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(CapjaxError, match="1 captioned names without an image file"):
        folder.open_source(parse_name("folder/mine"), folder_options(tmp_path))
    write(tmp_path / "images" / "a.jpg", jpeg(0))
    with pytest.raises(CapjaxError, match="leave something to train on"):
        folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, val_share=1.0))


def test_ids_given_twice_are_replaced_by_ids_of_the_name(tmp_path):
    write(tmp_path / "captions.csv", "id,image,caption,split\n1,a.jpg,A,train\n1,b.jpg,B,train\n")
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, captions_only=True))
    first, second = ids(listing)["train"]
    assert first == 1 and second > 1
    assert dict(listing.found) == {"shared id": [("b.jpg", "id 1")]}


def test_names_with_halves_of_characters_are_left_out_or_replaced(tmp_path):
    write(tmp_path / "captions.jsonl", '{"image": "\\ud800.jpg", "caption": "A"}\n{"image": "b.jpg", "caption": "B"}\n')
    write(tmp_path / "images" / "b.jpg", jpeg(0))
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, "captions.jsonl", val_share=0.0))
    assert names(listing) == {"train": ["b.jpg"]}
    listing = folder.open_source(
        parse_name("folder/mine"), folder_options(tmp_path, "captions.jsonl", captions_only=True)
    )
    assert sorted(name for part in names(listing).values() for name in part) == ["?.jpg", "b.jpg"]


def test_two_names_that_are_stored_alike_are_not_one_image(tmp_path):
    """Names of files are bytes; those that are not UTF-8 are stored with question marks."""
    (tmp_path / "images").mkdir()
    for byte, seed in ((b"\xff", 1), (b"\xfe", 2)):
        with open(os.fsencode(tmp_path / "images") + b"/" + byte + b".jpg", "wb") as file:
            file.write(jpeg(seed))
    lines = '{"image": "\\udcff.jpg", "caption": "A"}\n{"image": "\\udcfe.jpg", "caption": "B"}\n'
    write(tmp_path / "captions.jsonl", lines)
    listing = folder.open_source(parse_name("folder/mine"), folder_options(tmp_path, "captions.jsonl", val_share=0.0))
    assert names(listing) == {"train": ["?.jpg"]} and listing.found.count("repeated name") == 1
    assert listing.files["?.jpg"].read() == jpeg(1)
