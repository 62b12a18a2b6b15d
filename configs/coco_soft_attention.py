"""soft attention on Karpathy's COCO split: an LSTM that looks at the grid anew for every word.

Paper: Xu et al. 2015, Show, Attend and Tell (https://arxiv.org/abs/1502.03044).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_soft_attention.py      # the grid, 33 GB
    capjax train --config=configs/coco_soft_attention.py --workdir=runs/coco_soft_attention
    capjax evaluate --model=runs/coco_soft_attention/model --split=test --beam_size=3

Published: VGG-19, beam search: BLEU-4 24.3, METEOR 23.9. Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("coco_show_and_tell")
    config.decoder = decoder_config("soft_attention")
    config.encoder.grid = True
    config.features.dir = "features/coco_karpathy-inception_v3-grid"
    return config
