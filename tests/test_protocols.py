"""The official protocol word for word, each of its pitfalls seen happening, and the robust one that avoids them."""

import copy
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from doors import evaluate_by
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from manu_utils.benchmark import pictures
from manu_utils.benchmark.loading import load_config
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import MODALITIES
from manu_utils.evaluation.judging import bleu, find_letter, holds, parse_letter
from manu_utils.evaluation.official import (
    PITFALLS,
    judge_officially,
    official_prompts,
    official_response,
    official_scores,
    official_shot,
)
from manu_utils.evaluation.robust import judge_robustly, robust_prompts, summarise_with_intervals
from manu_utils.evaluation.shots import Prompt, check_lengths, encode_prompts, respond, shared_prompts
from manu_utils.evaluation.tables import COLUMNS
from manu_utils.models.asking import generate_answers, truth_of
from manu_utils.models.loading import load_model
from manu_utils.models.prefix_tree import read_shared
from manu_utils.models.prompts import prompt

pytestmark = pytest.mark.filterwarnings("ignore:.* prompts with shots have up to")  # of the miniature; P4 tests it
QUIET = {"progress": False}
FEW_SHOT = [("classification", 1), ("cloze", 2)]
BLANK = "\nPlease **ONLY** provide the correct answer that should replace the [Blank]."


@pytest.fixture(scope="module")
def full():
    return load_config("tiny", "Full_Set")


@pytest.fixture(scope="module")
def processor(tiny_model):
    return tiny_model[1]


@pytest.fixture(scope="module")
def trained():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def sets(benchmark):
    return {"forget": benchmark.forget.select(range(3)), "test": benchmark.test.select(range(3)),
            "celebrity": benchmark.celebrity.select([0, 1])}  # fmt: skip


def asked(dataset, full, name, task, modality, processor, seed=0, **options):
    return official_prompts(dataset, full, name, task, modality, processor, seed=seed, **options)


def people_of(prompts):
    return {one.question.person_id for one in prompts}


# ------------------------------------------------------------------------------------------------ the official prompts


def test_queries_and_shots_are_worded_as_in_the_official_code(benchmark, processor):
    """Each template spelt out, newline by newline."""
    row = benchmark.forget[0]
    choice = {m: row["Classification_Task"][f"{kind}_Questions"][0] for m, kind in
              (("multimodal", "Image_Textual"), ("text", "Pure_Text"))}  # fmt: skip
    options = {m: "".join(f"{k}: {v}\n" for k, v in record["Options"].items()) for m, record in choice.items()}
    q = {m: record["Question"] for m, record in choice.items()}
    letter = {m: record["Correct_Answer"] for m, record in choice.items()}
    first = {(task, m): evaluation_questions(benchmark.forget, task, m)[0] for task in ("classification", "cloze")
             for m in MODALITIES}  # fmt: skip
    one = "Just give ONE letter representing the answer directly."
    assert prompt(first["classification", "multimodal"], processor) == (
        f"USER: <image>\n{q['multimodal']}\n{options['multimodal']}{one}\nASSISTANT:"
    )
    assert prompt(first["classification", "text"], processor) == f"USER:\n{q['text']}\n{options['text']}{one}\nASSISTANT:"
    assert official_shot(first["classification", "multimodal"], processor) == (
        f"USER: <image>\nQuestion: {q['multimodal']}\n{options['multimodal']}Correct Answer: {letter['multimodal']}\n"
    )
    assert official_shot(first["classification", "text"], processor) == (
        f"USER:\nQuestion: {q['text']}\n{options['text']}Correct Answer: {letter['text']}\n"
    )
    for modality, image, shot_image in (("multimodal", " <image>", "<image>"), ("text", "", "")):
        question = first["cloze", modality]
        sentence = question.question.replace("__", "[Blank]") + BLANK
        assert "[Blank]" in question.question.replace("__", "[Blank]")
        assert prompt(question, processor) == f"USER:{image}\n{sentence}\nASSISTANT:"
        assert official_shot(question, processor) == f"USER:{shot_image}\n{sentence}\nCorrect Answer: {question.answer}\n"


def test_generation_is_zero_shot_and_its_image_prompt_ends_in_a_space(benchmark, full, processor):
    for modality, image, how, end in (("multimodal", " <image>\n", " accurately", " "), ("text", " ", "", "")):
        prompts = asked(benchmark.forget, full, "forget", "generation", modality, processor)
        assert len(prompts) == len(evaluation_questions(benchmark.forget, "generation", modality))
        assert prompts[0].text == (
            f"USER:{image}{prompts[0].question.question}\nAnswer the question based on your trained knowledge in one "
            f"sentence{how} in ENGLISH.\nASSISTANT:{end}"
        )
        assert all(len(one.images) == (modality == "multimodal") for one in prompts)


@pytest.mark.parametrize(("task", "n"), FEW_SHOT)
@pytest.mark.parametrize("modality", MODALITIES)
def test_shots_are_people_of_the_set_with_the_questions_of_full_set(benchmark, full, processor, task, n, modality):
    for name, dataset in (("forget", benchmark.forget), ("test", benchmark.test)):
        prompts = asked(dataset, full, name, task, modality, processor)
        shots = set(dataset["ID"]) - people_of(prompts)  # who is a shot is not scored
        assert len(shots) == n
        solved = evaluation_questions(full.filter(lambda row, s=shots: row["ID"] in s), task, modality)
        assert prompts[0].text == "".join(official_shot(q, processor) for q in solved) + prompt(prompts[0].question, processor)
        per_person = len(solved) // n
        assert len(prompts) == (len(dataset) - n) * per_person
        for one in prompts:
            assert one.text.count("<image>") == len(one.images) == (per_person * n + 1) * (modality == "multimodal")
        if modality == "multimodal":
            pairs = zip(prompts[0].images, solved, strict=False)
            assert all(image.tobytes() == q.image.tobytes() for image, q in pairs)
            assert prompts[0].images[-1] is prompts[0].question.image


