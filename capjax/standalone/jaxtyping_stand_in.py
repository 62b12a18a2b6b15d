"""Stands in for jaxtyping where that is not installed: annotations that say nothing."""


class UInt8:
    """An array annotation that is not checked."""

    def __class_getitem__(cls, item: object) -> type:
        return cls
