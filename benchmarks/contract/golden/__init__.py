"""Golden cells: what every method gives on tiny models, committed, so that no number moves in silence.

    python -m benchmarks.contract.golden            # write the cells of all registered methods
    python -m benchmarks.contract.golden pabee      # write one

A cell is a JSON file, ``tests/golden/cells/METHOD.json``: on two families of backbones, what the trained model's exits
and heads say on average, and at three values of the knob where every row leaves, with what answer, and the score. A
test computes it anew. Where numbers moved, either something is broken; or the method is now another, and its
``version`` must be raised, so that results of the two are never mixed. Writing holds this too: it refuses to write
other numbers over those of the same version. Cells whose numbers did not move are left as they are.

Machines differ in the last digits, and a decision may hang on them. So a cell says how many of a row's decisions are
*firm*: neither a threshold moved by :data:`benchmarks.contract.golden.cells.CLOSE`, nor weights that differ by about as
much, change them. Others may.
"""
