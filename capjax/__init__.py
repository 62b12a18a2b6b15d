"""capjax: CNN-to-RNN image captioning in JAX.

What the commands do, as functions, see `capjax.api`:

    import capjax

    model = capjax.load_model("demo/run/model")
    for caption in capjax.caption_photos(model, ["photo.jpg"], beam_size=3):
        print(caption.text, caption.log_prob)
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["caption_photos", "evaluate_model", "load_model", "score_captions", "train_model"]

if TYPE_CHECKING:
    from capjax.api import caption_photos, evaluate_model, load_model, score_captions, train_model


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when they are used: `capjax --help` must not wait for JAX
        from capjax import api

        return getattr(api, name)
    raise AttributeError(f"module 'capjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
