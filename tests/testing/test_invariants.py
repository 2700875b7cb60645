"""The contract of every method of both kinds on every family (DESIGN, "What must always hold", 1-7).

The checks are those of ``consistentee check-method``, and that decoding leaves no hole in the cache. By default every
method is tried on one family, and three methods that differ in what they train and run are tried on all; ``-m slow``
does the rest of the product. To put a method of your own under them, on every family of its kind:
``pytest tests/testing/test_invariants.py --method path/to/mine.py:Mine``.
"""

import functools
from collections.abc import Callable, Iterator

import pytest
from eager_decoder import eager_tokens

from benchmarks.testing.cases import FEW, NEW_TOKENS, AnyCase, texts_of
from benchmarks.testing.check_method import families_of, trained
from benchmarks.testing.checks import CHECKS, TOKEN_CHECKS, Check
from consistentee import TokenMethod, UserError, classify
from consistentee.methods.method import ENTRY_POINT_GROUP, TOKEN_ENTRY_POINT_GROUP, available_methods, get_method

USUAL_FAMILIES = ("bert", "llama")
ON_EVERY_FAMILY = (
    "cascade-bert",
    "consistentee-paper",
    "deebert",
    "calm-tokens-softmax",
    "consistentee-tokens",
    "free",
)


def tried(config: pytest.Config) -> Iterator[tuple[str, str, bool]]:
    """Yield method, family, and whether that pair is of the default suite."""
    own = config.getoption("method")
    for name in own or sorted({**available_methods(ENTRY_POINT_GROUP), **available_methods(TOKEN_ENTRY_POINT_GROUP)}):
        for family in families_of(get_method(name)):
            by_default = bool(own) or family in USUAL_FAMILIES or name in ON_EVERY_FAMILY
            if by_default or "not slow" not in config.getoption("markexpr"):
                yield name, family, by_default


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise, ids beginning with the method, and the tests of one trained method together."""
    if "family" not in metafunc.fixturenames:
        return
    of_checks, cases = "check" in metafunc.fixturenames, []
    for name, family, by_default in tried(metafunc.config):
        marks, method = [] if by_default else [pytest.mark.slow], get_method(name)
        if not of_checks and isinstance(method, TokenMethod):
            cases.append(pytest.param(name, family, marks=marks, id=f"{name}:{family}"))
        elif of_checks:
            checks = TOKEN_CHECKS if isinstance(method, TokenMethod) else CHECKS
            checks = [check for check in checks if check.every_family or family in USUAL_FAMILIES]
            cases += [
                pytest.param(name, family, check, marks=marks, id=f"{name}:{family}:{check.run.__name__}")
                for check in checks
            ]
    names = ("method_name", "family", "check") if of_checks else ("method_name", "family")
    metafunc.parametrize(names, cases, scope="session")


@pytest.fixture(scope="session")
def case_of(tmp_path_factory) -> Callable[[str, str], AnyCase]:
    """Return a function: (method, family) -> the trained method; trained once a session."""
    folder = tmp_path_factory.mktemp("backbones")
    return functools.cache(lambda name, family: trained(get_method(name), family, folder))


def test_the_contract_holds(case_of, method_name: str, family: str, check: Check):
    case = case_of(method_name, family)
    if check.live and case.method.replay_only:
        pytest.skip("reads the labels: it cannot run live")
    check.run(case)


def test_there_is_no_hole_in_the_cache(case_of, method_name: str, family: str):
    """6: texts equal those of a decoder without batches that fills skipped layers at once."""
    case = case_of(method_name, family)
    for knob in case.knobs:
        live = texts_of(case.live(knob, case.prompts[:FEW], kv="propagate"))
        eager = [eager_tokens(case.model, prompt, case.rule(knob), NEW_TOKENS) for prompt in case.prompts[:FEW]]
        assert [(row.answers.tolist(), row.layers) for row in live] == eager


def test_an_oracle_cannot_run_live(case_of):
    case = case_of("oracle", "bert")
    with pytest.raises(UserError, match="true labels"):
        classify(case.model, case.texts, case.method.rule(case.model, 1))
