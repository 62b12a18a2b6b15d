"""The oldest versions that setup.py allows are those of tests/oldest.txt, which the tests are run with."""

import ast
import pathlib
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = pathlib.Path(__file__).parent


def requirements() -> Iterator[Requirement]:
    """Read what setup.py asks for, extras included."""
    (call,) = (
        node
        for node in ast.walk(ast.parse((HERE.parent / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    listed = [ast.literal_eval(given["install_requires"]), *ast.literal_eval(given["extras_require"]).values()]
    yield from (Requirement(text) for texts in listed for text in texts)


def pins() -> dict[str, Version]:
    """Read the constraints."""
    lines = (line.split("#")[0].strip() for line in (HERE / "oldest.txt").read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    assert len({canonicalize_name(pin.name) for pin in found}) == len(found)
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found}


def test_every_lower_bound_is_the_version_that_was_tried() -> None:
    bounds: dict[str, set[Version]] = {}
    for requirement in requirements():
        if requirement.extras and not requirement.specifier:  # jax[tpu]: of the version of jax
            assert canonicalize_name(requirement.name) in bounds
            continue
        lowest = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==")]
        assert len(lowest) == 1, f"{requirement} has no lower bound"
        assert lowest[0] in requirement.specifier
        bounds.setdefault(canonicalize_name(requirement.name), set()).update(lowest)
    assert bounds == {name: {version} for name, version in pins().items()}
