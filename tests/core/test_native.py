"""Which devices the compiled passes serve."""

import pytest

from gru_fast.core.backends import native


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("80,90,100,120+ptx", (7, 5), False),
        ("80,90,100,120+ptx", (8, 0), True),
        ("80,90,100,120+ptx", (8, 9), True),
        ("80,90,100,120+ptx", (10, 3), True),
        ("80,90,100,120+ptx", (11, 0), False),
        ("80,90,100,120+ptx", (13, 0), True),
        ("86", (8, 0), False),
        ("80 (ptx)", (9, 0), True),
        ("90a", (9, 0), True),
        ("native", (6, 1), True),
    ],
)
def test_machine_code_and_ptx(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert native.runs_on(capability, architectures) is expected
