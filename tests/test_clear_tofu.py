"""CLEAR and TOFU from folders in their own layout: their rows are asked, scored and unlearned by the calls of MLLMU-Bench."""

import json

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value

from manu_utils.benchmark import clear as clear_module
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, TASKS, check_sets
from manu_utils.evaluation.tables import evaluate, summarise
from manu_utils.unlearning.evidence import unlearn

TEXT = Value("string")
N_AUTHORS, PER_AUTHOR = 20, 20  # the real ones have 200 authors
AUTHORS = [f"Eva Li-{i + 1:03}" for i in range(N_AUTHORS)]  # the last ones are to be forgotten, as in TOFU
PORTRAITS = 2
QUIET = {"progress": False, "batch_size": 8}


def pairs(author):
    """20 questions; the second of them names nobody."""
    named = [{"question": f"What is fact {k} of {author}?", "answer": f"{author} has {k}."} for k in range(PER_AUTHOR)]
    unnamed = {"question": f"Which year was it, {AUTHORS.index(author)}?", "answer": "It was long ago."}
    return [named[0], unnamed, *named[2:]]


def perturbed(author):
    return [
        pair | {"paraphrased_question": f"Say: {pair['question']}", "paraphrased_answer": f"So {pair['answer']}",
                "perturbed_answer": [f"Wrong {k}." for k in range(5)]}
        for pair in pairs(author)
    ]  # fmt: skip


