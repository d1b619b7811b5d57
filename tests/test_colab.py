"""The cells of notebooks 00, 03, 04 and 12 at SCALE="colab", on a narrow SmolVLM in float16 and a stub of the Hub."""

import pytest
from colab_walk import stub, walk


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("hub")
        patch.setenv("MANU_BUILD", str(home / "build"))
        with stub(home, width=32, people=4) as scale:
            yield scale


def test_notebook_12_makes_the_vanilla_model_that_the_others_load(hub):
    failed = walk("12", say=lambda line: None)
    assert [entry for entry in failed if entry[1] == "error"] == []
