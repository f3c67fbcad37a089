from __future__ import annotations

import pytest

from casstore.errors import UsageError
from casstore_orchestrator.units import format_duration, format_quantity, parse_duration, parse_quantity

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (512, 512),
        ("1B", 1),
        ("1K", 1024),
        ("1Ki", 1024),
        ("1KiB", 1024),
        ("1M", 1 << 20),
        ("4Gi", 4 * GIB),
        ("4G", 4 * GIB),
        ("4GiB", 4 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("2T", 2 << 40),
        ("1Ti", 1 << 40),
        ("1500m", 2),
        (" 32Gi ", 32 * GIB),
        (0, 0),
    ],
)
def test_quantities_are_binary(text: object, size: int) -> None:
    assert parse_quantity(text, what="x") == size


@pytest.mark.parametrize(
    "text", ["", "Gi", "-1", -1, "1GB", "1 Gi Gi", "1e3", True, None, [], "nan", "9" * 30, 1e300, "\uff11Gi"]
)
def test_bad_quantities_name_the_place(text: object) -> None:
    with pytest.raises(UsageError, match=r"resources\.memory"):
        parse_quantity(text, what="resources.memory")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15m", 900),
        ("1d", 86400),
        ("2h", 7200),
        ("30s", 30),
        ("30", 30),
        ("5ms", 0.005),
        ("7us", 7e-6),
        (90, 90),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text, what="x") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["10h5m", "1w", "", "-5s", -5, True, "1.5h", None, float("inf")])
def test_bad_durations(text: object) -> None:
    with pytest.raises(UsageError, match="timeout"):
        parse_duration(text, what="timeout")


def test_formatting() -> None:
    assert format_quantity(3 * GIB // 2) == "1.5Gi"
    assert format_quantity(100) == "100"
    assert format_duration(900) == "15m"
    assert format_duration(61) == "61s"
