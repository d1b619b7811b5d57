"""What check and exercise cells print and raise, the checks of arguments and models, and the mode in which passes run."""

import copy
import math
import re

import nbclient
import nbformat
import numpy
import pytest
import torch
from torch import nn

from manu_utils.checks import check_name, check_names, check_number, check_whole
from manu_utils.models.passes import check_finite, check_model, exact_device, quiet_pass
from manu_utils.teaching.checks import attempt, check, check_for


def test_check_prints_the_claim(capsys):
    check(True, "two is even")
    assert capsys.readouterr().out == "✓ two is even\n"


def test_check_fails_with_claim_and_hint(capsys):
    with pytest.raises(AssertionError, match="^✗ three is even. Look at the remainder$"):
        check(False, "three is even", "look at the remainder")
    with pytest.raises(AssertionError, match="^✗ three is even$"):
        check(False, "three is even")
    assert capsys.readouterr().out == ""


def test_attempt_waits_for_the_reader(capsys):
    def stub():
        raise NotImplementedError

    attempt(stub, "it is right", "think again")
    assert capsys.readouterr().out == "○ not attempted yet\n"


@pytest.mark.parametrize("right", [True, 1])
def test_attempt_praises(capsys, right):
    attempt(lambda: right, "it is right", "think again")
    assert capsys.readouterr().out == "✓ it is right\n"


@pytest.mark.parametrize("wrong", [False, None, 0])
def test_attempt_gives_the_hint(wrong):
    with pytest.raises(AssertionError, match="^✗ it is right. Think again$"):
        attempt(lambda: wrong, "it is right", "think again")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (lambda: {}["z"], "KeyError: 'z'"),
        (lambda: None.shape, "AttributeError: 'NoneType' object has no attribute 'shape'"),
        (lambda: torch.ones(2), "RuntimeError: Boolean value of Tensor with more than one value is ambiguous"),
        (lambda: (_ for _ in ()).throw(ValueError()), "ValueError"),
    ],
)
def test_an_error_of_the_attempt_becomes_the_hint(broken, what):
    message = f"^✗ it is right: the attempt raised {re.escape(what)}. Think again$"
    with pytest.raises(AssertionError, match=message) as raised:
        attempt(broken, "it is right", "think again")
    assert raised.value.__cause__ is not None, "the traceback is shown above"


def test_jupyter_shows_the_readers_lines_and_the_hint_and_no_more():
    """In a real kernel; the frames of the package would push the hint off the screen."""
    cells = [
        "from manu_utils.teaching import attempt",
        "def half(x):\n    return x / 0\n\ndef right():\n    return half(1) == 0.5",
        "attempt(right, 'half of one', 'divide by two')",
        "attempt(lambda: False, 'half of one', 'divide by two')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    raised, wrong = (cell.outputs[-1].traceback for cell in notebook.cells[2:])
    hint = "✗ half of one: the attempt raised ZeroDivisionError: division by zero. Divide by two"
    assert raised == ["line 5, in right: return half(1) == 0.5", "line 2, in half: return x / 0", hint]
    assert wrong == ["✗ half of one. Divide by two"]


def test_a_forgotten_return_is_named():
    with pytest.raises(AssertionError, match=r"NoneType.*\(is a return missing\?\)\. Think again$"):
        attempt(lambda: f"{print('.3'):.2f}", "it is right", "think again")


@pytest.mark.parametrize("hint", ["prune_neurons takes a bool", "z_n is linear", "E[z²] is 1", "`a` is it", "x.sum() does"])
def test_names_of_the_code_in_a_hint_stay_as_they_are(hint):
    with pytest.raises(AssertionError, match=re.escape(f". {hint}")):
        check(False, "it is right", hint)


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("value", ["5", True, None, [5], 5 + 0j])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=rf"^alpha={re.escape(repr(value))} must be a number such as 5.0, not "):
        check_number("alpha", value)
    with pytest.raises(TypeError, match=r"^batch_size=.* must be a whole number such as 1, not "):
        check_whole("batch_size", value)


def test_numbers_of_numpy_are_numbers():
    for value in (5, 5.0, numpy.float32(5), numpy.int64(5)):
        check_number("alpha", value, above=0)
    check_whole("seed", numpy.int64(0), least=0)
    with pytest.raises(TypeError, match="whole number"):
        check_whole("batch_size", 8.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0])
