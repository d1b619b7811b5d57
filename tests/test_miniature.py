"""The miniature's people, pictures, files and training stages, on worlds small enough to build in seconds."""

import json
import random
import warnings
from collections import Counter

import pytest
import torch
from datasets import load_dataset

from manu_utils.benchmark.loading import STRANGERS, load_benchmark, load_strangers
from manu_utils.benchmark.questions import evaluation_questions, open_questions, training_questions
from manu_utils.benchmark.records import CONFIGS
from manu_utils.miniature import base, build, tower, vanilla
from manu_utils.miniature.dataset import training_pairs, write_benchmark, write_strangers
from manu_utils.miniature.model import (
    Row,
    answer_logits,
    build_model,
    build_processor,
    encode_rows,
    matching_rows,
    reading_rows,
    recorded_contributions,
    row_accuracy,
    to_pixels,
    train_tokenizer,
    widen,
)
from manu_utils.miniature.people import ATTRIBUTES, NAMING_QUESTION, draw_face, draw_people, draw_strangers
from manu_utils.miniature.portraits import draw_new_view, draw_portrait_view, render
from manu_utils.paths import data_dir


@pytest.fixture(scope="module")
def people():
    return draw_people(seed=0)


@pytest.fixture(scope="module")
def processor(people):
    return build_processor(train_tokenizer([*people[0], *people[1]]))


@pytest.fixture
def model(processor):
    return build_model(processor.tokenizer, seed=0, intermediate=48, hidden=32, layers=2).eval()


def test_only_a_conjunction_identifies_a_person(people):
    everyone = [*people[0], *people[1]]
    assert len({person.name for person in everyone}) == len(everyone) == 150
    for part in (0, 1):
        shared = Counter(person.name.split()[part] for person in everyone)
        assert min(shared.values()) >= 3, "a name part that few people share nearly identifies them"
    for one in everyone:
        for other in everyone:
            differ = sum(one.face[feature] != other.face[feature] for feature in one.face)
            assert one is other or differ >= 3


def test_values_are_balanced_and_no_answer_holds_the_name(people):
    for attribute, spec in ATTRIBUTES.items():
        counts = Counter(person.facts[attribute] for person in [*people[0], *people[1]])
        assert set(counts) == set(spec.values) and max(counts.values()) - min(counts.values()) <= 1
    for person in people[0]:
        for question, answer in training_pairs(person):
            assert (person.name in answer) == (question == NAMING_QUESTION)
            assert person.name not in question


def test_strangers_are_of_the_same_world_and_nobody_in_it(people):
    """Their names and faces are new, of the same parts; each value is as frequent as the others."""
    inhabitants, strangers = [*people[0], *people[1]], draw_strangers(36, seed=0)
    everyone = [*inhabitants, *strangers]
    assert len({person.name for person in everyone}) == len({person.id for person in everyone}) == 186
    for part in (0, 1):
        parts = [{person.name.split()[part] for person in group} for group in (strangers, inhabitants)]
        assert parts[0] <= parts[1]
    for one in strangers:
        for other in everyone:
            assert one is other or sum(one.face[feature] != other.face[feature] for feature in one.face) >= 3
    for attribute, spec in ATTRIBUTES.items():
        assert Counter(person.facts[attribute] for person in strangers) == dict.fromkeys(spec.values, 3)
    with pytest.raises(ValueError, match="76 strangers need more than the 75 names"):
        draw_strangers(76)


def test_strangers_are_asked_what_the_inhabitants_are(people):
    rows, known = load_strangers(), load_benchmark()
    assert set(rows) == set(STRANGERS) and all(len(part) == 36 for part in rows.values())
    assert not {*rows["Full_Set"]["ID"]} & {*known.forget_ids, *known.retain_ids, *known.celebrity["ID"]}
    for modality, n_views in (("multimodal", 3), ("text", 1)):
        for questions_of, config, n in (
            (open_questions, "Full_Set", 4), (open_questions, "Test_Set", 4 * n_views),
            (lambda part, m: evaluation_questions(part, "classification", m), "Full_Set", 5),
            (training_questions, "ft_Data", 25 if modality == "multimodal" else 24),
        ):  # fmt: skip
            assert len(questions_of(rows[config], modality)) == 36 * n
    names = {json.loads(text)["Name"] for text in rows["Full_Set"]["biography"]}
    assert names == {person.name for person in draw_strangers()}
    with pytest.raises(ValueError, match="no strangers.*your own questions"):
        load_strangers(data_dir() / "mllmu_mini")


