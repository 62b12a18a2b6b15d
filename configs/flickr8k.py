"""The reference decoder on Flickr8k (Hodosh et al. 2013): small enough for a laptop.

    capjax data prepare flickr8k --source=DIR            # the official files; see `capjax data prepare --help`
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k.py
    capjax train --config=configs/flickr8k.py --workdir=runs/flickr8k

With features that another program made, no photographs are needed (`:imported`):

    capjax data prepare flickr8k --source=DIR --captions_only
    capjax features --config=configs/flickr8k.py:imported --import=features.npz
    capjax train --config=configs/flickr8k.py:imported --workdir=runs/flickr8k
"""

from ml_collections import ConfigDict

from capjax.config import default_config
from capjax.errors import CapjaxError


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration.

    Args:
        features: `inception_v3`, or `imported` for features from an .npz.
    """
    if features not in ("inception_v3", "imported"):
        raise CapjaxError(f"expected configs/flickr8k.py:inception_v3 or :imported, got {features!r}")
    imported = features == "imported"
    config = default_config()
    config.dataset.name = "flickr8k/captions" if imported else "flickr8k"
    config.vocabulary.tokenizer = "words"
    config.vocabulary.min_count = 5
    config.encoder.weights = "" if imported else "inception_v3.safetensors"
    config.features.dir = f"features/flickr8k-{features}"
    # 30,000 captions are few: regularise, and keep the best model on the dev split.
    config.decoder.normalize_features = True
    config.decoder.dropout_rate = 0.3
    config.optimizer.clip_norm = 5.0
    config.train.batch_size = 64
    config.train.num_steps = 7_000  # all captions 15 times
    config.train.checkpoint_every = 467  # all captions once
    config.eval.every = 467
    config.eval.patience = 4
    return config
