"""Show and Tell on Flickr8k: the image as the first word of an LSTM.

Paper: Vinyals et al. 2015, Show and Tell (https://arxiv.org/abs/1411.4555).

    capjax data prepare flickr8k --source=DIR
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/flickr8k_show_and_tell.py
    capjax train --config=configs/flickr8k_show_and_tell.py --workdir=runs/flickr8k_show_and_tell

`configs/flickr8k_show_and_tell.py:imported` takes features that another program made, as `configs/flickr8k.py` says.
Published on Flickr8k: NIC, in others' comparisons, beam search: BLEU-4 19.8 to 20.9, CIDEr 48 to 50.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config(features: str = "inception_v3") -> ConfigDict:
    """Return the configuration, from which the tuned recipes start; `features` as in the recipe `flickr8k`."""
    config = load_config(f"flickr8k:{features}")
    config.decoder = decoder_config("show_and_tell", normalize_features=True, dropout_rate=0.5)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.train.label_smoothing = 0.1
    config.train.ema_decay = 0.998
    config.train.num_steps = 5_000
    config.train.checkpoint_every = 1_000
    config.eval.every = 500
    return config
