"""Attributes that are different for the time of a call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of `target`, and set them back, whatever happens. What was its class's is so again.

    Raises:
        AttributeError: There is no such attribute.
    """
    for name in attributes:
        getattr(target, name)
    own = {name: vars(target)[name] for name in attributes if name in vars(target)}
    vars(target).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del vars(target)[name]
        vars(target).update(own)