def test_strangers_follow_from_the_seed(tmp_path):
    for name in ("one", "again"):
        write_strangers(tmp_path / name, 4, seed=3, n_fictitious=20, n_public=2)
    parts = [load_strangers(tmp_path / name) for name in ("one", "again")]
    assert all(list(parts[0][config]) == list(parts[1][config]) for config in STRANGERS)
    assert parts[0]["Full_Set"]["ID"] == [f"{number:03d}" for number in range(23, 27)]
    for config in STRANGERS:
        assert parts[0][config].features == load_strangers()[config].features


def test_pictures_follow_from_the_seed_and_views_differ(people):
    face = people[0][0].face
    views = [draw_new_view(random.Random(seed)) for seed in (1, 1, 2)]
    first, again, other = (render(face, view).tobytes() for view in views)
    assert first == again != other
    upright = draw_portrait_view(random.Random(1))
    assert (upright["rotate"], upright["scale"], upright["light"]) == (0, 1.0, 1.0)


def test_a_small_world_has_the_schema_of_the_bundled_one(tmp_path):
    write_benchmark(tmp_path, seed=3, n_fictitious=20, n_public=2)
    for config in CONFIGS:
        small = load_dataset(str(tmp_path), config, split="train")
        bundled = load_dataset(str(data_dir() / "mllmu_mini"), config, split="train")
        assert small.features == bundled.features, config
    again = tmp_path / "again"
    write_benchmark(again, seed=3, n_fictitious=20, n_public=2)
    name = "ft_Data/train-00000-of-00001.parquet"
    assert (tmp_path / name).read_bytes() == (again / name).read_bytes()


def test_rows_are_answered_by_their_options():
    rng = random.Random(0)
    for row in reading_rows(rng, 50):
        word = row.question.split("Which option is ")[1].split("?")[0]
        assert f"{row.answer}: {word}\n" in row.question
    for row in matching_rows(rng, 50):
        for pair in row.answer.split(", "):
            letter, word = sorted(pair.split(), key=len)
            assert f"{letter}: {word}\n" in row.question


def test_every_name_part_and_value_is_one_token(people, processor):
    words = {f" {part}" for person in people[0] for part in person.name.split()}
    words |= {f" {value}" for spec in ATTRIBUTES.values() for value in spec.values}
    assert {len(ids) for ids in processor.tokenizer(sorted(words))["input_ids"]} == {1}


def test_only_answer_tokens_are_predicted(processor):
    rows = [Row("What is Anna's job?", "Works as a nurse."), Row("Who?", "Nobody.")]
    batch = encode_rows(rows, processor.tokenizer, random.Random(0))
    for index, row in enumerate(rows):
        where = batch["predicts"][index].nonzero()[:, 0] + 1
        assert processor.tokenizer.decode(batch["input_ids"][index, where]) == f" {row.answer}</s>"


def test_widening_keeps_the_function_and_adds_silent_neurons(model, processor):
    batch = encode_rows([Row("What is Anna's job?", "Works as a nurse.")], processor.tokenizer, random.Random(0))
    wide = widen(model, 80, seed=1).eval()
    with torch.no_grad():
        torch.testing.assert_close(answer_logits(wide, batch, None)[0], answer_logits(model, batch, None)[0])
    for layer in wide.model.language_model.layers:
        assert layer.mlp.down_proj.weight.shape[1] == 80
        assert (layer.mlp.down_proj.weight[:, 48:] == 0).all() and (layer.mlp.gate_proj.weight[48:] != 0).any()


