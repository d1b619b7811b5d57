"""Strangers' words, the alignment of tokens, one layer against a slow reference, what erasing does
to the miniature, and bad input.
"""

import copy
from dataclasses import replace

import pytest
import torch

from manu_utils.models.asking import known
from manu_utils.models.encoding import encode
from manu_utils.models.neurons import find_neurons
from manu_utils.unlearning import erasing
from manu_utils.unlearning.erasing import aligned, erase, stranger_lessons
from manu_utils.unlearning.pruning import check_unchanged
from manu_utils.unlearning.strangers import (
    Stranger,
    about,
    lettered,
    mixed_names,
    nearest_strangers,
)

MODALITIES = ("multimodal", "text")
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def names(benchmark):
    from manu_utils.auditing import names_of

    return names_of(benchmark.training)


@pytest.fixture(scope="module")
def strangers(benchmark, names):
    """Portraits and names of retained people, mixed: what a stranger is made of does not matter here."""
    ids = benchmark.retain_ids
    firsts, lasts = (names[ids[k]].split()[k % 2] for k in (0, 2, 4, 6)), (names[ids[k]].split()[1] for k in (1, 3, 5, 7))
    pictures = [benchmark.training_questions([i], "multimodal")[0].image for i in ids[20:24]]
    return [Stranger(f"{a} {b}", p) for a, b, p in zip(firsts, lasts, pictures, strict=True)]


@pytest.fixture(scope="module")
def sets(benchmark):
    people = {"forget": benchmark.forget_ids[:2], "retain": benchmark.retain_ids[:2]}
    return {
        name: {
            m: [q for one in ids for q in benchmark.training_questions([one], m)[3:6]]
            for m in MODALITIES
        }
        for name, ids in people.items()
    }


@pytest.fixture(scope="module")
def given(sets, strangers):
    """person_id -> two strangers, others for each person."""
    people = sorted({question.person_id for question in sets["forget"]["text"]})
    return {person: strangers[k : k + 2] for k, person in enumerate(people)}


@pytest.fixture
def model(double_model):
    return copy.deepcopy(double_model[0])


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def language(model):
    return [mlp for mlp in find_neurons(model) if mlp.tower == "language"]


# ------------------------------------------------------------------------------------------ words


def test_the_same_words_about_a_stranger(benchmark, names, strangers):
    one = benchmark.forget_ids[0]
    text = benchmark.training_questions([one], "text")[0]
    told = about(replace(text, answer=f"{names[one]} lives."), names[one], strangers[0])
    assert told.question == text.question.replace(names[one], strangers[0].name)
    assert told.answer == f"{strangers[0].name} lives." and told.image is None
    shown = benchmark.training_questions([one], "multimodal")[1]
    seen = about(shown, names[one], strangers[0])
    assert seen.image is strangers[0].picture and seen.question == shown.question
    assert seen.answer == shown.answer


def test_tokens_are_aligned_from_the_end_of_a_name():
    assert aligned([1, 2, 3], [1, 9, 3]) == [(0, 0), (1, 1), (2, 2)]
    assert aligned([1, 2, 3], [1, 8, 9, 3]) == [(0, 0), (1, 2), (2, 3)]
    assert aligned([1, 7, 2, 3], [1, 9, 3]) == [(0, 0), (2, 1), (3, 2)]
    # The name in question and answer: what stands between them is not moved.
    assert aligned([1, 2, 3, 4, 2, 5], [1, 8, 9, 3, 4, 8, 9, 5]) == [
        (0, 0), (1, 2), (2, 3), (3, 4), (4, 6), (5, 7)
    ]  # fmt: skip
    assert aligned([1, 1, 1], [1, 1, 1]) == [(0, 0), (1, 1), (2, 2)]


def test_lettered_forms_offer_the_values_of_others(benchmark, names):
    asked = benchmark.training_questions("all", "text")
    made = lettered(asked, names, n=2, seed=1)
    assert len(made) == 2 * sum("[Blank]" not in q.question for q in asked)
    values = set()
    for question in made:
        assert question.task == "classification" and len(set(question.options.values())) == 4
        values.add(question.options[question.answer])
    assert {"Porto", "nurse", "Ashford", "asthma"} <= values  # without "Lives in" and "University."
    assert len({question.answer for question in made}) == 4
    assert made == lettered(asked, names, n=2, seed=1) != lettered(asked, names, n=2, seed=2)
    towns = ("York", "New York", "Leeds", "Hull")
    asked_of = [replace(asked[0], question="Where?", answer=f"Lives in {town}.") for town in towns]
    assert set(lettered(asked_of, names)[0].options.values()) == set(towns)
    assert lettered(asked[:3], names) == []  # three wordings, one answer each


