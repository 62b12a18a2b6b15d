"""From a configuration to a run: what it works with, trains for, is validated by and goes on from."""
