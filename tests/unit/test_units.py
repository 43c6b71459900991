import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.units import UNITS, parse_quantity


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("900 GB/s", "bandwidth", 9e11),
        ("400 Gb/s", "bandwidth", 5e10),  # bits: 400e9 / 8
        ("900GB/s", "bandwidth", 9e11),
        ("1 GiB/s", "bandwidth", 1073741824.0),
        ("80 GiB", "bytes", 85899345920.0),  # 80 * 2**30
        ("80 GB", "bytes", 8e10),
        ("512 B", "bytes", 512.0),
        ("3 us", "time", 3e-6),
        ("3 µs", "time", 3e-6),
        ("1.5 min", "time", 90.0),
        ("2 h", "time", 7200.0),
        ("1e3 ns", "time", 1e-6),
        (".5 s", "time", 0.5),
        ("989 TFLOP/s", "compute", 9.89e14),
        ("2 POP/s", "compute", 2e15),
        ("700 W", "power", 700.0),
        ("120 kW", "power", 1.2e5),
        ("4 pJ", "energy", 4e-12),
        ("1 kWh", "energy", 3.6e6),
        ("1.98 GHz", "frequency", 1.98e9),
        ("25 kUSD", "money", 25000.0),
        ("  10   ms ", "time", 0.01),
    ],
)
def test_hand_numbers(text: str, dimension: str, value: float) -> None:
    assert parse_quantity(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        (900, "bandwidth", "900 has no unit; write for instance '900 GB/s'"),
        (3e-6, "time", "3e-06 has no unit; write for instance '3 us'"),
        ("80", "bytes", "80 has no unit; write for instance '80 GiB'"),
        ("80 GiB", "bandwidth", "unit 'GiB' measures bytes, not bandwidth; write for instance '900 GB/s'"),
        ("3 W", "energy", "unit 'W' measures power, not energy; write for instance '4 pJ'"),
        ("900 Gbps", "bandwidth", "unknown unit 'Gbps' of bandwidth (did you mean 'Gb/s'?)"),
        ("900 GBps", "bandwidth", "unknown unit 'GBps' of bandwidth (did you mean 'GB/s'?)"),
        ("900 gb/s", "bandwidth", "unknown unit 'gb/s' of bandwidth (did you mean 'GB/s' or 'Gb/s'?)"),
        ("989 tflops", "compute", "unknown unit 'tflops' of compute (did you mean 'TFLOP/s'?)"),
        ("80 gib", "bytes", "unknown unit 'gib' of bytes (did you mean 'GiB'?)"),
        ("3 parsec", "time", "unknown unit 'parsec' of time; write for instance '3 us'"),
        ("fast", "time", "'fast' is not a quantity; write a number and a unit, such as '3 us'"),
        ("", "time", "'' is not a quantity; write a number and a unit, such as '3 us'"),
        ("1e400 s", "time", "'1e400 s' is not finite"),
        (True, "time", "expected a quantity such as '3 us', got True"),
        (None, "time", "expected a quantity such as '3 us', got None"),
    ],
)
def test_refused_quantities(text: object, dimension: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_quantity(text, dimension)
    assert str(caught.value) == message


@pytest.mark.parametrize("dimension", sorted(UNITS))
def test_every_unit_of_a_dimension_is_read(dimension: str) -> None:
    for unit, factor in UNITS[dimension].items():
        assert parse_quantity(f"3 {unit}", dimension) == pytest.approx(3 * factor, rel=1e-15)


def test_binary_and_decimal_prefixes_differ() -> None:
    assert parse_quantity("1 KiB", "bytes") == 1024
    assert parse_quantity("1 KB", "bytes") == 1000
    assert parse_quantity("1 TiB", "bytes") == 1024**4


@given(st.floats(min_value=0, max_value=1e12, allow_nan=False))
def test_seconds_survive_writing_and_reading(seconds: float) -> None:
    assert parse_quantity(f"{seconds!r} s", "time") == seconds
