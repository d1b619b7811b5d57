"""Answers, judgements and tables: batched equals single, official equals official, and bad input says so."""

import copy
import math
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from doors import evaluate_by
from rouge_score.rouge_scorer import RougeScorer

from manu_utils.benchmark.loading import load_config
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES, TASKS
from manu_utils.evaluation.judging import judge, normalise, parse_letter
from manu_utils.evaluation.tables import COLUMNS, evaluate, summarise
from manu_utils.models import asking
from manu_utils.models.asking import generate_answers, known, likeliest_options, truth_of
from manu_utils.models.encoding import encode
from manu_utils.models.loading import load_model
from manu_utils.models.prompts import prompt
from manu_utils.teaching.leaderboard import LEADERBOARD, append_leaderboard

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
            patch.setattr("manu_utils.models.asking.can_share", lambda model, owner=owner: owner is not model)
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
            patch.setattr("manu_utils.models.asking.can_share", lambda model: False)
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
            patch.setattr("manu_utils.models.asking._mean_per_question", capture)
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
    mean = asking._mean_per_question
    monkeypatch.setattr(asking, "_mean_per_question", lambda *of: found.append(mean(*of)) or found[-1])
    likeliest_options(model, processor, questions, **QUIET)
    assert torch.cat(found).sort().values.tolist() == pytest.approx(sorted(expected), abs=1e-4)


def test_likelihood_needs_options(tiny_model, two_sets):
    with pytest.raises(ValueError, match="has no options to compare"):
        likeliest_options(*tiny_model, evaluation_questions(two_sets["forget"], "cloze", "text"), **QUIET)


def test_an_option_that_is_missing_is_neither_shown_nor_compared(tiny_model, benchmark):
    """Where a column holds A to D, a question of three options has null for the fourth."""

    def without(row):
        task = copy.deepcopy(row["Classification_Task"])
        for question in task["Pure_Text_Questions"]:
            letter = next(letter for letter in "DC" if letter != question["Correct_Answer"])
            question["Options"][letter] = None
        return {"Classification_Task": task}

    sets = {"forget": benchmark.forget.select([0]).map(without)}
    questions = questions_of(sets["forget"], ["classification"], ["text"])
    assert all(len(question.options) == 3 and None not in question.options.values() for question in questions)
    assert not any("None" in prompt(question, tiny_model[1]) for question in questions)
    table = evaluate(*tiny_model, sets, tasks=["classification"], modalities=["text"], **QUIET)
    letters = table[table["metric"] == "likelihood"]["answer"]
    assert all(letter in question.options for letter, question in zip(letters, questions, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens=0"), ({"batch_size": 0}, "batch_size=0"),
     ({"max_new_tokens": True}, "max_new_tokens=True must be a whole number"),
     ({"batch_size": "8"}, "batch_size='8' must be a whole number")],
)  # fmt: skip
def test_sizes_must_be_positive_whole_numbers(tiny_model, two_sets, options, message):
    questions = questions_of(two_sets["forget"], ["cloze"])
    with pytest.raises((TypeError, ValueError), match=message):
        generate_answers(*tiny_model, questions, **options)
    if "batch_size" in options:
        for function in (known, partial(likeliest_options, *tiny_model, questions_of(two_sets["forget"], ["classification"]))):
            with pytest.raises((TypeError, ValueError), match=message):
                function(*([] if isinstance(function, partial) else [*tiny_model, questions]), **options)


@pytest.mark.parametrize("function", [generate_answers, known, likeliest_options])
def test_no_question_is_an_error(tiny_model, two_sets, function):
    with pytest.raises(ValueError, match="no question"):
        function(*tiny_model, [])
    questions = questions_of(two_sets["forget"], ["classification"])
    for wrong in (questions[0], "Who is this?", ["Who is this?"], {"text": questions}, two_sets["forget"]):
        with pytest.raises(TypeError, match="questions must be a list of Question"):
            function(*tiny_model, wrong)


def test_an_answer_that_is_no_option_is_named(tiny_model, two_sets):
    question = replace(questions_of(two_sets["forget"], ["classification"])[0], answer="none of these")
    for function in (truth_of, lambda question: known(*tiny_model, [question], **QUIET)):
        with pytest.raises(ValueError, match=f"person {question.person_id}: 'none of these' is no option of"):
            function(question)


