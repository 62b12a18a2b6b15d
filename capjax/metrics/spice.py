"""SPICE (Anderson et al. 2016) through the published Java program, where that runs.

The program needs the parser models of Stanford CoreNLP 3.6.0, half a gigabyte that `pycocoevalcap` fetches separately.
Nothing is downloaded here: without them SPICE is left out, with the reason.
"""

import contextlib
import io
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from capjax.errors import CapjaxError
from capjax.metrics.metric_result import MetricResult, mean_result
from capjax.metrics.published_scorer import published_scorer

_MODELS = "stanford-corenlp-3.6.0-models.jar"


def compute(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[MetricResult, str]:
    """Return SPICE for each image and the name of the program that computed it.

    Raises:
      CapjaxError: the published scorer is not installed, lacks its models or Java, or fails.
    """
    scorer = published_scorer()
    if scorer is None:
        raise CapjaxError("SPICE needs the published scorer: install pycocoevalcap and Java 8")
    if shutil.which("java") is None:
        raise CapjaxError("SPICE needs Java, and there is no `java` on the PATH")
    library = scorer / "spice" / "lib"
    if not (library / _MODELS).exists():
        raise CapjaxError(f"SPICE needs {_MODELS} in {library}; `python -m pycocoevalcap.spice.get_stanford_models`")
    from pycocoevalcap.spice.spice import Spice

    captions = {image: [" ".join(tokens)] for image, tokens in enumerate(hypotheses)}
    truth = {image: [" ".join(tokens) for tokens in each] for image, each in enumerate(references)}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, details = Spice().compute_score(truth, captions)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        raise CapjaxError(f"the published SPICE program failed: {error}") from error
    return mean_result(np.array([detail["All"]["f"] for detail in details])), "pycocoevalcap (Java)"
