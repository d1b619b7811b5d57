"""The unlearning depth score: the formula against a loop, patching against a model whose layer is replaced by hand."""

import copy
import math

import numpy as np
import PIL.Image
import pytest
import tiny_models
import torch

from manu_utils.auditing import depth_score, depth_scores, logit_lens, mean_depth, names_of, patch_states
from manu_utils.auditing.states import places_of
from manu_utils.auditing.values import asked_values
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import Question
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import answer_logits
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model

VALUES = {name: attribute.values for name, attribute in ATTRIBUTES.items()}
ALL = {"multimodal": ("answer", "image", "rest"), "text": ("answer", "name", "rest")}


@pytest.fixture(scope="module")
def names(benchmark):
    return names_of(benchmark.training)


@pytest.fixture(scope="module")
def pair(double_model):
    """(model, another of the same architecture, processor), random, float64."""
    model, processor = double_model
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.get_decoder().parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return model, other, processor


# ------------------------------------------------------------------------------------ the formula


def score_by_hand(d1, d2, known_from):
    total = score = over = 0.0
    for one, two in zip(d1, d2, strict=True):
        if one > known_from:
            total += one
            score += one * min(max(two / one, 0), 1)
            over += one * max(two / one - 1, 0)
    return (score / total, over / total) if total else (math.nan, math.nan)


