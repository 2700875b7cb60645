"""Generation as it is called: what it writes is the stock model's, what ends a text, streams, errors."""

import math

import pytest
import torch
from comparing import tokens_of
from hypothesis import given, strategies as st

from baselines.references import RandomRule
from benchmarks.testing.tiny import random_prompts
from benchmarks.testing.watching import stock_tokens, watched_calls
from consistentee import ExitRule, NeverExit, StaticRule, UserError, generate, generate_encoded
from consistentee.engine.transcript import Endings, Transcript

PROMPTS = random_prompts(9, seed=3)
NEW_TOKENS = 10
MIXED = RandomRule(2.5, seed=1)


def test_never_exit_writes_what_the_stock_model_writes_with_eager_attention_too(tiny_decoder):
    """The contract has every family with that of torch."""
    model = tiny_decoder()
    model.backbone.set_attn_implementation("eager")
    rows = model.encode(PROMPTS)
    expected = [stock_tokens(model, row, NEW_TOKENS) for row in rows]
    for size in (1, 8):
        out = generate_encoded(model, rows, NeverExit(), max_new_tokens=NEW_TOKENS, batch_size=size)
        assert tokens_of(out) == expected
    assert out.texts == [model.decode(tokens) for tokens in expected]
    assert out.prompt_tokens == [len(row) for row in rows]
    assert out.average_layers == 4
    assert not torch.cat(out.late_layers).any()


def head_calls(model, rule) -> list[int]:
    """Return how many rows every call of the LM head reads, while six tokens are written behind four prompts."""
    rows, options = [], {"max_new_tokens": 6, "batch_size": 4, "end_at_eos": False}
    with watched_calls([(model.backbone.lm_head, lambda _, states, __: rows.append(len(states[0])))]):
        out = generate_encoded(model, model.encode(PROMPTS[:4]), rule, **options)
    assert torch.cat([layers[1:] for layers in out.exit_layers]).unique().numel() > 1, "rows must leave apart"
    return rows


def test_a_shared_head_is_read_once_a_step(tiny_decoder):
    assert head_calls(tiny_decoder(), MIXED) == [4] * 6
    # Copies of the head cannot be read together: the shared one has layer L's rows, and none where no row comes there.
    assert sum(head_calls(tiny_decoder(adapter="head"), MIXED)[1:]) < 5 * 4


def test_logits_that_a_rule_has_read_are_not_read_again(tiny_decoder):
    class ReadsAtTheFirst(ExitRule):
        def should_exit(self, view, state):
            if view.layer > 1:
                return torch.zeros(view.rows, dtype=torch.bool)
            assert view.logits.shape[0] == view.rows == 4
            return view.row_keys % 2 == 0

    prompts, *steps = head_calls(tiny_decoder(), ReadsAtTheFirst())
    assert prompts == 4
    assert steps.count(4) == 5, "once at layer 1 for all rows"
    assert sum(steps) - 5 * 4 < 5 * 4, "at layer 4 for those alone that stayed"


@pytest.mark.slow
def test_compiled_layers_write_the_same(tiny_decoder):
    """Without a compiler of its own the machine runs the graphs eagerly: it is about what can be traced."""
    model = tiny_decoder()
    expected = tokens_of(generate(model, PROMPTS[:3], MIXED, max_new_tokens=5))
    model.stepper.layer_module(2).compile(backend="eager", dynamic=True)
    assert tokens_of(generate(model, PROMPTS[:3], MIXED, max_new_tokens=5)) == expected