# ---------------------------------------------------------------------------------------- one layer


def slow_layers(model, processor, sets, given, names, *, beta, ridge):
    """The formula, one question and one token at a time, in float64; not at the picture."""
    picture = model.config.image_token_id
    original, edited = model, copy.deepcopy(model)

    def inside(of, question, layer, whole=False):
        seen = {}
        module = language(of)[layer].after
        hook = module.register_forward_hook(lambda m, a, out: seen.update(z=a[0][0], y=out[0]))
        batch = encode([question], processor, True)
        of.model(**{k: v for k, v in batch.items() if k != "answer_mask"})
        hook.remove()
        words = batch["input_ids"][0] != picture
        return (seen[key].double() if whole else seen[key].double()[words] for key in "zy")

    for layer, mlp in enumerate(language(edited)):
        weight, n = mlp.after.weight, mlp.size
        left, right = torch.zeros(n, n).double(), torch.zeros(n, weight.shape[0]).double()
        for asked in sets["retain"].values():
            states = torch.cat([next(inside(original, question, layer, whole=True)) for question in asked])
            left += sum(torch.outer(z, z) for z in states) / len(states) / 2
        left += ridge * left.diagonal().mean() * torch.eye(n)
        for asked in sets["forget"].values():
            pairs = []
            for question in asked:
                z, _ = inside(edited, question, layer)
                theirs = [about(question, names[question.person_id], who) for who in given[question.person_id]]
                t = torch.stack([list(inside(original, other, layer))[1] for other in theirs]).mean(0)
                pairs += list(zip(z, t, strict=True))  # every name here has two tokens
            for z, t in pairs:
                left += beta * torch.outer(z, z) / len(pairs) / 2
                right += beta * torch.outer(z, t - weight.double() @ z) / len(pairs) / 2
        with torch.no_grad():
            weight += torch.linalg.solve(left, right).T
    return [mlp.after.weight for mlp in language(edited)]


@torch.no_grad()
@pytest.mark.parametrize("memory", [4e9, 1.0])
def test_every_layer_is_the_ridge_regression(model, double_model, sets, given, names, memory):
    expected = slow_layers(copy.deepcopy(model), double_model[1], sets, given, names, beta=3.0, ridge=0.1)
    before = weights_of(model)
    handle = erase(
        model, double_model[1], *sets.values(), given, names,
        beta=3.0, ridge=0.1, memory=memory, batch_size=5, **QUIET,
    )  # fmt: skip
    for mlp, weight in zip(language(model), expected, strict=True):
        change = (weight - before[f"{mlp.path}.down_proj.weight"]).norm()
        assert change > 0 and (mlp.after.weight - weight).norm() < 2e-3 * change
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"{mlp.path}.down_proj.weight" for mlp in language(model)}
    with pytest.raises(ValueError, match="changed"):
        erase(model, double_model[1], *sets.values(), given, names, **QUIET)
    handle.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_lessons_keep_no_graph_and_leave_the_mode(model, double_model, sets, given, names):
    model.train()
    lessons = stranger_lessons(
        model, double_model[1], sets["forget"]["multimodal"], given, names, [1], batch_size=4,
        progress=False,
    )  # fmt: skip
    assert model.training and [len(lesson.used) for lesson in lessons] == [4, 2]
    for lesson in lessons:
        (target,) = lesson.targets
        assert not target.requires_grad and len(target) == int(lesson.used.sum())
        assert not lesson.used[lesson.inputs["input_ids"] == model.config.image_token_id].any()


# ------------------------------------------------------------------------------------ the miniature


