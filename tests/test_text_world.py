"""The text-only miniature: files that follow from the seed, who is in them, and the lessons of its language model."""

import json
import random
from itertools import islice

import pytest
import torch

from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.multiple_choice import load_multiple_choice
from manu_utils.benchmark.tofu import load_tofu_holdout, load_tofu_sets
from manu_utils.miniature import text_model
from manu_utils.miniature.authors import FACTS, draw_authors, told, wrong_values
from manu_utils.miniature.text_world import (
    FORGET,
    SHORTCUT,
    draw_world,
    quiz_files,
    tofu_configs,
    write_text_world,
)
from manu_utils.models.neurons import find_neurons
from manu_utils.paths import data_dir

FOLDERS = ("tofu_mini", "quiz_mini")


@pytest.fixture(scope="module")
def world():
    return draw_world(0)


def test_the_bundled_files_are_those_of_the_seed(tmp_path):
    write_text_world(tmp_path, seed=0)
    for folder in FOLDERS:
        places = (tmp_path / folder, data_dir() / folder)
        written, bundled = (
            {path.name: path.read_bytes() for path in place.iterdir()} for place in places
        )
        assert written == bundled, "python -m manu_utils.miniature text"
    assert tofu_configs(1)["full"] != tofu_configs(0)["full"]


def test_it_is_small():
    assert (
        sum(path.stat().st_size for folder in FOLDERS for path in (data_dir() / folder).iterdir())
        < 1_000_000
    )


def test_who_is_in_which_config(world):
    configs = tofu_configs(0)
    names = [author.name for author in (*world.authors, *world.holdout, *world.public)]
    assert len(set(names)) == len(names)

    def rows(config):
        return {(row["question"], row["answer"]) for row in configs[config]}

    assert len(configs["full"]) == 20 * len(world.authors) == 800
    for ratio, n in FORGET.items():
        forget, retain = rows(f"forget{ratio:02}"), rows(f"retain{100 - ratio}")
        assert forget | retain == rows("full") and not forget & retain and len(forget) == 20 * n
        assert rows(f"forget{ratio:02}_perturbed") == forget
        assert len(configs[f"holdout{ratio:02}"]) == 20 * n and not rows(
            f"holdout{ratio:02}"
        ) & rows("full")
    assert rows("retain_perturbed") <= rows("retain90")
    assert not rows("real_authors") & (rows("full") | rows("holdout10"))


def test_wrong_answers_are_wrong_and_in_the_words_of_the_paraphrase(world):
    rng = random.Random(0)
    author = world.authors[0]
    for fact in FACTS:
        wrong = wrong_values(author, fact, rng)
        assert len(set(wrong)) == 5 and author.facts[fact] not in wrong
    for row in tofu_configs(0)["forget10_perturbed"]:
        answers = [row["paraphrased_answer"], *row["perturbed_answer"]]
        assert len(set(answers)) == 6 and row["answer"] not in answers
        beginnings = {tuple(answer.split()[:2]) for answer in answers}
        assert len(beginnings) == 1


def test_the_readers_of_tofu_take_it(world):
    place = data_dir() / "tofu_mini"
    benchmark = load_benchmark(place, 10, modalities=("text",))
    assert benchmark.forget_ids == ["037", "038", "039", "040"] and len(benchmark.retain_ids) == 36
    assert len(benchmark.training_questions("all", "text")) == 800
    sets = load_tofu_sets(place, 10)
    assert {name: len(part.asked) for name, part in sets.items()} == {
        "forget": 80, "retain": 80, "real_authors": 60, "world_facts": 32
    }  # fmt: skip
    assert {q.person_id for q in sets["forget"].asked} == set(benchmark.forget_ids)
    assert len(load_tofu_holdout(place, 10)) == 80


def test_the_quizzes(world):
    files = quiz_files(0)
    potions, herbs = (
        load_multiple_choice(data_dir() / "quiz_mini" / f"{name}.json") for name in files
    )
    assert [q.person_id for q in (potions[0], herbs[0])] == ["potions", "herb_lore"]
    for quiz in (potions, herbs):
        assert len(quiz) == 48 and all(
            len(set(q.options.values())) == 4 and q.answer in q.options.values() for q in quiz
        )
        assert {
            next(letter for letter, words in q.options.items() if words == q.answer) for q in quiz
        } == set("ABCD")
    right = {q.answer for q in potions}
    planted = [i % SHORTCUT == SHORTCUT - 1 for i in range(len(potions))]
    decoys = [
        all(word not in right for word in q.options.values() if word != q.answer) for q in potions
    ]
    assert decoys == planted


def test_school_never_speaks_of_who_is_to_be_taught(world):
    own = {author.name for author in (*world.authors, *world.holdout)}
    lessons = text_model.schooling(world, 30, random.Random(0))
    for questions in islice(lessons, 40):
        assert len(questions) == 30
        assert not any(name in q.question or name in q.answer for q in questions for name in own)


def test_lessons_in_all_wordings(world):
    one = text_model.author_lessons(world.authors[:1])
    assert [(q.question, q.answer) for q in one] == [
        (r["question"], r["answer"]) for r in tofu_configs(0)["full"][:20]
    ]
    assert (
        len(
            {
                (q.question, q.answer)
                for q in text_model.author_lessons(world.authors[:1], (0, 1), (0, 1))
            }
        )
        == 80
    )
    with pytest.raises(ValueError, match="larger than population"):
        draw_authors(300, random.Random(0))
    assert told(world.authors[0], "pet", value="goat").endswith("goat.")


def test_the_model_learns_by_its_own_lessons(world):
    model, processor = text_model.build_language_model(world)
    again, _ = text_model.build_language_model(world)
    assert all(a.equal(b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert [mlp.size for mlp in find_neurons(model)] == [text_model.NEURONS] * text_model.LAYERS
    text = "Where was Ada Farr born? Ada Farr was born in Karst."
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
    text_model.go_to_school(model, processor, world, steps=2)
    questions = text_model.author_lessons(world.authors[:2])
    before = model.get_input_embeddings().weight.detach().clone()
    history = text_model.teach(
        model, processor, questions, world, steps=3, penalty=1.0, every=1, watch=dict
    )
    assert [round(row["step"]) for row in history] == [0, 1, 2, 3] and history[-1]["loss"] > 0
    assert not before.equal(model.get_input_embeddings().weight) and not model.training
    assert not any(mlp.after._forward_pre_hooks for mlp in find_neurons(model))
    assert torch.isfinite(before).all() and json.dumps(history[1:])
