"""Your own pictures: `configs/folder.py:NAME` trains on the dataset `folder/NAME`.

    capjax data prepare folder/NAME --images=DIR --captions=FILE      # CSV, JSONL or COCO JSON
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/folder.py:NAME
    capjax train --config=configs/folder.py:NAME --workdir=runs/NAME

Fashion, sport, one person's photo album: some thousand captioned images teach a domain's words; a few dozen are learnt
by heart, which shows that everything works.
"""

from ml_collections import ConfigDict

from capjax.config import default_config


def get_config(name: str = "mine") -> ConfigDict:
    """Return the configuration for the dataset `folder/<name>`."""
    config = default_config()
    config.dataset.name = f"folder/{name}"
    config.vocabulary.min_count = 2
    config.features.dir = f"features/{name}"
    config.decoder.dropout_rate = 0.3
    config.optimizer.clip_norm = 5.0
    config.train.max_tokens = 30
    config.train.num_steps = 3_000
    config.train.checkpoint_every = 250
    config.eval.every = 250
    config.eval.patience = 6
    config.search.max_length = 30
    return config
