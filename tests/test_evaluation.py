"""Answers, judgements and tables: batched equals single, official equals official, and bad input says so."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from manu_utils import evaluation
from manu_utils.batches import encode
from manu_utils.benchmark import MODALITIES, TASKS, evaluation_questions
from manu_utils.evaluation import (
    COLUMNS,
    LEADERBOARD,
    append_leaderboard,
    evaluate,
    generate_answers,
    judge,
    known,
    likeliest_options,
    normalise,
    parse_letter,
    summarise,
    truth_of,
)
from manu_utils.models import load_model

QUIET = {"progress": False}
KEY = {"scale": "tiny", "seed": 0, "method": "coverage", "alpha": 5.0}


def questions_of(dataset, tasks=TASKS, modalities=MODALITIES):
    return [q for task in tasks for modality in modalities for q in evaluation_questions(dataset, task, modality)]


@pytest.fixture(scope="module")
def trained():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def two_sets(benchmark):
    return {"forget": benchmark.forget.select([0, 1]), "test": benchmark.test.select([0])}


@pytest.fixture(scope="module")
def table(tiny_model, two_sets):
    return evaluate(*tiny_model, two_sets, **QUIET)


# ------------------------------------------------------------------------------------------------ answers


def plain_greedy(model, processor, question, n):
    """Greedy decoding spelt out: no cache, no batch, one whole forward pass per token."""
    batch = encode([question], processor, with_answer=False)
    ids, new = batch.pop("input_ids"), []
    while len(new) < n:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=batch.get("pixel_values")).logits
        new.append(logits[0, -1].argmax().item())
        if new[-1] == processor.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("which", ["tiny_model", "trained"])
def test_batched_answers_are_those_of_plain_greedy_decoding(which, request, two_sets):
    model, processor = request.getfixturevalue(which)
    questions = questions_of(two_sets["test"])[::3] + questions_of(two_sets["forget"], ["generation"])
    batched = generate_answers(model, processor, questions, max_new_tokens=8, batch_size=16, **QUIET)
    assert batched == [plain_greedy(model, processor, question, 8) for question in questions]
    assert len(set(batched)) > len(batched) / 4  # the answers depend on the questions


def test_batch_size_and_order_do_not_change_the_answers(tiny_model, two_sets):
    questions = questions_of(two_sets["forget"])[::2]
    answers = generate_answers(*tiny_model, questions, max_new_tokens=6, **QUIET)
    for size in (1, 3):
        assert generate_answers(*tiny_model, questions, max_new_tokens=6, batch_size=size, **QUIET) == answers
    assert generate_answers(*tiny_model, questions[::-1], max_new_tokens=6, **QUIET) == answers[::-1]


def test_the_model_is_left_as_it_was(tiny_model, two_sets):
    model, processor = tiny_model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    questions = questions_of(two_sets["forget"], ["cloze"])
    batch = encode(questions[:2], processor, with_answer=False)
    with torch.no_grad():
        logits = model(**batch).logits
        generate_answers(model, processor, questions, max_new_tokens=2, **QUIET)
        known(model, processor, questions, **QUIET)
        assert torch.equal(model(**batch).logits, logits)  # no hook stays behind
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_known_is_generating_the_truth(trained, benchmark, two_sets):
    sets = [*two_sets.values(), benchmark.celebrity.select([0])]
    questions = [question for dataset in sets for question in questions_of(dataset)]
    # truths that are other people's, cut short or continued are not known
    spoilt = [q for q in questions if q.task != "classification"][:12]
    spoilt = [replace(q, answer=answer) for q in spoilt for answer in (q.answer + " x", q.answer[:-1], spoilt[0].answer)]
    questions += spoilt
    answers = generate_answers(*trained, questions, batch_size=32, **QUIET)
    expected = [answer == truth_of(question) for answer, question in zip(answers, questions, strict=True)]
    assert known(*trained, questions, batch_size=7, **QUIET).tolist() == expected
    assert 5 < sum(expected) < len(expected) - 5


def test_half_the_batch_when_memory_runs_out(tiny_model, two_sets, monkeypatch, capsys):
    model, processor = tiny_model
    questions = questions_of(two_sets["forget"], ["cloze"], ["text"])
    expected = generate_answers(model, processor, questions, max_new_tokens=2, **QUIET)
    for owner, name in ((model.model, "forward"), (model, "generate")):  # the shared and the plain path
        run, sizes = getattr(owner, name), []

        def short_of_memory(run=run, sizes=sizes, **inputs):
            if inputs["input_ids"].shape[1] > 1:  # not a later token
                sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(**inputs)

        with monkeypatch.context() as patch:
            patch.setattr("manu_utils.evaluation.can_share", lambda model, owner=owner: owner is not model)
            patch.setattr(owner, name, short_of_memory)
            assert generate_answers(model, processor, questions, max_new_tokens=2, batch_size=4, **QUIET) == expected
            assert capsys.readouterr().out == "out of memory; going on with batches of 2\n"
            assert sizes == [4, 2, 2]
            patch.setattr(owner, name, lambda **inputs: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
            with pytest.raises(torch.OutOfMemoryError):
                generate_answers(model, processor, questions, max_new_tokens=2, batch_size=1, **QUIET)


@pytest.fixture
def by_generate(monkeypatch):
    """Calls a function with the plain path forced: a left-padded row per question, through `generate`."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("manu_utils.evaluation.can_share", lambda model: False)
            return function(*arguments, **options)

    return call


