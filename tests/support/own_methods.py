"""A method as a user writes it, as text; and an installed package that brings one."""

from pathlib import Path

MINE = '''
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedact.compression import NO_STATE, Compressed, Method, Traits, shape_of


@dataclass(frozen=True)
class Half(Method):
    """Stores the input in 16-bit floating point."""

    traits: ClassVar[Traits] = Traits(source="IEEE 754-2008, binary16", per_example=True, gentlest="", rounding=1e-3)

    scale: Annotated[float, Field(gt=0, le=8)] = 1.0

    def compress(self, x, state=NO_STATE):
        return Compressed(((x * self.scale).half(),), x.dtype)

    def reconstruct(self, compressed):
        return compressed.tensors[0].to(compressed.metadata) / self.scale

    def predicted_bytes(self, x):
        return 2 * prod(shape_of(x))
'''
"""A file with a method, ``Half``, and its setting ``scale``, above 0 and at most 8."""

BAD = {
    "number = 3": ("number", "number is of type int: a method is a class that inherits fedact.compression.Method"),
    "def Half(): ...": ("Half", "is of type function: a method is a class"),
    "class Half: ...": ("Half", "is the class Half: a method is a class that inherits"),
    "@dataclass(frozen=True)\nclass Less(Method):\n    traits: ClassVar[Traits] = Traits('')": (
        "Less", "lacks compress, predicted_bytes, reconstruct, which every method has",
    ),
    "class Plain(Half):\n    bits: int = 8": ("Plain", r"is no dataclass: put @dataclass\(frozen=True\) before the class"),
    "@dataclass(frozen=True)\nclass NoTraits(Half):\n    traits = None": ("NoTraits", "lacks its traits"),
    "@dataclass(frozen=True)\nclass Raises(Half):\n    def __post_init__(self):\n        raise ValueError('no\\nway')": (
        "Raises", "cannot be made: ValueError: no way",
    ),
    "@dataclass(frozen=True, kw_only=True)\nclass Needs(Half):\n    bits: int": ("Needs", "needs a value for bits"),
    "@dataclass(frozen=True)\nclass Later(Half):\n    bits: 'Nowhere' = 1": ("Later", "cannot be made: NameError"),
    "@dataclass(frozen=True)\nclass Listed(Half):\n    bits: list[int] = None": ("Listed:bits=1", "bits .*cannot be '1'"),
    "": ("Hal", "there is no 'Hal' in .*did you mean 'Half'"),
    "1 / 0": ("Half", "fails, line .*ZeroDivisionError"),
    "class (": ("Half", "fails, line .*SyntaxError"),
    "raise SystemExit(3)": ("Half", "fails, line .*SystemExit: 3"),
}  # fmt: skip
"""What is added to the file, the name that is asked for, and what is said of it."""


def write_mine(folder: Path, more: str = "", name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(f"{MINE}\n\n{more}\n", encoding="utf-8")
    return file


def install(folder: Path, package: str, points: dict[str, str], text: str = MINE) -> None:
    """Lay a package with entry points into a folder, as an installer does into site-packages."""
    (folder / f"{package}.py").write_text(text, encoding="utf-8")
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (information / "entry_points.txt").write_text("\n".join(["[fedact.methods]", *lines, ""]), encoding="utf-8")
