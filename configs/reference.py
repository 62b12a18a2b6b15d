"""The reference system to the letter: Inception V3 features, an init-inject LSTM, COCO captions 2014.

Paper: a small relative of Show and Tell (Vinyals et al. 2015, https://arxiv.org/abs/1411.4555).

    capjax data prepare coco/2014
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax features --config=configs/reference.py
    capjax train --config=configs/reference.py --workdir=runs/reference

Published for it: training / validation loss 2.500 / 2.603 nats after 12 epochs of 1,000 batches, 2.295 / 2.489 after
30, next-word accuracy about 0.49; no caption metric. Not measured with capjax yet: it takes the COCO photographs.
"""

from ml_collections import ConfigDict

from capjax.config import default_config


def get_config() -> ConfigDict:
    """Return the configuration; the defaults are the reference system's, stated again where it is known by them."""
    config = default_config()
    config.dataset.name = "coco/2014"
    config.vocabulary.tokenizer = "words"
    config.vocabulary.min_count = 5  # 8,769 entries on COCO train2014
    config.encoder.weights = "inception_v3.safetensors"
    config.features.dir = "features/coco2014-inception_v3"
    config.optimizer.learning_rate = 1e-3
    config.train.batch_size = 64
    config.train.max_tokens = 20
    config.train.num_steps = 12_000
    config.eval.every = 1_000
    return config
