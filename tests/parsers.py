"""Every reader of users' files, each with a small valid input and the file of it that is to be damaged.

A reader raises a `CapjaxError` or accepts its input; what it accepts is used as the program would use it, so that a
value that only later ends in a traceback is found as well.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import numpy as np

from capjax import config, convert_weights, score
from capjax.captioning.loaded_model import load_model
from capjax.data import CaptionDataset, coco, flickr, folder, parse_name
from capjax.data.caption_builder import CaptionBuilder, SplitExamples, prepare, write_captions
from capjax.data.feature_import import import_npz
from capjax.data.feature_store import create_store, open_store
from capjax.data.findings import report_dict, report_json
from capjax.data.image_files import ImageFile, open_images
from capjax.data.ingestion import Journal
from capjax.data.listing import Listing, SourceOptions
from capjax.errors import CapjaxError
from capjax.images import ImageError
from capjax.metrics.coco_caption import References
from capjax.pretrained import encoder_file, keras_h5, torchvision
from capjax.pretrained.random_encoder import random_encoder
from capjax.report.ledger import read_ledger
from capjax.report.training_log import read_log
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary
from capjax.training.metric_writer import MetricWriter
from capjax.types import CaptionRecord, Features
from tests.source_layouts import coco_json, jpeg, write

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model_0_1" / "model"
CAPTIONS = {"1_a.jpg": ["A dog, running.", "Second one"], "2_b.jpg": ["He said go"], "sub/3_c.png": ["Ünï 犬"]}
RECORDS = [CaptionRecord(i, name, tuple(texts)) for i, (name, texts) in enumerate(CAPTIONS.items(), 1)]
F, P = 4, 3


class Parser(NamedTuple):
    """A reader of files.

    Attributes:
        file: which is damaged, relative to the folder.
        kind: of the damage, a key of `tests.damage.DAMAGES`.
        write: writes the whole valid input into a folder.
        read: reads it, and uses what it gives.
        cost: how many times as long as a quick one it takes; slow ones are tried less often.
    """

    file: str
    kind: str
    write: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    cost: int = 1


def _emptied(place: pathlib.Path) -> pathlib.Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


# Sources of captions.


def _keep(listing: Listing, out: pathlib.Path) -> None:
    """Store what a source offers: it comes back as it is, and leads nowhere else."""
    write_captions(_emptied(out), listing.splits)
    dataset = CaptionDataset("folder/x", out)
    assert {split: list(dataset.records(split)) for split in dataset.splits} == listing.splits
    records = [record for part in listing.splits.values() for record in part]
    assert len({record.file_name for record in records}) == len(records), "two images of one name"
    for record in records:
        assert not os.path.normpath(record.file_name).startswith(("/", "..")), record.file_name
        record.image_id.to_bytes(8, "little", signed=True)
    write(out / "report.json", report_json(report_dict("folder/x", {}, {}, listing.found)))
    assert all(line.isprintable() for line in listing.found.lines()), "a terminal obeys control characters"


def _write_folder(name: str, content: str) -> Callable[[pathlib.Path], None]:
    def make(place: pathlib.Path) -> None:
        for image in CAPTIONS:
            write(place / "images" / image, b"some image")
        write(place / name, content)

    return make


def _read_folder(name: str) -> Callable[[pathlib.Path], None]:
    def read(place: pathlib.Path) -> None:
        options = SourceOptions(images=(place / "images",), captions=place / name)
        with contextlib.suppress(CapjaxError):
            _keep(folder.open_source(parse_name("folder/x"), options), place / "out")
        _keep(
            folder.open_source(parse_name("folder/x"), SourceOptions(captions=place / name, captions_only=True)),
            place / "out",
        )

    return read


def _folder(name: str, kind: str, line: str, header: str = "") -> Parser:
    """A caption file of which each row has a name, a caption and a number."""
    rows = [(name, text, i) for name, texts in CAPTIONS.items() for i, text in enumerate(texts)]
    content = header + "".join(line.format(name, text, i) + "\n" for name, text, i in rows)
    return Parser(name, kind, _write_folder(name, content), _read_folder(name))


def _flickr(file: str, kind: str, content: str, lists: bool = False) -> Parser:
    def make(place: pathlib.Path) -> None:
        write(place / "flickr" / file, content)
        for split, name in zip(("train", "dev", "test"), CAPTIONS, strict=True):
            if lists:
                write(place / "flickr" / f"Flickr_8k.{split}Images.txt", f"{name}\n")
        if file.endswith("Images.txt"):
            write(place / "flickr" / "Flickr8k.token.txt", _TOKENS)

    def read(place: pathlib.Path) -> None:
        options = SourceOptions(source=place / "flickr", captions_only=True)
        _keep(flickr.open_source(parse_name("flickr8k"), options), place / "out")

    return Parser(f"flickr/{file}", kind, make, read)


_TOKENS = "".join(f"{name}#{i}\t{text}\n" for name, texts in CAPTIONS.items() for i, text in enumerate(texts))
_COCO = coco_json(CAPTIONS, {name: i for i, name in enumerate(CAPTIONS, 1)})
_KARPATHY = json.dumps(
    {
        "images": [
            {"filename": name, "filepath": "val2014", "split": split, "sentences": [{"raw": text} for text in texts]}
            for (name, texts), split in zip(CAPTIONS.items(), ("train", "val", "test"), strict=True)
        ]
    }
)


def _write_coco(place: pathlib.Path) -> None:
    write(place / "coco" / "annotations" / "captions_train2014.json", _COCO)


def _write_coco_zip(place: pathlib.Path) -> None:
    (place / "coco").mkdir(parents=True)
    with zipfile.ZipFile(place / "coco" / "annotations_trainval2014.zip", "w") as archive:
        for part in ("train2014", "val2014"):
            archive.writestr(f"annotations/captions_{part}.json", _COCO)


def _read_coco(place: pathlib.Path) -> None:
    for variant in ("2014", "karpathy"):
        _keep(
            coco.open_source(parse_name(f"coco/{variant}"), SourceOptions(source=place / "coco", captions_only=True)),
            place / "out",
        )


# Images and prepared datasets.


def _write_images_zip(place: pathlib.Path) -> None:
    with zipfile.ZipFile(place / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(CAPTIONS):
            archive.writestr(name, jpeg(i))
    write(place / "captions.csv", "image,caption\n" + "".join(f"{name},text\n" for name in CAPTIONS))


def _read_images_zip(place: pathlib.Path) -> None:
    store = open_images(place / "images.zip")
    for name in store.names():
        store.size(name), store.fingerprint(name)
        with contextlib.suppress(ImageError):
            assert len(store.read(name)) <= 2_000_000
    options = SourceOptions(images=(place / "images.zip",), captions=place / "captions.csv")
    _keep(folder.open_source(parse_name("folder/x"), options), place / "out")


class _Tiny(CaptionBuilder):
    name = "scenes"

    def caption_splits(self) -> dict[str, SplitExamples]:
        return {"train": SplitExamples(3, [(record, jpeg(i)) for i, record in enumerate(RECORDS)])}


def _write_dataset(place: pathlib.Path) -> None:
    prepare(lambda data_dir: _Tiny(data_dir=data_dir), place / "scenes" / "1.0.0")


def _read_dataset(place: pathlib.Path) -> None:
    dataset = CaptionDataset("scenes", place / "scenes" / "1.0.0")
    for split in dataset.splits:
        for record in dataset.records(split):
            assert isinstance(record, CaptionRecord)
        dataset.images_sha256(split)
        images = dataset.images(split)
        for i in range(min(5, len(images))):
            assert isinstance(images[i], bytes)


def _dataset(file: str, kind: str) -> Parser:
    return Parser(f"scenes/1.0.0/{file}", kind, _write_dataset, _read_dataset, cost=4)


def _write_journal(place: pathlib.Path) -> None:
    lines = [["1_a.jpg 1-2", [["greyscale", "32×32"]], "0" * 64], ["2_b.jpg 1-2", [["unreadable", "x"]], ""]]
    write(place / "journal.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(place / "images" / "2_b.jpg", jpeg(2))


def _read_journal(place: pathlib.Path) -> None:
    shutil.copy(place / "journal.jsonl", _emptied(place / "out"))
    with contextlib.closing(Journal(place / "out")) as journal:
        verdict, _ = journal.image("2_b.jpg", ImageFile(open_images(place / "images"), "2_b.jpg"))
        assert all(isinstance(detail, str) for _, detail in verdict.troubles) and isinstance(verdict.sha256, str)


# Features.


def _features() -> dict[str, np.ndarray]:
    values = np.random.default_rng(0).random((3, P + 1, F), np.float32)
    return {"file_name": np.asarray(list(CAPTIONS)), "pooled": values[:, 0], "grid": values[:, 1:]}


def _write_npz(place: pathlib.Path) -> None:
    np.savez(place / "features.npz", **_features(), grid_scale=np.float32(2))


def _read_npz(place: pathlib.Path) -> None:
    out = _emptied(place / "out")
    import_npz(place / "features.npz", out, "x", {"train": RECORDS})
    _use_store(out)


def _write_store(dtype: str) -> Callable[[pathlib.Path], None]:
    def make(place: pathlib.Path) -> None:
        store = create_store(place / "store", {"dataset": "x"}, F, P, dtype)
        store.begin_split("train", RECORDS, "0" * 64)
        arrays = _features()
        store.write_shard("train", range(3), Features(arrays["pooled"], arrays["grid"]))

    return make


def _use_store(path: pathlib.Path) -> None:
    store = open_store(path, {"dataset": "x"})
    for split in store.splits:
        records = store.records(split)
        assert all(isinstance(record, CaptionRecord) for record in records)
        with contextlib.suppress(CapjaxError):
            store.check_split(split, RECORDS, "0" * 64)
        store.bytes_needed(len(records))
        for grid in (False, True):
            if grid and not store.num_positions:
                continue
            rows = store.features(split, grid)
            assert len(rows) == len(records)
            for row in pickle.loads(pickle.dumps(rows)):
                assert row.pooled.shape == (store.feature_size,) and row.pooled.dtype == np.float32
                assert not grid or row.grid.shape == (store.num_positions, store.feature_size)


def _store(file: str, kind: str, dtype: str = "float32") -> Parser:
    return Parser(f"store/{file}", kind, _write_store(dtype), lambda place: _use_store(place / "store"), cost=2)


# Weights and models.


def _write_vocabulary(place: pathlib.Path) -> None:
    Vocabulary([*SPECIAL_WORDS, "dog", "ünï", "<unused0>"], "words").save(place / "vocabulary.json")


def _read_vocabulary(place: pathlib.Path) -> None:
    vocabulary = Vocabulary.load(place / "vocabulary.json")
    assert len(vocabulary.sha256) == 64
    vocabulary.decode(vocabulary.encode("a dog is an ünï")).encode()
    vocabulary.decode(range(len(vocabulary))).encode()


def _write_model(place: pathlib.Path) -> None:
    shutil.copytree(GOLDEN, place / "model")


def _seal(place: pathlib.Path) -> None:
    """Make the model's description tell the hashes of its files, as whoever forged them would."""
    header = json.loads((GOLDEN / "model.json").read_text())
    header["weights_sha256"] = hashlib.sha256((place / "model" / header["weights"]).read_bytes()).hexdigest()
    with contextlib.suppress(CapjaxError):
        header["vocabulary_sha256"] = Vocabulary.load(place / "model" / "vocabulary.json").sha256
    write(place / "model" / "model.json", json.dumps(header))


