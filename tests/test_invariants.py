"""The contract of every method on every encoder family (DESIGN, "What must always hold", 1-5 and 7).

To put a method of your own under the same scrutiny: ``pytest tests/test_invariants.py --method path/to/mine.py:Mine``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from conftest import FAMILIES, make_task, random_texts
from torch import Tensor

from consistentee.backbones.encoders import stepper_for
from consistentee.classification import classify, classify_encoded, stock_encoded
from consistentee.data import Split
from consistentee.encoding import Encoding
from consistentee.errors import UserError
from consistentee.exits import ExitRule, NeverExit
from consistentee.method import Method, available_methods, get_method
from consistentee.model import MultiExitModel
from consistentee.trace import Trace, record_trace, replay, sweep
from consistentee.training import Recipe

RECIPE = Recipe(
    epochs=1, batch_size=16, learning_rate=1e-3, head_learning_rate=1e-2, max_length=32, seed=1, frozen_steps=8
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method_name" in metafunc.fixturenames:
        names = metafunc.config.getoption("method") or sorted(available_methods())
        metafunc.parametrize("method_name", names, scope="session")
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, scope="session")


@dataclass
class Trained:
    """A method, trained on a toy task, and its trace of unseen rows."""

    method: Method
    model: MultiExitModel
    texts: list
    trace: Trace

    def rules(self, count: int = 5) -> list[tuple[float, ExitRule]]:
        """Return rules at knob values spread over the range, both ends included."""
        values = list(self.method.knob_values(self.model))
        picked = sorted({round(i * (len(values) - 1) / (count - 1)) for i in range(count)})
        return [(values[i], self.method.rule(self.model, values[i])) for i in picked]


def train(name: str, model: MultiExitModel) -> Trained:
    method = get_method(name)
    model = method.fit(model, make_task(), RECIPE)
    texts = random_texts(40, seed=9)
    labels = [i % 3 for i in range(40)]
    return Trained(method, model, texts, record_trace(model, Split("unseen", texts, labels)))


@pytest.fixture(scope="session")
def trained(tiny_model: Callable[..., MultiExitModel]) -> Callable[[str, str], Trained]:
    """Return a function: (method, family) -> the trained method; trained once a session."""
    done: dict[tuple[str, str], Trained] = {}

    def get(name: str, family: str) -> Trained:
        if (name, family) not in done:
            done[name, family] = train(name, tiny_model(family))
        return done[name, family]

    return get


def live_rules(case: Trained) -> list[tuple[float, ExitRule]]:
    if case.method.replay_only:
        pytest.skip("reads the labels: it cannot run live")
    return case.rules()


@torch.no_grad()
def full_depth_logits(model: MultiExitModel, encodings: list[Encoding], batch_size: int) -> Tensor:
    """Return what the stock model answers: where tokens exit, its layers run on all, and exited ones are put back."""
    if model.token_exits is None:
        return stock_encoded(model, encodings, batch_size=batch_size)
    stepper, answers = stepper_for(model.backbone), []
    for start in range(0, len(encodings), batch_size):
        batch = model.collate(encodings[start : start + batch_size])
        exits = model.token_exits.schedule[batch.input_ids].unsqueeze(-1)
        hidden, context = stepper.begin(batch)
        for layer in range(1, model.num_layers + 1):
            hidden = torch.where(exits >= layer, stepper.step(layer, hidden, context), hidden)
        pooled = model.pool(model.num_layers, hidden, batch.padding_mask)
        answers.append(model.classify_pooled(model.num_layers, pooled))
    return torch.cat(answers)


def test_1_never_exit_is_the_stock_model(trained, method_name, family):
    case = trained(method_name, family)
    encodings = case.model.tokenize(case.texts)
    for batch_size in (1, 8):
        stock = full_depth_logits(case.model, encodings, batch_size)
        ours = classify_encoded(case.model, encodings, NeverExit(), batch_size=batch_size)
        assert (ours.exit_layers == case.model.num_layers).all()
        torch.testing.assert_close(ours.logits, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sort_by_length", [False, True])
def test_2_replay_equals_reality(trained, method_name, family, sort_by_length):
    case = trained(method_name, family)
    for knob, rule in live_rules(case):
        exits = replay(rule, case.trace)
        for batch_size in (1, 7, 32):
            live = classify(case.model, case.texts, rule, batch_size=batch_size, sort_by_length=sort_by_length)
            assert torch.equal(live.exit_layers, exits), f"knob {knob}, batch size {batch_size}"
            assert torch.equal(live.predictions, case.trace.predictions(exits))
            torch.testing.assert_close(live.logits, case.trace.logits_at(exits), rtol=1e-4, atol=1e-4)
            assert torch.equal(live.layers_run, case.trace.layers_run(exits))


def test_3_a_rows_fate_is_its_own(trained, method_name, family):
    case = trained(method_name, family)
    for knob, rule in live_rules(case):
        together = classify(case.model, case.texts, rule, batch_size=40)
        shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
        moved = classify(case.model, [case.texts[i] for i in shuffled], rule, batch_size=7, sort_by_length=False)
        assert torch.equal(moved.exit_layers, together.exit_layers[shuffled]), f"knob {knob}"
        padded = classify(case.model, [case.texts[3], "w1 " * 60], rule, batch_size=2)
        assert padded.exit_layers[0] == together.exit_layers[3], f"knob {knob}: a long neighbour changed the exit"
        torch.testing.assert_close(padded.logits[0], together.logits[3], rtol=1e-4, atol=1e-4)


@contextmanager
def counted_calls(model: MultiExitModel, part: str, count: Callable[[Tensor], int]) -> Iterator[list[int]]:
    """Count what goes into one part of the layers, called ``part``, by hooks on the stock modules."""
    counts: list[int] = []
    modules = {id(m): m for m in (getattr(model.stepper.parts(i + 1), part) for i in range(model.num_layers))}
    hooks = [m.register_forward_hook(lambda _, args, __: counts.append(count(args[0]))) for m in modules.values()]
    yield counts
    for hook in hooks:
        hook.remove()


def test_4_layers_counted_are_layers_run(trained, method_name, family):
    """Rows are counted at the keys, which every running row needs; tokens at the queries, where there is no padding."""
    case = trained(method_name, family)
    lengths = case.trace.lengths
    live_tokens = lengths.unsqueeze(1) if case.trace.live_tokens is None else case.trace.live_tokens
    layers = torch.arange(1, case.model.num_layers + 1)
    for knob, rule in live_rules(case):
        with counted_calls(case.model, "key", len) as rows:
            live = classify(case.model, case.texts, rule, batch_size=7)
        assert sum(rows) == ((layers <= live.exit_layers.unsqueeze(1)) & (live_tokens > 0)).sum(), f"knob {knob}"
        with counted_calls(case.model, "query", lambda states: states[..., 0].numel()) as tokens:
            classify(case.model, case.texts, rule, batch_size=1)
        assert sum(tokens) == pytest.approx((live.layers_run * lengths).sum().item()), f"knob {knob}"


def test_5_knob_is_ordered_from_earliest_to_full_depth(trained, method_name, family):
    case = trained(method_name, family)
    layers = case.model.num_layers
    exits = sweep([case.method.rule(case.model, knob) for knob in case.method.knob_values(case.model)], case.trace)
    assert exits.min() >= 1
    assert exits.max() <= layers
    assert (exits[1:] >= exits[:-1]).all(), "a stricter knob never exits earlier"
    waits = method_name in ("pabee", "leebert", "oracle")  # for agreement, for the right answer
    if not waits and len(exits) > 1:  # one operating point is no range of exits
        assert (exits[0] == exits[0, 0]).all(), "the first knob gives the first possible exit to every row"
        assert exits[0, 0] <= max(2, case.model.companion_layers), (
            "a cascade's first exit is its companion's last layer"
        )
    assert exits[-1].eq(layers).all() or case.method.replay_only, "the last knob gives full depth"


def test_5_knobs_out_of_range_are_refused(trained, method_name):
    case = trained(method_name, "bert")
    values = case.method.knob_values(case.model)
    for knob in (min(values) - 1, max(values) * 2 + 1):
        with pytest.raises(UserError, match=case.method.knob.name):
            case.method.rule(case.model, knob)


def test_7_same_seed_same_numbers(trained, method_name, tiny_model):
    case = trained(method_name, "bert")
    again = train(method_name, tiny_model("bert"))
    weights: list[dict[str, Tensor]] = [c.model.state_dict() for c in (case, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(case.trace.logits, again.trace.logits)


def test_7_saved_and_loaded_it_predicts_the_same(trained, method_name, family, tmp_path):
    case = trained(method_name, family)
    case.model.save_pretrained(tmp_path / "model")
    loaded = MultiExitModel.from_pretrained(tmp_path / "model")
    for knob, rule in live_rules(case):
        before = classify(case.model, case.texts, rule)
        after = classify(loaded, case.texts, case.method.rule(loaded, knob))
        assert torch.equal(before.exit_layers, after.exit_layers)
        assert torch.equal(before.logits, after.logits)


def test_regression_works_or_is_refused_by_name(method_name, tiny_model):
    method = get_method(method_name)
    task = make_task(regression=True)
    if not method.supports_regression:
        with pytest.raises(UserError, match=f"{method.name} is not defined for a regression"):
            method.check_task(task)
        return
    method.check_task(task)
    model = method.fit(tiny_model("bert", num_labels=1), task, RECIPE)
    trace = record_trace(model, task.test)
    for knob in (method.knob_values(model)[0], method.knob_values(model)[-1]):
        exits = replay(method.rule(model, knob), trace)
        live = classify(model, task.test.texts, method.rule(model, knob))
        assert torch.equal(live.exit_layers, exits)
        torch.testing.assert_close(live.predictions, trace.predictions(exits), rtol=1e-4, atol=1e-4)


def test_an_oracle_cannot_run_live(trained):
    case = trained("oracle", "bert")
    with pytest.raises(UserError, match="true labels"):
        classify(case.model, case.texts, case.method.rule(case.model, 1))
