"""The end of a row's text, and the stream of its tokens."""

from hypothesis import given, strategies as st

from consistentee.engine.transcript import Endings, Transcript

END = 255


def decode(tokens) -> str:
    """Bytes, as byte-level tokenizers decode them; the end token has no text."""
    return bytes(token for token in tokens if token != END).decode("utf-8", errors="replace")


def write(text: str | bytes, *stop: str, max_new_tokens: int = 99) -> tuple[Transcript, list[str]]:
    """Write a text byte by byte until it ends: the transcript, and the pieces that a stream is told."""
    transcript = Transcript(0, decode, Endings(frozenset([END]), stop, max_new_tokens))
    pieces = []
    for token in text if isinstance(text, bytes) else text.encode():
        transcript.add(token, 1)
        pieces.append(transcript.news().text)
        if transcript.ended_by is not None:
            break
    return transcript, pieces


def test_the_first_of_two_stop_strings_cuts():
    """Both are complete with the same token."""
    endings = Endings(frozenset(), ("yz", "xyz"), 9)
    assert endings.cut("axyz") == "a"


def test_what_may_become_a_stop_string_is_held_back():
    _, pieces = write("a\n\nb\n#", "\n#")
    assert pieces == ["a", "", "\n", "\nb", "", ""]


def test_a_character_is_held_back_until_it_is_whole():
    assert write("é€")[1] == ["", "é", "", "", "€"]


@given(st.text("ab\n€", max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2), st.integers(1, 12))
def test_the_pieces_are_the_text(text, stop, limit):
    transcript, pieces = write(text, *stop, max_new_tokens=limit)
    ended = transcript.ended_by is not None
    told = "".join(pieces)
    assert told == transcript.text if ended else transcript.text.startswith(told)
    assert not any(string in told for string in stop)
