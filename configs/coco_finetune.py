"""Karpathy's COCO split with a fine-tuned Inception V3, after im2txt's second phase, for the reference decoder.

Paper: Vinyals et al. 2016, Show and Tell: Lessons Learned (https://arxiv.org/abs/1609.06647).

    capjax data prepare coco/karpathy
    capjax weights fetch keras --out=inception_v3.safetensors
    capjax train --config=configs/coco_finetune.py --workdir=runs/coco_finetune

It reads images, not cached features, and wants an accelerator. im2txt's second phase goes on from a decoder that was
trained while the encoder was frozen; so does this one with `--config.train.init_from=RUN`, of a run with the same
decoder. Published for the paper's system, an ensemble with beam 3, on the 2015 challenge server (c5): CIDEr-D 94.3,
BLEU-4 30.9. Not measured with capjax yet.
"""

from ml_collections import ConfigDict

from capjax.config import default_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = default_config()
    config.dataset.name = "coco/karpathy"
    config.vocabulary.tokenizer = "ptb"
    config.encoder.weights = "inception_v3.safetensors"
    config.encoder.learning_rate_scale = 0.1
    config.encoder.dtype = "bfloat16"
    config.decoder.embed_size = 512
    config.decoder.hidden_size = 512
    config.decoder.image_bottleneck_size = 512
    config.decoder.logit_bottleneck_size = 512
    config.decoder.dropout_rate = 0.3
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 1_000
    config.optimizer.clip_norm = 5.0
    config.train.batch_size = 320
    config.train.captions_per_image = 5
    config.train.dtype = "bfloat16"
    config.train.augment = True
    config.train.num_workers = 8
    config.train.num_steps = 50_000
    config.eval.batch_size = 64
    config.search.method = "beam"
    config.search.beam_size = 3
    return config
