"""The pinned weights against the source of their publisher."""

import inspect

import pytest

from capjax.pretrained.published import PUBLISHED


def test_pinned_files_are_those_in_the_source_of_keras():
    keras_module = pytest.importorskip("keras.src.applications.inception_v3")
    source = inspect.getsource(keras_module.InceptionV3)
    assert PUBLISHED["keras"].url == keras_module.WEIGHTS_PATH_NO_TOP
    assert PUBLISHED["keras_top"].url == keras_module.WEIGHTS_PATH
    for published in PUBLISHED.values():
        after = source[source.index(f'"{published.file_name}"') :]
        md5 = published.digest.removeprefix("md5:")
        assert after[after.index('file_hash="') :].startswith(f'file_hash="{md5}"')
