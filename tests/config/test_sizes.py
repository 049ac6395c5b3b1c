from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.errors import ConfigError
from fedact.config.sizes import UNITS, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KB", 512_000), ("512KiB", 524_288), ("1MB", 1_000_000), ("1MiB", 1_048_576), ("4GB", 4_000_000_000),
        ("1GiB", 1_073_741_824), ("7", 7), ("7B", 7), (7, 7), ("1.5KB", 1500), ("0.5KiB", 512), ("512kb", 512_000),
        ("512kib", 524_288), (" 512 KB ", 512_000), ("1_000", 1000), ("1,000,000", 1_000_000),
    ],
)  # fmt: skip
def test_decimal_and_binary_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["2.01KB", "1.001KB", "4.35KB", "8.2KB", "16.1KB", "1.1MB", "2.3GB"])
def test_a_decimal_fraction_is_exact(text):
    assert parse_bytes(text) == int(Decimal(text[:-2]) * UNITS[text[-2:]])


@given(st.integers(1, 2**63 - 1))
def test_a_whole_number_is_itself(size):
    assert parse_bytes(size) == parse_bytes(str(size)) == parse_bytes(f"{size}B") == size


@given(st.integers(1, 10**9), st.sampled_from(["KB", "MB", "GB"]))
def test_a_fraction_of_a_decimal_unit_gives_back_its_bytes(size, unit):
    assert parse_bytes(f"{Decimal(size) / UNITS[unit]:f}{unit}") == size


@pytest.mark.parametrize(
    "given",
    ["", " ", "KB", "512XB", "0", "0KB", "-5KB", "-5", 0, -5, "0.5B", "0.0001KB", "nan", "inf", "infKB", "1e3KB", "1..5KB",
     "1.KB", ".5KB", "5 12KB", "12,34KB", "1_0KB", "512KB:1", "5K", "5KBB", "none", "1\n2", True, None, 1.5, [5], b"5KB"],
)  # fmt: skip
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ConfigError):
        parse_bytes(given)


@given(st.text(max_size=12) | st.integers(300, 500).map("9".__mul__))
def test_any_text_is_a_positive_size_or_a_config_error(text):
    try:
        size = parse_bytes(text)
    except ConfigError:
        return
    assert type(size) is int
    assert size > 0


def test_bytes_are_shown_with_separators_and_a_dash_for_nothing():
    assert [format_bytes(value) for value in (512000, 1, 0, None, 1e6)] == ["512,000", "1", "0", "-", "1,000,000"]
