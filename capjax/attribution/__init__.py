"""Where a model looked, word by word: each method is a file here and a line in `METHODS`.

`explainer.py` tells with them how a caption came about, `looks.py` of many; `pictures.py` is what methods share.

A method is a traceable function (captioner, variables, inputs, tokens) -> heat. The inputs are one image uint8
[1, S, S, 3], or its `Features`; the tokens [1, L + 1] are a caption from START on, filled up with PAD. The heat
[L, side, side] tells for every word, END among them, how much each place of the picture had to do with it; what it says
of padding means nothing.
"""

from capjax.attribution.attention import attention_heat
from capjax.attribution.integrated_gradients import integrated_gradients_heat
from capjax.attribution.occlusion import occlusion_heat

METHODS = {
    "attention": attention_heat,
    "occlusion": occlusion_heat,
    "integrated_gradients": integrated_gradients_heat,
}

__all__ = ["METHODS", "attention_heat", "integrated_gradients_heat", "occlusion_heat"]
