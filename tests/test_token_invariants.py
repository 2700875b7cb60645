"""The contract of every method of generation (DESIGN, "What must always hold", told of tokens).

The checks are those of ``consistentee check-method``. All decoder families for the methods that train little and exit
everywhere, one family for the others. To put a method of your own under them here:
``pytest tests/test_token_invariants.py --method path/to/mine.py:Mine``.
"""

from collections.abc import Callable

import pytest
from conftest import DECODER_FAMILIES

from benchmarks.contract.tiny_decoders import TinyDecoders
from benchmarks.contract.token_case import TokenCase, train_token_case
from benchmarks.contract.token_checks import TOKEN_CHECKS
from consistentee.methods.method import TOKEN_ENTRY_POINT_GROUP, available_methods, get_method

EVERYWHERE = ("free", "token-random", "token-static")
EVERY_CHECK = [check for check in TOKEN_CHECKS if check.every_family]
ONCE = [check for check in TOKEN_CHECKS if not check.every_family]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.config.getoption("method") or sorted(available_methods(TOKEN_ENTRY_POINT_GROUP))
    if "family" in metafunc.fixturenames:
        own = metafunc.config.getoption("method")
        pairs = [(name, family) for name in names for family in DECODER_FAMILIES]
        few = [(name, family) for name, family in pairs if own or name in EVERYWHERE or family == "llama"]
        metafunc.parametrize(("method_name", "family"), few, scope="session")
    elif "method_name" in metafunc.fixturenames:
        metafunc.parametrize("method_name", names, scope="session")


@pytest.fixture(scope="session")
def trained(tiny_decoders: TinyDecoders) -> Callable[[str, str], TokenCase]:
    """Return a function: (method, family) -> the trained method; trained once a session."""
    done: dict[tuple[str, str], TokenCase] = {}

    def get(name: str, family: str) -> TokenCase:
        if (name, family) not in done:
            done[name, family] = train_token_case(get_method(name), family, tiny_decoders)
        return done[name, family]

    return get


@pytest.mark.parametrize("check", EVERY_CHECK, ids=[check.run.__name__ for check in EVERY_CHECK])
def test_on_families(trained, method_name, family, check):
    check.run(trained(method_name, family))


@pytest.mark.parametrize("check", ONCE, ids=[check.run.__name__ for check in ONCE])
def test_once(trained, method_name, check):
    check.run(trained(method_name, "llama"))