def test_both_modalities_have_the_same_shots_and_idefics_has_one(benchmark, full, processor):
    for options, n in (({}, 2), ({"idefics": True}, 1)):
        left = [people_of(asked(benchmark.forget, full, "forget", "cloze", m, processor, **options)) for m in MODALITIES]
        assert left[0] == left[1] and len(left[0]) == len(benchmark.forget) - n


def test_celebrities_are_asked_zero_shot(benchmark, full, processor):
    """The look-up in Full_Set finds none of them."""
    for task in ("classification", "cloze", "generation"):
        for modality in MODALITIES:
            prompts = asked(benchmark.celebrity, full, "celebrity", task, modality, processor)
            assert len(prompts) == len(evaluation_questions(benchmark.celebrity, task, modality))
            space = " " if task == "generation" and modality == "multimodal" else ""
            assert all(one.text == prompt(one.question, processor) + space for one in prompts)


def test_one_test_image_per_person_and_task(benchmark, full, processor):
    drawn = {}
    for task in ("classification", "cloze", "generation"):
        prompts = asked(benchmark.test, full, "test", task, "multimodal", processor)
        images = {}
        for one in prompts:
            images.setdefault(one.question.person_id, set()).add(id(one.images[-1]))
        assert {len(own) for own in images.values()} == {1}
        rows = dict(zip(benchmark.test["ID"], benchmark.test["images"], strict=True))
        drawn[task] = {
            one.question.person_id: [i.convert("RGB").tobytes() for i in rows[one.question.person_id]].index(
                one.images[-1].tobytes()
            )
            for one in prompts
        }
    assert drawn["classification"] != drawn["generation"]
    assert len(set(drawn["generation"].values())) > 1


def test_sets_too_small_for_their_shots(benchmark, full, processor):
    two = benchmark.forget.select([0, 1])
    with pytest.raises(ValueError, match="^everybody is a shot for cloze"):
        asked(two, full, "forget", "cloze", "text", processor)
    with pytest.raises(ValueError, match="^it has 1 person, but the official shots for cloze are 2"):
        asked(two.select([0]), full, "forget", "cloze", "text", processor)


# ------------------------------------------------------------------------------------------------ answering prompts


@pytest.mark.parametrize("task", ["classification", "cloze"])
def test_few_shot_prompts_in_batches_are_answered_as_one_at_a_time(trained, sets, full, task):
    """Left-padded, several images each; the longest have six images and go beyond the positions of the miniature."""
    model, processor = trained
    prompts = [one for m in MODALITIES for one in asked(sets["forget"], full, "forget", task, m, processor)][::2]
    expected = []
    for one in prompts:
        inputs = {"text": one.text, "return_tensors": "pt"}
        batch = processor(images=list(one.images), **inputs) if one.images else processor.tokenizer(**inputs)
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            whole = model.generate(**batch, max_new_tokens=6, do_sample=False)
        expected.append(processor.decode(whole[0][2:], skip_special_tokens=True))
    echoed = respond(model, processor, prompts, echo=True, max_new_tokens=6, batch_size=4, **QUIET)
    assert echoed == expected
    assert all("ASSISTANT:" in text for text in echoed)
    new = [text.split("ASSISTANT:")[-1].strip() for text in echoed]
    if task == "cloze":
        assert respond(model, processor, prompts, max_new_tokens=6, batch_size=3, **QUIET) == new


def test_prompts_and_images_must_match(processor, benchmark):
    question = evaluation_questions(benchmark.forget, "cloze", "multimodal")[0]
    good = Prompt(question, prompt(question, processor), (question.image,))
    with pytest.raises(ValueError, match="1 <image> but 2 images"):
        encode_prompts([good, replace(good, images=good.images * 2)], processor)
    with pytest.raises(ValueError, match="one modality"):
        encode_prompts([good, Prompt(question, "USER: a\nASSISTANT:")], processor)