def _read_model(place: pathlib.Path) -> None:
    model = load_model(str(place / "model"))
    assert model.preprocessing and model.search and len(model.vocabulary) > 4
    json.dumps([model.scores, model.features])


def _read_forged_model(place: pathlib.Path) -> None:
    _seal(place)
    _read_model(place)


_WEIGHTS = json.loads((GOLDEN / "model.json").read_text())["weights"]


def _write_encoder(place: pathlib.Path) -> None:
    small = encoder_file.EncoderConfig(depth_multiplier=0.05, min_depth=4, final_endpoint="mixed0", image_size=75)
    encoder_file.save_encoder(place / "encoder.safetensors", small, random_encoder(small, seed=0))


def _read_encoder(place: pathlib.Path) -> None:
    encoder = encoder_file.load_encoder(place / "encoder.safetensors")
    encoder.config.build()
    assert all(array.dtype == np.float32 for array in encoder_file.flatten(encoder.variables).values())


def _convert(name: str) -> Callable[[pathlib.Path], None]:
    def read(place: pathlib.Path) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                convert_weights.convert(place / name, place / "out.safetensors")
        except CapjaxError as error:
            if "does not fit the network" not in str(error):
                raise
        # No small file is a whole Inception V3: it is accepted if it can be read.
        if name.endswith(".h5"):
            keras_h5.read_layers(place / name)
        if name.endswith(".pth"):
            for array in torchvision.read_state_dict(place / name).values():
                np.asarray(array, np.float32)

    return read


