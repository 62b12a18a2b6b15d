"""The embedded default: captions of rendered pictures of coloured shapes. No download; minutes on a laptop.

    capjax demo                                                          # all of the following, and a report page
    capjax data prepare scenes
    capjax features --config=configs/scenes.py
    capjax train --config=configs/scenes.py --workdir=runs/scenes

`configs/scenes.py:from_scratch` learns to see as well: it trains the encoder from random weights on the images.
"""

from ml_collections import ConfigDict

from capjax.config import default_config
from capjax.errors import CapjaxError


def get_config(variant: str = "pretrained") -> ConfigDict:
    """Return the configuration.

    Args:
        variant: `pretrained`, the small encoder that comes with capjax, frozen; or `from_scratch`.
    """
    if variant not in ("pretrained", "from_scratch"):
        raise CapjaxError(f"expected configs/scenes.py:pretrained or :from_scratch, got {variant!r}")
    config = default_config()
    config.dataset.name = "scenes"
    config.vocabulary.min_count = 1
    config.train.max_tokens = 26
    config.search.max_length = 25
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 5.0
    if variant == "pretrained":
        config.encoder.weights = "scenes"
        config.features.dir = "features/scenes"
        config.optimizer.learning_rate = 2e-3
        config.train.num_steps = 1_500
        config.train.checkpoint_every = 500
        config.eval.every = 500
    else:
        config.encoder.weights = "random"
        config.encoder.depth_multiplier = 0.25
        config.encoder.final_endpoint = "mixed4"
        config.encoder.image_size = 96
        config.encoder.learning_rate_scale = 1.0
        config.encoder.train_batch_norm = True
        config.train.captions_per_image = 2
        config.train.num_steps = 20_000
        config.eval.every = 2_000
        config.eval.max_images = 400
    return config
