"""Reinforcement of any recipe on Flickr8k: few photos, so few steps, on captions near those that a search finds.

    capjax train --config=configs/flickr8k_att2in.py --workdir=runs/flickr8k_att2in
    capjax train --config=configs/flickr8k_self_critical.py:flickr8k_att2in --workdir=runs/flickr8k_self_critical

The argument is the recipe that the model was trained with, its own argument included: `flickr8k_att2in:imported`. The
temperature matters most: what is learnt from captions drawn at 1 holds for new photos less, see
experiments/results/flickr8k.md.
"""

import pathlib

from ml_collections import ConfigDict

from capjax.config import load_config


def get_config(recipe: str = "flickr8k_att2in") -> ConfigDict:
    """Return the configuration of `recipe`, changed to reinforcement of what `runs/` holds of it."""
    config = load_config(f"self_critical:{recipe}")
    config.self_critical.temperature = 0.5
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.decoder.dropout_rate = 0.0
    config.train.init_from = f"runs/{pathlib.Path(recipe.partition(':')[0]).stem}"
    config.train.ema_decay = 0.99
    config.train.num_steps = 800
    config.train.checkpoint_every = 100
    config.eval.every = 100
    config.eval.patience = 0  # scores rise slowly and unevenly to the end
    return config
