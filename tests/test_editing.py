"""The closed-form edit against moments, gradients and inverses written out, what it does to the miniature, and bad input."""

import copy
import dataclasses

import pytest
import tiny_models
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from manu_utils.benchmark.records import Question
from manu_utils.models.asking import known
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons
from manu_utils.models.passes import hooked
from manu_utils.unlearning.attribution import answer_margins, token_rarity
from manu_utils.unlearning.evidence import unlearn
from manu_utils.unlearning.moments import bytes_of_layer, collect_moments
from manu_utils.unlearning.pruning import prune_neurons
from manu_utils.unlearning.rewriting import margin_gradient, rewrite, rewrite_neurons

MODALITIES = ("multimodal", "text")


@pytest.fixture(scope="module")
def questions(benchmark):
    """forget, retain -> modality -> five questions of one person, so that the last batch of two is not full."""
    people = {"forget": benchmark.forget_ids[:1], "retain": benchmark.retain_ids[:1]}
    return {name: {m: benchmark.training_questions(ids, m)[:5] for m in MODALITIES} for name, ids in people.items()}


@pytest.fixture(scope="module")
def moments(double_model, questions):
    return collect_moments(*double_model, questions["retain"], batch_size=2, progress=False)


def language(model):
    return [mlp for mlp in find_neurons(model) if mlp.tower == "language"]


def everything_is_known(model, processor, items, **_):
    return torch.ones(len(items), dtype=torch.bool)


def weights_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


# ------------------------------------------------------------------------------------------------ parts


def test_moments_are_those_of_every_token_one_question_at_a_time(double_model, questions, moments):
    model, processor = double_model
    expected = [torch.zeros(mlp.size, mlp.size, dtype=torch.float64) for mlp in language(model)]
    for items in questions["retain"].values():
        tokens: list[list] = [[] for _ in expected]
        for question in items:  # alone in its batch: no padding
            hooks = [
                mlp.after.register_forward_pre_hook(lambda _, z, kept=kept: kept.append(z[0][0]))
                for mlp, kept in zip(language(model), tokens, strict=True)
            ]
            batch = encode([question], processor, with_answer=True)
            batch.pop("answer_mask")
            with torch.no_grad():
                model(**batch)
            for hook in hooks:
                hook.remove()
        for moment, kept in zip(expected, tokens, strict=True):
            moment += sum(torch.outer(z, z) for z in torch.cat(kept)) / len(torch.cat(kept)) / 2
    for found, moment in zip(moments, expected, strict=True):
        assert moment.max() > 0
        torch.testing.assert_close(found.double(), moment, rtol=1e-4, atol=1e-6 * moment.max().item())
    assert not any(mlp.after._forward_pre_hooks for mlp in language(model))


def test_the_gradient_is_the_slope_of_the_margin(double_model, questions):
    """Finite differences in random directions; facts that are gone do not count."""
    model, processor = double_model
    alive = {m: torch.tensor([True, False, True, True, False]) for m in MODALITIES}
    margin, gradients = margin_gradient(model, processor, questions["forget"], alive, batch_size=2)

    @torch.no_grad()
    def by_hand():
        total = 0.0
        for m, items in questions["forget"].items():
            rarity = token_rarity(items, processor.tokenizer)
            left = [question for question, still in zip(items, alive[m], strict=True) if still]
            parts = [answer_margins(model, encode([q], processor, with_answer=True), rarity) for q in left]
            total += torch.cat(parts).double().mean().item()
        return total

    assert margin == pytest.approx(by_hand(), rel=1e-5)
    torch.manual_seed(0)
    for mlp, gradient in zip(language(model), gradients, strict=True):
        before, direction = mlp.after.weight.detach().clone(), torch.randn_like(mlp.after.weight)
        step, values = 1e-4, []
        for sign in (1, -1):
            with torch.no_grad():
                mlp.after.weight.copy_(before + sign * step * direction)
            values.append(by_hand())
        with torch.no_grad():
            mlp.after.weight.copy_(before)
        slope = (gradient.double() * direction).sum().item()
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=1e-3 * abs(margin))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_the_gradient_reads_a_picture_once_for_all_questions_about_it(double_model, questions):
    model, processor = double_model
    alive = {m: torch.ones(5, dtype=torch.bool) for m in MODALITIES}
    seen = []
    register = model.model.vision_tower.register_forward_hook
    with hooked([(register, lambda module, given, out: seen.append(len(out.pooler_output)))]):
        margin_gradient(model, processor, questions["forget"], alive)
    assert seen == [1]


