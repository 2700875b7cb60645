"""Early-exit decoders under lm-evaluation-harness: its command line, which knows them by the name ``consistentee``.

The harness finds models in its own list alone: neither entry points nor ``--include_path`` add to it. So this enters
the model, and hands over to the harness.
"""

import sys

from consistentee.errors import UserError
from consistentee.extras import check_extra


def register() -> None:
    """Enter the model into the harness's list; it is imported once it is asked for. Again, nothing happens."""
    from lm_eval.api.registry import model_registry

    if "consistentee" not in model_registry:
        model_registry.register("consistentee", target="benchmarks.lm_eval.model:EarlyExitLM")


def main() -> None:
    """Run the harness's command line, with its own options."""
    try:
        check_extra("lm-eval", "consistentee-lm-eval")
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
