"""Linear probes: the regression against normal equations, the split by people, vanilla and a model that never met anybody."""

import numpy as np
import pytest
import torch

from manu_utils.auditing import names_of, probe_layers
from manu_utils.auditing.readout import probe_values, ridge_scores
from manu_utils.auditing.values import Asked
from manu_utils.benchmark.questions import open_questions
from manu_utils.benchmark.records import Question
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.loading import load_model

VALUES = {name: ATTRIBUTES[name].values for name in ("pet", "hobby")}


def test_the_regression_solves_the_normal_equations():
    rng = np.random.default_rng(0)
    for n, d in ((30, 5), (6, 20)):  # more rows than features, and fewer
        x, y, z = rng.normal(3, 2, (n, d)), rng.integers(0, 2, (n, 3)).astype(float), rng.normal(3, 2, (7, d))
        x[:, 1] = z[:, 1] = 4.0  # does not vary
        found = ridge_scores(*(torch.tensor(part) for part in (x, y, z)), (0.1, 2.0)).numpy()
        scale = np.where(x.std(0) > 1e-9, x.std(0), np.inf)
        a, b = (x - x.mean(0)) / scale, (z - x.mean(0)) / scale
        for ridge, scores in zip((0.1, 2.0), found, strict=True):
            weights = np.linalg.solve(a.T @ a + ridge * n * np.eye(d), a.T @ (y - y.mean(0)))
            np.testing.assert_allclose(scores, b @ weights + y.mean(0), rtol=1e-8, atol=1e-10)


def made_up(signal, n_people=40, n_values=4, width=12):
    """Features of two questions a person that hold the value as strongly as ``signal``: (features, asked)."""
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1, (n_values, width))
    features, asked = [], []
    for number in range(n_people):
        value = int(rng.integers(n_values))
        for _ in range(2):
            features.append(signal * directions[value] + rng.normal(0, 1, width))
            question = Question(str(number), "What?", f"A {value}.", None, "training")
            one = Asked(question, "pet", str(value), tuple(map(str, range(n_values))))
            asked.append((one, "" if number < 30 else "forget"))
    return torch.tensor(np.array(features)), asked


def test_planted_values_are_found_and_noise_and_shuffled_values_are_not():
    for signal, low, high in ((3.0, 0.95, 1.0), (0.0, 0.0, 0.5)):
        [(attribute, name, value, control, n, people, taught, ridge)] = probe_values(*made_up(signal), (0.01, 1.0), 20, 0)
        assert (attribute, name, n, people, taught) == ("pet", "forget", 20, 10, 30) and ridge in (0.01, 1.0)
        assert low <= value <= high and 0.1 < control < 0.45  # by luck 0.25


def test_the_people_that_are_reported_choose_nothing():
    """The ridge and the probe are the same whatever the tested people's states and values are."""
    features, asked = made_up(1.0)
    other, n_taught = features.clone(), sum(not name for _, name in asked)
    other[n_taught:] = 7.0
    ridges = (1e-3, 1e-1, 10.0)
    assert probe_values(features, asked, ridges, 1, 0)[0][-1] == probe_values(other, asked, ridges, 1, 0)[0][-1]
    nobody = [(one if not name else Asked(one.question, "pet", "unheard of", one.values), name) for one, name in asked]
    assert probe_values(features, nobody, ridges, 1, 0)[0][2:4] == (0, 0)  # no taught person has that value


