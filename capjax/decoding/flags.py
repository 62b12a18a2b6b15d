"""The decoder settings as command-line flags, one per field, for every command that decodes."""

import argparse
import dataclasses

from capjax.decoding.settings import DecoderSettings


def add_decoder_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--method`, `--beam_size` and so on to a parser, unset by default."""
    group = parser.add_argument_group("decoder", "how captions are searched for; unset flags keep the model's settings")
    for setting in dataclasses.fields(DecoderSettings):
        kind = type(setting.default)
        text = setting.metadata["help"]
        if kind is bool:
            group.add_argument(f"--{setting.name}", action=argparse.BooleanOptionalAction, help=text)
        elif kind is tuple:
            group.add_argument(f"--{setting.name}", metavar="WORD,WORD", help=text)
        else:
            group.add_argument(f"--{setting.name}", type=kind, help=f"{text} (usual: {setting.default})")


def settings_from_flags(args: argparse.Namespace, base: DecoderSettings) -> DecoderSettings:
    """Return `base`, the settings a model comes with, changed by the flags that were given.

    Raises:
      CapjaxError: as `DecoderSettings.updated`.
    """
    return base.updated({setting.name: getattr(args, setting.name) for setting in dataclasses.fields(DecoderSettings)})
