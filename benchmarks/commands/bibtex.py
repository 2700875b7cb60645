"""BibTeX of the papers that methods name, made of the fields of their line ``paper`` alone."""

import re
from collections.abc import Mapping

_PAPER = re.compile(
    r"(?P<author>.+?), (?P<title>.+), (?P<venue>(?:\D+ )?(?P<year>\d{4}))"
    r"(?:, arXiv (?P<eprint>\d{4}\.\d{4,5}))?(?: \(.+\))?"
)
_HEAD = "% Authors and titles are as short as in tables: complete the entries that you print."


def bibtex_of(key: str, paper: str) -> str | None:
    """Return the entry of a paper such as ``Xin et al., DeeBERT, ACL 2020, arXiv 2004.12993``; None for other texts."""
    found = _PAPER.fullmatch(paper)
    if found is None:
        return None
    fields = {"author": found["author"].replace(" et al.", " and others").replace(" & ", " and ")}
    fields |= {"title": f"{{{found['title']}}}", "year": found["year"]}
    if found["venue"] != found["year"]:
        fields["howpublished"] = found["venue"]
    if found["eprint"]:
        fields |= {"eprint": found["eprint"], "archiveprefix": "arXiv"}
    return "\n".join([f"@misc{{{key},", *(f"  {name} = {{{text}}}," for name, text in fields.items()), "}"])


def bibliography(papers: Mapping[str, str]) -> str:
    """Return the entries of papers, by method; methods of one paper share an entry, those of none have a comment."""
    methods: dict[str, list[str]] = {}
    for name, paper in papers.items():
        methods.setdefault(bibtex_of("", paper) or f"% {paper}", []).append(name)
    entries = [f"% {', '.join(names)}\n{entry.replace('{', '{' + names[0], 1)}" for entry, names in methods.items()]
    return "\n\n".join([_HEAD, *entries])
