"""Par-inject on Flickr8k: the whole image beside every word.

Paper: Tanti et al. 2018, Where to put the Image in an Image Caption Generator (https://arxiv.org/abs/1703.09137).

    capjax data prepare flickr8k --source=DIR
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k_par_inject.py
    capjax train --config=configs/flickr8k_par_inject.py --workdir=runs/flickr8k_par_inject

`configs/flickr8k_par_inject.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
It is `flickr8k_att2in` with one vector in place of the grid, and the best of our decoders without attention there;
figures are in experiments/results/flickr8k.md.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration; `features` as in the recipe `flickr8k`."""
    config = load_config(f"flickr8k_show_and_tell:{features}")
    config.decoder = decoder_config("par_inject", normalize_features=True, embed_size=384, hidden_size=384)
    return config
