"""Zips of images that are damaged, or that claim another size than they have."""

import pathlib
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from capjax.data import coco, folder, parse_name
from capjax.data.image_files import ImageFolder, ImageZip, open_images, open_zip
from capjax.data.listing import SourceOptions
from capjax.errors import CapjaxError
from capjax.images import ImageError
from tests.source_layouts import jpeg, write


def write_bomb(path: pathlib.Path, member: str, announced: int, method: int = zipfile.ZIP_DEFLATED) -> pathlib.Path:
    """Write a zip of one member, 64 million zeros, whose headers announce another size."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(member, bytes(64_000_000))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(signature) + offset, announced)
    path.write_bytes(data)
    return path


def peak_bytes(function) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(CapjaxError) as caught:
            function()
        assert "\n" not in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced, kind", [(1000, "unreadable"), (4_000_000_000, "too large")])
def test_an_image_that_inflates_without_end_is_refused_in_little_memory(tmp_path, announced, kind):
    images = ImageZip(write_bomb(tmp_path / "a.zip", "a.jpg", announced))
    with pytest.raises(ImageError) as caught:
        images.read("a.jpg")
    assert caught.value.kind == kind
    assert peak_bytes(lambda: images.read("a.jpg")) < 2_000_000


class UnmarkedInfo(zipfile.ZipInfo):
    """A member whose name is UTF-8 and does not say so, as macOS' Finder writes it."""

    def _encodeFilenameFlags(self):
        return self.filename.encode("utf-8"), self.flag_bits & ~0x800


def test_names_in_zips_of_other_systems_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(UnmarkedInfo("photos/cafe\u0301.jpg"), jpeg(0))
        archive.writestr("photos\\straße.jpg", jpeg(1))
        archive.writestr(UnmarkedInfo("photos/plain.jpg"), jpeg(2))
    data = bytearray((tmp_path / "a.zip").read_bytes()).replace(b"plain", b"pla\x82n")  # é in MS-DOS
    (tmp_path / "a.zip").write_bytes(data)
    images = ImageZip(tmp_path / "a.zip")
    assert images.names() == ["photos/cafe\u0301.jpg", "photos/plaén.jpg", "photos/straße.jpg"]
    assert [images.read(name) for name in images.names()] == [jpeg(0), jpeg(2), jpeg(1)]


def test_another_archive_is_no_damaged_zip(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 1000)
    with pytest.raises(CapjaxError, match="unpack it, or pack it as a zip"):
        open_images(tmp_path / "a.tar")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_bound_are_refused(tmp_path, method):
    images = ImageZip(write_bomb(tmp_path / "a.zip", "a.jpg", 1000, method))
    with pytest.raises(ImageError, match=r"expected a\.jpg stored or deflated.*pack it again"):
        images.read("a.jpg")
    assert peak_bytes(lambda: images.read("a.jpg")) < 2_000_000


@pytest.mark.parametrize("announced", [1000, 4_000_000_000])
def test_annotations_that_inflate_without_end_are_refused_in_little_memory(tmp_path, announced):
    write_bomb(tmp_path / "annotations_trainval2017.zip", "annotations/captions_train2017.json", announced)
    assert (
        peak_bytes(
            lambda: coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path, captions_only=True))
        )
        < 2_000_000
    )


def test_annotations_without_the_file_are_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "annotations_trainval2017.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(CapjaxError, match=r"captions_train2017\.json in .*it is not there"):
        coco.open_source(parse_name("coco/2017"), SourceOptions(source=tmp_path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_zips_end_in_clear_errors(tmp_path, method):
    path, rng = tmp_path / "a.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.writestr(name, jpeg(1))
    whole, num_intact, num_damaged = path.read_bytes(), 0, 0
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=rng.integers(1, 5)):
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            images = open_images(path)
            for name in images.names():
                images.size(name), images.fingerprint(name)
                num_intact += images.read(name) == jpeg(1)
        except CapjaxError as error:
            assert "\n" not in str(error)
            num_damaged += 1
    assert num_intact and num_damaged > 100


def test_names_in_a_zip_lead_nowhere(tmp_path):
    """Nothing is unpacked; a link is the few bytes of its target's name, and a name may be empty."""
    names = ["../../outside.jpg", "/absolute.jpg", "C:\\x.jpg", "link.jpg", "fine.jpg", ""]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "link.jpg" else 0o100644) << 16
            archive.writestr(info, b"/etc/passwd" if name == "link.jpg" else jpeg(1))
    write(tmp_path / "c.csv", "image,caption\n" + "".join(f'"{name}",text\n' for name in names[:-1]))
    before = sorted(tmp_path.rglob("*"))
    images = open_images(tmp_path / "a.zip")
    assert images.read("link.jpg") == b"/etc/passwd" and images.read("fine.jpg") == jpeg(1)
    options = SourceOptions(images=(tmp_path / "a.zip",), captions=tmp_path / "c.csv", val_share=0.0)
    listed = [record.file_name for record in folder.open_source(parse_name("folder/x"), options).splits["train"]]
    assert "fine.jpg" in listed and not [name for name in listed if name.startswith(("/", ".."))]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_zip_is_one_line(tmp_path):
    with pytest.raises(CapjaxError, match="complete zip archive"):
        open_zip(write(tmp_path / "a.zip", b"PK no zip"))


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path):
    write(tmp_path / "sub" / "a.jpg", jpeg(1))
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    assert ImageFolder(tmp_path).names() == ["sub/a.jpg"]
