"""Transformer on Karpathy's COCO split: a small Transformer decoder on the grid.

Paper: Vaswani et al. 2017, Attention Is All You Need (https://arxiv.org/abs/1706.03762), pre-norm.

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_transformer.py      # the grid, 33 GB
    capjax train --config=configs/coco_transformer.py --workdir=runs/coco_transformer
    capjax evaluate --model=runs/coco_transformer/model --split=test --beam_size=3

No figure of this very model was published. Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("coco_show_and_tell")
    config.decoder = decoder_config("transformer")
    config.encoder.grid = True
    config.features.dir = "features/coco_karpathy-inception_v3-grid"
    return config
