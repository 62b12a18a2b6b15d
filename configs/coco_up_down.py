"""Up-Down on Karpathy's COCO split: one LSTM to look and one to speak, on the grid.

Paper: Anderson et al. 2018, Bottom-Up and Top-Down Attention (https://arxiv.org/abs/1707.07998).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_up_down.py      # the grid, 33 GB
    capjax train --config=configs/coco_up_down.py --workdir=runs/coco_up_down
    capjax evaluate --model=runs/coco_up_down/model --split=test --beam_size=3

Published: ResNet grid, beam 5, cross-entropy: CIDEr 105.4; after self-critical training 111.1.
Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("coco_show_and_tell")
    config.decoder = decoder_config("up_down")
    config.encoder.grid = True
    config.features.dir = "features/coco_karpathy-inception_v3-grid"
    return config