# ------------------------------------------------------------------------------------------------ whatever the model brings

HOSTILE = {  # what a checkpoint's generation_config.json may hold, and what would change the answers
    "forced_eos_token_id": 9, "forced_bos_token_id": 9, "suppress_tokens": list(range(5, 200)), "min_length": 99,
    "begin_suppress_tokens": list(range(2, 200)), "no_repeat_ngram_size": 1, "bad_words_ids": [[i] for i in range(5, 99)],
    "max_time": 1e-9, "stop_strings": ["a", "e", "s"], "guidance_scale": 9.0, "return_dict_in_generate": True,
    "output_scores": True, "num_beams": 4, "num_return_sequences": 2, "do_sample": True, "temperature": 9.0, "max_length": 3,
    "repetition_penalty": 9.0, "encoder_no_repeat_ngram_size": 1, "exponential_decay_length_penalty": (1, 9.0),
    "cache_implementation": "static", "prompt_lookup_num_tokens": 3, "min_new_tokens": 7, "penalty_alpha": 0.9,
    "sequence_bias": [[[9], 99.0]], "renormalize_logits": True, "use_cache": False, "low_memory": True, "custom": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_answers_inherit_none_of_the_models_generation_settings(tiny_model, two_sets, by_generate, name):
    model, processor = tiny_model
    questions = questions_of(two_sets["forget"], ["cloze", "generation"], ["text"])[:6]
    expected = by_generate(generate_answers, model, processor, questions, max_new_tokens=6, **QUIET)
    own = model.generation_config
    model.generation_config = hostile = copy.deepcopy(own)
    setattr(hostile, name, HOSTILE[name])
    try:
        assert by_generate(generate_answers, model, processor, questions, max_new_tokens=6, **QUIET) == expected
        assert generate_answers(model, processor, questions, max_new_tokens=6, **QUIET) == expected
        assert model.generation_config is hostile and getattr(hostile, name) == HOSTILE[name]
    finally:
        model.generation_config = own


def test_every_end_ends_an_answer_and_makes_it_known(trained, benchmark, by_generate):
    """The tokenizer's end, and those that the model names: one of them alone is not enough."""
    model, processor = trained
    questions = questions_of(benchmark.forget.select([0]), ["generation"], ["text"])
    truths, own = [question.answer for question in questions], model.generation_config
    used = {token for q in questions for token in encode([q], processor, with_answer=True)["input_ids"][0].tolist()}
    another = next(token for token in range(99, 999) if token not in used)
    model.generation_config = copy.deepcopy(own)
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    try:
        model.generation_config.eos_token_id = another  # the tokenizer's end still ends
        for call in (lambda f, *a, **o: f(*a, **o), by_generate):
            assert call(generate_answers, model, processor, questions, **QUIET) == truths
        with torch.no_grad():  # the model ends with the other
            head[[another, processor.tokenizer.eos_token_id]] = before[[processor.tokenizer.eos_token_id, another]]
        for ends in (another, [another, processor.tokenizer.eos_token_id]):
            model.generation_config.eos_token_id = ends
            for call in (lambda f, *a, **o: f(*a, **o), by_generate):
                answers = call(generate_answers, model, processor, questions, **QUIET)
                word = processor.tokenizer.decode([another]).strip()  # which is no special token, so it can be seen
                assert [answer.removesuffix(word).strip() for answer in answers] == truths
                assert call(known, model, processor, questions, **QUIET).all()
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        assert not known(model, processor, questions, **QUIET).any()
    finally:
        model.generation_config = own
        with torch.no_grad():
            head.copy_(before)


def test_a_tokenizer_without_padding_or_any_end_is_named(tiny_model, two_sets, monkeypatch):
    model, processor = tiny_model[0], copy.deepcopy(tiny_model[1])
    questions = questions_of(two_sets["forget"], ["cloze"], ["text"])
    processor.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token.*processor.tokenizer.pad_token = "):
        generate_answers(model, processor, questions, **QUIET)
    processor.tokenizer.eos_token = None
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    with pytest.raises(ValueError, match="names an end of sequence"):
        known(model, processor, questions, **QUIET)


def broken_model(model, how):
    model = copy.deepcopy(model)
    with torch.no_grad():
        if how == "NaN":
            model.model.language_model.norm.weight.fill_(math.nan)
        elif how == "one NaN":
            model.get_output_embeddings().weight[3, 3] = math.nan
        else:  # more than float16 can hold, in what every layer adds to
            model.half().model.language_model.embed_tokens.weight.mul_(60_000)
            model.model.language_model.layers[0].mlp.down_proj.weight.mul_(60_000)
    return model


@pytest.mark.parametrize("path", ["shared", "generate"])
@pytest.mark.parametrize("how", ["NaN", "one NaN", "float16"])
def test_logits_that_are_not_finite_are_no_forgetting(tiny_model, two_sets, by_generate, how, path):
    model, processor = broken_model(tiny_model[0], how), tiny_model[1]
    call = by_generate if path == "generate" else lambda f, *a, **o: f(*a, **o)
    questions = questions_of(two_sets["forget"], ["classification"])
    message = "the model's logits are not finite; load the model in float32 or bfloat16"
    for function in (generate_answers, known, likeliest_options):
        with pytest.raises(ValueError, match=message):
            call(function, model, processor, questions, **QUIET)
    shots = {"robust": {}, "zero-shot": {}, "official": {"shots": load_config("tiny", "Full_Set"), "seed": 0}}
    for protocol, options in shots.items():
        for modality in MODALITIES:
            with pytest.raises(ValueError, match=message):
                call(evaluate_by, model, processor, two_sets, protocol=protocol, tasks=["generation"], modalities=[modality],
                     **options, **QUIET)  # fmt: skip


def test_a_number_that_breaks_while_an_answer_is_written_is_seen(tiny_model, two_sets):
    """The first tokens are fine; only a later one is not."""
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # of its own, not that of the embeddings
    questions = questions_of(two_sets["forget"], ["generation"], ["text"])
    first = {token for text in generate_answers(model, processor, questions, max_new_tokens=1, **QUIET)
             for token in processor.tokenizer(text)["input_ids"]}  # fmt: skip
    prompts = {token for question in questions for token in encode([question], processor, False)["input_ids"][0].tolist()}
    assert first - prompts
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(first - prompts)] = math.nan
    generate_answers(model, processor, questions, max_new_tokens=1, **QUIET)
    with pytest.raises(ValueError, match="logits are not finite"):
        generate_answers(model, processor, questions, max_new_tokens=3, **QUIET)


