"""The embedded default: captions of rendered pictures of coloured shapes. No download; minutes on a laptop.

    capjax demo                                                          # all of the following, and a report page
    capjax data prepare scenes
    capjax features --config=configs/scenes.py
    capjax train --config=configs/scenes.py --workdir=runs/scenes

`configs/scenes.py:from_scratch` learns to see as well: it trains the encoder from random weights on the images.
`--config.dataset.name=scenes_pairs` is the harder test: pairs of colour and shape that no training picture has.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, default_config
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
    # Small words, short captions: a small decoder does, and trains in a minute. It looks at the shape that it names;
    # without dropout it would also go by the words before, and never write two beside each other that it never read.
    config.encoder.grid = True
    config.decoder = decoder_config(
        "att2in", embed_size=64, hidden_size=192, attention_size=64, normalize_features=True, dropout_rate=0.3
    )
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.clip_norm = 5.0
    # Whoever never saw a red star by day must not be taught that there is none.
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.1
    config.train.label_smoothing = 0.1
    # CIDEr-D of 400 pictures goes up and down by 3 with the rounding of a processor, their loss falls.
    config.eval.best_metric = "loss"
    config.train.max_tokens = 17  # START and END included: 99 of 100 captions are shorter
    if variant == "pretrained":
        config.encoder.weights = "scenes"
        config.features.dir = "features/scenes"
        config.train.num_steps = 800
        config.train.checkpoint_every = 400
        config.eval.every = 400
    else:
        config.encoder.weights = "random"
        config.encoder.depth_multiplier = 0.25
        config.encoder.final_endpoint = "mixed5"
        config.encoder.image_size = 80
        config.encoder.learning_rate_scale = 0.5
        config.encoder.train_batch_norm = True
        config.train.captions_per_image = 2
        config.train.num_steps = 10_000
        config.eval.every = 1_000
    return config
