"""Att2in on Flickr8k with its Inception V3 fine-tuned, after im2txt's second phase.

Paper: Vinyals et al. 2016, Show and Tell: Lessons Learned (https://arxiv.org/abs/1609.06647).

    capjax train --config=configs/flickr8k_att2in.py --workdir=runs/flickr8k_att2in
    capjax train --config=configs/flickr8k_finetune.py --workdir=runs/flickr8k_finetune

It starts from a model that was trained on cached features, and looks at random crops of the photos: two CPU cores take
0.4 seconds an image, so it wants an accelerator.
"""

from ml_collections import ConfigDict

from capjax.config import load_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    config = load_config("flickr8k_att2in")
    config.features.dir = ""
    config.encoder.learning_rate_scale = 0.1
    config.optimizer.learning_rate = 2e-4
    config.train.init_from = "runs/flickr8k_att2in"
    config.train.augment = True
    config.train.num_workers = 1
    config.train.batch_size = 160
    config.train.captions_per_image = 5
    config.train.num_steps = 1_880  # 10 epochs of photos
    config.train.checkpoint_every = 188
    config.eval.every = 188
    return config
