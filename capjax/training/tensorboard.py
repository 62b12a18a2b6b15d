"""TensorBoard's event files and the messages in them, from tensorboardX.

tensorboardX looks for PyTorch, for the sake of tensors that capjax does not have. Where it is installed that would take
the start of every run a second, so it is kept out of sight.
"""

import sys

_HIDDEN = "torch" not in sys.modules
if _HIDDEN:
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it now fails, and tensorboardX does without
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
    from tensorboardX.proto.tensor_pb2 import TensorProto
    from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
finally:
    if _HIDDEN:
        del sys.modules["torch"]

__all__ = [
    "Event",
    "EventsWriter",
    "HistogramProto",
    "SessionLog",
    "Summary",
    "SummaryMetadata",
    "TensorProto",
    "TensorShapeProto",
]
