"""Settings that pytest and nbval share."""

from collections import Counter
from pathlib import Path

# What takes longest, in this order: two processes that take a file at a time then end together.
# How long each took stands at the end of a run.
LONGEST = (
    "10_text_alone", "05_evaluation", "11_not_only_people", "02_a_model_that_knows",
    "08_raise_the_ceiling", "test_exercises", "06_against_baselines", "09_forgotten_or_hidden",
    "12_the_real_thing", "04_pruning", "test_cuda", "test_run_all", "test_processes",
    "test_protocols", "test_take_with_you", "07b_whose_neurons", "03_which_neurons_matter",
    "test_evaluation", "test_colab", "test_miniature", "00_start_here", "test_resume",
    "test_baselines", "07_paper_and_code", "test_sources", "test_pruning", "test_released",
    "test_architectures", "test_models", "test_editing", "test_course", "test_training",
    "test_erasing", "test_environment", "test_choosing", "test_lens", "test_gpu_shapes",
    "test_explorer_in_browser",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))


def pytest_terminal_summary(terminalreporter):
    """After many files, the seconds of those that took longest: the order of LONGEST."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                seconds[Path(report.nodeid.split("::")[0]).stem] += report.duration
    if len(seconds) > 10:
        shown = ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.most_common(40))
        terminalreporter.write_line(f"seconds: {shown}")


def pytest_collectstart(collector):
    """Keeps nbval from comparing stderr and pictures.

    The hygiene test forbids stored stderr; a check cell asserts the data of each picture.
    """
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "image/jpeg", "image/svg+xml")
