"""The pieces of a training run: state, optimiser, steps and logs. The loop is `capjax.train`."""