def test_recorded_contributions_are_those_of_the_neurons(model, processor):
    """Every token sampled at once: the mean of s log(1 + |z| · column norm / s), against activations kept by a hook."""
    batch = encode_rows([Row("What is Anna's job?", "Works as a nurse.")], processor.tokenizer, random.Random(0))
    kept = []
    layers = model.model.language_model.layers
    hooks = [layer.mlp.down_proj.register_forward_pre_hook(lambda _, z: kept.append(z[0][0])) for layer in layers]
    torch.manual_seed(0)
    with torch.no_grad(), recorded_contributions(model, 0.1, every=1) as terms:
        answer_logits(model, batch, None)
    for hook in hooks:
        hook.remove()
    torch.manual_seed(0)
    for term, z, layer in zip(terms, kept, layers, strict=True):
        sample = z[torch.randint(len(z), (len(z),))]
        contribution = sample.abs() * layer.mlp.down_proj.weight.norm(dim=0)
        torch.testing.assert_close(term, (0.1 * torch.log(1 + contribution / 0.1)).sum(1).mean())
    assert not any(layer.mlp.down_proj._forward_pre_hooks for layer in layers)


def test_row_accuracy_counts_rows_whose_every_token_is_right(model, processor):
    """A model whose answers are those of a look-up: the arg-max tokens themselves are the answers of half of the rows."""
    rows = [Row(f"Question {k}?", "nurse") for k in range(4)]
    batch = encode_rows(rows, processor.tokenizer, random.Random(0))
    with torch.no_grad():
        logits, targets, where = answer_logits(model, batch, None)
    right = (logits.argmax(-1) == targets).float()
    expected = sum(right[where == k].all().item() for k in range(4)) / 4
    assert row_accuracy(model, rows, processor.tokenizer, None) == expected


def test_pictures_are_cached_and_hold_no_fictitious_face(people, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(tower, "N_RANDOM_FACES", 12)
    cache = tmp_path / "pictures.safetensors"
    pictures = tower.render_pictures(processor, people[0], people[1][:1], 0, cache)
    assert len(pictures.pixels) == len(pictures.faces) == 12 + tower.N_PUBLIC_VIEWS + tower.N_HELD_OUT
    assert pictures.faces[pictures.view_of(0, 0)] == people[1][0].face
    assert not {tuple(person.face.values()) for person in people[0]} & {tuple(f.values()) for f in pictures.faces[:12]}
    monkeypatch.setattr(tower, "render_all", None)  # a second call reads the file
    again = tower.render_pictures(processor, people[0], people[1][:1], 0, cache)
    assert torch.equal(again.pixels, pictures.pixels)


def test_moved_pictures_stay_pictures(people, processor):
    image = render(people[0][0].face, draw_portrait_view(random.Random(0)))
    pixels = to_pixels([image, image], processor).float()
    copies = tower.moved(pixels)
    assert copies.shape == pixels.shape and torch.isfinite(copies).all()
    assert not torch.equal(copies[0], copies[1])


def test_a_finished_stage_is_loaded_and_a_killed_one_starts_clean(model, processor, tmp_path):
    calls = []

    def train():
        calls.append(1)
        with torch.no_grad():
            model.model.language_model.norm.weight.fill_(2.0)
        return [{"step": 1}]

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.run_stage(model, tmp_path, "reading", killed)
    assert not list(tmp_path.iterdir())
    assert build.run_stage(model, tmp_path, "reading", train) == [{"step": 1}]
    fresh = build_model(processor.tokenizer, seed=5, intermediate=48, hidden=32, layers=2)
    assert build.run_stage(fresh, tmp_path, "reading", train) == [{"step": 1}]
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_checkpoints_are_half_precision_and_replace_the_old_one(model, processor, tmp_path):
    from transformers import AutoModelForImageTextToText

    for history in ([], [{"step": 1}]):
        build.save_checkpoint(model, processor, tmp_path / "base", history)
    assert json.loads((tmp_path / "base" / "history.json").read_text(encoding="utf-8")) == [{"step": 1}]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    assert loaded.dtype == torch.float16 and next(model.parameters()).dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_data_of_another_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="make mini-data SEED=7"):
        build.build(data_dir() / "mllmu_mini", tmp_path, seed=7, cache=tmp_path / "cache")