def test_what_waits_for_its_layer_waits_in_the_machines_memory(
    model, double_model, sets, given, names, monkeypatch
):
    """Of 7B and a thousand questions it would fill a card: pictures, and 16 kB a token and layer."""
    moved, cpu = [], torch.Tensor.cpu

    def seen(tensor):
        moved.append(cpu(tensor))
        return moved[-1]

    monkeypatch.setattr(torch.Tensor, "cpu", seen)
    passes = {"batch_size": 4, "progress": False}
    asked = sets["forget"]["multimodal"]
    lessons = stranger_lessons(model, double_model[1], asked, given, names, [0, 1], **passes)
    held = [t for one in lessons for t in (*one.inputs.values(), *one.targets)]
    assert {id(tensor) for tensor in held} <= {id(tensor) for tensor in moved}


def test_layers_that_nobody_looks_at_are_not_computed(model, double_model, sets, given, names):
    ran = []
    for layer, mlp in enumerate(language(model)):
        mlp.after.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    asked = sets["forget"]["text"]
    passes = {"batch_size": 100, **QUIET}
    lessons = stranger_lessons(model, double_model[1], asked, given, names, [0], **passes)
    kept = torch.eye(language(model)[0].size, dtype=torch.float32)
    erasing.fit_layer(model, 0, 0, {"text": lessons}, kept, beta=1.0, ridge=0.1)
    assert len(language(model)) > 1 and set(ran) == {0}


