"""Up-Down on Flickr8k: one LSTM to look and one to speak, on the grid.

Paper: Anderson et al. 2018, Bottom-Up and Top-Down Attention (https://arxiv.org/abs/1707.07998).

    capjax data prepare flickr8k --source=DIR
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k_up_down.py
    capjax train --config=configs/flickr8k_up_down.py --workdir=runs/flickr8k_up_down

`configs/flickr8k_up_down.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
No figure on Flickr8k was published.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration; `features` as in the recipe `flickr8k`."""
    config = load_config(f"flickr8k_show_and_tell:{features}")
    config.decoder = decoder_config(
        "up_down", normalize_features=True, embed_size=384, hidden_size=384, attention_size=128
    )
    config.encoder.grid = True
    config.features.dir += "-grid"
    return config