def test_asking_is_in_eval_mode_outside_autocast_and_puts_both_back(tiny_model, two_sets, by_generate):
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    model.config.text_config.attention_dropout = 0.9
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.9
    questions = questions_of(two_sets["forget"], ["classification"])[::3]
    for call in (lambda f, *a, **o: f(*a, **o), by_generate):
        expected = [call(f, model, processor, questions, **QUIET) for f in (generate_answers, known, likeliest_options)]
        model.train()
        model.model.vision_tower.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = [call(f, model, processor, questions, **QUIET) for f in (generate_answers, known, likeliest_options)]
        assert found[0] == expected[0] and found[1].equal(expected[1]) and found[2] == expected[2]
        assert model.training and not model.model.vision_tower.training
        model.eval()


# ------------------------------------------------------------------------------------------------ longer than the model


@pytest.fixture
def with_a_long_one(benchmark):
    """Two people; one cloze sentence of the second, and a right option of the first, have 3,000 words."""
    long = "word " * 3000

    def change(row, index):
        tasks = {name: copy.deepcopy(row[name]) for name in ("Mask_Task", "Classification_Task")}
        if index == 1:
            tasks["Mask_Task"][0]["Question"] = long + "__"
        else:
            question = tasks["Classification_Task"]["Pure_Text_Questions"][0]
            question["Options"][question["Correct_Answer"]] = long
        return tasks

    return {"forget": benchmark.forget.select([0, 1]).map(change, with_indices=True)}