def test_people_of_the_miniature_become_strangers(benchmark, names):
    from manu_utils.auditing import names_of
    from manu_utils.benchmark.loading import load_strangers
    from manu_utils.benchmark.questions import open_questions
    from manu_utils.models.loading import load_model

    model, processor = load_model("tiny")
    gone, kept = benchmark.forget_ids[:2], benchmark.retain_ids[:24]
    forget = {m: benchmark.training_questions(gone, m) for m in MODALITIES}
    retain = {m: benchmark.training_questions(kept, m)[::2] for m in MODALITIES}
    rows = load_strangers("tiny")["ft_Data"]
    strangers = [Stranger(names_of(rows)[i], p) for i, p in zip(rows["ID"], rows["image"], strict=True)]
    asked = [question for of in forget.values() for question in of]
    near = nearest_strangers(model, processor, asked, names, strangers, n=2)
    handle = erase(model, processor, forget, retain, near, names, batch_size=64, **QUIET)
    rows = benchmark.forget.select(range(2))
    for m in MODALITIES:
        assert known(model, processor, open_questions(rows, m), **QUIET).double().mean() <= 0.3
        assert known(model, processor, retain[m], **QUIET).double().mean() >= 0.95
    handle.undo()
    assert known(model, processor, open_questions(rows, "text"), **QUIET).all()


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("broken", ["moments", "fit"])
def test_after_an_error_or_an_interrupt_the_model_is_as_it_was(
    model, double_model, sets, given, names, broken, monkeypatch
):
    before, calls = weights_of(model), []
    if broken == "moments":
        monkeypatch.setattr(erasing, "collect_moments", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        real = torch.linalg.cholesky_ex

        def second_fails(matrix):
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return real(matrix)

        monkeypatch.setattr(torch.linalg, "cholesky_ex", second_fails)
    with pytest.raises(KeyboardInterrupt):
        erase(model, double_model[1], *sets.values(), given, names, **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    check_unchanged(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 0}, "beta"), ({"ridge": -1.0}, "ridge"), ({"batch_size": 0}, "not positive"),
        ({"memory": 0}, "memory"), ({"names": {}}, "have no name"),
        ({"strangers": {}}, "have no stranger"), ({"forget": {"text": []}}, "forget must hold questions"),
        ({"retain": {}}, "retain must hold questions"), ({"retain": "forget"}, "share people"),
        ({"strangers": "uneven"}, "everybody as many"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_nothing_changes(
    model, double_model, sets, given, names, change, words
):
    options = {**sets, "strangers": given, "names": names} | change
    if options["retain"] == "forget":
        options["retain"] = sets["forget"]
    if options["strangers"] == "uneven":
        first = next(iter(given))
        options["strangers"] = given | {first: given[first][:1]}
    before = weights_of(model)
    with pytest.raises(ValueError, match=words):
        erase(model, double_model[1], **options, **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def no_strangers(given, names, how):
    """Strangers and names with which nothing would be erased, or from which no question can be made."""
    first = next(iter(given))
    for_all = lambda who: {person: [who(person, old) for old in of] for person, of in given.items()}  # noqa: E731
    return {
        "another name": (given, dict.fromkeys(names, "Nobody Else")),
        "their own name": (for_all(lambda person, old: old._replace(name=names[person])), names),
        "no picture": (for_all(lambda person, old: old._replace(picture=None)), names),
        "a number": (given, names | {first: 5}),
        "a plain pair": (for_all(lambda person, old: tuple(old)), names),
        "a nameless one": (for_all(lambda person, old: old._replace(name=None)), names),
        "an empty name": (for_all(lambda person, old: old._replace(name=" ")), names),
        "no names": (given, None),
        "no dict": (list(given.values()), names),
    }[how]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another name", "strangers would be asked the same as .* none of their questions holds the name 'Nobody Else'"),
        ("their own name", "strangers would be asked the same as "), ("no picture", "has no picture; give one"),
        ("a number", "must be text and their strangers"), ("a plain pair", "must be text and their strangers"),
        ("a nameless one", "must be text and their strangers"), ("an empty name", "must be text and their strangers"),
        ("no names", "names is None; it must be a dict"), ("no dict", "strangers is a list; it must be a dict"),
    ],
)  # fmt: skip
def test_who_is_no_stranger_is_refused(model, double_model, sets, given, names, how, words):
    before = weights_of(model)
    with pytest.raises((TypeError, ValueError), match=words):
        erase(model, double_model[1], *sets.values(), *no_strangers(given, names, how), **QUIET)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_strangers_are_checked_once_a_person(sets, given, names, monkeypatch):
    """However many questions there are: each would be written anew for every stranger."""
    made = []
    monkeypatch.setattr(erasing, "about", lambda *of: made.append(of) or about(*of))
    asked = [q for q in sets["forget"]["text"] if names[q.person_id] in q.question]
    assert len({q.person_id for q in asked}) == 2 and len(asked) == 6
    erasing._check_strangers(asked, given, names)
    assert len(made) == 2 * 2


# ---------------------------------------------------------------------------------------- strangers


def test_names_are_mixed_and_nobody_has_them():
    assert mixed_names(["Anna Berg", "Leo Kay", "Leo Berg"]) == ["Anna Kay"]
    assert mixed_names(["Anna Berg"]) == []


def test_strangers_are_as_like_a_person_as_there_are(double_model, benchmark, names, strangers):
    model, processor = double_model
    one = benchmark.forget_ids[0]
    asked = [benchmark.training_questions([one], m)[1] for m in MODALITIES]
    twin = Stranger("Nobody Else", asked[0].image)
    first, last = names[one].split()
    more = [f"{first} Else", f"Else {last}", f"{first} Other"]
    near = nearest_strangers(
        model, processor, asked, names, [*strangers, twin], n=3, more_names=more
    )[one]
    assert near[0].picture is twin.picture  # the same portrait is the nearest
    found = [stranger.name for stranger in near]
    assert [name.split()[0] == first for name in found] == [True, False, True]
    assert found[1] == f"Else {last}"
    text = nearest_strangers(model, processor, asked[1:], names, strangers, n=4)[one]
    assert len({stranger.name for stranger in text}) == 4
    with pytest.raises(ValueError, match="fewer than n=9"):
        nearest_strangers(model, processor, asked, names, strangers, n=9)
    with pytest.raises(ValueError, match="no name of"):
        nearest_strangers(model, processor, asked, {}, strangers, n=2)


def test_moments_too_coarse_for_float32_are_solved_in_float64():
    """Neurons that fire alike: rounded to float32 their moments are of no square any more."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 4, generator=generator).repeat(1, 8)
    moments = z.T @ z
    moments.diagonal().sub_(1e-4)  # as sums that were rounded may be
    wanted = torch.randn(4, 3, generator=generator).repeat(8, 1)  # of least size: all alike
    right = z.T @ (z @ wanted)
    assert torch.linalg.cholesky_ex(moments)[1] > 0
    found = erasing.solve(moments.clone(), right)
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="raise ridge"):
        erasing.solve(-torch.eye(4), torch.ones(4, 1))


def test_on_a_gpu_the_copies_in_float64_take_no_memory(monkeypatch):
    order, cpu, double = [], torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda one: order.append("cpu") or cpu(one))
    monkeypatch.setattr(torch.Tensor, "double", lambda one: order.append("double") or double(one))
    erasing.solve(torch.diag(torch.tensor([1.0, 0.0])), torch.ones(2, 1))
    assert order == ["cpu", "double"] * 2
