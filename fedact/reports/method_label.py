"""What a method is called where it is shown: one of the user's own without the folders of its file."""

import re

_FOLDERS = re.compile(r"(?:^|(?<=:))[^:\n]*[/\\](?=[^/\\:\n]+\.py:)|fedact_own_given_\w+:")


def method_label(name: object) -> str:
    """Return a method's name as it is shown.

    >>> method_label("/home/me/mine.py:Half:scale=2"), method_label("hosvd:variance=0.8")
    ('mine.py:Half:scale=2', 'hosvd:variance=0.8')
    """
    return _FOLDERS.sub("", str(name))
