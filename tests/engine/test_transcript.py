"""The end of a row's text, and the stream of its tokens."""

from hypothesis import given, strategies as st

from consistentee.engine.transcript import Endings, Transcript

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
        pieces.append(transcript.news().text)
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
