"""What a number may be, declared beside it: `epochs: Annotated[float, Bound(gt=0)]`, in a dataclass or a signature.

NaN and the infinities are never allowed. The errors name the field by its dotted path.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from pixelbert.errors import PixelBertError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Bound:
    """The limits of a number: at least `ge`, at most `le`, more than `gt`, less than `lt`."""

    ge: float | None = None
    le: float | None = None
    gt: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.le is None or value <= self.le)
            and (self.gt is None or value > self.gt)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"{self.ge:,} to {self.le:,}"
        limits = (("at least", self.ge), ("more than", self.gt), ("at most", self.le), ("less than", self.lt))
        return " and ".join(f"{words} {limit:,}" for words, limit in limits if limit is not None)

    __repr__ = __str__  # in --help, within a type


COUNT = Bound(ge=1, le=2**31 - 1)  # of steps, examples, pairs
ZERO_OR_MORE = Bound(ge=0, le=2**31 - 1)
SHARE = Bound(ge=0, le=1)
SEED = Bound(ge=0, le=2**63 - 1)
RATE = Bound(ge=0)  # finite, as every number


def parts(hint: Any) -> Iterator[Any]:
    """A type and all that it is made of: the members of a union, the items of a list."""
    yield hint
    if get_origin(hint) is Annotated:
        yield from parts(get_args(hint)[0])
    elif get_args(hint):
        for part in get_args(hint):
            yield from parts(part)


def is_number(hint: Any) -> bool:
    """Whether a field of this type may hold a number."""
    return any(part in (int, float) for part in parts(hint))


def bound_of(hint: Any) -> Bound | None:
    """The bound that is declared for the numbers of a type, if one is."""
    declared = (note for part in parts(hint) for note in getattr(part, "__metadata__", ()))
    return next((note for note in declared if isinstance(note, Bound)), None)


def check_value(path: str, value: Any, hint: Any) -> None:
    """Check one value by the type of its field.

    Raises:
        PixelBertError: it is null where the type has no null, not finite, or out of its bound.
    """
    if value is None and type(None) not in parts(hint):
        raise PixelBertError(f"{path} is null: leave it out for its default")
    bound = bound_of(hint)
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if isinstance(number, float) and not math.isfinite(number):
            raise PixelBertError(f"{path} is {number}; expected a finite number" + (f", {bound}" if bound else ""))
        if bound is not None and number not in bound:
            raise PixelBertError(f"{path} is {number}; expected {bound}")


def check_fields(section: Any, name: str = "") -> None:
    """Check all fields of a dataclass.

    Args:
        section: the dataclass.
        name: of the section in its recipe, which the error puts before the field's.

    Raises:
        PixelBertError: see `check_value`.
    """
    hints = get_type_hints(type(section), include_extras=True)
    for field in fields(section):
        path = f"{name}.{field.name}" if name else field.name
        check_value(path, getattr(section, field.name), hints[field.name])


def bounded(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function check its arguments by the bounds in its signature, before it begins."""

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        hints = get_type_hints(function, include_extras=True)
        for name, value in inspect.signature(function).bind(*args, **options).arguments.items():
            if is_number(hints.get(name)):
                check_value(name, value, hints[name])
        return function(*args, **options)

    return checked
