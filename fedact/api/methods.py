"""A method as ``fedact.run`` is given it, a text or an object, as the text by which every process finds it."""

from fedact.api.identity import class_digest
from fedact.compression import Method, method_name
from fedact.config.errors import ConfigError, shortened
from fedact.config.spec import spell
from fedact.processes.handover import give


def method_text(method: object) -> str:
    """Return the text that names a method: of one that is in no file, as in a notebook, by what it is made of.

    Raises ConfigError for what is neither a text nor a method.

    >>> from fedact.compression import METHODS
    >>> method_text(METHODS["hosvd"](variance=0.8)), method_text("exact")
    ('hosvd:variance=0.8', 'exact')
    """
    if isinstance(method, str):
        return method
    if not isinstance(method, Method):
        raise ConfigError(f"method is {shortened(method)}: it is a name, a fedact.compression.Method, or a list of these")
    try:
        return method_name(method)
    except ConfigError:  # it is in no file
        kind = type(method)
        return spell(give(kind, kind.__name__, class_digest(kind)), method)