def test_nothing_to_answer_and_bad_sizes(tiny_model):
    one = Prompt(None, "USER: a\nASSISTANT:")
    with pytest.raises(ValueError, match="no prompt"):
        respond(*tiny_model, [])
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        respond(*tiny_model, [one], max_new_tokens=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        respond(*tiny_model, [one], batch_size=0, **QUIET)


# ------------------------------------------------------------------------------------------------ shots, read once


@pytest.fixture(scope="module")
def mixed(benchmark, full, processor):
    """Prompts with and without shots and images, two sets; the robust ones, whose shots are of one person."""
    sets = {"forget": benchmark.forget.select(range(4)), "test": benchmark.test.select(range(3))}
    prompts = [one for name, dataset in sets.items() for task in ("cloze", "classification", "generation")
               for m in MODALITIES for one in asked(dataset, full, name, task, m, processor)]  # fmt: skip
    questions = evaluation_questions(benchmark.forget.select([0]), "cloze", "multimodal")
    return prompts[::2] + robust_prompts(questions, benchmark.retain, sets, processor, seed=0)


@pytest.fixture
def one_at_a_time(monkeypatch):
    """`respond` as the official code asks: every prompt by itself, through the model's own `generate`."""

    def call(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("manu_utils.evaluation.shots.can_share", lambda model: False)
            return respond(*arguments, batch_size=1, **options, **QUIET)

    return call


def test_a_batch_that_shares_shots_holds_every_prompt_as_it_is_alone(processor, mixed):
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    seen = []
    for indices, batch in shared_prompts(mixed, processor, 6):
        seen += indices
        r, p = len(batch["input_ids"]), len(batch["beginning"])
        assert bool(p) == bool(mixed[indices[0]].shots)
        assert batch["reads"][:, 0].tolist() == list(range(len(indices)))
        ids = torch.cat([batch["beginning"].expand(r, p), batch["input_ids"]], dim=1)
        positions = torch.cat([torch.arange(p).expand(r, p), batch["position_ids"]], dim=1)
        pixels = torch.zeros(*ids.shape, 2, dtype=torch.int64)  # where each image token looks: image, feature
        if "features" in batch:
            assert len(batch["pixel_values"]) == len(batch["features"][:, 0].unique())  # an image is there once
            beginning, rest = batch["features"].split([(ids[0, :p] == image_id).sum(), (ids[:, p:] == image_id).sum()])
            for row in range(r):
                pixels[row, :p][ids[row, :p] == image_id] = beginning
            pixels[:, p:][ids[:, p:] == image_id] = rest
        for index, (_, row, last) in zip(indices, batch["reads"].tolist(), strict=True):
            alone = encode_prompts([mixed[index]], processor)
            own = batch["attention_mask"][row, 0, last]
            assert ids[row, own].equal(alone["input_ids"][0])
            assert positions[row, own].equal(torch.arange(own.sum()))
            if mixed[index].images:
                images, features = pixels[row, own][ids[row, own] == image_id].view(len(mixed[index].images), -1, 2).unbind(-1)
                assert (features == torch.arange(features.shape[1])).all() and (images == images[:, :1]).all()
                assert batch["pixel_values"][images[:, 0]].equal(alone["pixel_values"])
    assert sorted(seen) == list(range(len(mixed)))


def test_a_batch_that_shares_shots_is_no_larger_than_a_plain_one(processor, benchmark, full):
    prompts = asked(benchmark.forget, full, "forget", "classification", "multimodal", processor)
    longest = max(encode_prompts([one], processor)["input_ids"].shape[1] for one in prompts)
    for size in (1, 3, 64):
        done = list(shared_prompts(prompts, processor, size))
        for indices, batch in done:
            assert len(batch["input_ids"]) * (len(batch["beginning"]) + batch["input_ids"].shape[1]) <= size * longest
            assert size > 1 or len(indices) == 1
        assert size != 3 or len(done[0][1]["input_ids"]) == 2  # rows of three questions after the beginning
    ((_, batch),) = done
    people = len(benchmark.forget) - 1
    assert len(batch["input_ids"]) == people and len(batch["pixel_values"]) == people + 1  # a row each, and the shots' picture


def test_a_picture_is_decoded_once_a_batch(processor, benchmark, full, monkeypatch):
    """Not at each of its places, nor at each step of the processor."""
    prompts = asked(benchmark.forget, full, "forget", "classification", "multimodal", processor)
    read, run = [], pictures.open_rgb
    monkeypatch.setattr(pictures, "open_rgb", lambda data: read.append(1) or run(data))
    monkeypatch.setattr(pictures, "MOST_KEPT", 0)  # as for large pictures: the one used last alone is kept
    encode_prompts(prompts[::5], processor)
    assert 0 < len(read) <= len(people_of(prompts)) + 1  # and the shots' picture
    read.clear()
    assert len(list(shared_prompts(prompts, processor, 64))) == 1
    assert 0 < len(read) <= len(people_of(prompts)) + 1 + 2  # two to count the tokens of an image


def test_what_sharing_shots_checks(tiny_model, benchmark):
    model, processor = tiny_model
    question = evaluation_questions(benchmark.forget, "cloze", "multimodal")[0]
    one = Prompt(question, prompt(question, processor), (question.image,))
    with pytest.raises(ValueError, match="1 <image> but 2 images"):
        list(shared_prompts([one, replace(one, images=one.images * 2)], processor, 4))
    with pytest.raises(ValueError, match="batch_size=0"):
        list(shared_prompts([one], processor, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "patch_size", 8)
        with pytest.raises(ValueError, match="an image has 64 tokens in a prompt but 16 features; check the processor's"):
            respond(model, processor, [one], **QUIET)


@pytest.mark.parametrize("protocol", ["official", "robust"])
def test_sharing_shots_gives_what_generate_gives_one_at_a_time(trained, benchmark, full, protocol, one_at_a_time, monkeypatch):
    """On the miniature: four sets, three tasks, two modalities; answers of one token and of fifty."""
    sets = {"forget": benchmark.forget.select(range(3)), "test": benchmark.test.select([3, 5, 7]),
            "retain": benchmark.retain.select(range(3)), "celebrity": benchmark.celebrity.select([0, 1])}  # fmt: skip
    options = {"protocol": protocol, "shots": full, "seed": 1, **QUIET}
    if protocol == "robust":
        sets, options["tasks"] = {"forget": sets["forget"].select([0])}, ["classification", "cloze"]
    table = evaluate_by(*trained, sets, **options)
    with monkeypatch.context() as patch:
        for module in ("official", "tables"):
            patch.setattr(f"manu_utils.evaluation.{module}.respond", lambda *arguments, batch_size, progress, **more:
                          one_at_a_time(*arguments, **more))  # fmt: skip
        expected = evaluate_by(*trained, sets, **options)
    assert expected["answer"].nunique() > (20 if protocol == "official" else 4)
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_read_after_shared_shots_is_what_is_read_after_ones_own(double_model, mixed, attention):
    """The hidden states themselves, not only the likeliest token."""
    model, processor = double_model
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        with torch.no_grad():
            for indices, batch in shared_prompts(mixed, processor, 4):
                shared, _ = read_shared(model, batch)
                alone = [model.model(**encode_prompts([mixed[i]], processor)).last_hidden_state[0, -1] for i in indices]
                # eager attention is in float32
                torch.testing.assert_close(shared, torch.stack(alone), rtol=0, atol=1e-5)
    finally:
        model.set_attn_implementation(before)


def test_sharing_shots_gives_what_generate_gives_for_any_weights(double_model, mixed, one_at_a_time):
    """Random weights write other words after every image, up to the last token that they may."""
    for echo in (False, True):
        options = {"max_new_tokens": 9, "echo": echo}
        expected = one_at_a_time(*double_model, mixed, **options)
        assert len(set(expected)) > 8
        for size in (64, 4):
            assert respond(*double_model, mixed, batch_size=size, **options, **QUIET) == expected


def test_sharing_takes_any_prompts(double_model, benchmark, one_at_a_time):
    """The same picture in several places, one prompt that is the beginning of another, one twice, and shots of one
    prompt.
    """
    model, processor = double_model
    first, second = (q.image for q in evaluation_questions(benchmark.forget, "generation", "multimodal")[:12:8])
    shots = "USER:<image>\nWho?\nASSISTANT: Anna.\n"
    prompts = [
        Prompt(None, f"{shots}USER: <image>", (first, second), shots),
        Prompt(None, f"{shots}USER: <image>\nWhere?", (first, second), shots),
        Prompt(None, f"{shots}USER: <image>\nWhere?", (first, second), shots),
        Prompt(None, f"{shots}USER: <image>\nWhere?", (second, second), shots),
        Prompt(None, f"{shots}USER: <image><image>\nWhere?", (first, first, second), shots),
        Prompt(None, f"{shots}USER: Who?\nASSISTANT:", (first,), shots),
        Prompt(None, "USER: Where?\nASSISTANT:", (), "USER: Where"),
        Prompt(None, "USER: Who?\nASSISTANT:"),
    ]
    assert first is not second
    expected = one_at_a_time(model, processor, prompts, max_new_tokens=5, echo=True)
    for size in (64, 2, 1):
        assert respond(model, processor, prompts, max_new_tokens=5, echo=True, batch_size=size, **QUIET) == expected


def test_each_picture_of_a_set_is_seen_once_and_its_shots_are_read_once(tiny_model, benchmark, full):
    """What makes a batch fast, counted: image passes and tokens read; the answers are cut to one token."""
    model, processor = tiny_model
    seen = {"images": 0, "tokens": 0}

    def see(module, arguments, options):
        seen["images"] += len((*arguments, *options.values())[0])

    def read(module, arguments):
        seen["tokens"] += arguments[0].shape[0] * arguments[0].shape[1]

    hooks = (
        model.model.vision_tower.register_forward_pre_hook(see, with_kwargs=True),
        model.get_decoder().layers[0].register_forward_pre_hook(read),
    )
    try:
        for task, shots in (("classification", 1), ("cloze", 2)):
            for modality in MODALITIES:
                prompts = asked(benchmark.forget, full, "forget", task, modality, processor)
                counts = {}
                for size in (1, 64):
                    seen.update(images=0, tokens=0)
                    respond(model, processor, prompts, max_new_tokens=1, batch_size=size, **QUIET)
                    counts[size] = dict(seen)
                assert counts[64]["images"] == (len(people_of(prompts)) + shots) * (modality == "multimodal")
                assert 3 * counts[64]["tokens"] < counts[1]["tokens"]
    finally:
        for hook in hooks:
            hook.remove()


# ------------------------------------------------------------------------------------------------ the official
# judgement


def test_official_metrics_are_those_of_the_libraries(benchmark):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    question = replace(evaluation_questions(benchmark.forget, "generation", "text")[0], answer="She works as a nurse in Rome.")
    response = "She worked as a nurse."
    judged = judge_officially(question, response, scorer)
    assert list(judged) == ["rouge1", "rouge2", "rougeL", "bleu"]
    assert judged["rouge1"] == pytest.approx(2 * (5 / 5) * (5 / 7) / (5 / 5 + 5 / 7))  # "works" and "worked" are one stem
    assert judged["rougeL"] == scorer.score(question.answer, response)["rougeL"].fmeasure
    # words between spaces, so "nurse." is not "nurse", and brevity counts
    assert judged["bleu"] == sentence_bleu(
        ["She works as a nurse in Rome.".split()], response.split(), smoothing_function=SmoothingFunction().method1
    )
    assert 0 < judged["bleu"] < bleu(question.answer, "She works as a nurse.") < bleu(question.answer, question.answer) == 1
    assert bleu("a", "") == 0


@pytest.mark.parametrize(
    ("decoded", "task", "response"),
    [
        ("ER:\nq\nASSISTANT: B", "classification", "B"),
        ("ER:\nq\nASSISTANT: B\nUSER: more\nASSISTANT: C", "classification", "B\nUSER: more"),
        ("no marker. Answer: B", "classification", "no marker. Answer: B"),
        ("no marker. Answer: nurse", "cloze", "nurse"),
        (" neither ", "generation", "neither"),
    ],
)
def test_the_response_is_what_follows_the_first_marker(decoded, task, response):
    assert official_response(decoded, task) == response


def test_the_official_table(tiny_model, sets, full):
    model, processor = tiny_model
    options = {"protocol": "official", "shots": full, "seed": 3, **QUIET}
    table = evaluate_by(*tiny_model, sets, **options)
    assert tuple(table.columns) == COLUMNS
    assert table["set"].drop_duplicates().tolist() == list(sets)
    for name, dataset in sets.items():
        for task in ("classification", "cloze", "generation"):
            for modality in MODALITIES:
                prompts = asked(dataset, full, name, task, modality, processor, seed=3)
                part = table[(table["set"] == name) & (table["task"] == task) & (table["modality"] == modality)]
                part = part[part["metric"] == part["metric"].iloc[0]]
                assert part["question"].tolist() == [one.question.question for one in prompts]
                assert part["truth"].tolist() == [truth_of(one.question) for one in prompts]
    cloze = table[(table["set"] == "forget") & (table["task"] == "cloze") & (table["modality"] == "multimodal")]
    prompts = asked(sets["forget"], full, "forget", "cloze", "multimodal", processor, seed=3)
    assert cloze["answer"].tolist() == respond(*tiny_model, prompts, batch_size=1, **QUIET)
    assert cloze["value"].tolist() == [float(t.lower() in a.lower()) for t, a in cloze[["truth", "answer"]].to_numpy()]
    # what else is asked, and in what batches, changes nothing
    by_image = {"tasks": ["cloze"], "modalities": ["multimodal"]}
    part = evaluate_by(*tiny_model, {"test": sets["test"]}, **by_image, batch_size=3, **options)
    whole = table[(table["set"] == "test") & (table["task"] == "cloze") & (table["modality"] == "multimodal")]
    pd.testing.assert_frame_equal(part, whole.reset_index(drop=True))
    scores = official_scores(table)
    accuracy = scores[(scores["set"] == "forget") & (scores["metric"] == "accuracy")]
    assert accuracy["n"].tolist() == [10, 10, 2, 2]  # (3 - 1) × 5 and (3 - 2) × 2, per modality
    assert accuracy["value"].iloc[2] == 100 * cloze["value"].mean()
    generation = scores[scores["task"] == "generation"]
    assert generation["metric"].drop_duplicates().tolist() == ["rouge1", "rouge2", "rougeL", "bleu"]


def test_official_scores_are_in_percent_where_the_official_ones_are():
    rows = [("forget", "cloze", "text", "accuracy", "001", "q", "a", "t", value) for value in (1.0, 0.0, 0.0, 0.0)]
    rows += [("forget", "generation", "text", metric, "001", "q", "a", "t", 0.5) for metric in ("rouge1", "bleu")]
    scores = official_scores(pd.DataFrame(rows, columns=COLUMNS)).set_index("metric")["value"]
    assert scores.to_dict() == {"accuracy": 25.0, "rouge1": 0.5, "bleu": 0.5}


def test_text_letters_of_idefics_have_five_tokens(tiny_model, sets, full, monkeypatch):
    model, processor = tiny_model
    generate, lengths = model.generate, []

    def watch(generation_config, **batch):
        lengths.append(("pixel_values" in batch, generation_config.max_new_tokens))
        generation_config.max_new_tokens = 1
        return generate(generation_config=generation_config, **batch)

    monkeypatch.setattr("manu_utils.evaluation.shots.can_share", lambda model: False)
    monkeypatch.setattr(model, "generate", watch)
    options = {"protocol": "official", "shots": full, "seed": 0, "tasks": ["classification"], **QUIET}
    for model_type, expected in (("llava", {(True, 50), (False, 50)}), ("idefics2", {(True, 50), (False, 5)})):
        with monkeypatch.context() as patch:
            patch.setattr(type(model.config), "model_type", model_type)
            evaluate_by(model, processor, {"forget": sets["forget"]}, **options)
        assert set(lengths) == expected
        lengths.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "official"}, "pass load_config"),
        ({"protocol": "official", "shots": "full", "resume": "answers.jsonl"}, "give a seed"),
        ({"protocol": "official", "shots": "full", "tasks": ["vqa"]}, "tasks holds 'vqa', which is unknown"),
    ],
)
def test_arguments_that_do_not_fit_the_protocol(tiny_model, sets, full, options, message):
    options = {key: full if value == "full" else value for key, value in options.items()}
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate_by(*tiny_model, sets, **options)