def _write_legacy_h5(place: pathlib.Path) -> None:
    with h5py.File(place / "keras.h5", "w") as file:
        weights = {"conv2d_1": ["kernel:0"], "batch_normalization_1": ["beta:0", "moving_mean:0"]}
        file.attrs["layer_names"] = np.array(list(weights), "S")
        for layer, names in weights.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([f"{layer}/{name}" for name in names], "S")
            for name in names:
                compression = "gzip" if name == "beta:0" else None
                group.create_dataset(f"{layer}/{name}", data=np.ones((3, 4), np.float32), compression=compression)


def _write_keras_3_h5(place: pathlib.Path) -> None:
    with h5py.File(place / "new.weights.h5", "w") as file:
        for layer, number in (("conv2d", 1), ("batch_normalization", 3)):
            group = file.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = f"{layer}_1"
            for i in range(number):
                group[str(i)] = np.ones((3, 4), np.float32)


def _write_pth(is_zip: bool) -> Callable[[pathlib.Path], None]:
    def make(place: pathlib.Path) -> None:
        import torch

        base = torch.ones(6, 5)
        state = {"fc.bias": torch.ones(7), "slice": base[2:, 1:4], "half": base.half(), "count": torch.tensor(7)}
        torch.save(state, place / "state.pth", _use_new_zipfile_serialization=is_zip)

    return make