def test_a_number_out_of_range(value):
    with pytest.raises(ValueError, match="must be a finite number above 0 and below 9"):
        check_number("tau", value, above=0, below=9)
    with pytest.raises((ValueError, TypeError)):
        check_whole("rounds", value)
    for inside in (0, 1):
        check_number("share", inside, least=0, most=1)
    with pytest.raises(ValueError, match="^share=1.1 must be a finite number at least 0 and at most 1.$"):
        check_number("share", 1.1, least=0, most=1)


def test_an_object_in_a_wrong_place_is_named_by_its_type():
    """Arguments are swapped easily, and a model prints as hundreds of lines."""
    layer, many = nn.Linear(2, 2), list(range(100))
    for check_it, message in (
        (lambda: check_name("method", layer, ("ga", "npo")), "^method must be one of ga, npo, not a Linear.$"),
        (lambda: check_name("method", "x" * 100, ("ga", "npo")), "^method=<str> is unknown; use one of ga, npo.$"),
        (lambda: check_name("method", "GA", ("ga", "npo")), "^method='GA' is unknown; use one of ga, npo.$"),
        (lambda: check_number("lr", layer), "^lr=<Linear> must be a number such as 5.0, not a Linear.$"),
        (lambda: check_whole("steps", layer), "^steps=<Linear> must be a whole number such as 1, not a Linear.$"),
        (lambda: check_names("modalities", layer, ("text",)), "^modalities=<Linear> must be a tuple of names"),
        (lambda: check_names("modalities", many, ("text",)), "^modalities=<list> must be a tuple of names"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            check_it()
    check_name("method", "npo", ("ga", "npo"))


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("text", TypeError, r"must be a tuple of names, such as \('multimodal', 'text'\)"),
        (None, TypeError, "must be a tuple of names"),
        ((None,), TypeError, "must be a tuple of names"),
        ((), ValueError, "must name at least one of"),
        (("text", "text"), ValueError, "none twice"),
        (("images",), ValueError, "holds 'images', which is unknown"),
    ],
)
def test_names(value, error, message):
    check_names("modalities", ["text"], ("multimodal", "text"))
    with pytest.raises(error, match=message):
        check_names("modalities", value, ("multimodal", "text"))


# ------------------------------------------------------------------------------------------------ models


def test_wrapped_models_are_refused_with_the_way_out(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(2, 2))
    for wrapped, advice in (
        (nn.DataParallel(model), "pass model.module"),
        (torch.compile(model), "pass the model that was compiled"),
        (get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["0"])), r"model\.merge_and_unload\(\)"),
        (tiny_model[1], "what load_model returns first"),
        (None, "what load_model returns first"),
    ):
        with pytest.raises(TypeError, match=advice):
            check_model(wrapped)
    with torch.inference_mode():
        frozen = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="load the model outside"):
        check_model(frozen)


def test_a_quiet_pass_has_no_dropout_and_no_autocast_and_puts_both_back():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    model[0].eval()  # a mode of its own, which model.train() would lose
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model[2](model[0](x))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        with quiet_pass(model):
            assert model(x).equal(expected)
        assert torch.is_autocast_enabled("cpu") and model[0](x).dtype == torch.bfloat16
    assert [module.training for module in model] == [False, True, True] and model.training
    with pytest.raises(KeyboardInterrupt), quiet_pass(model):
        raise KeyboardInterrupt
    assert [module.training for module in model] == [False, True, True] and model.training


def test_a_quiet_pass_can_take_gradients_under_inference_mode():
    model = nn.Linear(4, 1)
    with torch.inference_mode(), quiet_pass(model), torch.enable_grad():
        model(torch.ones(1, 4)).sum().backward()
    assert model.weight.grad is not None
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            before = torch.is_grad_enabled()
            with quiet_pass(model):
                assert torch.is_grad_enabled() == before


def test_where_float64_is_kept():
    assert exact_device("mps").type == "cpu"
    assert [exact_device(device).type for device in ("cpu", "cuda:0", "meta")] == ["cpu", "cuda", "meta"]


def test_what_is_not_finite_is_refused():
    check_finite("the logits are", torch.ones(2), torch.zeros(0))
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="^the logits are not finite; load the model in float32 or bfloat16"):
            check_finite("the logits are", torch.ones(2), torch.tensor([0.0, value]))


def test_at_another_scale_a_claim_about_the_miniature_is_told_and_does_not_stop(capsys):
    assert check_for("tiny") is check
    told = check_for("colab")
    told(True, "two is two")
    told(False, "everything is forgotten", "no hint")
    assert capsys.readouterr().out == "✓ two is two\n✗ everything is forgotten (so it was on the miniature)\n"
