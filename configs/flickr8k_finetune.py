"""Any recipe on Flickr8k with its Inception V3 fine-tuned, after im2txt's second phase.

Paper: Vinyals et al. 2016, Show and Tell: Lessons Learned (https://arxiv.org/abs/1609.06647).

    capjax train --config=configs/flickr8k_att2in.py --workdir=runs/flickr8k_att2in
    capjax train --config=configs/flickr8k_finetune.py:flickr8k_att2in --workdir=runs/flickr8k_finetune

The argument is the recipe of the model that it starts from, which was trained on cached features. It looks at random
crops of the photos: two CPU cores take 0.4 seconds an image, so it wants an accelerator.
"""

import pathlib

from ml_collections import ConfigDict

from capjax.config import load_config


def get_config(recipe: str = "flickr8k_att2in") -> ConfigDict:
    """Return the configuration of `recipe`, changed to fine-tuning of what `runs/` holds of it."""
    config = load_config(recipe)
    config.features.dir = ""
    config.encoder.learning_rate_scale = 0.1
    config.optimizer.learning_rate = 2e-4
    config.train.init_from = f"runs/{pathlib.Path(recipe.partition(':')[0]).stem}"
    config.train.augment = True
    config.train.num_workers = 1
    config.train.batch_size = 160
    config.train.captions_per_image = 5
    config.train.num_steps = 1_880  # 10 epochs of photos
    config.train.checkpoint_every = 188
    config.eval.every = 188
    return config