def test_one_round_is_the_cheapest_step_that_lowers_the_margin_so_far(double_model, questions, moments, monkeypatch):
    """ΔW is −η ∇W (M + ridge)⁻¹ with an inverse taken, and no other step of the same fall disturbs the retain set less."""
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    alive = {m: torch.ones(5, dtype=torch.bool) for m in MODALITIES}
    margin, gradients = margin_gradient(model, processor, questions["forget"], alive)
    before = [mlp.after.weight.detach().clone() for mlp in language(model)]
    options = {"ridge": 0.2, "strength": 0.3, "rounds": 1, "progress": False}
    with rewrite_neurons(model, processor, questions["forget"], moments, **options):
        steps = [mlp.after.weight.detach() - old for mlp, old in zip(language(model), before, strict=True)]
    costs = [(m + 0.2 * m.diagonal().mean() * torch.eye(len(m))).double() for m in moments]
    expected = [-g.double() @ torch.linalg.inv(cost) for g, cost in zip(gradients, costs, strict=True)]
    fall = -sum((g.double() * e).sum() for g, e in zip(gradients, expected, strict=True))
    for step, e in zip(steps, expected, strict=True):
        torch.testing.assert_close(step, e * 0.3 * margin / fall, rtol=1e-3, atol=1e-5 * step.abs().max().item())

    def price(change):
        return sum(((c @ cost) * c).sum().item() for c, cost in zip(change, costs, strict=True))

    def falls(change):
        return -sum((g.double() * c).sum().item() for g, c in zip(gradients, change, strict=True))

    assert falls(steps) == pytest.approx(0.3 * margin, rel=1e-4)
    torch.manual_seed(1)
    for _ in range(20):
        other = [step + 0.1 * step.std() * torch.randn_like(step) for step in steps]
        other = [o * (falls(steps) / falls(other)) for o in other]
        assert price(other) > price(steps)


# ------------------------------------------------------------------------------------------------ the whole


def test_only_selected_columns_change_and_undo_restores_every_bit(double_model, questions, moments, monkeypatch):
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    before = weights_of(model)
    selected = torch.zeros(sum(mlp.size for mlp in find_neurons(model)), dtype=torch.bool)
    first = sum(mlp.size for mlp in find_neurons(model) if mlp.tower == "vision")
    selected[:5] = selected[first : first + 7] = True  # five neurons of the vision tower, which are left alone
    handle = rewrite_neurons(
        model, processor, questions["forget"], moments, selected=selected, rounds=2, progress=False
    )  # fmt: skip
    mlp = language(model)[0]
    assert changed(model, before) == {f"{mlp.path}.down_proj.weight"}
    touched = (mlp.after.weight != before[f"{mlp.path}.down_proj.weight"]).any(0)
    assert touched[:7].all() and not touched[7:].any()
    handle.undo()
    assert not changed(model, before)


def test_interrupted_in_the_middle_of_a_step_it_is_undone(double_model, questions, moments, monkeypatch):
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    plain, calls = torch.Tensor.index_add_, []

    def killed(*arguments, **options):
        plain(*arguments, **options)
        calls.append(1)
        if len(calls) == 3:  # the first layer of the second round
            raise KeyboardInterrupt

    before = weights_of(model)
    monkeypatch.setattr(torch.Tensor, "index_add_", killed)
    with pytest.raises(KeyboardInterrupt):
        rewrite_neurons(model, processor, questions["forget"], moments, progress=False)
    assert len(calls) == 3 and not changed(model, before)