def test_vanilla_is_found_out_and_a_model_that_never_met_them_is_not(benchmark):
    names = names_of(benchmark.training)
    taught = [q for q in benchmark.training_questions(benchmark.retain_ids[:60], "text") if about_it(q)]
    tested = {"forget": [q for q in benchmark.training_questions("forget", "text") if about_it(q)]}
    accuracy = {}
    for name in ("tiny", "tiny-retrained"):
        model, processor = load_model(name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        frame = probe_layers(
            model, processor, taught, tested, positions=("answer", "name"), values=VALUES, names=names, progress=False
        )
        assert frame["n"].eq(36).all() and frame["people"].eq(12).all() and frame["taught"].eq(60).all()
        accuracy[name] = frame.groupby(["position", "layer"])[["value", "control"]].mean()
        assert accuracy[name]["control"].between(0, 0.2).all()  # by luck 1/12
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert accuracy["tiny"]["value"]["answer", 3] > 0.9 and accuracy["tiny"]["value"]["answer", 2] > 0.2
    assert (accuracy["tiny-retrained"]["value"] < 0.25).all() and (accuracy["tiny"]["value"]["name"] < 0.25).all()


def about_it(question):
    return any(value in question.answer for values in VALUES.values() for value in values)


def test_both_modalities_have_rows_of_their_own(tiny_model, benchmark):
    model, processor = tiny_model
    everybody = {name: attribute.values for name, attribute in ATTRIBUTES.items() if name in ("pet", "hobby", "food")}
    asked = {
        modality: [q for q in open_questions(benchmark.retain, modality) if any(v in q.answer for v in everybody["pet"])]
        for modality in ("multimodal", "text")
    }
    people = sorted({q.person_id for part in asked.values() for q in part})
    taught = [q for part in asked.values() for q in part if q.person_id in people[:20]]
    tested = {"retain": [q for part in asked.values() for q in part if q.person_id in people[20:30]]}
    options = {"values": {"pet": everybody["pet"]}, "names": names_of(benchmark.training), "progress": False}
    positions = ("answer", "name", "image")
    frame = probe_layers(model, processor, taught, tested, positions=positions, shuffles=2, **options)
    kinds = set(zip(frame["modality"], frame["position"], strict=True))
    assert kinds == {("multimodal", "answer"), ("multimodal", "image"), ("text", "answer"), ("text", "name")}
    assert frame.groupby(["modality", "position"])["layer"].apply(list).map(lambda layers: layers == [0, 1, 2]).all()
    again = probe_layers(model, processor, taught, tested, positions=positions, shuffles=2, batch_size=3, **options)
    assert frame["n"].tolist() == again["n"].tolist()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tested": []}, TypeError, "tested is a list; it must be a dict"),
        ({"tested": {"forget": []}}, ValueError, "nobody to teach the probe on, or to test it on"),
        ({"overlap": True}, ValueError, "of 'forget' are taught as well"),
        ({"few": True}, ValueError, "3 people are too few"),
        ({"images": True}, ValueError, "tested on multimodal questions but taught on none"),
        ({"positions": ("rest",)}, ValueError, "positions holds 'rest', which is unknown"),
        ({"positions": ("image",)}, ValueError, "no question has the position 'image'"),
        ({"ridges": 1.0}, TypeError, "ridges must be a tuple of numbers"),
        ({"ridges": (0.0,)}, ValueError, "ridges=0.0 must be a finite number above 0"),
        ({"shuffles": 0}, ValueError, "shuffles=0 is not positive"),
        ({"values": {"pet": ("parrot", "rabbit")}}, ValueError, "fewer than two values of 'pet'"),
    ],
)
def test_bad_arguments_are_refused(tiny_model, benchmark, change, error, match):
    model, processor = tiny_model
    pets = {m: [q for q in open_questions(benchmark.retain, m) if "Keeps a" in q.answer] for m in ("multimodal", "text")}
    own = {"taught": pets["text"][:8], "tested": {"forget": pets["text"][-3:]}, "values": VALUES} | change
    if own.pop("overlap", None):
        own["tested"] = {"forget": own["taught"][:1]}
    if own.pop("few", None):
        own["taught"] = own["taught"][:3]
    if own.pop("images", None):
        people = {q.person_id for q in own["taught"]}
        own["tested"] = {"forget": [q for q in pets["multimodal"] if q.person_id not in people][:1]}
    if len(own["values"]) == 1:
        own["taught"] = [Question(str(i), "What?", "Keeps a parrot.", None, "generation") for i in range(4)]
        own["tested"] = {"forget": [Question("5", "What?", "Keeps a rabbit.", None, "generation")]}
    taught, tested = own.pop("taught"), own.pop("tested")
    with pytest.raises(error, match=match):
        probe_layers(model, processor, taught, tested, progress=False, **own)
