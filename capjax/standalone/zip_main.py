"""The `__main__.py` of an exported file: `python captioner.pyz photo.jpg`."""

import contextlib
import os
import sys

for stream in (sys.stdout, sys.stderr):
    if stream is not None:  # file names may hold bytes that are no text
        stream.reconfigure(errors="backslashreplace")
try:
    from exported_captioner import main

    status = main(sys.path[0])  # the zip that Python was started with
except ModuleNotFoundError as missing:
    sys.exit(f"error: expected jax, numpy and pillow, {missing.name} is not there; pip install jax numpy pillow")
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    status = 130
except BrokenPipeError:  # whoever read the captions has seen enough: `… | head`
    status = 141
except OSError as error:
    print(f"error: {error}", file=sys.stderr)
    status = 1
for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):
        if stream is not None:
            stream.flush()
os._exit(status)  # what could not be written would be an error once more