def test_undo_waits_for_a_later_pruning(double_model, questions, moments, monkeypatch):
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    before = weights_of(model)
    rewritten = rewrite_neurons(model, processor, questions["forget"], moments, rounds=1, progress=False)
    pruned = prune_neurons(model, torch.arange(sum(mlp.size for mlp in find_neurons(model))) % 3 == 0)
    with pytest.raises(RuntimeError, match="changed again later"):
        rewritten.undo()
    pruned.undo()
    rewritten.undo()
    assert not changed(model, before)


def test_a_changed_model_is_refused_until_it_is_undone_or_loaded_again(double_model, questions, moments, monkeypatch):
    """Each by itself, and rewriting and pruning in either order; notebooks reset a model by load_state_dict."""
    model, processor = copy.deepcopy(double_model[0]), double_model[1]
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    vanilla = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    once = {"rounds": 1, "progress": False}

    def rewritten(**more):
        return rewrite_neurons(model, processor, questions["forget"], moments, **once, **more)

    def also_rewritten(**more):
        return rewrite(model, processor, **questions, **once, **more)

    def pruned(**more):
        return unlearn(model, processor, **questions, variant="random", alpha=5.0, progress=False, **more)

    for first in (rewritten, also_rewritten, pruned):
        handle, after = first(), weights_of(model)
        for second in (rewritten, also_rewritten, pruned):
            with pytest.raises(ValueError, match=r"already.*undo\(\).*on_top=True"):
                second()
            assert not changed(model, after)
            with second(on_top=True):
                assert changed(model, after)
            assert not changed(model, after)
        model.load_state_dict(vanilla)
        later = rewritten()  # nothing is in place any more
        with pytest.raises(RuntimeError, match="changed again later"):
            handle.undo()
        model.load_state_dict(vanilla)  # the later change is gone, so the earlier handle is free
        handle.undo()
        later.undo()
        assert not changed(model, vanilla)


def test_a_rewritten_model_that_is_moved_to_a_larger_dtype_is_still_rewritten(tiny_model, questions, monkeypatch):
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    model = copy.deepcopy(tiny_model[0]).to(torch.bfloat16)
    rewrite(model, tiny_model[1], **questions, rounds=1, strength=1.0, progress=False)
    model.float()
    with pytest.raises(ValueError, match="its weights were changed"):
        rewrite(model, tiny_model[1], **questions, progress=False)


def test_what_changes_nothing_is_no_change(double_model, questions, moments):
    """Nobody is known: another round is no second one."""
    for _ in range(2):
        rewrite_neurons(*double_model, questions["forget"], moments, progress=False)
    unlearn(*double_model, **questions, variant="random", progress=False).undo()


def test_a_layer_that_is_silent_is_left_alone(double_model, questions, monkeypatch):
    model, processor = copy.deepcopy(double_model[0]), double_model[1]
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    with torch.no_grad():
        language(model)[1].before[0].weight.zero_()  # no gate opens
    before = weights_of(model)
    rewrite(model, processor, questions["forget"], questions["retain"], rounds=1, progress=False)
    assert changed(model, before) == {f"{language(model)[0].path}.down_proj.weight"}
    with torch.no_grad():
        language(model)[0].before[0].weight.zero_()
    with pytest.raises(ValueError, match="every layer that may be changed is silent on the retain set"):
        rewrite(model, processor, questions["forget"], questions["retain"], on_top=True, progress=False)


@pytest.mark.parametrize("named", [{}, {"modalities": ("text",)}])
def test_text_alone(double_model, questions, monkeypatch, named):
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    text = {name: {"text": of["text"]} for name, of in questions.items()}
    moments = collect_moments(model, processor, text["retain"], progress=False)
    with rewrite_neurons(model, processor, text["forget"], moments, rounds=1, progress=False):
        expected = weights_of(model)
    with rewrite(model, processor, **(questions if named else text), **named, rounds=1, progress=False):
        assert not changed(model, expected)


