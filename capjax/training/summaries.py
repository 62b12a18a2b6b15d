"""What TensorBoard shows beside curves: pictures, tables and histograms, as it reads them from event files."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from capjax.training.tensorboard import HistogramProto, Summary, SummaryMetadata, TensorProto, TensorShapeProto

NUM_BUCKETS = 64
"""Of a histogram, equally wide between the least value and the greatest."""


def picture_summary(tag: str, picture: Image.Image) -> Summary.Value:
    """Show an RGB picture, as JPEG: a sheet of photos takes a fifth of what it would as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    width, height = picture.size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=buffer.getvalue())
    return Summary.Value(tag=tag, image=image)


def table_summary(tag: str, rows: Sequence[Sequence[str]]) -> Summary.Value:
    """Show rows of texts, equally many in each, as a table."""
    cells = [cell.encode("utf-8", errors="replace") for row in rows for cell in row]
    dimensions = [TensorShapeProto.Dim(size=size) for size in (len(rows), len(rows[0]))]
    tensor = TensorProto(dtype="DT_STRING", string_val=cells, tensor_shape=TensorShapeProto(dim=dimensions))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def histogram_summary(tag: str, values: Shaped[np.ndarray, "..."]) -> Summary.Value:
    """Show how numbers are distributed; those that are not finite are left out."""
    values = values.astype(np.float64).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        return Summary.Value(tag=tag, histo=HistogramProto())
    counts, edges = np.histogram(values, NUM_BUCKETS)
    histogram = HistogramProto(
        min=values.min(),
        max=values.max(),
        num=len(values),
        sum=values.sum(),
        sum_squares=values @ values,
        bucket_limit=edges[1:],
        bucket=counts,
    )
    return Summary.Value(tag=tag, histo=histogram)
