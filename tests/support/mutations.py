"""Small valid files, and what can go wrong with them: bytes, pieces, types, sizes, names, promises."""

import copy
import io
import json
import random
import struct
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from safetensors.torch import load_file, save_file

HUGE = [2**31, 2**63 - 1, 2**63, 10**30, 10**400]
STRINGS = [
    "", " ", "x", "0", "-1", "nan", "inf", "1e999", "none", "auto", "null", "a" * 10**5, "\u202e\u0000", "\U0001f4a9" * 99,
    "\u0663", "\ud800", "a\nb\rc\u2028d", "../../escape", "/dev/zero", "../outside/secret.txt", "~root/x", "%s%n{}", "$HOME",
    "hosvd:variance=0.8,variance=0.8", "exact:", "1KB:1,", "hosvd:ranks=9999999999999x1x1x1", "quantize:bits=0", "cuda:99",
    "shards:per_client=99999999999999999999", "dirichlet:alpha=1e-300", "2KB:1e308,3KB:1e308", "9" * 5000 + "KB", "imagenet",
]  # fmt: skip
NUMBERS = [-1, 0, 1, 2, 3, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), -(2**63), *HUGE]
OTHERS = [None, True, False, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["../../escape"]]
LONG = ("rounds", "local_epochs", "seeds", "width", "resolution")
"""More of these is right, and takes long."""


def value(random_: random.Random) -> Any:
    """Return something that stands where something else should."""
    kind = random_.randrange(5)
    if kind == 0:
        return nested(random_.choice([3, 50, 300]))
    return copy.deepcopy(random_.choice((NUMBERS, STRINGS, OTHERS, NUMBERS)[kind - 1]))


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


# Bytes ---------------------------------------------------------------------------------------------------------------------


def flipped(content: bytearray, random_: random.Random) -> None:
    for _ in range(random_.choice([1, 2, 20])):
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)


def cut_off(content: bytearray, random_: random.Random) -> None:
    del content[random_.randrange(len(content)) :]


def without(content: bytearray, random_: random.Random) -> None:
    start = random_.randrange(len(content))
    del content[start : start + random_.choice([1, 10, 1000])]


def twice(content: bytearray, random_: random.Random) -> None:
    start, length = random_.randrange(len(content)), random_.choice([1, 10, 1000])
    content[start:start] = content[start : start + length]


def zeroed(content: bytearray, random_: random.Random) -> None:
    start, length = random_.randrange(len(content)), random_.choice([8, 100])
    content[start : start + length] = bytes(len(content[start : start + length]))


def with_noise(content: bytearray, random_: random.Random) -> None:
    start = random_.randrange(len(content))
    content[start:start] = random_.randbytes(random_.choice([1, 8, 100]))


def nothing(content: bytearray, random_: random.Random) -> None:
    content.clear()


BYTES: list[Callable[[bytearray, random.Random], None]] = [flipped, cut_off, without, twice, zeroed, with_noise, nothing]


def in_bytes(file: Path, random_: random.Random) -> None:
    content = bytearray(file.read_bytes())
    random_.choice(BYTES)(content, random_)
    file.write_bytes(content)


def as_a_link(file: Path, random_: random.Random, away: Path) -> None:
    """Put a link in the file's place: to its old content, to a secret, to a folder, to itself, to nothing."""
    where = random_.choice([away / file.name, away / "secret.txt", away, file, away / "new.txt"])
    if where == away / file.name:
        where.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(where)


# Trees ---------------------------------------------------------------------------------------------------------------------


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each piece of a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] * bool(path) + [way for key, piece in items for way in places(piece, (*path, key))]


def in_tree(tree: Any, random_: random.Random, allowed: Callable[[Any, Any], bool] = lambda key, value: True) -> None:
    """Put something else into one piece of a tree: another value, another name, nothing, or twice the piece."""
    *way, key = random_.choice(places(tree))
    holder = tree
    for step in way:
        holder = holder[step]
    kind = random_.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[random_.choice(STRINGS)] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        new = value(random_)
        while not allowed(key, new):
            new = value(random_)
        holder[key] = new


def in_json(file: Path, random_: random.Random) -> None:
    tree = [json.loads(file.read_text())]
    in_tree(tree, random_)
    file.write_text(json.dumps(tree[0] if tree else None), encoding="utf-8", errors="surrogatepass")


