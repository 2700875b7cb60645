"""The leaderboard: methods compared over tasks, from results folders of this machine and of others.

First at equal cost, as everywhere, see :mod:`benchmarks.analysis.comparisons.headline`; then by whole curves. How a
method is scored on one run (a task, a backbone, a seed, and how it was trained, see
:class:`benchmarks.analysis.panels.protocols.Protocol`): the area under its curve, which is its mean test score over all
budgets (see :func:`benchmarks.analysis.panels.curves.area_under_front`), then put on a scale that tasks share: 0 is the
most frequent class, 1 is the full model. A method that keeps the full model's score at every budget has 100%; what a
shorter model (``static``) reaches stands in the table, as the yardstick that an exit rule has to beat, and not in the
scale, whose width would then be the noise of a small difference.

Two standings: by layers, over all machines, because layers are the same everywhere; and by time, one for each machine,
because times are not. A method is ranked only if it has a result on every run of the standing. One that lacks some is
listed, marked, with the area over the runs it has, but it has no place and no rank. Runs of which fewer than half of
the methods have a result, such as a regression, are not of the standing.
"""
