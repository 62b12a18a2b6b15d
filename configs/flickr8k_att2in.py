"""Att2in on Flickr8k: attention into the cell of an LSTM alone.

Paper: Rennie et al. 2017, Self-critical Sequence Training (https://arxiv.org/abs/1612.00563).

    capjax data prepare flickr8k --source=DIR
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k_att2in.py
    capjax train --config=configs/flickr8k_att2in.py --workdir=runs/flickr8k_att2in

`configs/flickr8k_att2in.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
No figure on Flickr8k was published; ours are in experiments/results/flickr8k.md.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration; `features` as in the recipe `flickr8k`."""
    config = load_config(f"flickr8k_show_and_tell:{features}")
    config.decoder = decoder_config(
        "att2in", normalize_features=True, embed_size=384, hidden_size=384, attention_size=128
    )
    config.encoder.grid = True
    config.features.dir += "-grid"
    return config