# ------------------------------------------------------------------------------------------------ the pitfalls, one by
# one


def test_the_list_of_pitfalls_is_whole():
    assert [number for number, *_ in PITFALLS] == [f"P{n}" for n in range(1, 17)]
    assert all(official and robust for _, official, robust in PITFALLS)


def test_p1_without_a_seed_every_run_draws_again(benchmark, full, processor):
    def shot(seed):
        left = people_of(asked(benchmark.forget, full, "forget", "classification", "text", processor, seed=seed))
        return (set(benchmark.forget["ID"]) - left).pop()

    assert len({shot(None) for _ in range(12)}) > 1  # the same one of 12 twelve times: 12 ** -11
    assert len({shot(seed) for seed in range(8)}) > 1
    assert shot(5) == shot(5)


def test_p1_one_run_without_a_seed_has_the_same_shots_in_both_modalities(tiny_model, sets, full, monkeypatch):
    silent = lambda model, processor, prompts, **options: [""] * len(prompts)  # noqa: E731
    monkeypatch.setattr("manu_utils.evaluation.official.respond", silent)
    options = {"protocol": "official", "shots": full, "tasks": ["cloze"]}
    seen = set()
    for _ in range(12):
        table = evaluate_by(*tiny_model, {"forget": sets["forget"]}, **options)
        scored = table.groupby("modality")["person_id"].agg(set)
        assert scored["multimodal"] == scored["text"]
        seen |= scored["text"]
    assert len(seen) > 1