@pytest.mark.parametrize("protocol", ["zero-shot", "robust"])
def test_questions_that_are_too_long_are_named_and_not_in_the_table(trained, with_a_long_one, two_sets, protocol, tmp_path):
    expected = evaluate_by(*trained, two_sets, protocol=protocol, **QUIET)
    expected = expected[expected["set"] == "forget"].reset_index(drop=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = evaluate_by(*trained, with_a_long_one, protocol=protocol, resume=tmp_path / "answers.jsonl", **QUIET)
    said = [str(warning.message) for warning in said if "positions" in str(warning.message)]
    assert len(said) == 1 and "2 of 36 questions have more tokens than the model has positions (256)" in said[0]
    assert all(f"person {person}" in said[0] for person in with_a_long_one["forget"]["ID"])
    key = ["task", "modality", "metric", "person_id", "question"]
    merged = expected.merge(table, how="left", on=key, indicator=True, suffixes=("", " now"))
    gone = merged[merged["_merge"] == "left_only"]
    assert sorted(gone["metric"] + " " + gone["task"]) == ["accuracy classification", "accuracy cloze",
                                                            "likelihood classification"]  # fmt: skip
    kept = merged[merged["_merge"] == "both"]
    assert len(kept) == len(table)
    assert (kept["answer"] == kept["answer now"]).all() and (kept["value"] == kept["value now"]).all()


def test_what_is_too_long_is_not_known_and_has_no_answer(trained, two_sets):
    fine, long = [replace(questions_of(two_sets["forget"], ["classification"], ["text"])[0], person_id=i) for i in ("1", "2")]
    long = replace(long, question="word " * 3000)
    option = replace(fine, options=fine.options | {"A": "word " * 3000})
    with pytest.warns(UserWarning, match="1 of 2 questions.*person 2 'word"):
        first, none = generate_answers(*trained, [fine, long], **QUIET)
    assert none == "" and [first] == generate_answers(*trained, [fine], **QUIET)
    with pytest.warns(UserWarning, match="1 of 2 questions"):
        assert known(*trained, [long, fine], **QUIET).tolist() == [False, *known(*trained, [fine], **QUIET).tolist()]
    with pytest.warns(UserWarning, match="4 of 8 questions"):
        assert likeliest_options(*trained, [long, fine], **QUIET) == ["", *likeliest_options(*trained, [fine], **QUIET)]
    with pytest.warns(UserWarning, match="1 of 4 questions"):
        assert likeliest_options(*trained, [option], **QUIET)[0] in "BCD"
    with pytest.raises(ValueError, match="nothing is left to ask"):
        generate_answers(*trained, [long], **QUIET)


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

    monkeypatch.setattr("manu_utils.evaluation.tables.generate_answers", answered)
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
        ({"tasks": ["vqa"]}, "tasks holds 'vqa', which is unknown"),
        ({"modalities": ["audio"]}, "modalities holds 'audio', which is unknown"),
        ({"tasks": []}, "tasks=.* must name at least one"),
        ({"modalities": []}, "modalities=.* must name at least one"),
        ({"tasks": "cloze"}, "tasks='cloze' must be a tuple of names"),
        ({"modalities": "text"}, "modalities='text' must be a tuple of names"),
        ({"batch_size": "8"}, "batch_size='8' must be a whole number"),
        ({"batch_size": True}, "batch_size=True must be a whole number"),
        ({"seed": "0", "protocol": "robust"}, "seed='0' must be a whole number"),
        ({"seed": -1, "protocol": "robust"}, "seed=-1 is below 0"),
        ({"resume": "x", "model_key": 5}, "model_key=5 must be a text"),
        ({"resume": 5}, "resume=5 must be a text or a path"),
    ],
)
def test_unknown_and_empty_choices(tiny_model, two_sets, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate_by(*tiny_model, two_sets, **options)


def test_a_model_that_is_wrapped_and_one_in_the_wrong_place_are_refused(tiny_model, two_sets):
    model, processor = tiny_model
    with pytest.raises(TypeError, match="pass model.module"):
        evaluate(torch.nn.DataParallel(model), processor, two_sets, **QUIET)
    with pytest.raises(TypeError, match="pass what load_model returns first"):
        evaluate(processor, model, two_sets, **QUIET)
    with pytest.raises(ValueError, match="the model has no weights, only their shapes"):
        evaluate(copy.deepcopy(model).to("meta"), processor, two_sets, **QUIET)
    questions = questions_of(two_sets["forget"], ["classification"])
    for other in (None, processor.tokenizer):
        with pytest.raises(TypeError, match="the processor is .*; pass the second of what load_model returns"):
            evaluate(model, other, two_sets, **QUIET)
        for function in (generate_answers, known, likeliest_options):
            with pytest.raises(TypeError, match="the processor is .*; pass the second of what load_model returns"):
                function(model, other, questions, **QUIET)


def test_bad_sets_are_named(tiny_model, benchmark):
    with pytest.raises(ValueError, match="sets is empty"):
        evaluate(*tiny_model, {})
    for wrong in (benchmark.forget, benchmark, [benchmark.forget], {"forget": "forget"}, "forget", None):
        with pytest.raises(TypeError, match="sets must be a dict of name -> dataset"):
            evaluate(*tiny_model, wrong)
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


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", bytes(range(256)), b"\x80\x04\x95", b"scale,seed\n\0,1\n", ",".join(LEADERBOARD).encode("utf-16"),
     ";".join(LEADERBOARD).encode() + b"\ntiny;0;random;5;forget;cloze;text;accuracy;1;3\n",
     ",".join([*LEADERBOARD, "note"]).encode() + b"\n", ",".join(LEADERBOARD[::-1]).encode() + b"\n",
     ",".join(LEADERBOARD).encode() + b"\ntiny,0,random,5,forget,cloze,text,accuracy,1,3,mine\n",
     ",".join(LEADERBOARD).encode() + b"\ntiny,0\n", ",".join(LEADERBOARD).encode() + b"\ntiny,a,random,5,,,,,1,3\n"],
)  # fmt: skip
def test_other_files_are_named_and_left_as_they_are(tmp_path, summary, content):
    path = tmp_path / "board.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="board.csv is not a leaderboard .*left as it is; move it away"):
        append_leaderboard(path, summary, **KEY)
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match="is not a leaderboard"):
        append_leaderboard(tmp_path, summary, **KEY)
    with pytest.raises(ValueError, match="the summary has no column n"):
        append_leaderboard(tmp_path / "new.csv", summary.drop(columns="n"), **KEY)
    assert not (tmp_path / "new.csv").exists()


