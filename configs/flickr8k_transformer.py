"""Transformer on Flickr8k: a small Transformer decoder on the grid.

Paper: Vaswani et al. 2017, Attention Is All You Need (https://arxiv.org/abs/1706.03762), pre-norm.

    capjax data prepare flickr8k --source=DIR
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k_transformer.py
    capjax train --config=configs/flickr8k_transformer.py --workdir=runs/flickr8k_transformer

`configs/flickr8k_transformer.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
No figure on Flickr8k was published.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration; `features` as in the recipe `flickr8k`."""
    config = load_config(f"flickr8k_show_and_tell:{features}")
    config.decoder = decoder_config(
        "transformer", normalize_features=True, hidden_size=256, num_heads=4, dropout_rate=0.3
    )
    config.optimizer.learning_rate = 5e-4
    config.encoder.grid = True
    config.features.dir += "-grid"
    return config
