"""The smallest tasks: one that works, one that waits, one that fails."""

import time


def double(x: float) -> float:
    """Twice `x`.

    >>> double(21)
    42
    """
    return 2 * x


def sleep_ms(ms: float) -> float:
    """`ms`, after so many milliseconds."""
    time.sleep(ms / 1000)
    return ms


def fail_on_odd(x: int) -> int:
    """`x` when it is even, otherwise a ValueError.

    >>> fail_on_odd(8)
    8
    """
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x