def test_sharing_gives_what_generate_gives_one_at_a_time(trained, benchmark, by_generate):
    """On the miniature: every task and modality, several images of a person, sets that share their text questions."""
    sets = {"forget": benchmark.forget.select([5]), "test": benchmark.test.select([5]),
            "celebrity": benchmark.celebrity.select([0])}  # fmt: skip
    expected = by_generate(evaluate, *trained, sets, batch_size=1, **QUIET)
    assert {*expected["task"]} == {*TASKS} and {*expected["modality"]} == {*MODALITIES}
    for size in (64, 5):
        pd.testing.assert_frame_equal(evaluate(*trained, sets, batch_size=size, **QUIET), expected)


def test_sharing_gives_what_generate_gives_for_any_weights(tiny_model, two_sets, by_generate):
    questions = questions_of(two_sets["forget"])[::2]
    expected = by_generate(generate_answers, *tiny_model, questions, max_new_tokens=12, **QUIET)
    for size in (64, 5):
        assert generate_answers(*tiny_model, questions, max_new_tokens=12, batch_size=size, **QUIET) == expected
    expected = by_generate(known, *tiny_model, questions, **QUIET)
    assert known(*tiny_model, questions, **QUIET).equal(expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_of_a_shared_row_is_that_of_its_questions(double_model, two_sets, attention, by_generate):
    """The mean log-likelihoods themselves, not only their order."""
    model, processor = double_model
    before = model.config._attn_implementation
    questions = questions_of(two_sets["forget"], ["classification"])
    scores = []

    def capture(values, rows):
        scores.append(values)
        return values.new_zeros(int(rows.max()) + 1).index_add_(0, rows, values)

    model.set_attn_implementation(attention)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("manu_utils.evaluation._mean_per_question", capture)
            likeliest_options(model, processor, questions, **QUIET)
            shared = torch.cat(scores).sort().values
            scores.clear()
            by_generate(likeliest_options, model, processor, questions, batch_size=1, **QUIET)
    finally:
        model.set_attn_implementation(before)
    torch.testing.assert_close(shared, torch.cat(scores).sort().values, rtol=0, atol=1e-5)  # log-softmax is in float32


def test_rows_that_have_ended_are_dropped(trained, benchmark, by_generate, monkeypatch):
    model, processor = trained
    questions = questions_of(benchmark.forget.select(range(4)), ["cloze", "generation"])
    forward, shapes = model.model.forward, []

    def watch(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(model.model, "forward", watch)
        answers = generate_answers(model, processor, questions, **QUIET)
    assert answers == by_generate(generate_answers, model, processor, questions, **QUIET)
    # a row per portrait object (one of each task and person) with two questions; then a row per text question
    text = next(i for i, (r, _) in enumerate(shapes) if r == 16)
    for (first, *later), r, q in ((shapes[:text], 8, 2), (shapes[text:], 16, 1)):
        assert first[0] == r and {width for _, width in later} == {q}
        left = [rows for rows, _ in later]
        assert left == sorted(left, reverse=True) and left[-1] < r


def test_other_models_take_the_plain_path(tiny_model, two_sets, monkeypatch):
    """What is not known to give the same answers is left to `generate`: other architectures, other attention."""
    model, processor = tiny_model
    questions = questions_of(two_sets["forget"], ["cloze"], ["text"])
    expected = generate_answers(model, processor, questions, max_new_tokens=3, **QUIET)
    generate, calls = model.generate, []
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(1) or generate(**inputs))
    assert generate_answers(model, processor, questions, max_new_tokens=3, **QUIET) == expected
    assert not calls
    monkeypatch.setattr(model, "hf_device_map", {"model.vision_tower": 0, "lm_head": 1}, raising=False)
    assert generate_answers(model, processor, questions, max_new_tokens=3, **QUIET) == expected
    assert calls
    monkeypatch.undo()
    calls.clear()
    monkeypatch.setattr(model, "generate", lambda **inputs: calls.append(1) or generate(**inputs))
    monkeypatch.setattr("transformers.LlavaForConditionalGeneration", type("Another", (), {}))
    assert generate_answers(model, processor, questions, max_new_tokens=3, **QUIET) == expected
    assert calls


def test_likelihood_is_that_of_the_options_as_short_answers(tiny_model, table, two_sets):
    model, processor = tiny_model
    for modality in MODALITIES:
        question = evaluation_questions(two_sets["forget"], "classification", modality)[3]
        by_hand = {}
        for letter, words in question.options.items():
            asked = replace(question, question=f"{question.question} __", answer=words, task="cloze", options=None)
            batch = encode([asked], processor, with_answer=True)
            ids, answer = batch["input_ids"][0], batch.pop("answer_mask")[0]
            with torch.no_grad():
                log_likelihood = model(**batch).logits[0].log_softmax(-1)
            positions = answer.nonzero()[:, 0].tolist()
            assert processor.tokenizer.decode(ids[positions[:-1]]).strip() == words
            by_hand[letter] = sum(log_likelihood[p - 1, ids[p]].item() for p in positions) / len(positions)
        best = max(by_hand, key=by_hand.get)
        row = table[(table["metric"] == "likelihood") & (table["modality"] == modality) & (table["set"] == "forget")].iloc[3]
        assert row["question"] == question.question
        assert row["answer"] == best
        assert row["value"] == float(question.options[best] == question.answer)


def test_options_are_compared_by_their_mean_log_likelihood(double_model, two_sets, monkeypatch):
    """The numbers themselves, and not the logits, which mostly have the same order."""
    model, processor = double_model
    questions = evaluation_questions(two_sets["forget"], "classification", "text")[:2]
    expected, found = [], []
    for question in questions:
        for words in question.options.values():
            asked = replace(question, question=f"{question.question} __", answer=words, task="cloze", options=None)
            batch = encode([asked], processor, with_answer=True)
            ids, answer = batch["input_ids"][0], batch.pop("answer_mask")[0].nonzero()[:, 0].tolist()
            with torch.no_grad():
                shares = model(**batch).logits[0].exp()
            logs = [(shares[p - 1, ids[p]] / shares[p - 1].sum()).log().item() for p in answer]
            expected.append(sum(logs) / len(logs))
    mean = evaluation._mean_per_question
    monkeypatch.setattr(evaluation, "_mean_per_question", lambda *of: found.append(mean(*of)) or found[-1])
    likeliest_options(model, processor, questions, **QUIET)
    assert torch.cat(found).sort().values.tolist() == pytest.approx(sorted(expected), abs=1e-4)


def test_likelihood_needs_options(tiny_model, two_sets):
    with pytest.raises(ValueError, match="has no options to compare"):
        likeliest_options(*tiny_model, evaluation_questions(two_sets["forget"], "cloze", "text"), **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens=0"), ({"batch_size": 0}, "batch_size=0")],
)
def test_sizes_must_be_positive(tiny_model, two_sets, options, message):
    with pytest.raises(ValueError, match=message):
        generate_answers(*tiny_model, questions_of(two_sets["forget"], ["cloze"]), **options)


@pytest.mark.parametrize("function", [generate_answers, known, likeliest_options])
def test_no_question_is_an_error(tiny_model, function):
    with pytest.raises(ValueError, match="no question"):
        function(*tiny_model, [])


# ------------------------------------------------------------------------------------------------ judgements


@pytest.mark.parametrize(
    ("response", "letter"),
    [("B", "B"), ("b", "B"), ("B: nurse", "B"), (" C", "C"), ("Answer: B", "A"), ("The answer is B", None), ("Both", "B"),
     ("", None), ("E", None), ("(B)", None)],
)  # fmt: skip
def test_the_official_parser_reads_the_first_character(response, letter):
    assert parse_letter(response) == letter


@pytest.fixture
def asked(two_sets):
    return {task: evaluation_questions(two_sets["forget"], task, "text")[0] for task in TASKS}


def test_classification(asked):
    question = replace(asked["classification"], options=dict(zip("ABCD", ["w", "x", "y", "z"], strict=True)), answer="y")
    assert truth_of(question) == "C"
    assert judge(question, "c.", "B", None) == {"accuracy": ("c.", 1.0), "likelihood": ("B", 0.0)}
    assert judge(question, "The answer is C", "C", None) == {"accuracy": ("The answer is C", 0.0), "likelihood": ("C", 1.0)}


@pytest.mark.parametrize(
    ("response", "value"), [("nurse", 1), ("A NURSE.", 1), ("nurses", 1), ("nur se", 0), ("", 0), ("painter", 0)]
)
def test_cloze_asks_whether_the_truth_is_in_the_response(asked, response, value):
    assert judge(replace(asked["cloze"], answer="Nurse"), response, "", None) == {"accuracy": (response, value)}


@pytest.mark.parametrize(
    ("response", "value"),
    [("Works as a nurse.", 1), ("works  as a Nurse", 1), ("Works as a nurse and more.", 0), ("Works as a baker.", 0), ("", 0)],
)
def test_generation_compares_the_whole_statement(asked, response, value):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    question = replace(asked["generation"], answer="Works as a nurse.")
    assert judge(question, response, "", scorer)["accuracy"] == (response, value)


def test_rouge_l_is_the_library_with_stemming(asked):
    question = replace(asked["generation"], answer="Works as a nurse.")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    response = "She worked as a baker in Oslo."
    _, value = judge(question, response, "", scorer)["rougeL"]
    # the stems of "works" and "worked" agree: 3 words in common, of 7 and of 4
    assert value == pytest.approx(2 * (3 / 7) * (3 / 4) / (3 / 7 + 3 / 4))
    assert value == scorer.score("Works as a nurse.", response)["rougeL"].fmeasure


def test_the_table_has_rouge_with_stemming(tiny_model, two_sets, monkeypatch):
    """"Worked" and "works" count as one word, as in the official code."""
    def answered(model, processor, questions, **_):
        return [question.answer.replace("s ", "ed ", 1) for question in questions]  # "Works as a nurse." -> "Worked as ..."

    monkeypatch.setattr("manu_utils.evaluation.generate_answers", answered)
    people = {"forget": two_sets["forget"]}
    table = evaluate(*tiny_model, people, tasks=["generation"], modalities=["text"], **QUIET)
    rouge = table[table["metric"] == "rougeL"].set_index("truth")
    works = [truth for truth in rouge.index if truth.startswith("Works as ")]
    assert works and all(rouge.loc[truth, "answer"].startswith("Worked as ") for truth in works)
    assert rouge.loc[works, "value"].tolist() == [1.0] * len(works)


def test_normalise():
    assert normalise("  Was born\nin Saint-Malo. ") == "was born in saint malo"


# ------------------------------------------------------------------------------------------------ the table


def test_one_row_per_question_and_metric_with_every_test_image(table, benchmark, two_sets):
    assert tuple(table.columns) == COLUMNS
    assert table["value"].between(0, 1).all()
    counts = Counter(map(tuple, table[["set", "task", "modality", "metric"]].values))
    images = {"forget": 1, "test": len(two_sets["test"][0]["images"])}
    assert images["test"] > 1
    for name, dataset in two_sets.items():
        for modality, kind in (("multimodal", "Image_Textual"), ("text", "Pure_Text")):
            per_question = images[name] if modality == "multimodal" else 1
            rows = list(dataset.select_columns(["Classification_Task", "Mask_Task", "Generation_Task"]))
            choices = sum(len(row["Classification_Task"][f"{kind}_Questions"]) for row in rows)
            assert counts[name, "classification", modality, "accuracy"] == per_question * choices
            assert counts[name, "classification", modality, "likelihood"] == per_question * choices
            for task, column, metrics in (("cloze", "Mask_Task", ["accuracy"]),
                                          ("generation", "Generation_Task", ["accuracy", "rougeL"])):  # fmt: skip
                n = per_question * sum(record["Type"] == kind for row in rows for record in row[column])
                assert [counts[name, task, modality, metric] for metric in metrics] == [n] * len(metrics)
    assert len(table) == sum(counts.values())


def test_the_table_is_the_same_in_batches_one_at_a_time_and_again(tiny_model, two_sets, table):
    pd.testing.assert_frame_equal(evaluate(*tiny_model, two_sets, **QUIET), table)
    pd.testing.assert_frame_equal(evaluate(*tiny_model, two_sets, batch_size=1, **QUIET), table)


def test_the_answers_are_those_of_generate_answers(tiny_model, table, two_sets):
    for task in ("cloze", "generation"):
        questions = evaluation_questions(two_sets["test"], task, "multimodal")
        rows = table[(table["set"] == "test") & (table["task"] == task) & (table["modality"] == "multimodal")]
        rows = rows[rows["metric"] == "accuracy"]
        assert rows["answer"].tolist() == generate_answers(*tiny_model, questions, **QUIET)
        assert rows["truth"].tolist() == [question.answer for question in questions]


def test_a_part_is_that_part_of_the_whole(tiny_model, two_sets, table):
    part = evaluate(*tiny_model, {"test": two_sets["test"]}, tasks=["cloze"], modalities=["text"], **QUIET)
    whole = table[(table["set"] == "test") & (table["task"] == "cloze") & (table["modality"] == "text")]
    pd.testing.assert_frame_equal(part, whole.reset_index(drop=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["vqa"]}, "task='vqa' is unknown"),
        ({"modalities": ["audio"]}, "modality='audio' is unknown"),
        ({"tasks": []}, "tasks is empty"),
        ({"modalities": []}, "modalities is empty"),
    ],
)
def test_unknown_and_empty_choices(tiny_model, two_sets, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*tiny_model, two_sets, **options)


