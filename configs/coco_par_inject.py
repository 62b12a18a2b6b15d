"""Par-inject on Karpathy's COCO split: the whole image beside every word.

Paper: Tanti et al. 2018, Where to put the Image in an Image Caption Generator (https://arxiv.org/abs/1703.09137).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_par_inject.py
    capjax train --config=configs/coco_par_inject.py --workdir=runs/coco_par_inject
    capjax evaluate --model=runs/coco_par_inject/model --split=test --beam_size=3

Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("coco_show_and_tell")
    config.decoder = decoder_config("par_inject")
    return config
