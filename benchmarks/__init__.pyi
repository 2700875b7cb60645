from benchmarks.analysis.comparison import headline as headline
from benchmarks.analysis.figures import draw_figure as draw_figure
from benchmarks.analysis.frames import Results as Results, load_results as load_results
from benchmarks.analysis.tables import budget_lines as budget_lines
from benchmarks.run.sweep import run_suite as run_suite
from benchmarks.specs.suites import Filters as Filters, load_suite as load_suite
from benchmarks.tasks.loader import list_tasks as list_tasks, load_task as load_task
