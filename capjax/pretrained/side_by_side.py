"""Runs an encoder beside the original implementation of its network, block by block, where that is installed.

The judge is `keras.applications.InceptionV3` for the Keras convention (on whichever of Keras' backends is installed)
and `torchvision.models.inception_v3` for the torchvision convention. It receives our weights and the same images;
nothing is downloaded.
"""

import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8

from capjax.errors import CapjaxError
from capjax.models import inception_v3
from capjax.pretrained import encoder_file, inception_map

Blocks = dict[str, Float[np.ndarray, "N _ _ _"]]
"""Outputs [N, h, w, F] by name of the endpoint."""


def missing_judge(config: encoder_file.EncoderConfig) -> str | None:
    """Return why no original implementation can judge this encoder, or None where one can."""
    full = encoder_file.EncoderConfig()
    if (config.depth_multiplier, config.final_endpoint) != (full.depth_multiplier, full.final_endpoint):
        return "the original implementations exist for the full network only"
    if importlib.util.find_spec(config.convention) is None:
        return f"{config.convention} is not installed"
    if config.convention == "keras" and _keras_backend() is None:
        return "Keras is installed without a backend (torch, jax or tensorflow)"
    return None


def compare_blocks(
    config: encoder_file.EncoderConfig, variables: encoder_file.Variables, images: UInt8[np.ndarray, "N H W 3"]
) -> dict[str, float]:
    """Compare our blocks with those of the original implementation.

    Args:
        config, variables: a full-size encoder for which `missing_judge` returns None.
        images: uint8 [N, H, W, 3], at least 75 px.

    Returns:
        Relative root mean square difference by endpoint: ‖ours - theirs‖ / ‖theirs‖.
    """
    judge = {"keras": keras_blocks, "torchvision": torchvision_blocks}[config.convention]
    scaled = np.array(inception_v3.scale_images(jnp.asarray(images), config.input_scaling))
    theirs, ours = judge(variables, scaled), capjax_blocks(config, variables, scaled)
    return {name: relative_rms(ours[name], theirs[name]) for name in inception_v3.ENDPOINTS}


def relative_rms(found: Float[np.ndarray, "*shape"], expected: Float[np.ndarray, "*shape"]) -> float:
    """Return ‖found - expected‖ / ‖expected‖, in float64."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def capjax_blocks(
    config: encoder_file.EncoderConfig, variables: encoder_file.Variables, scaled: Float[np.ndarray, "N H W 3"]
) -> Blocks:
    """Compute the outputs of all our blocks."""
    module = config.build()

    def is_block(submodule: nn.Module, _: str) -> bool:
        return isinstance(submodule, inception_v3.InceptionBlock)

    @jax.jit
    def run(variables, scaled):
        _, state = module.apply(variables, scaled, capture_intermediates=is_block)
        return {name: outputs["__call__"][0] for name, outputs in state["intermediates"].items()}

    return {name: np.asarray(block) for name, block in run(variables, scaled).items()}


def keras_blocks(variables: encoder_file.Variables, scaled: Float[np.ndarray, "N H W 3"]) -> Blocks:
    """Compute the outputs of all blocks of Keras' InceptionV3 with our weights."""
    os.environ.setdefault("KERAS_BACKEND", _keras_backend() or "")
    import keras

    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=scaled.shape[1:])

    def by_number(kind):
        layers = [layer for layer in model.layers if isinstance(layer, kind)]
        return sorted(layers, key=lambda layer: int((re.findall(r"_(\d+)$", layer.name) or [0])[0]))

    convs, norms = by_number(keras.layers.Conv2D), by_number(keras.layers.BatchNormalization)
    params, statistics = variables["params"], variables["batch_stats"]
    for (block, unit, _), conv, norm in zip(inception_v3.conv_units(), convs, norms, strict=True):
        stored = statistics[block][unit]["norm"]
        conv.set_weights([params[block][unit]["kernel"]])
        norm.set_weights([params[block][unit]["norm"]["bias"], stored["mean"], stored["var"]])
    outputs = {name: model.get_layer(name).output for name in inception_v3.ENDPOINTS}
    blocks = keras.Model(model.input, outputs).predict(scaled, verbose=0)
    return {name: np.asarray(block) for name, block in blocks.items()}


def torchvision_blocks(variables: encoder_file.Variables, scaled: Float[np.ndarray, "N H W 3"]) -> Blocks:
    """Compute the outputs of all blocks of torchvision's inception_v3 with our weights."""
    import torch
    import torchvision

    model = torchvision.models.inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    state = inception_map.to_torchvision(variables)
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    missing = [name for name in missing if not name.startswith("fc.") and not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise CapjaxError(f"this torchvision has another inception_v3: missing {missing}, unexpected {unexpected}")
    blocks: Blocks = {}

    def keep(name):
        return lambda _, __, output: blocks.__setitem__(name, output.permute(0, 2, 3, 1).numpy())

    for ours, theirs in inception_map.TORCHVISION_BLOCKS.items():
        getattr(model, theirs).register_forward_hook(keep(ours))
    with torch.inference_mode():
        model.eval()(torch.from_numpy(scaled).permute(0, 3, 1, 2))
    return blocks


def _keras_backend() -> str | None:
    if "KERAS_BACKEND" in os.environ:
        return os.environ["KERAS_BACKEND"]
    return next((name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)), None)
