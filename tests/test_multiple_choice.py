"""Multiple choice by log-likelihood: against a slow reference, and against lm-eval where it is installed."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import PIL.Image
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from manu_utils.benchmark.multiple_choice import load_multiple_choice
from manu_utils.evaluation import multiple_choice
from manu_utils.evaluation.multiple_choice import IN_WORDS, LETTERED, OF_MMLU, choose
from manu_utils.paths import data_dir

QUIET = {"progress": False, "batch_size": 7}
NAMES = ("Tonic", "Elixir", "Draught", "Philtre", "Balm", "Salve")
ROWS = [
    {
        "question": f"What is in {name}? ",
        "choices": ["one", "two parts", "a third of it", f"four {name}"],
        "answer": i % 4,
    }
    for i, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def llama(tiny_model):
    """(model, processor): a small random Llama that is not indifferent."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_model[1].tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.2, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, SimpleNamespace(tokenizer=tokenizer)


@pytest.fixture(scope="module", params=["plain", "begins"])
def either(request, llama):
    """``llama``, and one whose tokenizer puts a token before every text, as Llama's and Gemma's do."""
    if request.param == "plain":
        return llama
    model, tokenizer = llama[0], copy.deepcopy(llama[1].tokenizer)
    tokenizer.bos_token = tokenizer.eos_token  # as good as any here
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    return model, SimpleNamespace(tokenizer=tokenizer)


@pytest.fixture
def quiz(tmp_path):
    path = tmp_path / "potions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def slow(model, tokenizer, prompt, continuation):
    """Sum of the log-likelihoods of the continuation's tokens, one after the other."""
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + continuation)["input_ids"]
    total = 0.0
    for place in range(len(before), len(whole)):
        with torch.no_grad():
            total += (
                model(torch.tensor([whole[:place]]))
                .logits[0, -1]
                .double()
                .log_softmax(-1)[whole[place]]
                .item()
            )
    return total


@pytest.mark.parametrize("per", ["sum", "character"])
@pytest.mark.parametrize("question", [True, False])
@pytest.mark.parametrize("template", [LETTERED, IN_WORDS, OF_MMLU])
def test_the_likeliest_choice(either, quiz, template, question, per):
    model, processor = either
    questions = load_multiple_choice(quiz)
    found = choose(
        model, processor, questions, template=template, question=question, per=per, **QUIET
    )
    for row, one in zip(ROWS, found.itertuples(), strict=True):
        lines = [f"{letter}. {words}" for letter, words in zip("ABCD", row["choices"], strict=True)]
        shown = [
            *([row["question"].strip()] if question else []),
            *(lines if "{choices}" in template else []),
            "Answer:",
        ]
        prompt = "\n".join(shown)
        if template is OF_MMLU:
            about = "The following are multiple choice questions (with answers) about potions.\n\n"
            prompt = f"{about}{prompt}" if question else f"{about}\n{prompt}"
        named = list("ABCD") if "{choices}" in template else row["choices"]
        scores = [slow(model, processor.tokenizer, prompt, f" {name}") for name in named]
        if per == "character":
            scores = [score / len(name) for score, name in zip(scores, named, strict=True)]
        best = row["choices"][scores.index(max(scores))]
        assert (one.chosen, one.right) == (best, best == row["choices"][row["answer"]])


@pytest.mark.parametrize("template", [LETTERED, IN_WORDS])
def test_a_prompt_is_read_once_for_all_of_its_choices(llama, quiz, template, monkeypatch, tokens_read):
    """The same likelihoods, from fewer tokens."""
    (model, processor), questions = llama, load_multiple_choice(quiz)
    read, seen, logits_of = tokens_read(model), {}, multiple_choice.answer_logits

    def kept(model, batch):
        logits, targets, rows = logits_of(model, batch)
        likely = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        seen[len(read)].update(round(value, 5) for value in likely.tolist())
        return logits, targets, rows

    monkeypatch.setattr(multiple_choice, "answer_logits", kept)
    tables = []
    for shared in (True, False):
        monkeypatch.setattr(multiple_choice, "can_share_texts", lambda model, shared=shared: shared)
        read.append(0)
        seen[len(read)] = set()
        tables.append(choose(model, processor, questions, template=template, **QUIET))
    pd.testing.assert_frame_equal(*tables)
    assert read[1] < 0.6 * read[2]
    ones, others = (sorted(of) for of in seen.values())
    assert len(ones) > 20 and ones == pytest.approx(others, abs=2e-5)


