"""What TensorBoard shows of a validation, read back from the event files: pictures, captions, histograms."""

import io
import pathlib
import struct
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from capjax import caption_photos, load_model
from capjax.cli import main
from capjax.model_directory import load_model_directory
from capjax.pretrained.encoder_file import flatten
from capjax.train import train
from capjax.training.metric_writer import MetricWriter
from capjax.training.summaries import histogram_summary
from tests.tiny_runs import make_store, tiny_config
from tests.toy_project import COLOURS, config, prepare


def read_events(path: pathlib.Path) -> Iterator[Event]:
    """Read an event file: records of length, checksum, message, checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + size])
        at += 12 + size + 4


def read_values(folder: pathlib.Path) -> dict[tuple[str, int], object]:
    """Read the summaries of all event files by tag and step."""
    events = (event for path in sorted(folder.iterdir()) for event in read_events(path))
    return {(value.tag, event.step): value for event in events for value in event.summary.value}


def table_of(value) -> list[list[str]]:
    assert value.metadata.plugin_data.plugin_name == "text"
    rows, columns = (dimension.size for dimension in value.tensor.tensor_shape.dim)
    return np.reshape([cell.decode() for cell in value.tensor.string_val], (rows, columns)).tolist()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A user's folder after a run with one validation, whose model is the one that is kept."""
    root = tmp_path_factory.mktemp("project")
    prepare(root)
    assert main(["features", *config(root)]) == 0
    assert main(["train", *config(root), "--config.eval.every=120", f"--workdir={root / 'run'}"]) == 0
    return root


def test_pictures_and_captions_are_those_that_the_model_writes(project):
    values = read_values(project / "run" / "tensorboard")
    photos = [project / "photos" / f"{i}.png" for i in range(24, 32)]
    said = [caption.text for caption in caption_photos(load_model(project / "run" / "model"), photos)]
    header, *rows = table_of(values["captions/text", 120])
    assert header == ["picture", "caption of the model", "caption of a person"]
    assert [row[:2] for row in rows] == [[path.name, text] for path, text in zip(photos, said, strict=True)]
    assert [row[2] for row in rows] == [f"A {colour} {noun}." for noun in ("circle", "box") for colour in COLOURS]

    shown = values["captions/pictures", 120].image
    sheet = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))).astype(int)
    assert sheet.shape == (shown.height, shown.width, 3)
    for column, strip in enumerate(np.array_split(sheet, 4, axis=1)):  # two pictures of one colour in each
        seen = [name for name, colour in COLOURS.items() if (np.abs(strip - colour).max(axis=-1) < 12).sum() > 10_000]
        assert seen == [list(COLOURS)[column]]


def test_histograms_are_those_of_the_parameters_that_are_kept(project):
    values = read_values(project / "run" / "tensorboard")
    weights = flatten(load_model_directory(project / "run" / "model").variables)
    decoder = {name.removeprefix("params/"): x for name, x in weights.items() if name.startswith("params/decoder/")}
    shown = {
        tag.removeprefix("parameters/"): v.histo for (tag, _), v in values.items() if tag.startswith("parameters/")
    }
    assert set(shown) == set(decoder), "and nothing of the encoder, which is not trained"
    for name, x in decoder.items():
        histogram = shown[name]
        assert (histogram.num, histogram.min, histogram.max) == (x.size, x.min(), x.max())
        assert histogram.sum == pytest.approx(x.sum(dtype=float), abs=1e-4)
        below = [(x.astype(float) <= limit).sum() for limit in histogram.bucket_limit]
        np.testing.assert_allclose(np.cumsum(histogram.bucket), below, atol=2)  # on a limit, a number counts above it
        assert sum(histogram.bucket) == x.size


def test_changes_are_counted_from_the_validation_before_or_the_state_that_is_restored(tmp_path):
    make_store(tmp_path / "store")
    settings = tiny_config(tmp_path / "store")
    states = {}
    for step in (3, 6):
        settings.train.num_steps = settings.eval.every = step
        states[step] = flatten(jax.device_get(train(settings, tmp_path / "run").params))
    values = read_values(tmp_path / "run" / "tensorboard")
    for name, x in states[6].items():
        changes, histogram = x - states[3][name], values[f"changes/{name}", 6].histo
        assert (histogram.num, histogram.min, histogram.max) == (x.size, changes.min(), changes.max())
        assert values[f"parameters/{name}", 3].histo.max == states[3][name].max()


@pytest.mark.parametrize(("first_step", "from_step"), [(0, 0), (2, 3)])
def test_a_run_that_begins_again_has_tensorboard_drop_what_it_repeats(tmp_path, first_step, from_step):
    for begun_at in (0, first_step):
        time.sleep(1.1)  # names of event files have a second
        with MetricWriter(tmp_path, begun_at) as log:
            log.write(begun_at + 1, {"train/loss": 1.0})
    former, latter = ([*read_events(path)] for path in sorted((tmp_path / "tensorboard").iterdir()))
    starts = [[event.step for event in of if event.session_log.status == SessionLog.START] for of in (former, latter)]
    assert starts == [[], [from_step]]


def test_where_the_pictures_are_elsewhere_captions_stand_alone(tmp_path):
    make_store(tmp_path / "store")
    settings = tiny_config(tmp_path / "store")
    settings.log.num_pictures = 3
    train(settings, tmp_path / "run")
    values = read_values(tmp_path / "run" / "tensorboard")
    assert {step for tag, step in values if tag == "captions/text"} == {6, 12}
    assert [row[0] for row in table_of(values["captions/text", 12])[1:]] == ["0.jpg", "12.jpg", "23.jpg"]
    assert not [tag for tag, _ in values if tag == "captions/pictures"]


def test_without_pictures_and_histograms_there_are_curves_alone(tmp_path):
    make_store(tmp_path / "store")
    settings = tiny_config(tmp_path / "store")
    settings.log.num_pictures, settings.log.histograms = 0, False
    train(settings, tmp_path / "run")
    values = read_values(tmp_path / "run" / "tensorboard")
    assert {value.WhichOneof("value") for value in values.values()} == {"simple_value"}
    assert ("val/CIDEr-D", 12) in values


@pytest.mark.parametrize(
    ("values", "num"), [([np.inf, 1.0, np.nan, 2.0], 2), ([np.nan], 0), ([], 0), ([3.0, 3.0], 2), ([1e38, -3e38], 2)]
)
def test_a_histogram_of_anything(values, num):
    histogram = histogram_summary("any", np.asarray(values, np.float32)).histo
    assert histogram.num == sum(histogram.bucket) == num