def test_p1_two_seeds_give_one_model_two_scores(trained, benchmark, full):
    """The same weights, the same questions asked of the same set; only the shots differ."""
    sets = {"forget": benchmark.forget.select(range(4))}
    options = {"protocol": "official", "shots": full, "tasks": ["cloze"], "modalities": ["multimodal"], **QUIET}
    scores = {seed: official_scores(evaluate_by(*trained, sets, seed=seed, **options))["value"].item() for seed in range(4)}
    assert len(set(scores.values())) > 1
    again = official_scores(evaluate_by(*trained, sets, seed=0, **options))["value"].item()
    assert again == scores[0]
    options |= {"protocol": "robust", "shots": None}
    pd.testing.assert_frame_equal(*(evaluate_by(*trained, sets, seed=seed, **options) for seed in (0, 1)))


def test_p2_shots_show_answers_that_are_to_be_forgotten_and_are_not_scored(benchmark, full, processor):
    prompts = asked(benchmark.forget, full, "forget", "cloze", "text", processor)
    shots = sorted(set(benchmark.forget_ids) - people_of(prompts))
    assert len(shots) == 2
    for question in evaluation_questions(full.filter(lambda row: row["ID"] in shots), "cloze", "text"):
        assert all(f"Correct Answer: {question.answer}\n" in one.text for one in prompts)
    # robust: whoever is a shot is in none of the scored sets, and everybody is scored
    questions = evaluation_questions(benchmark.forget, "cloze", "text")
    sets = {"forget": benchmark.forget, "retain": benchmark.retain.select(range(5))}
    robust = robust_prompts(questions, benchmark.retain, sets, processor, seed=0)
    assert people_of(robust) == set(benchmark.forget_ids)
    shown = robust[0].text.removesuffix(prompt(questions[0], processor))
    owner = [q.person_id for q in evaluation_questions(benchmark.retain, "cloze", "text")
             if f"{prompt(q, processor)} {q.answer}\n" in shown]  # fmt: skip
    assert len(owner) == 2 and not {*owner} & {*benchmark.forget_ids, *sets["retain"]["ID"]}