def _write_torchvision(place: pathlib.Path) -> None:
    import safetensors.numpy

    state = {"fc.bias": np.ones(7, np.float32), "Conv2d_1a_3x3.bn.weight": np.ones(3, np.float16)}
    safetensors.numpy.save_file(state, place / "state.safetensors")


# Scores, configurations, logs.


def _write_score(place: pathlib.Path) -> None:
    results = [{"image_id": i, "caption": texts[0]} for i, texts in enumerate(CAPTIONS.values(), 1)]
    write(place / "results.json", json.dumps(results))
    write(place / "references.json", _COCO)
    References({record.image_id: record.captions for record in RECORDS}).df.save(place / "df.npz")


def _score(file: str, kind: str, *options: str) -> Parser:
    def read(place: pathlib.Path) -> None:
        parser = argparse.ArgumentParser()
        score.add_arguments(parser)
        arguments = [f"--references={place / 'references.json'}", f"--results={place / 'results.json'}", *options]
        arguments += [f"--out={_emptied(place / 'out')}", "--metrics=BLEU-4,ROUGE-L,CIDEr-D", "--bootstrap_samples=20"]
        arguments += [f"--train_captions={place / 'references.json'}", "--images=results"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            score.run(parser.parse_args([argument.replace("PLACE", str(place)) for argument in arguments]))
        said.getvalue().encode()
        json.loads((place / "out" / "metrics.json").read_text(encoding="utf-8"))

    return Parser(file, kind, _write_score, read, cost=4)


_OVERRIDES = ["train.num_steps=100", "seed=3", "optimizer.learning_rate=1e-3", "encoder.grid=true", "dataset.name=x"]
_OVERRIDES += ["decoder.name=att2in", "decoder.dropout_rate=0.5", "search.beam_size=3", "eval.best_metric=loss"]


def _read_overrides(place: pathlib.Path) -> None:
    # What a command line can hold.
    lines = (place / "overrides.txt").read_bytes().replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    for line in filter(None, lines):
        with contextlib.suppress(CapjaxError):
            config.load_config("reference", [line])
    config.to_dict(config.load_config("reference", list(filter(None, lines))))


def _read_stored_config(place: pathlib.Path) -> None:
    try:
        values = json.loads((place / "config.json").read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        restored = config.from_dict(values, "config.json")
        with contextlib.suppress(CapjaxError):
            config.check(restored)


_LOG = [{"step": 10 * i, "loss": 1 / (i + 1), "val/CIDEr-D": 0.5} for i in range(4)]
_LEDGER = [{"recipe": "reference", "seeds": [1], "scores": {"CIDEr-D": 0.5}, "config": {"train.num_steps": 10}}] * 2


def _lines(file: str, rows: list[dict], read: Callable[[pathlib.Path], Any]) -> Parser:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    return Parser(file, "lines", lambda place: write(place / file, content), lambda place: read(place / file))


def _resume_log(path: pathlib.Path) -> None:
    shutil.copy(path, _emptied(path.parent / "out"))
    with MetricWriter(path.parent / "out", first_step=20, validated_step=10) as log:
        log.write(30, {"loss": 0.5})
    assert [row["step"] for row in read_log(path.parent / "out" / "metrics.jsonl")][-1] == 30


PARSERS: dict[str, Parser] = {
    "captions, CSV": _folder("captions.csv", "lines", '{0},"{1}",{2}', "image,caption,image_id\n"),
    "captions, TSV": _folder("captions.tsv", "lines", "{1}\t{0}\t{2}", "caption\tfile_name\tid\n"),
    "captions, JSON Lines": _folder(
        "captions.jsonl", "lines", '{{"file_name": "{0}", "caption": "{1}", "id": {2}, "split": "train"}}'
    ),
    "captions, tokens": _folder("captions.token", "lines", "{0}#{2}\t{1}"),
    "captions, COCO JSON": Parser(
        "captions.json", "json", _write_folder("captions.json", _COCO), _read_folder("captions.json")
    ),
    "captions, list in JSON": Parser(
        "captions.json",
        "json",
        _write_folder("captions.json", json.dumps([{"image": n, "captions": ts} for n, ts in CAPTIONS.items()])),
        _read_folder("captions.json"),
    ),
    "Flickr8k.token.txt": _flickr("Flickr8k.token.txt", "lines", _TOKENS, lists=True),
    "Flickr's split lists": _flickr("Flickr_8k.trainImages.txt", "lines", "1_a.jpg\n2_b.jpg\n"),
    "Kaggle's results.csv": _flickr(
        "results.csv",
        "lines",
        "image_name| comment_number| comment\n" + "".join(f"{n}| 0| {ts[0]}\n" for n, ts in CAPTIONS.items()),
    ),
    "Flickr, COCO JSON": _flickr("captions_train.json", "json", _COCO),
    "Karpathy's JSON": _flickr("dataset_flickr8k.json", "json", _KARPATHY),
    "COCO annotations": Parser("coco/annotations/captions_train2014.json", "json", _write_coco, _read_coco),
    "COCO annotations, zip": Parser("coco/annotations_trainval2014.zip", "zip", _write_coco_zip, _read_coco),
    "zip of images": Parser("images.zip", "zip", _write_images_zip, _read_images_zip),
    "dataset, captions.jsonl": _dataset("captions-train.jsonl", "lines"),
    "dataset, fingerprint.json": _dataset("fingerprint.json", "json"),
    "dataset, dataset_info.json": _dataset("dataset_info.json", "json"),
    "dataset, features.json": _dataset("features.json", "json"),
    "dataset, shard": _dataset("scenes-train.array_record-00000-of-00001", "bytes"),
    "journal of a preparation": Parser("journal.jsonl", "lines", _write_journal, _read_journal),
    "imported features, npz": Parser("features.npz", "zip", _write_npz, _read_npz, cost=2),
    "store, store.json": _store("store.json", "json"),
    "store, captions.jsonl": _store("train/captions.jsonl", "lines"),
    "store, images.sha256": _store("train/images.sha256", "lines"),
    "store, pooled.npy": _store("train/pooled-00000.npy", "bytes"),
    "store, grid.npy": _store("train/grid-00000.npy", "bytes"),
    "store, scale.npy": _store("train/scale-00000.npy", "bytes", "uint8"),
    "vocabulary": Parser("vocabulary.json", "json", _write_vocabulary, _read_vocabulary),
    "model, model.json": Parser("model/model.json", "json", _write_model, _read_model, cost=8),
    "model, vocabulary": Parser("model/vocabulary.json", "json", _write_model, _read_forged_model, cost=8),
    "model, weights": Parser(f"model/{_WEIGHTS}", "safetensors", _write_model, _read_forged_model, cost=8),
    "encoder file": Parser("encoder.safetensors", "safetensors", _write_encoder, _read_encoder, cost=4),
    "Keras weights, legacy": Parser("keras.h5", "bytes", _write_legacy_h5, _convert("keras.h5"), cost=2),
    "Keras weights, Keras 3": Parser("new.weights.h5", "bytes", _write_keras_3_h5, _convert("new.weights.h5"), cost=2),
    "PyTorch weights, zip": Parser("state.pth", "zip", _write_pth(True), _convert("state.pth")),
    "PyTorch weights, legacy": Parser("state.pth", "bytes", _write_pth(False), _convert("state.pth")),
    "torchvision, safetensors": Parser(
        "state.safetensors", "safetensors", _write_torchvision, _convert("state.safetensors")
    ),
    "score, references": _score("references.json", "json"),
    "score, results": _score("results.json", "json"),
    "score, df table": _score("df.npz", "zip", "--df=PLACE/df.npz"),
    "overrides": Parser(
        "overrides.txt",
        "lines",
        lambda place: write(place / "overrides.txt", "\n".join(_OVERRIDES)),
        _read_overrides,
        cost=8,
    ),
    "stored configuration": Parser(
        "config.json",
        "json",
        lambda place: write(place / "config.json", json.dumps(config.to_dict(config.default_config()))),
        _read_stored_config,
        cost=4,
    ),
    "metrics.jsonl": _lines("metrics.jsonl", _LOG, read_log),
    "metrics.jsonl, resumed": _lines("metrics.jsonl", _LOG, _resume_log),
    "ledger": _lines("ledger.jsonl", _LEDGER, read_ledger),
}
