"""Show and Tell on Karpathy's COCO split: the image as the first word of an LSTM.

Paper: Vinyals et al. 2015, Show and Tell (https://arxiv.org/abs/1411.4555).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/coco_show_and_tell.py
    capjax train --config=configs/coco_show_and_tell.py --workdir=runs/coco_show_and_tell
    capjax evaluate --model=runs/coco_show_and_tell/model --split=test --beam_size=3

Published: COCO, beam search: BLEU-4 27.7, METEOR 23.7, CIDEr 85.5. Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import decoder_config, default_config


def get_config() -> ConfigDict:
    """Return the configuration, from which the other recipes for Karpathy's split start."""
    config = default_config()
    config.dataset.name = "coco/karpathy"
    config.vocabulary.tokenizer = "ptb"
    config.features.dir = "features/coco_karpathy-inception_v3"
    config.features.dtype = "float16"
    config.decoder = decoder_config("show_and_tell")
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 1_000
    config.optimizer.clip_norm = 5.0
    config.train.batch_size = 256
    config.train.num_steps = 44_000  # 20 epochs of captions
    config.train.checkpoint_every = 2_200
    config.eval.every = 2_200
    config.search.method = "beam"
    config.search.beam_size = 3
    return config