def test_p3_images_without_their_shots_break_the_prompt(tiny_model, full, benchmark):
    """A celebrity whose ID is in Full_Set, too: the official code passes six images with one placeholder."""
    model, processor = tiny_model
    celebrity = benchmark.forget.select(range(2))  # as if celebrities had the IDs of fictitious people
    one = asked(celebrity, full, "celebrity", "classification", "multimodal", processor)[0]
    assert one.text.count("<image>") == len(one.images) == 1  # ours drops both
    six = {"images": [one.images[0]] * 6, "text": one.text, "return_tensors": "pt"}
    refused = "1 <image> tokens and 6 images|[Ii]mage features and image tokens"  # by the processor, or later by the model
    with torch.no_grad(), pytest.raises(ValueError, match=refused):
        model.generate(**processor(**six), max_new_tokens=1)
    batch = processor(images=one.images[0], text=one.text, return_tensors="pt")
    batch["pixel_values"] = batch["pixel_values"].repeat(6, 1, 1, 1)  # as processors let pass that did not count
    with torch.no_grad(), pytest.raises(ValueError, match="[Ii]mage features and image tokens"):
        model.generate(**batch, max_new_tokens=1)


@pytest.mark.parametrize("protocol", ["official", "robust"])
def test_prompts_that_are_too_long_are_counted_once_before_any_is_read(
    tiny_model, sets, full, benchmark, protocol, monkeypatch
):
    """Rotary positions go on; a table of positions ends."""
    model, processor = copy.deepcopy(tiny_model[0]), tiny_model[1]
    few = {"forget": sets["forget"].select(range(3))}
    shots = full if protocol == "official" else benchmark.retain.select(range(2))
    options = {"protocol": protocol, "shots": shots, "seed": 0, "batch_size": 64, **QUIET}
    calls: list = []
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: calls.append(1) or 1 / 0)
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: calls.append(1) or 1 / 0)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ZeroDivisionError):
        warnings.simplefilter("always")
        evaluate_by(model, processor, few, **options)
    said = [str(one.message) for one in caught if "positions" in str(one.message)]
    assert len(said) == 1 and re.match(r"\d+ of \d+ prompts with shots have up to \d+ tokens, which with 50 new ones", said[0])
    calls.clear()
    positions = model.config.get_text_config().max_position_embeddings
    model.model.language_model.embed_positions = torch.nn.Embedding(positions + 2, 32)  # as OPT has them
    with pytest.raises(ValueError, match="and it has no others; ask without shots, or take a model with more positions"):
        evaluate_by(model, processor, few, **options)
    assert not calls