def test_a_leaderboard_that_a_spreadsheet_saved_is_still_one(tmp_path, summary):
    path = tmp_path / "board.csv"
    append_leaderboard(path, summary, **KEY)
    append_leaderboard(path, summary, **(KEY | {"method": "vanilla", "alpha": None}))
    expected = path.read_text(encoding="utf-8")
    saved = expected.replace(",5.0,", ",5,").replace("\n", "\r\n") + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + saved.encode())
    for key in (KEY, KEY | {"method": "vanilla", "alpha": None}):
        append_leaderboard(path, summary, **key)
    assert path.read_text(encoding="utf-8") == expected


def test_of_a_link_the_target_is_updated(tmp_path, summary, monkeypatch):
    (tmp_path / "results").mkdir()
    link, target = tmp_path / "board.csv", tmp_path / "results" / "board.csv"
    link.symlink_to(target)
    for alpha in (5, 10):
        append_leaderboard(link, summary, **(KEY | {"alpha": alpha}))
    assert link.is_symlink() and len(pd.read_csv(target)) == 2 * len(summary)
    monkeypatch.setenv("HOME", str(tmp_path / "results"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "results"))
    append_leaderboard("~/board.csv", summary, **KEY)
    assert len(pd.read_csv(target)) == 2 * len(summary)


def test_a_failed_write_leaves_the_old_file(tmp_path, summary, monkeypatch):
    path = tmp_path / "leaderboard.csv"
    append_leaderboard(path, summary, **KEY)
    before = path.read_text(encoding="utf-8")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("manu_utils.paths.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        append_leaderboard(path, summary, **(KEY | {"seed": 1}))
    assert path.read_text(encoding="utf-8") == before


WRITER = """
import sys
import pandas as pd
from manu_utils.teaching.leaderboard import append_leaderboard
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