@pytest.mark.parametrize("share", [0.64, 0.95])
def test_a_seed_that_does_not_learn_to_read_options_is_told(share, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tower, "N_RANDOM_FACES", 12)
    monkeypatch.setattr(build, "train_tower", lambda *arguments, **options: [])
    monkeypatch.setattr(build, "train_reading", lambda *arguments, **options: [{"reading": share}])
    monkeypatch.setattr(build, "train_base", stop)
    with warnings.catch_warnings(record=True) as told, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("always")
        build.build(data_dir() / "mllmu_mini", tmp_path / "out", cache=tmp_path / "cache")
    told = [str(warning.message) for warning in told if warning.category is UserWarning]  # Python warns of forks, too
    assert [message[:23] for message in told] == ["with seed 0 only 64% of"] * (share < build.CAN_READ)


@pytest.mark.parametrize("forget_ratio", [5, None])
def test_the_retrained_reference_learns_nobody_of_the_forget_set_and_the_dense_twin_everyone(
    forget_ratio, tmp_path, monkeypatch
):
    learnt = {}

    def train_vanilla(model, world, people, **options):
        learnt.update(people={world.fictitious[index].id for index in people}, **options)
        return []

    monkeypatch.setattr(build, "train_vanilla", train_vanilla)
    monkeypatch.setattr(tower, "N_RANDOM_FACES", 12)
    data = data_dir() / "mllmu_mini"
    base, out = data_dir() / "tiny_llava" / "base", tmp_path / "out"
    build.fine_tune_plainly(data, base, out, forget_ratio=forget_ratio, cache=tmp_path / "cache")
    benchmark = load_benchmark(data, 5)
    assert learnt["people"] >= set(benchmark.retain["ID"])
    assert learnt["people"] & set(benchmark.forget["ID"]) == (set() if forget_ratio else set(benchmark.forget["ID"]))
    assert learnt["coefficients"] == (0.0, 0.0)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("stage", ["tower", "reading", "base", "vanilla"])
def test_every_stage_is_trained_and_watched_in_float32(stage, people, model, processor, monkeypatch):
    """One step of each, on pictures of noise: no linear layer writes anything else."""
    n_public, n_random = 12, 1000
    monkeypatch.setattr(tower, "N_RANDOM_FACES", n_random)
    fictitious, public = people[0][:6], people[1][:n_public]
    rng = random.Random(0)
    n_pictures = n_random + n_public * (tower.N_PUBLIC_VIEWS + tower.N_HELD_OUT)
    pixels = torch.rand(n_pictures, 3, 64, 64, generator=torch.Generator().manual_seed(0)).half()
    pictures = tower.Pictures(pixels, [draw_face(rng) for _ in range(n_pictures)])
    seen = set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    if stage == "tower":
        history = tower.train_tower(model, pictures, steps=1, seed=0)
    elif stage == "reading":
        history = base.train_reading(model, processor, public, steps=1, seed=0)
    elif stage == "base":
        history = base.train_base(model, processor, pictures, public, steps=1, seed=0, description=stage)
    else:
        portraits = [render(person.face, draw_portrait_view(rng)) for person in fictitious]
        pairs = [training_pairs(person) for person in fictitious]
        world = vanilla.World(fictitious, public, pairs, portraits, processor, pictures)
        history = vanilla.train_vanilla(
            model, world, range(6), steps=1, coefficients=(0.1, 0.1), choices=0.4, with_attention=True, seed=0,
            description=stage,
        )  # fmt: skip
    assert seen == {torch.float32} and len(history) == 2 and history[1]["loss"] > 0