def test_bad_sets_are_named(tiny_model, benchmark):
    with pytest.raises(ValueError, match="sets is empty"):
        evaluate(*tiny_model, {})
    with pytest.raises(ValueError, match="set 'nobody': .*empty"):
        evaluate(*tiny_model, {"nobody": benchmark.forget.select([])})
    with pytest.raises(ValueError, match="set 'training': .*Classification_Task"):
        evaluate(*tiny_model, {"training": benchmark.training.select([0])})
    without = benchmark.forget.select([0]).map(
        lambda row: {"Mask_Task": [record for record in row["Mask_Task"] if record["Type"] == "Pure_Text"]}
    )
    with pytest.raises(ValueError, match="set 'forget': .*no multimodal question for cloze"):
        evaluate(*tiny_model, {"forget": without})
    blank = benchmark.forget.select([0]).map(
        lambda row: {"Mask_Task": [record | {"Ground_Truth": " "} for record in row["Mask_Task"]]}
    )
    with pytest.raises(ValueError, match="set 'forget': person .* has an empty truth"):
        evaluate(*tiny_model, {"forget": blank})


def test_summary_is_the_means_in_the_official_order(table):
    shuffled = pd.concat([table.assign(set="mine"), table]).sample(frac=1, random_state=0)
    summary = summarise(shuffled)
    assert list(summary.columns) == ["set", "task", "modality", "metric", "value", "n"]
    assert summary["set"].drop_duplicates().tolist() == ["forget", "test", "mine"]
    cells = summary[summary["set"] == "test"][["task", "modality", "metric"]]
    assert list(map(tuple, cells.values)) == [
        (task, modality, metric)
        for task, metrics in (("classification", ("accuracy", "likelihood")), ("cloze", ("accuracy",)),
                              ("generation", ("accuracy", "rougeL")))
        for modality in MODALITIES
        for metric in metrics
    ]  # fmt: skip
    for row in summary.itertuples():
        values = shuffled[(shuffled["set"] == row.set) & (shuffled["task"] == row.task)
                          & (shuffled["modality"] == row.modality) & (shuffled["metric"] == row.metric)]["value"]  # fmt: skip
        assert row.value == pytest.approx(values.mean())
        assert row.n == len(values)


