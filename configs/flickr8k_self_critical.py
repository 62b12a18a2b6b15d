"""Reinforcement of Att2in on Flickr8k: few photos, so few steps, on captions near those that a search finds.

    capjax train --config=configs/flickr8k_att2in.py --workdir=runs/flickr8k_att2in
    capjax train --config=configs/flickr8k_self_critical.py --workdir=runs/flickr8k_self_critical

`configs/flickr8k_self_critical.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
The temperature matters most: what is learnt from captions drawn at 1 holds for new photos less, see
experiments/results/flickr8k.md.
"""

from ml_collections import ConfigDict

from capjax.config import load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration; `features` as in the recipe `flickr8k`."""
    config = load_config(f"self_critical:flickr8k_att2in:{features}")
    config.self_critical.temperature = 0.5
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.decoder.dropout_rate = 0.0
    config.train.init_from = "runs/flickr8k_att2in"
    config.train.ema_decay = 0.99
    config.train.num_steps = 800
    config.train.checkpoint_every = 100
    config.eval.every = 100
    return config