def test_p4_few_shot_prompts_fill_the_context(tiny_model, sets, full):
    model, processor = tiny_model
    prompts = asked(sets["forget"], full, "forget", "classification", "multimodal", processor)
    positions = model.config.get_text_config().max_position_embeddings
    lengths = [encode_prompts([one], processor)["input_ids"].shape[1] for one in prompts[:5]]
    assert min(lengths) > positions and len(set(lengths)) > 1
    short = Prompt(prompts[0].question, "USER: Who?\nASSISTANT:")
    said = f"^5 of 6 prompts with shots have up to {max(lengths)} tokens, which with 1 new ones go beyond the {positions} "
    with pytest.warns(UserWarning, match=said):
        check_lengths(model, processor, [*prompts[:5], short], 1)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="error"):
        check_lengths(model, processor, [short])
        patch.setattr(model.config.text_config, "max_position_embeddings", max(lengths) + 1)
        check_lengths(model, processor, prompts[:5], 1)
        patch.setattr(model.config.text_config, "max_position_embeddings", max(lengths))
        with pytest.raises(UserWarning, match=f"^{lengths.count(max(lengths))} of 5 prompts"):
            check_lengths(model, processor, prompts[:5], 1)
    assert 6 * (336 // 14) ** 2 == 3456  # the images alone, of LLaVA-1.5's 4,096 positions


@pytest.mark.parametrize(
    ("response", "official", "robust"),
    [
        ("B", "B", "B"), ("b", "B", "B"), ("B.", "B", "B"), ("C: nurse", "C", "C"), ("D) baker", "D", "D"),
        ("Answer: B", "A", "B"), ("The answer is B", None, "B"), ("The correct answer is (c).", None, "C"),
        ("Both", "B", None), ("Definitely not", "D", None), ("Anna works as a nurse.", "A", None), ("(B)", None, "B"),
        ("**C**", None, "C"), ("I would say B.", None, "B"), ("Option D, since she is a baker", None, "D"),
        ("A nurse", "A", None), ("A", "A", "A"), ("A is right", "A", "A"), ("It is a nurse", None, None),
        ("A or B", "A", None), ("Both A and B", "B", None), ("A: nurse\nB: baker", "A", None),
        ("The answer is B, not A", None, "B"), ("E", None, None), ("", None, None), ("I'd guess", None, None),
    ],
)  # fmt: skip
def test_p5_letters(response, official, robust):
    assert parse_letter(response) == official
    assert find_letter(response) == robust


def test_p5_letters_that_are_no_option():
    assert find_letter("D", "ABC") is None
    assert find_letter("The answer is B", "AB") == "B"


def test_p6_a_question_that_holds_the_marker_becomes_the_response(tiny_model, benchmark):
    model, processor = tiny_model
    question = evaluation_questions(benchmark.forget, "cloze", "text")[0]
    question = replace(question, question=f"She said 'ASSISTANT: {question.answer} it is': __.")
    one = Prompt(question, prompt(question, processor))
    echoed, new = (respond(model, processor, [one], echo=echo, max_new_tokens=4, **QUIET)[0] for echo in (True, False))
    official = official_response(echoed, "cloze")
    assert official.startswith(f"{question.answer} it is': [Blank].") and new not in ("", official)
    assert judge_officially(question, official, None) == {"accuracy": 1.0}  # right without a word of the model's
    assert judge_robustly(question, new, "", None)["accuracy"] == (new, 0.0)


def test_p7_cloze_accepts_any_response_that_contains_the_truth(benchmark, tiny_model):
    question = evaluation_questions(benchmark.forget, "cloze", "text")[0]

    def verdicts(truth, response):
        asked = replace(question, answer=truth)
        return judge_officially(asked, response, None)["accuracy"], judge_robustly(asked, response, "", None)["accuracy"][1]

    assert verdicts("US", "because") == (1, 0)
    assert verdicts("US", "In the US.") == (1, 1)
    assert verdicts("chess", "nurse, baker, chess, rowing") == (1, 1)  # a list still passes
    assert verdicts("", "anything")[0] == 1
    blank = benchmark.forget.select([0]).map(
        lambda row: {"Mask_Task": [record | {"Ground_Truth": " "} for record in row["Mask_Task"]]}
    )
    with pytest.raises(ValueError, match="empty truth"):
        evaluate_by(*tiny_model, {"forget": blank}, protocol="robust", tasks=["cloze"])


@pytest.mark.parametrize(
    ("truth", "response", "expected"),
    [("29 May", "on 29 May 1990", True), ("Rome", "Romeo", False), ("C++", "She writes C++.", True), ("a.b", "axb", False),
     ("nurse", "A NURSE!", True), ("São Paulo", "são paulo", True), (" Rome ", "rome", True)],
)  # fmt: skip
def test_p7_whole_words(truth, response, expected):
    assert holds(truth, response) is expected


def test_p8_type_bool_reads_false_as_true():
    from argparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--pretrain", type=bool, default=False)
    assert parser.parse_args(["--pretrain", "False"]).pretrain is True


def test_p12_truncating_a_prompt_would_cut_its_image(processor, benchmark):
    question = evaluation_questions(benchmark.forget, "cloze", "multimodal")[0]
    text = prompt(question, processor)
    with pytest.raises(ValueError, match="truncation"):
        processor(images=question.image, text=text, truncation=True, max_length=10, return_tensors="pt")
    long = Prompt(question, text.replace("\nASSISTANT:", " more" * 400 + "\nASSISTANT:"), (question.image,))
    ids = encode_prompts([long], processor)["input_ids"]
    assert processor.tokenizer.decode(ids[0]).endswith("ASSISTANT:") and ids.shape[1] > 400


def test_p14_the_two_modalities_are_asked_in_different_words(benchmark, full, processor):
    image, text = (asked(benchmark.forget, full, "forget", "generation", m, processor)[0].text for m in MODALITIES)
    assert "accurately" in image and "accurately" not in text
    assert image.endswith(" ") and not text.endswith(" ")


def test_p14_the_space_changes_what_follows(trained, benchmark):
    """The miniature knows the answer but has never begun one after a space of its own."""
    model, processor = trained
    questions = evaluation_questions(benchmark.forget.select(range(3)), "generation", "multimodal")
    texts = [prompt(question, processor) for question in questions]
    with_space, without = (
        respond(model, processor, [Prompt(q, t + end, (q.image,)) for q, t in zip(questions, texts, strict=True)], **QUIET)
        for end in (" ", "")
    )
    right = [[a == q.answer for a, q in zip(answers, questions, strict=True)] for answers in (with_space, without)]
    assert sum(right[0]) < sum(right[1])


def test_p16_short_answers_have_less_than_full_bleu():
    assert bleu("Keeps a goldfish.", "Keeps a goldfish.") < 0.8
    assert bleu("Keeps a goldfish.", "Keeps a goldfish.", short=True) == 1
    assert bleu("Works as a nurse.", "Works as a nurse.") == bleu("Works as a nurse.", "Works as a nurse.", short=True) == 1
    assert bleu("Keeps a goldfish.", "", short=True) == 0 < bleu("Keeps a goldfish.", "Keeps", short=True) < 1


# ------------------------------------------------------------------------------------------------ robust


def test_the_robust_table(trained, sets):
    options = {"protocol": "robust", **QUIET}
    table = evaluate_by(*trained, sets, **options)
    plain = evaluate_by(*trained, sets, **QUIET)
    assert tuple(table.columns) == COLUMNS
    counts = table.groupby(["set", "task", "modality"])["question"].nunique()
    assert counts.equals(plain.groupby(["set", "task", "modality"])["question"].nunique())  # every person and question
    generation = table[table["metric"] == "bleu"]
    assert generation["value"].tolist() == [
        bleu(truth, answer, short=True) for truth, answer in zip(generation["truth"], generation["answer"], strict=True)
    ]
    likelihood, rouge = ([t[t["metric"] == metric].reset_index(drop=True) for t in (table, plain)]
                         for metric in ("likelihood", "rougeL"))  # fmt: skip
    pd.testing.assert_frame_equal(*likelihood)
    pd.testing.assert_frame_equal(*rouge)
    images = [len(images) for images in sets["test"]["images"]]
    test = table[(table["set"] == "test") & (table["task"] == "cloze") & (table["modality"] == "multimodal")]
    assert len(test) == 2 * sum(images)


def test_robust_letters_are_read_from_long_answers(tiny_model, sets, monkeypatch):
    seen = {}

    def generate(model, processor, questions, *, max_new_tokens, **options):
        seen["tokens"] = max_new_tokens
        return [f"I think that the answer is {truth_of(question)}." for question in questions]

    monkeypatch.setattr("manu_utils.evaluation.tables.generate_answers", generate)
    chosen = {"forget": sets["forget"].select([0])}
    for protocol, tokens, value in (("robust", 50, 1.0), ("zero-shot", 5, 0.0)):
        table = evaluate_by(*tiny_model, chosen, protocol=protocol, tasks=["classification"], modalities=["text"], **QUIET)
        assert table[table["metric"] == "accuracy"]["value"].unique().tolist() == [value]
        assert seen["tokens"] == tokens


def test_robust_shots(tiny_model, benchmark, sets):
    model, processor = tiny_model
    questions = [q for m in MODALITIES for q in evaluation_questions(sets["forget"], "classification", m)][::6]
    prompts = robust_prompts(questions, benchmark.retain, sets, processor, seed=0)
    for one in prompts:
        n = 6 if one.question.image is not None else 0
        assert len(one.images) == one.text.count("<image>") == n
        assert one.text.count("USER:") == one.text.count("ASSISTANT:") == 6
        assert len(re.findall(r"ASSISTANT: [A-D]\n", one.text)) == 5
        assert one.text == one.shots + prompt(one.question, processor)
    assert [p.text for p in robust_prompts(questions, benchmark.retain, sets, processor, seed=0)] == [p.text for p in prompts]
    others = {robust_prompts(questions, benchmark.retain, sets, processor, seed=s)[0].text for s in range(4)}
    assert len(others) > 1
    with pytest.raises(ValueError, match="everybody in shots is scored"):
        robust_prompts(questions, sets["forget"], sets, processor, seed=0)
    chosen = {"forget": sets["forget"].select([0])}
    options = {"tasks": ["cloze"], "modalities": ["text"], "protocol": "robust", **QUIET}
    table = evaluate_by(*tiny_model, chosen, shots=benchmark.retain, **options)
    cloze = evaluation_questions(chosen["forget"], "cloze", "text")
    expected = respond(*tiny_model, robust_prompts(cloze, benchmark.retain, chosen, processor, seed=0), **QUIET)
    assert table["answer"].tolist() == expected != generate_answers(*tiny_model, cloze, **QUIET)


# ------------------------------------------------------------------------------------------------ intervals


def frame_of(values):
    """person -> values, as a table of one set and metric."""
    rows = [("forget", "cloze", "text", "accuracy", person, f"q{i}", "a", "t", float(value))
            for person, own in values.items() for i, value in enumerate(own)]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def test_intervals_are_those_of_resampled_people():
    rng = np.random.default_rng(0)
    values = {f"{i:03}": rng.integers(0, 2, size=rng.integers(1, 6)) for i in range(20)}
    frame = frame_of(values)
    row = summarise_with_intervals(frame, resamples=4000).iloc[0]
    assert row["value"] == frame["value"].mean() and row["n"] == len(frame) and row["people"] == 20
    people, means = list(values), []
    for _ in range(4000):  # spelt out: draw people, put all their answers together
        drawn = np.concatenate([values[person] for person in rng.choice(people, len(people))])
        means.append(drawn.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    assert row["low"] == pytest.approx(low, abs=0.02) and row["high"] == pytest.approx(high, abs=0.02)
    assert row["low"] < row["value"] < row["high"]
    again = summarise_with_intervals(frame, resamples=4000).iloc[0]
    assert (again["low"], again["high"]) == (row["low"], row["high"])
    narrow = summarise_with_intervals(frame, level=0.5, resamples=4000).iloc[0]
    assert row["low"] < narrow["low"] < narrow["high"] < row["high"]


def test_repeating_the_questions_of_a_person_does_not_narrow_the_interval():
    """Answers about one person go together: five copies of each are no more evidence."""
    once = summarise_with_intervals(frame_of({str(i): [i % 2] for i in range(10)})).iloc[0]
    often = summarise_with_intervals(frame_of({str(i): [i % 2] * 5 for i in range(10)})).iloc[0]
    assert (once["low"], once["high"]) == (often["low"], often["high"])
    assert often["high"] - often["low"] > 0.4


def test_intervals_at_the_edges():
    alike = summarise_with_intervals(frame_of({"1": [1, 1], "2": [1]})).iloc[0]
    assert (alike["low"], alike["value"], alike["high"]) == (1, 1, 1)
    alone = summarise_with_intervals(frame_of({"1": [1, 0]})).iloc[0]
    assert alone[["low", "high"]].isna().all() and alone["value"] == 0.5 and alone["people"] == 1
    with pytest.raises(ValueError, match="empty"):
        summarise_with_intervals(frame_of({}))
    with pytest.raises(ValueError, match="level=95"):
        summarise_with_intervals(frame_of({"1": [1]}), level=95)


def test_intervals_of_a_whole_table_are_in_its_order(trained, sets):
    from manu_utils.evaluation.tables import summarise

    table = evaluate_by(*trained, sets, protocol="robust", tasks=["cloze", "generation"], modalities=["text"], **QUIET)
    summary = summarise_with_intervals(table)
    assert list(summary.columns) == ["set", "task", "modality", "metric", "value", "low", "high", "n", "people"]
    pd.testing.assert_frame_equal(summary.drop(columns=["low", "high", "people"]), summarise(table))
    several = summary[summary["people"] > 1]
    assert (several["low"] <= several["value"]).all() and (several["value"] <= several["high"]).all()
    assert (several["people"] == summary["set"].map({name: len(dataset) for name, dataset in sets.items()})).all()