class TestEndings:
    def test_a_stop_string_ends_a_text_wherever_tokens_part(self, tiny_decoder):
        model = tiny_decoder()
        endless = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS)
        stop = [endless.texts[2][5:8], endless.texts[6][3:5]]
        out = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, stop=stop)
        for text, ended_by, tokens, whole in zip(out.texts, out.ended_by, out.tokens, endless.texts, strict=True):
            assert text == min((whole.partition(string)[0] for string in stop), key=len)
            assert (ended_by == "stop") == any(string in whole for string in stop)
            assert ended_by != "stop" or any(string in model.decode(tokens) for string in stop)
        assert out.ended_by.count("stop") >= 2

    def test_a_special_token_is_a_stop_string(self, tiny_decoder):
        """Texts are shown without special tokens, and end at one all the same."""
        model = tiny_decoder()
        endless = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS)
        word = int(endless.tokens[2][3])
        model.tokenizer.add_special_tokens({"additional_special_tokens": [model.tokenizer.convert_ids_to_tokens(word)]})
        stop = [model.tokenizer.convert_ids_to_tokens(word)]
        out = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS, stop=stop)
        assert out.ended_by[2] == "stop"
        assert out.tokens[2].tolist() == endless.tokens[2][: len(out.tokens[2])].tolist()
        assert int(out.tokens[2][-1]) == word
        assert stop[0] not in out.texts[2]

    def test_a_stream_gets_every_token_once_and_in_order(self, tiny_decoder):
        model, stream = tiny_decoder(), []
        stop = generate(model, PROMPTS, MIXED, max_new_tokens=NEW_TOKENS).texts[2][4:7]
        options = {"max_new_tokens": NEW_TOKENS, "stop": [stop], "batch_size": 4}
        out = generate(model, PROMPTS, MIXED, **options, stream=stream.append)
        for row in range(len(PROMPTS)):
            of_row = [new for new in stream if new.row == row]
            tokens = enumerate(zip(out.tokens[row].tolist(), out.exit_layers[row].tolist(), strict=True))
            assert [(new.step, (new.token, new.exit_layer)) for new in of_row] == list(tokens)
            assert "".join(new.text for new in of_row) == out.texts[row]
            assert [new.ended_by for new in of_row] == [None] * (len(of_row) - 1) + [out.ended_by[row]]

    @pytest.mark.parametrize("way", [{}, {"in_flight": 50}])
    def test_nothing_to_write(self, tiny_decoder, way):
        assert generate(tiny_decoder(), [], NeverExit(), **way).texts == []
        out = generate(tiny_decoder(), PROMPTS[:2], NeverExit(), max_new_tokens=0, **way)
        assert out.texts == ["", ""]
        assert [tokens.tolist() for tokens in (*out.tokens, *out.exit_layers)] == [[]] * 4
        assert out.ended_by == ["length", "length"]
        assert math.isnan(out.average_layers)


def test_a_prompt_must_fit_with_what_is_to_be_written(tiny_decoder):
    model = tiny_decoder()
    row = model.encode(["ba " * 110])[0]
    limit = model.stepper.position_limit
    fits = limit - len(row) + 1
    whole = generate_encoded(model, [row], StaticRule(1), max_new_tokens=fits, end_at_eos=False)
    assert len(whole.tokens[0]) == fits
    message = f"prompt 2 of 2 has {len(row)} tokens, and with {fits + 1} new ones that is more than the {limit}"
    with pytest.raises(UserError, match=message):
        generate_encoded(model, [row[:3], row], NeverExit(), max_new_tokens=fits + 1)


END = 255


def decode(tokens) -> str:
    """Bytes, as byte-level tokenizers decode them; the end token has no text."""
    return bytes(token for token in tokens if token != END).decode("utf-8", errors="replace")


def write(text: str, *stop: str, max_new_tokens: int = 99) -> tuple[Transcript, list[str]]:
    """Write a text byte by byte until it ends: the transcript, and the pieces that a stream gets."""
    transcript = Transcript(0, decode, Endings(frozenset([END]), stop, max_new_tokens))
    pieces = []
    for token in text.encode():
        transcript.add(token, 1)
        pieces.append(transcript.newest_token().text)
        if transcript.ended_by is not None:
            break
    return transcript, pieces


def test_starts_of_stop_strings_and_incomplete_characters_are_held_back():
    assert write("a\n\nb\n#", "\n#")[1] == ["a", "", "\n", "\nb", "", ""]
    assert write("é€")[1] == ["", "é", "", "", "€"]
    assert write("axyz", "yz", "xyz")[0].text == "a", "the first of two stop strings cuts"


@given(st.text("ab\n€", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2), st.integers(1, 12))
def test_the_pieces_are_the_text(text, stop, limit):
    transcript, pieces = write(text, *stop, max_new_tokens=limit)
    given_out = "".join(pieces)
    assert given_out == transcript.text if transcript.ended_by else transcript.text.startswith(given_out)
    assert not any(string in given_out for string in stop)
