"""The two libraries that a page carries with it, from the packages that bundle them: nothing is fetched."""

from functools import cache
from pathlib import Path
from urllib.parse import quote

import altair
import vl_convert
from itables import options


@cache
def vega() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, of the version that charts are written for."""
    major_and_minor = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed", vl_version=major_and_minor)).replace(
        "</script", "<\\/script"
    )


_KEPT = "!$&'()*+,;=:@/?~-._{}[]|^ "
"""What stays as it is in a data URI inside of a script of JSON: base64 would make it a fifth larger."""


@cache
def datatables() -> str:
    """Return the module of DataTables as a data URI."""
    module = Path(str(options.dt_bundle)).read_text(encoding="utf-8")
    return f"data:text/javascript;charset=utf-8,{quote(module, safe=_KEPT)}"
