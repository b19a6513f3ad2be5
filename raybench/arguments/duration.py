"""Durations on a command line."""

from __future__ import annotations


def seconds_of(budget: str) -> float:
    """`2h`, `90m`, `45s`, `1h30m` in seconds.

    Raises:
        ValueError: it has another format, or is not above 0.
    """
    total, number = 0.0, ""
    for sign in budget.strip().lower().replace(" ", ""):
        if sign.isdigit() or sign == ".":
            number += sign
        elif sign in "dhms" and number.count(".") <= 1 and number.strip("."):
            total += float(number) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[sign]
            number = ""
        else:
            total, number = 0.0, ""
            break
    if number or not total > 0:
        raise ValueError(f"--budget is {budget!r}: a time such as 45m, 2h or 1h30m")
    return total