def test_files_in_the_columns_of_wmdp_and_mmlu(quiz, tmp_path):
    questions = load_multiple_choice(quiz)
    assert questions[1].options == {
        "A": "one",
        "B": "two parts",
        "C": "a third of it",
        "D": "four Elixir",
    }
    assert (questions[1].answer, questions[1].person_id, questions[1].task) == (
        "two parts",
        "potions",
        "classification",
    )
    table = pd.DataFrame([row | {"subject": "herb_lore"} for row in ROWS])
    table.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    of_mmlu = load_multiple_choice(tmp_path / "test-00000-of-00001.parquet")
    assert {q.person_id for q in of_mmlu} == {"herb_lore"} and of_mmlu[1].options == questions[
        1
    ].options
    with pytest.raises(FileNotFoundError, match="name one of a local copy"):
        load_multiple_choice(tmp_path)
    (tmp_path / "quiz.csv").write_text("question\n")
    with pytest.raises(ValueError, match="neither .parquet nor .json nor .jsonl"):
        load_multiple_choice(tmp_path / "quiz.csv")
    quiz.write_text(json.dumps({"question": "Who?", "answer": 1}) + "\n")
    with pytest.raises(ValueError, match="has no column choices; its columns are question, answer"):
        load_multiple_choice(quiz)
    quiz.write_text(json.dumps(ROWS[0] | {"answer": 4}) + "\n")
    with pytest.raises(ValueError, match="is 4, but there are 4 choices"):
        load_multiple_choice(quiz)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"choices": "['one', 'two']"}, "a list of texts"),  # of a table that was a CSV once
        ({"choices": ["one", None]}, "a list of texts"),
        ({"choices": []}, "a list of texts"),
        ({"question": None}, "a question is a text"),
        ({"answer": 1.5}, "counted from 0"),
        ({"answer": "B"}, "counted from 0"),
        ({"answer": None}, "counted from 0"),
        ({"choices": [str(i) for i in range(27)]}, "more than letters"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_that_are_no_multiple_choice(tmp_path, change, said, suffix):
    path, rows = tmp_path / f"quiz{suffix}", [ROWS[0] | change]
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:  # lines, or a list
        path.write_text(json.dumps(rows if suffix == ".json" else rows[0]))
    with pytest.raises(ValueError, match=said):
        load_multiple_choice(path)


def test_what_is_filled_in_is_not_filled_in_again(quiz):
    one = replace(load_multiple_choice(quiz)[0], options={"A": "{question}", "B": "{choices}"})
    (prompt, _), _ = multiple_choice._pairs(one, LETTERED, True)
    assert "A. {question}\nB. {choices}" in prompt and prompt.count(one.question.strip()) == 1


def test_a_list_is_read_as_lines_are_and_texts_stay_texts(tmp_path, quiz):
    path, rows = tmp_path / "potions.json", [ROWS[0] | {"question": "2020-01-01"}, *ROWS[1:]]
    path.write_text(json.dumps(rows))
    found = load_multiple_choice(path)
    assert found[1:] == load_multiple_choice(quiz)[1:] and found[0].question == "2020-01-01"
    for suffix in (".jsonl", ".parquet"):
        path = tmp_path / f"broken{suffix}"
        path.write_text("{")
        with pytest.raises(ValueError, match="cannot be read"):
            load_multiple_choice(path)


def test_what_cannot_be_asked(llama, quiz, monkeypatch):
    model, processor = llama
    questions = load_multiple_choice(quiz)
    with pytest.raises(ValueError, match="no {question}"):
        choose(model, processor, questions, template="{choices}\nAnswer:", **QUIET)
    with pytest.raises(ValueError, match="no question to ask"):
        choose(model, processor, [], **QUIET)
    for options in (None, {"A": "one", "B": " "}):
        with pytest.raises(ValueError, match="none of them empty"):
            choose(model, processor, [replace(questions[0], options=options)], **QUIET)
    with pytest.raises(ValueError, match="has an image, which would not be looked at"):
        choose(model, processor, [replace(questions[0], image=PIL.Image.new("RGB", (8, 8)))], **QUIET)
    for wrong in (iter(questions), "who?"):
        with pytest.raises(TypeError, match="must be a list"):
            choose(model, processor, wrong, **QUIET)
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 256}
    other = GPT2LMHeadModel(GPT2Config(vocab_size=len(processor.tokenizer), **sizes))
    with pytest.raises(TypeError, match="GPT2LMHeadModel keeps its layers under another name"):
        choose(other, processor, questions, **QUIET)
    blank = SimpleNamespace(tokenizer=copy.deepcopy(processor.tokenizer))
    blank.tokenizer.pad_token = None
    for shared in (True, False):
        monkeypatch.setattr(multiple_choice, "can_share_texts", lambda model, shared=shared: shared)
        with pytest.raises(ValueError, match="no padding token, which batches need; set"):
            choose(model, blank, questions, **QUIET)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="a prompt is empty.*IN_WORDS"):
        choose(model, processor, questions, template="{question}", question=False, **QUIET)
    short = SimpleNamespace(
        tokenizer=processor.tokenizer.__class__(
            tokenizer_object=processor.tokenizer.backend_tokenizer
        )
    )
    short.tokenizer.pad_token_id, short.tokenizer.model_max_length = (
        processor.tokenizer.pad_token_id,
        8,
    )
    with pytest.raises(ValueError, match="and the model 8 positions"):
        choose(model, short, questions, **QUIET)


@pytest.mark.parametrize("name", ["potions", "herbs"])
def test_lm_eval_gives_the_same_accuracy(either, tmp_path, name):
    """The same checkpoint by the harness, from a task file with WMDP's prompt; acc and acc_norm."""
    pytest.importorskip("lm_eval", reason="pip install lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, processor = either
    file = data_dir() / "quiz_mini" / f"{name}.json"
    task = {
        "task": f"mini_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "multiple_choice", "num_fewshot": 0,
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
                       "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"], "doc_to_target": "answer",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }  # fmt: skip
    words = task | {
        "task": f"mini_{name}_words",
        "doc_to_text": "{{question.strip()}}\nAnswer:",
        "doc_to_choice": "choices",
    }
    harness = HFLM(pretrained=model, tokenizer=processor.tokenizer, batch_size=4)
    given = {
        "tasks": [task, words],
        "task_manager": TaskManager(include_defaults=False),
        "bootstrap_iters": 0,
    }
    results = simple_evaluate(model=harness, **given)["results"]
    questions = load_multiple_choice(file)
    for template, key in ((LETTERED, f"mini_{name}"), (IN_WORDS, f"mini_{name}_words")):
        for per, metric in (("sum", "acc,none"), ("character", "acc_norm,none")):
            ours = choose(model, processor, questions, template=template, per=per, **QUIET)[
                "right"
            ].mean()
            assert results[key][metric] == pytest.approx(ours)
