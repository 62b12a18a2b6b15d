"""For every method: a batch is its sentences one by one, eight devices are one, and special ids never come out."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from capjax.decoding import DecoderSettings, image_keys

SETTINGS = {
    "greedy": DecoderSettings(max_length=7, no_repeat_ngram_size=3, min_length=2),
    "sample": DecoderSettings(method="sample", max_length=7, num_captions=2, top_p=0.9, temperature=1.2),
    "beam": DecoderSettings(method="beam", max_length=7, num_captions=2, length_penalty=0.8, no_repeat_ngram_size=2),
    "diverse": DecoderSettings(method="diverse_beam", beam_size=4, num_groups=2, num_captions=2, max_length=7),
    "constrained": DecoderSettings(method="beam", beam_size=2, max_length=7, must_contain=(5, 6), min_length=3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_batch_is_one_by_one(toy, name):
    tables = toy.random_tables(21, batch_size=8)
    alone = [toy.decode(SETTINGS[name], tables[i : i + 1], [i])[0] for i in range(8)]
    assert toy.decode(SETTINGS[name], tables) == alone


@pytest.mark.parametrize("name", SETTINGS)
def test_eight_devices_are_one(toy, name):
    tables = toy.random_tables(22, batch_size=8)
    keys = image_keys(0, np.arange(8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    run = toy.compiled(SETTINGS[name])
    single = run(tables, keys)
    sharded = run(jax.device_put(tables, sharding), jax.device_put(keys, sharding))
    assert len(sharded.tokens.sharding.device_set) == 8
    for one, eight in zip(single, sharded, strict=True):
        np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("name", ["sample", "constrained"])
def test_devices_need_not_talk_to_each_other(toy, name):
    tables, keys = toy.random_tables(22, batch_size=8), image_keys(0, np.arange(8))
    run = toy.compiled(SETTINGS[name])
    apart = jax.jit(
        jax.shard_map(
            run,
            mesh=jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec("data"),
            check_vma=False,
        )
    )
    compiled = apart.lower(tables, keys).compile()
    assert not re.search(r"all-(reduce|gather|to-all)|collective", compiled.as_text())
    for one, eight in zip(run(tables, keys), apart(tables, keys), strict=True):
        np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_special_ids_in_a_caption(toy, name):
    tables = toy.random_tables(23, batch_size=8)
    tables[:, :, :3] += 6.0  # a model that would say little else
    for captions in toy.decode(SETTINGS[name], tables):
        for tokens, _ in captions:
            assert tokens and set(tokens) <= {3, 4, 5, 6}