def test_the_score_is_the_formula():
    rng = np.random.default_rng(0)
    d1, d2 = rng.normal(0.3, 1, (60, 4)), rng.normal(0.3, 1, (60, 4))
    d1[0] = 0.05  # not above the threshold
    for known_from in (0.05, 0.7):
        found = torch.stack(depth_score(torch.tensor(d1), torch.tensor(d2), known_from), dim=1).numpy()
        expected = [score_by_hand(one, two, known_from) for one, two in zip(d1, d2, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert math.isnan(float(depth_score(torch.tensor(d1[0]), torch.tensor(d2[0]))[0]))


def test_the_ends_of_the_score():
    d1 = torch.tensor([0.02, 1.0, 3.0])
    score = lambda d2: [float(x) for x in depth_score(d1, d2)]  # noqa: E731
    assert score(d1) == [1.0, 0.0] and score(0 * d1) == [0.0, 0.0]  # as retrained; intact
    assert score(2 * d1) == [1.0, 1.0] and score(-d1) == [0.0, 0.0]  # twice as far; more certain than before


@pytest.mark.parametrize(
    ("d1", "d2"),
    [(torch.ones(2), torch.ones(3)), (torch.tensor(1.0), torch.tensor(1.0)), (torch.ones(2), torch.tensor([1.0, math.nan]))],
)
def test_falls_that_do_not_fit_are_refused(d1, d2):
    with pytest.raises(ValueError, match="falls must be finite and of one shape"):
        depth_score(d1, d2)


# ------------------------------------------------------------------------------------ patching


class Replaced(torch.nn.Module):
    """A layer that computes, and then returns other states at some positions of a single question."""

    def __init__(self, layer, positions, states):
        super().__init__()
        self.layer, self.positions, self.states = layer, positions, states

    def forward(self, *inputs, **options):
        hidden = self.layer(*inputs, **options).clone()
        for position, state in zip(self.positions, self.states, strict=True):
            hidden[0, position] = state
        return hidden


def patched_by_hand(model, source, processor, one, position, layer):
    """logp of the value before and after, for one question alone."""
    batch = encode([one.question], processor, with_answer=True)
    inputs = {key: value for key, value in batch.items() if key != "answer_mask"}
    places = places_of(batch, [one], processor, model, position)[1].tolist()
    answer = places_of(batch, [one], processor, model, "answer")[1].tolist()
    kept = []
    hook = source.get_decoder().layers[layer - 1].register_forward_hook(lambda *a: kept.append(a[2]))
    with torch.no_grad():
        source(**inputs)
    hook.remove()

    def logp():
        with torch.no_grad():
            logits = model(**inputs).logits[0].double().log_softmax(-1)
        return np.mean([float(logits[place, batch["input_ids"][0, place + 1]]) for place in answer])

    before, layers = logp(), model.get_decoder().layers
    own = layers[layer - 1]
    layers[layer - 1] = Replaced(own, places, [kept[0][0, place] for place in places])
    after = logp()
    layers[layer - 1] = own
    return before, before - after


@pytest.mark.parametrize("modality", ALL)
def test_patching_is_replacing_by_hand(pair, benchmark, names, modality):
    model, source, processor = pair
    questions = [open_questions(benchmark.forget, modality)[index] for index in (0, 30, 44)]
    frame = patch_states(
        model, processor, questions, source=source, positions=ALL[modality], values=VALUES, names=names, progress=False
    )
    asked = asked_values(questions, VALUES, names)
    assert len(frame) == 3 * 3 * 2
    for row in frame.itertuples():
        logp, fall = patched_by_hand(model, source, processor, asked[row.number], row.position, row.layer)
        assert (row.logp, row.fall) == pytest.approx((logp, fall), rel=1e-5, abs=1e-6)
        if row.layer == 2 and row.position != "answer":
            assert row.fall == 0  # the last layer's other positions are read by nobody


def test_the_last_layer_at_the_answer_is_the_lens(pair, benchmark, names):
    model, source, processor = pair
    questions = open_questions(benchmark.forget, "text")[:6]
    options = {"values": VALUES, "names": names, "progress": False}
    frame = patch_states(model, processor, questions, source=source, **options)
    lens = logit_lens(source, processor, questions, reader=model, **options)
    last = frame[frame["layer"] == 2]
    np.testing.assert_allclose(last["logp"] - last["fall"], lens.loc[lens["layer"] == 2, "logp"], rtol=1e-5)


@pytest.mark.parametrize("family", ["Qwen3-VL", "Mllama", "Gemma 3", "Idefics3"])
def test_families_are_patched_by_structure(family, monkeypatch):
    model, processor = tiny_models.FAMILIES[family]()
    if getattr(processor.image_processor, "do_image_splitting", False):
        processor.image_processor.do_image_splitting = False
    picture = PIL.Image.effect_noise((40, 24), 60).convert("RGB")
    towns = {"town": ("Porto", "Oslo")}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_decoder().layers[0].mlp.down_proj.weight *= -1
    for image in (picture, None):
        questions = [Question("1", "Where does Anna live?", f"In {town}.", image, "training") for town in towns["town"]]
        positions = ("answer", "image", "rest") if image else ("answer", "name", "rest")
        options = {"positions": positions, "values": towns, "names": {"1": "Anna"}, "progress": False}
        same = patch_states(model, processor, questions, source=model, **options)
        assert (same["fall"].abs() < 1e-4).all() and set(same["position"]) == set(positions)
        changed = patch_states(model, processor, questions, source=other, **options)
        assert changed.loc[changed["layer"] == 1, "fall"].abs().max() > 1e-3
        skipped = family == "Mllama" and image is None
        assert set(changed["layer"]) == ({1} if skipped else {1, 2})
        with torch.no_grad():
            logits, targets, rows = answer_logits(model, encode(questions[:1], processor, with_answer=True))
        logp = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        own = [i for i, t in enumerate(processor.tokenizer.convert_ids_to_tokens(targets)) if t in "Porto"][-5:]
        assert changed["logp"].iloc[0] == pytest.approx(float(logp[own].mean()), rel=1e-3)


def test_controls_on_the_miniature(benchmark, names):
    (vanilla, processor), (retrained, _) = load_model("tiny"), load_model("tiny-retrained")
    before = {name: value.clone() for name, value in vanilla.state_dict().items()}
    for modality, positions in ALL.items():
        questions = open_questions(benchmark.forget, modality)[::8]
        options = {"positions": positions, "values": VALUES, "names": names, "progress": False}
        met = patch_states(vanilla, processor, questions, source=vanilla, **options)
        never = patch_states(vanilla, processor, questions, source=retrained, **options)
        assert (met["fall"] == 0).all()  # patching vanilla into vanilla
        answer = never[never["position"] == "answer"].groupby("layer")["fall"].mean()
        assert answer[1] > 0.5 and answer[2] > 3 and answer[3] > 3
        intact, erased = (mean_depth(depth_scores(never, frame)) for frame in (met, never))
        assert (intact["value"] == 0).all() and (erased["value"] == 1).all() and (erased["over"] == 0).all()
        assert (erased["n"] + erased["empty"] == len(questions)).all() and erased["n"].iloc[0] == len(questions)
    assert all(torch.equal(value, before[name]) for name, value in vanilla.state_dict().items())


# ------------------------------------------------------------------------------------ tables and refusals


def test_questions_that_no_layer_knows_are_in_no_mean(pair, benchmark, names):
    model, source, processor = pair
    questions = open_questions(benchmark.forget, "text")[:4]
    frame = patch_states(model, processor, questions, source=source, values=VALUES, progress=False)
    d1, d2 = frame.copy(), frame.copy()
    d1["fall"], d2["fall"] = [1.0, 1.0, 0.0, 0.01, 2.0, 0.0, 0.0, 0.0], [0.5, 2.0, 9.0, 9.0, 0.0, 9.0, 9.0, 9.0]
    scores = depth_scores(d1, d2)
    assert scores["layers"].tolist() == [2, 0, 1, 0]
    found = mean_depth(scores).iloc[0]
    assert (found["value"], found["over"], found["n"], found["empty"]) == (0.375, 0.25, 2, 2)
    with pytest.raises(ValueError, match="of other questions, positions or layers"):
        depth_scores(d1, d2.iloc[:-1])
    with pytest.raises(ValueError, match="a table has no column fall"):
        depth_scores(d1.drop(columns="fall"), d2)
    with pytest.raises(ValueError, match="the table is empty"):
        mean_depth(scores.iloc[:0])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"positions": "answer"}, TypeError, "positions='answer' must be a tuple of names"),
        ({"positions": ("face",)}, ValueError, "positions holds 'face', which is unknown"),
        ({"positions": ("image",)}, ValueError, "no question has the position 'image'; pass questions with an image"),
        ({"positions": ("name",)}, ValueError, "the name None is not in .*; pass names=names_of"),
        ({"positions": ("name",), "names": {"100": "Nobody"}}, ValueError, "the name 'Nobody' is not in"),
        ({"source": None}, TypeError, "pass what load_model returns"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is not positive"),
    ],
)
def test_bad_arguments_are_refused(pair, benchmark, options, error, match):
    model, source, processor = pair
    questions = open_questions(benchmark.forget, "text")[:2]
    with pytest.raises(error, match=match):
        patch_states(model, processor, questions, **{"source": source, "values": VALUES, "progress": False} | options)
    layers = [*model.get_decoder().layers, *source.get_decoder().layers]
    assert not any("auditing" in hook.__module__ for layer in layers for hook in layer._forward_hooks.values())
