"""Model directories stay whole whatever fails, and opening checkpoints leaves the logs of others alone."""

import errno
import logging
import os

import numpy as np
import pytest

from capjax.checkpoint import Checkpoints
from capjax.errors import CapjaxError
from capjax.model_directory import ModelDirectory, load_model_directory, save_model
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary


def model(word, value):
    variables = {"params": {"decoder": {"kernel": np.full(3, value, np.float32)}}}
    return ModelDirectory({}, None, Vocabulary([*SPECIAL_WORDS, word], "words"), variables, {"loss": value})


def assert_holds(directory, expected):
    found = load_model_directory(directory)
    assert found.vocabulary.words == expected.vocabulary.words and found.scores == expected.scores
    np.testing.assert_array_equal(
        found.variables["params"]["decoder"]["kernel"], expected.variables["params"]["decoder"]["kernel"]
    )


def test_a_model_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    first, second = model("dog", 1.0), model("cat", 2.0)
    save_model(tmp_path, first)
    replace = os.replace
    for failing in (1, 2, 3):
        calls = iter(range(1, 4))

        def full_disk(*paths, failing=failing, calls=calls):
            if next(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full_disk)
            with pytest.raises(CapjaxError, match="expected to write a model"):
                save_model(tmp_path, second)
        assert_holds(tmp_path, first)
    save_model(tmp_path, second)
    assert_holds(tmp_path, second)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["model.json", "vocabulary", "weights"]


def test_opening_checkpoints_leaves_the_logs_of_others_alone(tmp_path):
    logger = logging.getLogger("absl")
    before = logger.level
    try:
        logger.setLevel(logging.INFO)
        with Checkpoints(tmp_path, keep=1):
            assert logger.level == logging.INFO
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
