"""The ImageNet weights that `capjax weights fetch` knows by name, and where copies of them are kept."""

import os
import pathlib

from capjax.host.disk import home_folder, local_path
from capjax.host.download import RemoteFile

_KERAS_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"

# URLs and hashes as Keras' own source pins them (keras/src/applications/inception_v3.py).
PUBLISHED = {
    "keras": RemoteFile(
        f"{_KERAS_APPLICATIONS}inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "keras_top": RemoteFile(
        f"{_KERAS_APPLICATIONS}inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
        "md5:9a0d58056eeedaa3f26cb7ebd46da564",
    ),
}


def default_cache_dir() -> pathlib.Path:
    """Return where weights are kept: $CAPJAX_CACHE/weights, or ~/.cache/capjax/weights.

    Raises:
        CapjaxError: if $CAPJAX_CACHE is a bucket, or there is neither that nor a home directory.
    """
    root = os.environ.get("CAPJAX_CACHE")
    return (local_path(root) if root else home_folder("CAPJAX_CACHE") / ".cache" / "capjax") / "weights"