def test_mllama_is_rewritten_for_text_alone(monkeypatch):
    """Its cross-attention layers pass text by: their neurons are silent."""
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    model, processor = tiny_models.mllama()
    answers = {"1": "Rome.", "2": "Oslo."}
    ask = [Question(person, "Where does Anna live?", answer, None, "training") for person, answer in answers.items()]
    before = weights_of(model)
    with rewrite(model, processor, {"text": ask[:1]}, {"text": ask[1:]}, rounds=1, progress=False):
        assert changed(model, before)
    assert not changed(model, before)


# ------------------------------------------------------------------------------------------------ memory


class Matrices(TorchDispatchMode):
    """The most bytes that are alive at once in storages of at least ``least`` bytes, among those made meanwhile."""

    def __init__(self, least):
        super().__init__()
        self.least, self.alive, self.peak = least, {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()).nbytes() >= self.least:
                self.alive[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {place: entry for place, entry in self.alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


def deep_model(processor, layers, n=512):
    from manu_utils.miniature.model import build_model

    return build_model(processor.tokenizer, seed=0, hidden=32, intermediate=n, layers=layers).eval()


@pytest.mark.parametrize("of_layers", [1, 2])
def test_memory_does_not_grow_with_the_layers(tiny_model, questions, monkeypatch, of_layers):
    """Second moments, factors, gradients and all else that is as large: never of more layers than were asked for."""
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    processor, n, peaks = tiny_model[1], 512, {}
    asked = {name: {"text": of["text"][:2]} for name, of in questions.items()}
    for layers in (2, 6):
        with Matrices(4 * n * n) as watch:
            memory = of_layers * bytes_of_layer(n, 32)
            rewrite(deep_model(processor, layers), processor, **asked, rounds=2, memory=memory, batch_size=1, progress=False)
        peaks[layers] = watch.peak
    assert 0 < peaks[2] == peaks[6] <= (of_layers + 3) * 4 * n * n


def test_a_few_layers_at_a_time_give_the_same_result(tiny_model, questions, monkeypatch):
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    model, before = deep_model(tiny_model[1], 5, n=64), None
    options = {"rounds": 2, "batch_size": 2, "progress": False}
    moments = collect_moments(model, tiny_model[1], questions["retain"], batch_size=2, progress=False)
    before = weights_of(model)
    with rewrite_neurons(model, tiny_model[1], questions["forget"], moments, **options):
        expected = weights_of(model)
    for memory in (1, 2 * bytes_of_layer(64, 32), 1e9):
        with rewrite(model, tiny_model[1], **questions, memory=memory, **options):
            assert len(changed(model, before)) == 5 and not changed(model, expected)
        assert not changed(model, before)


def test_it_stops_when_nothing_is_known(double_model, questions, moments):
    """A model with random weights knows nobody: there is nothing to do."""
    before = weights_of(double_model[0])
    with pytest.warns(UserWarning, match="answers none of these questions word for word, so that nothing is changed"):
        rewrite_neurons(*double_model, questions["forget"], moments, progress=False)
    assert not changed(double_model[0], before)


def test_two_people_are_forgotten_and_others_kept_on_the_miniature(benchmark):
    from manu_utils.models.loading import load_model

    model, processor = load_model("tiny")
    people = {"forget": benchmark.forget_ids[:2], "retain": benchmark.retain_ids[:8]}
    sets = {name: {m: benchmark.training_questions(ids, m) for m in MODALITIES} for name, ids in people.items()}
    sets["retain"] = {m: items[::2] for m, items in sets["retain"].items()}

    def knows(name):
        return {m: known(model, processor, items, progress=False).double().mean() for m, items in sets[name].items()}

    assert min(*knows("forget").values(), *knows("retain").values()) > 0.9
    rewrite(model, processor, **sets, progress=False)
    assert max(knows("forget").values()) < 0.1 and min(knows("retain").values()) > 0.9


# ------------------------------------------------------------------------------------------------ bad input


BAD_INPUT = {
    "ridge is text": ({"ridge": "0.1"}, "ridge='0.1' must be a number"),
    "rounds is a fraction": ({"rounds": 1.5}, "rounds=1.5 must be a whole number"),
    "memory": ({"memory": 0}, "memory=0 must be a finite number above 0"),
    "batch_size": ({"batch_size": "8"}, "batch_size='8' must be a whole number"),
    "ridge": ({"ridge": 0.0}, "ridge=0.0 must be a finite number above 0"),
    "strength": ({"strength": 1.5}, "strength=1.5 must be a finite number above 0 and at most 1"),
    "rounds": ({"rounds": 0}, "rounds=0 is not positive"),
    "too few neurons": ({"selected": torch.ones(3, dtype=torch.bool)}, "selected must be bool"),
    "no neuron": ({"selected": slice(0, 0)}, "no neuron of the language model"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_options_leave_the_model_alone(double_model, questions, moments, case):
    model, processor = double_model
    options, message = BAD_INPUT[case]
    if isinstance(options.get("selected"), slice):
        options = {"selected": torch.zeros(sum(mlp.size for mlp in find_neurons(model)), dtype=torch.bool)}
    before = weights_of(model)
    with pytest.raises((ValueError, TypeError), match=message):
        rewrite_neurons(model, processor, questions["forget"], moments, **options, progress=False)
    assert not changed(model, before)


def test_moments_that_cannot_be_inverted_say_what_to_do(double_model, questions, moments):
    model, processor = double_model
    before = weights_of(model)
    with pytest.raises(ValueError, match="cannot be inverted; raise ridge"):
        rewrite_neurons(model, processor, questions["forget"], [-m for m in moments], progress=False)
    assert not changed(model, before)


def test_bad_sets_are_named(double_model, questions, moments):
    model, processor = double_model
    with pytest.raises(ValueError, match="forget and retain share people"):
        rewrite(model, processor, questions["forget"], questions["forget"], progress=False)
    with pytest.raises(ValueError, match="retain has no text questions"):
        rewrite(model, processor, questions["forget"], {"multimodal": questions["retain"]["multimodal"]}, progress=False)
    with pytest.raises(ValueError, match="must hold questions in every modality"):
        collect_moments(model, processor, {"text": []}, progress=False)
    with pytest.raises(ValueError, match="forget must hold questions in every modality"):
        rewrite_neurons(model, processor, {"text": []}, moments, progress=False)
    with pytest.raises(ValueError, match="moments are of another model"):
        rewrite_neurons(model, processor, questions["forget"], moments[:1], progress=False)
    for layers in ([2], [0, 0], [-1]):
        with pytest.raises(ValueError, match="must be different numbers from 0 to 1"):
            collect_moments(model, processor, questions["retain"], layers=layers, progress=False)
    with pytest.raises(TypeError, match="modalities='text' must be a tuple of names"):
        rewrite(model, processor, **questions, modalities="text", progress=False)
    empty = {"text": [dataclasses.replace(questions["forget"]["text"][0], answer=" ")]}
    with pytest.raises(ValueError, match="leave questions without an answer out"):
        rewrite(model, processor, empty, {"text": questions["retain"]["text"]}, progress=False)


def test_logits_that_are_not_finite_are_refused(tiny_model, questions):
    """The last norm shows in no neuron."""
    model = copy.deepcopy(tiny_model[0])
    model.model.language_model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="the logits are not finite"):
        rewrite(model, tiny_model[1], **questions, progress=False)


def test_a_gradient_that_is_not_finite_is_refused_after_undoing(double_model, questions, moments, monkeypatch):
    model, processor = double_model
    monkeypatch.setattr("manu_utils.unlearning.rewriting.known", everything_is_known)
    calls = []

    def breaks_in_the_second_round(*arguments, **options):
        margin, gradients = margin_gradient(*arguments, **options)
        calls.append(1)
        return (margin if len(calls) == 1 else float("nan")), gradients

    monkeypatch.setattr("manu_utils.unlearning.rewriting.margin_gradient", breaks_in_the_second_round)
    before = weights_of(model)
    with pytest.raises(ValueError, match="not finite"):
        rewrite_neurons(model, processor, questions["forget"], moments, rounds=3, progress=False)
    assert len(calls) == 2 and not changed(model, before)