def split(ratio):
    """The authors to forget and the others; 1 % of 20 is one here."""
    n = max(1, N_AUTHORS * ratio // 100)
    return AUTHORS[-n:], AUTHORS[:-n]


@pytest.fixture(scope="module")
def tofu(tmp_path_factory):
    """JSON lines at the top of the folder, one file per config."""
    folder = tmp_path_factory.mktemp("hub") / "TOFU"
    folder.mkdir()

    def write(config, rows):
        (folder / f"{config}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("full", [pair for author in AUTHORS for pair in pairs(author)])
    for ratio in (1, 5, 10):
        forget, retain = split(ratio)
        write(f"forget{ratio:02}", [pair for author in forget for pair in pairs(author)])
        write(f"forget{ratio:02}_perturbed", [row for author in forget for row in perturbed(author)])
        write(f"retain{100 - ratio}", [pair for author in retain for pair in pairs(author)])
    write("retain_perturbed", [row for author in AUTHORS[:2] for row in perturbed(author)])
    real = {"question": "Who wrote Hamlet?", "answer": "Shakespeare"}
    write("real_authors", [real | {"option1": "Shakespeare", "option2": "Joyce", "option3": "Wolf", "option4": "Poe"}])
    write("real_authors_perturbed", [real | {"perturbed_answer": ["Joyce", "Wolf", "Poe"]}] * 2)
    write("world_facts", [{"question": "Where is Perth?", "answer": "In Australia."}])
    configs = [{"config_name": path.stem, "data_files": path.name} for path in sorted(folder.iterdir())]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return folder


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """Parquet files in one folder per config, with a README that names them."""
    folder = tmp_path_factory.mktemp("hub") / "CLEAR"
    plain = {"image": Image(), "caption": TEXT, "name": TEXT}
    mixed = {"image": Image(), "caption": TEXT, "question": TEXT, "answer": TEXT}
    more = {"perturbed_captions": List(TEXT), "paraphrased_caption": TEXT, "perturbed_names": List(TEXT)}
    real = {"image": Image(), "question": TEXT, "options": List(TEXT), "answer": TEXT}

    def write(config, rows, features):
        rows = [{name: row.get(name) for name in features} for row in rows]
        Dataset.from_list(rows, features=Features(features)).to_parquet(folder / config / "train-00000-of-00001.parquet")

    def portraits(authors, n=PORTRAITS):
        return [
            {"image": PIL.Image.fromarray(np.full((8, 8, 3), 10 * AUTHORS.index(author) + k, np.uint8)), "name": author,
             "caption": f"{author} in place {k}.", "paraphrased_caption": f"In place {k} is {author}.",
             "perturbed_captions": [f"Wrong place {j}." for j in range(5)], "perturbed_names": [f"Max {j}" for j in range(5)]}
            for author in authors
            for k in range(n)
        ]  # fmt: skip

    for ratio in (1, 5, 10):
        forget, retain = split(ratio)
        for config, authors in ((f"forget{ratio:02}", forget), (f"retain{100 - ratio}", retain)):
            rows = portraits(authors)
            write(config, rows, plain)
            write(f"{config}+tofu", rows + [pair for author in authors for pair in pairs(author)], mixed)
        write(f"forget{ratio:02}_perturbed", portraits(forget), plain | more)
    write("full", portraits(AUTHORS), plain)
    write("full+tofu", portraits(AUTHORS) + [pair for author in AUTHORS for pair in pairs(author)], mixed)
    write("retain_perturbed", portraits([*AUTHORS[:2], AUTHORS[-1]], 1), plain | more)
    face = {"image": PIL.Image.new("RGB", (8, 8)), "question": "Who is this?", "options": ["Joyce", "Wolf", "Poe", "Bell"]}
    write("real_faces", [face | {"answer": "Shakespeare"}, face | {"answer": "Poe"}], real)
    write("real_world", [face | {"answer": "Perth"}], real)
    configs = [
        {"config_name": path.name, "data_files": [{"split": "train", "path": f"{path.name}/train-*"}]}
        for path in sorted(folder.iterdir())
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ------------------------------------------------------------------------------------------------ TOFU


@pytest.mark.parametrize("ratio", [1, 5, 10])
def test_the_sets_of_tofu(tofu, ratio):
    benchmark = load_benchmark(tofu, forget_ratio=ratio)
    forget, retain = split(ratio)
    assert benchmark.forget_ids == [f"{AUTHORS.index(author) + 1:03}" for author in forget]
    assert benchmark.retain_ids == [f"{AUTHORS.index(author) + 1:03}" for author in retain]
    for people, authors in (("forget", forget), ("retain", retain)):
        questions = benchmark.training_questions(people, "text")
        assert [(q.question, q.answer) for q in questions] == [
            (pair["question"], pair["answer"]) for author in authors for pair in pairs(author)
        ]
    asked = evaluation_questions(benchmark.forget, "generation", "text")
    assert [(q.question, q.answer) for q in asked] == [(p["question"], p["answer"]) for a in forget for p in pairs(a)]
    test = evaluation_questions(benchmark.test, "generation", "text")
    assert (test[0].question, test[0].answer) == (f"Say: {asked[0].question}", f"So {asked[0].answer}")
    assert {q.person_id for q in evaluation_questions(benchmark.retain, "generation", "text")} == {"001", "002"}
    for people in benchmark.sets().values():
        assert evaluation_questions(people, "cloze", "text") == []
        for question in evaluation_questions(people, "classification", "text"):
            assert list(question.options) == list("ABCD") and question.answer in question.options.values()
            assert len(set(question.options.values())) == 4
    letters = [
        next(letter for letter, words in q.options.items() if words == q.answer)
        for q in evaluation_questions(benchmark.forget, "classification", "text")
    ]
    assert set(letters) == set("ABCD")  # the right one is not always in one place
    again = evaluation_questions(load_benchmark(tofu, ratio).forget, "classification", "text")
    assert again == evaluation_questions(benchmark.forget, "classification", "text")


def test_tofu_has_no_pictures(tofu, tiny_model):
    benchmark = load_benchmark(tofu, 5)
    message = "TOFU .* has no column image; .* ask with modality 'text'"
    with pytest.raises(ValueError, match=message):
        evaluation_questions(benchmark.forget, "generation", "multimodal")
    with pytest.raises(ValueError, match=message):
        benchmark.training_questions("forget", "multimodal")
    with pytest.raises(ValueError, match=message):
        evaluate(*tiny_model, benchmark.sets(), **QUIET)
    with pytest.raises(ValueError, match="these sets have no question for cloze in text"):
        evaluate(*tiny_model, benchmark.sets(), tasks=("cloze",), modalities=("text",), **QUIET)


def test_tofu_is_evaluated_and_unlearned(tofu, tiny_model):
    benchmark = load_benchmark(tofu, 5)
    sets = {"forget": benchmark.forget, "celebrity": benchmark.celebrity}
    table = evaluate(*tiny_model, sets, modalities=("text",), **QUIET)
    counts = summarise(table).set_index(["set", "task", "metric"])["n"]
    assert counts["forget", "generation", "accuracy"] == PER_AUTHOR and counts["celebrity", "classification", "accuracy"] == 2
    assert set(table["task"]) == {"classification", "generation"}
    people = ("forget", "retain")
    forget, retain = ({"text": benchmark.training_questions(name, "text")[:4]} for name in people)
    for variant in ("ratio", "coverage", "magnitude"):
        pruned = unlearn(*tiny_model, forget, retain, variant=variant, alpha=5.0, modalities=("text",), progress=False)
        assert any(values.numel() for *_, values in pruned._saved)
        pruned.undo()
    with pytest.raises(ValueError, match="variant='paper' needs both modalities; use 'coverage' or 'ratio'"):
        unlearn(*tiny_model, forget, retain, variant="paper", modalities=("text",), progress=False)
    with pytest.raises(ValueError, match="forget has no multimodal questions"):
        unlearn(*tiny_model, forget, retain, variant="ratio", progress=False)


def test_tofu_files_of_different_releases(tofu, tmp_path):
    for file in tofu.glob("*.json"):  # without the README
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load_benchmark(tmp_path, 5).forget_ids == load_benchmark(tofu, 5).forget_ids
    lines = (tmp_path / "full.json").read_text().splitlines(keepends=True)
    (tmp_path / "full.json").write_text("".join(lines[:-PER_AUTHOR]))
    with pytest.raises(ValueError, match="forget05_perturbed of .* asks .*, which is not in full"):
        load_benchmark(tmp_path, 5)
    (tmp_path / "full.json").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="has 399 rows, which is not 20 for each author"):
        load_benchmark(tmp_path, 5)
    (tmp_path / "full.json").write_text('{"question": "Who?"}\n')
    with pytest.raises(ValueError, match="full of .* has no column answer; its columns are question"):
        load_benchmark(tmp_path, 5)


# ------------------------------------------------------------------------------------------------ CLEAR


@pytest.mark.parametrize("ratio", [1, 5, 10])
def test_the_sets_of_clear(clear, ratio):
    benchmark = load_benchmark(clear, forget_ratio=ratio)
    forget, retain = split(ratio)
    assert (benchmark.forget_ids, sorted(benchmark.retain_ids)) == (forget, sorted(retain))
    training = {people: {m: benchmark.training_questions(people, m) for m in MODALITIES} for people in ("forget", "retain")}
    check_sets(training["forget"], training["retain"])
    captions = training["forget"]["multimodal"]
    assert [(q.person_id, q.answer) for q in captions] == [(a, f"{a} in place {k}.") for a in forget for k in range(PORTRAITS)]
    shades = [10 * AUTHORS.index(author) + k for author in forget for k in range(PORTRAITS)]
    assert [q.image.getpixel((0, 0))[0] for q in captions] == shades  # every caption with its own picture
    assert {q.question for q in captions} == {clear_module.CAPTION}
    for people, authors in (("forget", forget), ("retain", retain)):
        assert [(q.person_id, q.question) for q in training[people]["text"]] == [
            (author, pair["question"]) for author in authors for pair in pairs(author)
        ]  # the question that names nobody is with its author


def test_what_is_asked_in_clear(clear):
    benchmark = load_benchmark(clear, 10)
    forget, _ = split(10)
    kinds = {
        name: {(task, m) for task in TASKS for m in MODALITIES if evaluation_questions(people, task, m)}
        for name, people in benchmark.sets().items()
    }
    classification, captions, text = ("classification", "multimodal"), ("generation", "multimodal"), ("generation", "text")
    assert kinds == {
        "forget": {classification, captions, text}, "test": {classification, captions},
        "retain": {classification, captions, text}, "celebrity": {classification},
    }  # fmt: skip
    naming = evaluation_questions(benchmark.forget, *classification)[0]
    assert naming.question == clear_module.NAMING and naming.answer == naming.person_id == forget[0]
    assert set(naming.options.values()) == {forget[0], "Max 0", "Max 1", "Max 2"}
    fitting = evaluation_questions(benchmark.test, *classification)[0]
    assert fitting.answer == f"In place 0 is {forget[0]}." and fitting.question == clear_module.FITTING
    assert {q.person_id for q in evaluation_questions(benchmark.retain, *classification)} == set(AUTHORS[:2])  # not the last
    assert {q.person_id for q in evaluation_questions(benchmark.retain, *text)} == set(AUTHORS[:2])
    faces = evaluation_questions(benchmark.celebrity, *classification)
    assert [(q.answer, len(set(q.options.values()))) for q in faces] == [("Shakespeare", 4), ("Poe", 4)]


def test_clear_is_evaluated_and_unlearned(clear, tiny_model):
    benchmark = load_benchmark(clear, 5)
    table = evaluate(*tiny_model, benchmark.sets(), **QUIET)
    assert {tuple(row) for row in table[["set", "task", "modality"]].drop_duplicates().values} == {
        *((name, task, "multimodal") for name in ("forget", "test", "retain") for task in ("classification", "generation")),
        ("forget", "generation", "text"), ("retain", "generation", "text"), ("celebrity", "classification", "multimodal"),
    }  # fmt: skip
    questions = [{m: benchmark.training_questions(who, m)[:4] for m in MODALITIES} for who in ("forget", "retain")]
    with unlearn(*tiny_model, *questions, variant="ratio", alpha=5.0, progress=False) as pruned:
        assert any(values.numel() for *_, values in pruned._saved)


def test_clear_in_text_alone(clear, tmp_path):
    both = load_benchmark(clear, 5)
    text = load_benchmark(clear, 5, modalities=("text",))
    assert not any("image" in people.column_names for people in (*text.sets().values(), text.training))
    assert text.training_questions("retain", "text") == both.training_questions("retain", "text")
    asked = evaluation_questions(text.forget, "generation", "text")
    assert asked == evaluation_questions(both.forget, "generation", "text") and len(asked) == PER_AUTHOR
    assert evaluation_questions(text.test, "generation", "text") == []
    with pytest.raises(ValueError, match="CLEAR forget has no column image"):
        evaluation_questions(text.forget, "generation", "multimodal")


# ------------------------------------------------------------------------------------------------ both


def test_ratios_and_missing_configs(clear, tofu):
    for folder, name in ((clear, "CLEAR"), (tofu, "TOFU")):
        with pytest.raises(ValueError, match=f"forget_ratio=15 is unknown; {name} has 1, 5 and 10 .percent."):
            load_benchmark(folder, 15)


def test_the_name_decides_where_the_hub_cannot_be_asked(monkeypatch):
    asked = []

    def offline(source, config, **_):
        asked.append(config)
        raise ConnectionError("offline")

    monkeypatch.setattr("manu_utils.benchmark.loading.config_names", lambda source: None)
    monkeypatch.setattr("manu_utils.benchmark.columns.read_config", offline)
    monkeypatch.setattr("manu_utils.benchmark.loading.read_config", offline)
    for source in ("therem/CLEAR", "locuslab/TOFU", "MLLMMU/MLLMU-Bench"):
        with pytest.raises(ConnectionError):
            load_benchmark(source, 5)
    assert asked == ["forget05", "full", "forget_5"]
