"""Training curves as a PNG."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.report.charts import panels


def write_curves(path: str | os.PathLike[str], log: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Draw reward, loss, perplexity, accuracy, validation CIDEr-D and learning rate by step, as far as logged.

    Args:
      path: PNG to write.
      log: training records, see `read_log` and `panels`.
      title: heading, for instance the name of the run.

    Raises:
      CapjaxError: the log holds nothing to draw, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second to import, which the page alone can do without

    charts = panels(log)
    if not charts:
        raise CapjaxError(f"expected training records with a loss, got {len(log)} without any; train some steps first")
    columns = min(len(charts), 3)
    num_rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * num_rows + (0.4 if title else 0)), dpi=120, layout="constrained")
    colours = {"training": "#8a94a6", "validation": "#1f5fbf"}
    for index, panel in enumerate(charts):
        axes = figure.add_subplot(num_rows, columns, index + 1)
        for series in panel.series:
            style = {"color": colours.get(series.name, "#1f5fbf"), "marker": "o" if len(series.steps) <= 60 else ""}
            axes.plot(series.steps, series.values, markersize=3, linewidth=1.6, label=series.name, **style)
            if series.best:
                step, value = series.best
                axes.plot([step], [value], "o", color="#d55e00", markersize=6, label=f"best {value:.{panel.decimals}f}")
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.series) > 1 or any(series.best for series in panel.series):
            axes.legend(fontsize=8, frameon=False)
    if title:
        figure.suptitle(title, fontsize=12, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
