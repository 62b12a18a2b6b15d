"""What a training step computes and how its numbers are logged, without a configuration, a dataset or a folder."""
