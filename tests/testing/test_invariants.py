"""The contract of every method of both kinds on every family (DESIGN, "What must always hold", 1-7).

The checks are those of ``consistentee check-method``. By default every method is tried on one family, and three methods
that differ in what they train and run are tried on all; ``-m slow`` does the rest of the product. To put a method of
your own under them, on every family of its kind:
``pytest tests/testing/test_invariants.py --method path/to/mine.py:Mine``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.testing.check_method import CLASSIFICATION, GENERATION, Contract, contract_of
from benchmarks.testing.checks import Check
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods, get_method
from consistentee.models.encoder.cascade import companion_layers
from consistentee.traces.walk import replay


@dataclass(frozen=True)
class Kind:
    """One kind of rows.

    Attributes:
        contract: what holds of its methods.
        group: where these are registered.
        family: the one on which every method is tried.
        everywhere: methods that are tried on every family.
    """

    contract: Contract
    group: str
    family: str
    everywhere: tuple[str, ...]


KINDS = (
    Kind(CLASSIFICATION, ENTRY_POINT_GROUP, "bert", ("cascade-bert", "consistentee", "deebert")),
    Kind(GENERATION, TOKEN_ENTRY_POINT_GROUP, "llama", ("calm-tokens-softmax", "consistentee-tokens", "free")),
)


def tried(config: pytest.Config) -> Iterator[tuple[str, str, Kind, bool]]:
    """Yield method, family, kind, and whether that pair is of the default suite."""
    own, without_slow = config.getoption("method"), "not slow" in config.getoption("markexpr")
    for kind in KINDS:
        names = [name for name in own if contract_of(get_method(name)) is kind.contract]
        for name in names if own else sorted(available_methods(kind.group)):
            for family in kind.contract.families:
                by_default = bool(own) or family == kind.family or name in kind.everywhere
                if by_default or not without_slow:
                    yield name, family, kind, by_default


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise, ids beginning with the method, by which workers share the tests out (see conftest.py)."""
    if "family" not in metafunc.fixturenames:
        return
    of_checks = "check" in metafunc.fixturenames
    cases = []
    for name, family, kind, by_default in tried(metafunc.config):
        marks = [] if by_default else [pytest.mark.slow]
        if of_checks:
            checks = [check for check in kind.contract.checks if check.every_family or family == kind.family]
            cases += [
                pytest.param(name, family, check, marks=marks, id=f"{name}:{family}:{check.run.__name__}")
                for check in checks
            ]
        elif kind.contract is CLASSIFICATION:
            cases.append(pytest.param(name, family, marks=marks, id=f"{name}:{family}"))
    names = ("method_name", "family", "check") if of_checks else ("method_name", "family")
    metafunc.parametrize(names, cases, scope="session")


@pytest.fixture(scope="session")
def trained(tiny_models, tiny_decoders) -> Callable[[str, str], Any]:
    """Return a function: (method, family) -> the trained method; trained once a session."""
    done: dict[tuple[str, str], Any] = {}

    def get(name: str, family: str) -> Any:
        if (name, family) not in done:
            method = get_method(name)
            contract = contract_of(method)
            done[name, family] = contract.train(
                method, family, tiny_decoders if contract is GENERATION else tiny_models
            )
        return done[name, family]

    return get


def test_the_contract_holds(trained, method_name: str, family: str, check: Check):
    case = trained(method_name, family)
    if check.live and case.method.replay_only:
        pytest.skip("reads the labels: it cannot run live")
    check.run(case)


WAITS = ("pabee", "leebert", "oracle")  # for agreement, for the right answer


def test_the_first_knob_gives_the_first_possible_exit_to_every_row(trained, method_name: str, family: str):
    case = trained(method_name, family)
    if method_name in WAITS or len(case.method.knob_values(case.model)) == 1:
        pytest.skip("its rows leave one by one, or there is one operating point")
    exits = replay(case.rule(case.method.knob_values(case.model)[0]), case.trace)
    assert (exits == exits[0]).all()
    assert exits[0] <= max(2, companion_layers(case.model))  # a rule that compares layers leaves at the second


def test_an_oracle_cannot_run_live(trained):
    case = trained("oracle", "bert")
    with pytest.raises(UserError, match="true labels"):
        classify(case.model, case.texts, case.method.rule(case.model, 1))
