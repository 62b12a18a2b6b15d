"""capjax: CNN-to-RNN image captioning in JAX."""

__version__ = "0.2.0"
