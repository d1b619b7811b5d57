"""Settings that pytest and nbval share."""

# What takes longest, in this order: two processes that take a file at a time then end together.
LONGEST = (
    "08_raise_the_ceiling", "05_evaluation", "06_against_baselines", "09_forgotten_or_hidden",
    "02_a_model_that_knows", "10_text_alone", "04_pruning", "11_not_only_people",
    "12_the_real_thing", "test_exercises", "07_what_makes_it_work", "03_which_neurons_matter",
    "00_start_here", "test_run_all", "test_processes", "test_protocols", "test_miniature",
    "test_evaluation", "test_resume", "test_pruning", "test_released", "test_erasing",
    "test_baselines", "test_choosing", "test_editing",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (*LONGEST, item.path.stem).index(item.path.stem))


def pytest_collectstart(collector):
    """Keeps nbval from comparing stderr and pictures.

    The hygiene test forbids stored stderr; a check cell asserts the data of each picture.
    """
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "image/jpeg", "image/svg+xml")
