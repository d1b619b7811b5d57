"""Settings that pytest and nbval share."""


def pytest_collectstart(collector):
    """Keeps nbval from comparing stderr and pictures.

    The hygiene test forbids stored stderr; a check cell asserts the data of each picture.
    """
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr", "image/png", "image/jpeg", "image/svg+xml")
