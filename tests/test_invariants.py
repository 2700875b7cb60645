"""The contract of every method on every encoder family (DESIGN, "What must always hold", 1-5 and 7).

The checks are those of ``consistentee check-method``. To put a method of your own under them here:
``pytest tests/test_invariants.py --method path/to/mine.py:Mine``.
"""

from collections.abc import Callable

import pytest
from conftest import FAMILIES

from benchmarks.contract.base_checks import Check
from benchmarks.contract.case import Case, train_case
from benchmarks.contract.checks import CHECKS
from benchmarks.contract.tiny_models import TinyModels
from consistentee.engine.classify import classify
from consistentee.errors import UserError
from consistentee.methods.method import available_methods, get_method
from consistentee.models.cascade import companion_layers
from consistentee.traces.walk import replay

EVERYWHERE = [check for check in CHECKS if check.every_family]
ONCE = [check for check in CHECKS if not check.every_family]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method_name" in metafunc.fixturenames:
        names = metafunc.config.getoption("method") or sorted(available_methods())
        metafunc.parametrize("method_name", names, scope="session")
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, scope="session")


@pytest.fixture(scope="session")
def trained(tiny_models: TinyModels) -> Callable[[str, str], Case]:
    """Return a function: (method, family) -> the trained method; trained once a session."""
    done: dict[tuple[str, str], Case] = {}

    def get(name: str, family: str) -> Case:
        if (name, family) not in done:
            done[name, family] = train_case(get_method(name), family, tiny_models)
        return done[name, family]

    return get


def run(check: Check, case: Case) -> None:
    if check.live and case.method.replay_only:
        pytest.skip("reads the labels: it cannot run live")
    check.run(case)


@pytest.mark.parametrize("check", EVERYWHERE, ids=[check.run.__name__ for check in EVERYWHERE])
def test_on_every_family(trained, method_name, family, check):
    run(check, trained(method_name, family))


@pytest.mark.parametrize("check", ONCE, ids=[check.run.__name__ for check in ONCE])
def test_once(trained, method_name, check):
    run(check, trained(method_name, "bert"))


WAITS = ("pabee", "leebert", "oracle")  # for agreement, for the right answer


def test_the_first_knob_gives_the_first_possible_exit_to_every_row(trained, method_name, family):
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
