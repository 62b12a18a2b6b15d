"""Random weights that behave like trained ones, and random images: for tests, trials and benchmarks, no download.

Every tensor is random, BatchNorm statistics and scales included (statistics left at 0 and 1 hide mistakes), and
calibrated so that activations keep their size and stay different for different images down to the last block.
"""

import numpy as np
from jaxtyping import UInt8

from capjax.pretrained import encoder_file

_CENTRING = np.float32(0.5)


def random_encoder(config: encoder_file.EncoderConfig, seed: int) -> encoder_file.Variables:
    """Draw variables for a network; equal arguments give equal values on every machine.

    Inputs of a convolution are ReLU outputs, with a positive mean. Random kernels carry that mean on, and after a few
    blocks it drowns the image: all images look alike. Kernels centred per output channel remove it, and then the
    network is chaotic: it amplifies rounding errors block by block. Half centred ones do neither. Their variance keeps
    the variance before each BatchNorm near one, for inputs ReLU(z) with standard normal z.

    Args:
        config: the network, as in an encoder file.
        seed: any integer ≥ 0.

    Returns:
        {"params": …, "batch_stats": …} as float32 NumPy arrays.
    """
    rng = np.random.default_rng(seed)
    relu_mean_squared = 0.5 / np.pi
    input_power = (0.5 - relu_mean_squared) + (1 - _CENTRING) ** 2 * relu_mean_squared
    tensors = {}
    for name, shape in sorted(encoder_file.variable_shapes(config).items()):
        match name.rsplit("/", 1)[-1]:
            case "kernel":
                kernel = rng.standard_normal(shape, dtype=np.float32)
                kernel -= _CENTRING * kernel.mean(axis=tuple(range(len(shape) - 1)), keepdims=True)
                tensors[name] = kernel / np.float32(np.sqrt(input_power * np.prod(shape[:-1])))
            case "scale" | "var":
                tensors[name] = rng.uniform(0.75, 1.25, shape).astype(np.float32)
            case _:  # bias, mean
                tensors[name] = rng.normal(0.0, 0.2, shape).astype(np.float32)
    return encoder_file.unflatten(tensors)


def random_images(num_images: int, size: int, seed: int) -> UInt8[np.ndarray, "{num_images} {size} {size} 3"]:
    """Draw square images with the spectrum of photographs: random phases, amplitudes that fall with the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / size)
    spectrum = np.fft.rfft2(rng.standard_normal((num_images, 3, size, size))) * amplitude
    pixels = np.fft.irfft2(spectrum, s=(size, size)).transpose(0, 2, 3, 1)
    return np.clip(127 + 50 * pixels / pixels.std(), 0, 255).astype(np.uint8)