# ------------------------------------------------------------------------------------------------ the leaderboard


@pytest.fixture
def summary():
    rows = [("forget", "cloze", "text", "accuracy", 1 / 3, 24), ("retain", "cloze", "text", "accuracy", 0.9, 216)]
    return pd.DataFrame(rows, columns=["set", "task", "modality", "metric", "value", "n"])


def test_the_leaderboard_appends_and_replaces(tmp_path, summary):
    path = tmp_path / "build" / "leaderboard.csv"
    append_leaderboard(path, summary, **KEY)
    append_leaderboard(path, summary, **(KEY | {"alpha": 10}))
    append_leaderboard(path, summary, **(KEY | {"method": "vanilla", "alpha": None}))
    board = pd.read_csv(path)
    assert tuple(board.columns) == LEADERBOARD
    assert len(board) == 3 * len(summary)
    assert board["value"].tolist() == summary["value"].tolist() * 3  # to the last bit
    assert board["alpha"].isna().sum() == len(summary)
    untouched = path.read_text(encoding="utf-8")
    append_leaderboard(path, summary, **(KEY | {"method": "vanilla", "alpha": float("nan")}))
    assert path.read_text(encoding="utf-8") == untouched
    append_leaderboard(path, summary.iloc[:1].assign(value=0.5), **(KEY | {"alpha": 5}))
    board = pd.read_csv(path)
    assert len(board) == 2 * len(summary) + 1
    assert board.loc[board["alpha"] == 5, "value"].tolist() == [0.5]


def test_a_file_that_is_no_leaderboard_is_not_overwritten(tmp_path, summary):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a leaderboard"):
        append_leaderboard(path, summary, **KEY)
    assert path.read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_a_failed_write_leaves_the_old_file(tmp_path, summary, monkeypatch):
    path = tmp_path / "leaderboard.csv"
    append_leaderboard(path, summary, **KEY)
    before = path.read_text(encoding="utf-8")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("manu_utils.evaluation.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        append_leaderboard(path, summary, **(KEY | {"seed": 1}))
    assert path.read_text(encoding="utf-8") == before


WRITER = """
import sys
import pandas as pd
from manu_utils.evaluation import append_leaderboard
path, summary, seed = sys.argv[1:]
for alpha in range(1, 21):
    append_leaderboard(path, pd.read_csv(summary), scale="tiny", seed=int(seed), method="coverage", alpha=alpha)
"""


def test_two_writers_at_once_lose_nothing(tmp_path, summary):
    path, source = tmp_path / "leaderboard.csv", tmp_path / "summary.csv"
    summary.to_csv(source, index=False)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, source, str(seed)]) for seed in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    board = pd.read_csv(path)
    assert len(board) == 2 * 20 * len(summary)
    assert not board.duplicated().any()
