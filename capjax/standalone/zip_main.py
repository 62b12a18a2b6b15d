"""The `__main__.py` of an exported file: `python captioner.pyz photo.jpg`."""

import sys

try:
    from exported_captioner import main
except ModuleNotFoundError as missing:
    sys.exit(f"error: expected jax, numpy and pillow, {missing.name} is not there; pip install jax numpy pillow")

sys.exit(main(sys.path[0]))  # the zip that Python was started with