def in_json_lines(file: Path, random_: random.Random) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    in_tree(rows, random_)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass")


def lines_moved(file: Path, random_: random.Random) -> None:
    lines = file.read_text().splitlines(keepends=True)
    first, second = random_.randrange(len(lines)), random_.randrange(len(lines))
    lines[first], lines[second] = lines[second], random_.choice([lines[first], "", lines[second], "\n", "\0" * 4096])
    file.write_text("".join(lines))


def numbers_in_rows(file: Path, random_: random.Random) -> None:
    """Put another number into a table of numbers, or something that is none."""
    rows = [line.split(",") for line in file.read_text().splitlines()]
    row = rows[random_.randrange(1, len(rows))]
    place = random_.randrange(len(row))
    row[place] = random_.choice(
        ["0", "1", "-1", "1.0", "1e3", "007", "", " 1", "\u0663", "nan", str(10**18), str(2**70), "1,1"]
    )
    file.write_text("".join(",".join(row) + "\n" for row in rows))


def not_long(key: Any, new: Any) -> bool:
    return key not in LONG or not isinstance(new, int | float) or not 3 <= new < float("inf")


def in_toml(file: Path, random_: random.Random) -> None:
    tree = tomllib.loads(file.read_text())
    for _ in range(random_.choice([1, 1, 2])):
        in_tree(tree, random_, not_long)
    try:
        text = tomli_w.dumps(tree)
    except (TypeError, ValueError, RecursionError):
        # What TOML has no word for is written as it is.
        text = "\n".join(f"{key} = {new!r}" for key, new in tree.items())
    file.write_text(text, encoding="utf-8", errors="surrogatepass")


def deep_toml(file: Path, random_: random.Random) -> None:
    deep = random_.choice([10**2, 10**4])
    file.write_text(
        file.read_text() + random_.choice([f"a = {'[' * deep}{']' * deep}", f"{'a.' * deep}a = 1", f"x = {'9' * deep}"])
    )


# Weights -------------------------------------------------------------------------------------------------------------------


