"""Att2in on Karpathy's COCO split: attention into the cell of an LSTM alone.

Paper: Rennie et al. 2017, Self-critical Sequence Training (https://arxiv.org/abs/1612.00563).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_att2in.py      # the grid, 33 GB
    capjax train --config=configs/coco_att2in.py --workdir=runs/coco_att2in
    capjax evaluate --model=runs/coco_att2in/model --split=test --beam_size=3

Published: ResNet-101, beam search, cross-entropy: CIDEr 101.3; after self-critical training 111.4.
Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("coco_show_and_tell")
    config.decoder = decoder_config("att2in")
    config.encoder.grid = True
    config.features.dir = "features/coco_karpathy-inception_v3-grid"
    return config
