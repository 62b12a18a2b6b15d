"""A training run, but for its loop (`capjax.train`): what it works with, trains for, is validated by, goes on from."""