def in_header(file: Path, random_: random.Random) -> None:
    """Change the header of a safetensors file, with its length in step or not."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tree = json.loads(content[8 : 8 + length])
    in_tree(tree, random_)
    header = json.dumps(tree).encode("utf-8", "surrogatepass")
    promised = random_.choice([len(header), len(header), len(header), length, 0, 2**40, 2**64 - 1])
    file.write_bytes(struct.pack("<Q", promised) + header + content[8 + length :])


def other_tensor(tensor: torch.Tensor, random_: random.Random) -> Any:
    choices: list[Callable[[], Any]] = [
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor,
        lambda: tensor.double() * 1e300,
        lambda: tensor.to(torch.complex64),
        lambda: tensor.bool(),
        lambda: tensor.half(),
        lambda: tensor.flatten()[:-1],
        lambda: tensor[None],
        lambda: torch.zeros(0),
    ]
    return random_.choice(choices)()


def unlike_tensor(tensor: torch.Tensor, random_: random.Random) -> Any:
    choices: list[Callable[[], Any]] = [
        lambda: torch.zeros(1).expand(10**12),
        lambda: torch.zeros(1).expand(tensor.shape),
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
        lambda: 3,
        lambda: {"a": tensor},
        lambda: None,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: nested(200),
    ]
    return random_.choice(choices)()


def in_tensors(tensors: dict[Any, Any], random_: random.Random, other: Callable[[Any, random.Random], Any]) -> None:
    name = random_.choice(sorted(tensors)[-8:])
    kind = random_.randrange(5)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[random_.choice(STRINGS).encode("utf-8", "replace").decode()] = tensors.pop(name)
    else:
        tensors[name] = other(tensors[name], random_)


def in_safetensors(file: Path, random_: random.Random) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    in_tensors(tensors, random_, other_tensor)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)


def in_pth(file: Path, random_: random.Random) -> None:
    tensors = torch.load(file, weights_only=True)
    in_tensors(tensors, random_, random_.choice([other_tensor, unlike_tensor]))
    torch.save(tensors, file)


def in_zip(file: Path, random_: random.Random) -> None:
    """Pack a zip file anew with one member changed, gone, twice, elsewhere, swollen or marked as encrypted."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random_.choice(sorted(members))
    kind = random_.randrange(5)
    content = bytearray(members.pop(name))
    if kind == 0 and content:
        random_.choice(BYTES)(content, random_)
    with zipfile.ZipFile(file, "w", random_.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for other, unchanged in members.items():
            archive.writestr(other, unchanged)
        if kind in (0, 1, 4):
            archive.writestr("../../escape" if kind == 1 else name, bytes(content))
        elif kind == 2:
            with archive.open(name, "w") as swollen:
                for _ in range(300):
                    swollen.write(bytes(10**6))
    if kind == 4:
        raw = bytearray(file.read_bytes())
        for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = raw.find(mark)
            raw[at + flags] |= 1
        file.write_bytes(raw)


# Arrays --------------------------------------------------------------------------------------------------------------------


def in_arrays(file: Path, random_: random.Random) -> None:
    with np.load(file) as loaded:
        arrays = dict(loaded)
    name = random_.choice(sorted(arrays))
    array = arrays.pop(name)
    choices: list[Callable[[], Any]] = [
        lambda: array.astype(random_.choice(["f4", "f8", "i1", "i8", "u8", "?", "c8", "S3", "U2", "O", "M8[s]"])),
        lambda: array[:-1],
        lambda: array[None],
        lambda: array[:0],
        lambda: array.T,
        lambda: np.full(array.shape, random_.choice([-1, 2**31, 2**63 - 1, 99_999])),
        lambda: np.zeros(array.shape, [("a", "u1"), ("b", "f4")]),
        lambda: np.asfortranarray(array),
        lambda: array.astype(">i8"),
        lambda: np.zeros((len(array), 1, 5000, 3), np.uint8),
    ]
    arrays[random_.choice([name, name, name, "../../escape"])] = random_.choice(choices)()
    np.savez_compressed(file, **arrays)


def promising(file: Path, random_: random.Random) -> None:
    """Write a header that promises more, less or other than there is."""
    with np.load(file) as loaded:
        arrays = dict(loaded)
    name = random_.choice(sorted(arrays))
    shape = random_.choice(
        ["(1099511627776, 32, 32, 3)", "(-1, 8, 8, 3)", "(9" + "9" * 300 + ",)", "()", "(2.5,)", "(" * 500, "(True,)"]
    )
    descr = random_.choice(["'|u1'", "'<i8'", "'O'", "[('a', '<f8')]", "__import__('os').getcwd()", "'|V999999999'"])
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    version = random_.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    with zipfile.ZipFile(file, "w") as archive:
        for key, array in arrays.items():
            plain = io.BytesIO()
            np.save(plain, array)
            archive.writestr(
                f"{key}.npy", plain.getvalue() if key != name else b"\x93NUMPY" + version + size + text.encode() + b"\0" * 99
            )


MUTATIONS: dict[str, list[Callable[..., None]]] = {
    "config": [in_toml, in_toml, in_toml, in_bytes, deep_toml, as_a_link],
    "devices": [in_toml, in_toml, in_bytes, deep_toml, as_a_link],
    "records": [in_json_lines, in_json_lines, in_json_lines, lines_moved, in_bytes, as_a_link],
    "plans": [in_json, in_json, in_json, in_bytes, as_a_link],
    "partition": [numbers_in_rows, lines_moved, in_bytes, as_a_link],
    "resumed config": [in_toml, in_toml, in_bytes, as_a_link],
    "checkpoint": [in_safetensors, in_header, in_bytes, as_a_link],
    "states": [in_safetensors, in_header, in_bytes, as_a_link],
    "safetensors": [in_safetensors, in_header, in_bytes, as_a_link],
    "pth": [in_pth, in_pth, in_bytes, in_zip, as_a_link],
    "npz": [in_arrays, promising, in_zip, in_bytes, as_a_link],
}
"""What can go wrong with each kind of file."""


def mutate(kind: str, number: int, file: Path, away: Path) -> None:
    """Change a file in the number-th way; links lead to another folder."""
    random_ = random.Random(f"{kind} {number}")
    way = MUTATIONS[kind][number % len(MUTATIONS[kind])]
    if way is as_a_link:
        as_a_link(file, random_, away)
    else:
        way(file, random_)
