"""Data sets of Hugging Face as they are named: ``hf:NAME``, ``hf:FOLDER`` or ``hf:FILE.parquet``, and settings behind."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path, PureWindowsPath

from fedact.config.errors import ConfigError, unknown
from fedact.config.paths import expanded
from fedact.config.spec import written_settings

PREFIX = "hf:"
PARQUET = ".parquet"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class HubData:
    """A data set of Hugging Face: a saved folder, a parquet file or a folder of such, or a name on the hub.

    place: the path or name. image, series, label, client: the columns of what is learned from, what is learned, and whose
    an example is; None: the one whose type says so (a client's must be named). subset: of a data set of several. split,
    test: what is trained and tested on.
    """

    place: str
    image: str | None = None
    series: str | None = None
    label: str | None = None
    client: str | None = None
    subset: str | None = None
    split: str | None = None
    test: str | None = None

    @property
    def path(self) -> Path | None:
        """Where it lies on the disk; None for a name on the hub, which no path has. Raises ConfigError for neither."""
        path = expanded(self.place)
        if path.exists():
            return path
        if not _HUB_NAME.fullmatch(self.place) or self.place.endswith(PARQUET):
            raise ConfigError(
                f"--dataset {PREFIX}{self.place}: no such file or folder, nor a name on the hub: NAME or OWNER/NAME"
            )
        return None

    @property
    def title(self) -> str:
        """What it is called: the last part of its path or name."""
        return PureWindowsPath(self.place).name or self.place

    def __str__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        settings = ",".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"{PREFIX}{self.place}:{settings}" if settings else f"{PREFIX}{self.place}"


def is_hub(text: str) -> bool:
    """Tell whether a data set is named as one of Hugging Face's."""
    return text.startswith(PREFIX)


def parse_hub(text: str) -> HubData:
    """Return the data set that ``hf:PLACE:key=value,...`` names; raises ConfigError for unknown settings.

    >>> parse_hub("hf:cifar100:label=fine_label").label
    'fine_label'
    """
    place = text.removeprefix(PREFIX)
    before, _, last = place.rpartition(":")
    items = last if before and "=" in last else ""
    place = before if items else place
    if not place.strip():
        raise ConfigError(f"--dataset {text}: a folder, a parquet file or a name on the hub must follow {PREFIX}")
    written = written_settings(items, text)
    allowed = [field.name for field in fields(HubData)][1:]
    for key in written:
        if key not in allowed:
            raise unknown(f"setting of {PREFIX}{place}", key, allowed)
    if "image" in written and "series" in written:
        raise ConfigError(f"--dataset {text}: image or series names the one column that is learned from, not both")
    return HubData(place.strip(), **written)


def hub_label(text: str) -> str:
    """Return what a data set is called: one of Hugging Face's by the last part of its place, others as they are.

    >>> hub_label("hf:/data/flowers.parquet:label=kind"), hub_label("digits")
    ('flowers.parquet', 'digits')
    """
    try:
        return parse_hub(text).title if is_hub(text) else text
    except ConfigError:
        return text


def absolute_hub(text: str) -> str:
    """Return the same name with a path in full, so that a run can go on from any folder."""
    data = parse_hub(text)
    return text if data.path is None else str(replace(data, place=str(data.path.absolute())))


def hub_on_device(text: str, folder: Path | None) -> str:
    """Return the name that a device has for a run's data set: its own folder where the server has a path.

    A server names no path on a device. Raises ConfigError where the device has no folder of its own, or for a name that is a
    path there.
    """
    data = parse_hub(text)
    if _HUB_NAME.fullmatch(data.place) and not data.place.endswith(PARQUET) and not Path(data.place).exists():
        return text
    if folder is None:
        raise ConfigError(f"{PREFIX}{data.title} lies in a folder: --node-config must say data-dir, where it lies here")
    return str(replace(data, place=str(folder)))
