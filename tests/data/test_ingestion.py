"""Verdicts on images, their journal, and the parallel map."""

import os
import threading

import pytest

from capjax.data.image_files import ImageFile, ImageFolder
from capjax.data.ingestion import Journal, examine, in_parallel
from capjax.images import decode_image
from tests.source_layouts import encode, jpeg, photo, write


def test_an_image_that_is_fine_is_not_encoded_again():
    for data in (jpeg(0), encode(photo(1), "PNG"), encode(photo(2), "MPO", save_all=True, append_images=[photo(3)])):
        verdict, converted = examine(data)
        assert verdict.usable and verdict.troubles == () and converted is None


def test_lossless_images_stay_lossless():
    verdict, converted = examine(encode(photo(4), "BMP"))
    assert verdict.usable and (decode_image(converted) == decode_image(encode(photo(4), "BMP"))).all()
    assert examine(encode(photo(4), "BMP"), convert=False) == (verdict, None)


def test_images_too_long_for_a_jpeg_become_png():
    verdict, converted = examine(encode(photo(5, (70_000, 8)), "JPEG2000"))
    assert verdict.usable and converted.startswith(b"\x89PNG") and decode_image(converted).shape == (8, 70_000, 3)


def test_a_peculiarity_that_cannot_be_read_is_damage():
    # The chunk that may hold EXIF data would come behind the pixels.
    verdict, _ = examine(encode(photo(6), "PNG")[:200])
    assert [kind for kind, _ in verdict.troubles] == ["truncated"]


def change_behind_its_back(path, content: bytes) -> None:
    """Overwrite a file with content of the same size and keep its time of change."""
    status = path.stat()
    path.write_bytes(content.ljust(status.st_size, b"\0")[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_examined_is_not_examined_again(tmp_path):
    contents = {"fine.jpg": jpeg(0), "grey.jpg": encode(photo(1).convert("L")), "broken.jpg": jpeg(2)[:-100]}
    files = {name: ImageFile(ImageFolder(tmp_path / "images"), name) for name in contents}
    for name, content in contents.items():
        write(tmp_path / "images" / name, content)
    journal = Journal(tmp_path)
    first = {name: journal.image(name, file) for name, file in files.items()}
    journal.close()
    assert [verdict.usable for verdict, _ in first.values()] == [True, True, False]
    assert first["fine.jpg"][1] == contents["fine.jpg"] and first["broken.jpg"][1] is None
    # A second look at the pixels would find these broken.
    for name in ("fine.jpg", "grey.jpg"):
        change_behind_its_back(tmp_path / "images" / name, b"not an image")
    with open(tmp_path / "journal.jsonl", "ab") as file:
        file.write('["torn é'.encode()[:-1])
    journal = Journal(tmp_path)
    assert journal.num_resumed == 3
    again = {name: journal.image(name, file) for name, file in files.items()}
    assert {name: verdict for name, (verdict, _) in again.items()} == {name: v for name, (v, _) in first.items()}
    assert again["grey.jpg"] == first["grey.jpg"]
    # A file that changed openly is looked at again, and what is journalled after a torn line can be read.
    write(tmp_path / "images" / "broken.jpg", jpeg(3))
    assert journal.image("broken.jpg", files["broken.jpg"])[1] == jpeg(3)
    journal.close()
    journal = Journal(tmp_path)
    assert journal.num_resumed == 4
    journal.close()
    # Lines that another program or a crash left are passed over, and converted images that are gone are made again.
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('[1\n[1, 2]\n{}\nnull\n["x", [["no such kind", ""]], ""]\n[["x"], [], ""]\n')
    for converted in (tmp_path / "converted").iterdir():
        converted.unlink()
    write(tmp_path / "images" / "grey.jpg", contents["grey.jpg"])
    journal = Journal(tmp_path)
    assert journal.num_resumed == 4
    assert journal.image("grey.jpg", files["grey.jpg"]) == again["grey.jpg"]
    journal.close()


def test_a_file_that_cannot_be_read_may_be_read_the_next_time(tmp_path):
    file = ImageFile(ImageFolder(tmp_path / "images"), "late.jpg")
    journal = Journal(tmp_path)
    verdict, image = journal.image("late.jpg", file)
    assert verdict.troubles == (("unreadable", "No such file or directory"),) and image is None
    write(tmp_path / "images" / "late.jpg", jpeg(0))
    assert journal.image("late.jpg", file)[1] == jpeg(0)
    journal.close()


def test_the_parallel_map_keeps_order_and_looks_only_a_little_ahead():
    started = []

    def work(i):
        started.append(i)
        threading.Event().wait(0.002 * (i % 3))
        return i * i

    results = in_parallel(work, range(100), 3)
    assert next(results) == 0
    assert len(started) <= 12
    assert list(results) == [i * i for i in range(1, 100)]


def test_the_parallel_map_passes_errors_on():
    def work(i):
        if i == 5:
            raise ValueError("five")
        return i

    with pytest.raises(ValueError, match="five"):
        list(in_parallel(work, range(100), 2))
