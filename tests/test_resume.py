"""A killed evaluation goes on where it stopped, gives the same table, and never takes another model's answers."""

import copy
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import PIL.Image
import pytest
import torch
from doors import evaluate_by
from tiny_models import llama
from tokenizers import normalizers

from manu_utils.benchmark.loading import load_config
from manu_utils.benchmark.questions import evaluation_questions
from manu_utils.benchmark.records import Question
from manu_utils.evaluation.answers_file import append_answers, key_of, read_answers, remembered
from manu_utils.evaluation.shots import Prompt
from manu_utils.evaluation.tables import CHUNK
from manu_utils.models.fingerprints import fingerprint
from manu_utils.models.loading import load_model
from manu_utils.unlearning.attribution import collect_attribution

pytestmark = pytest.mark.filterwarnings("ignore:prompts of up to")
OPTIONS = {"tasks": ["cloze"], "modalities": ["text"], "batch_size": 2, "progress": False}


class Killed(BaseException):
    """As a signal: nothing catches it."""


@pytest.fixture(scope="module")
def people(benchmark):
    return {"forget": benchmark.forget.select(range(5))}


@pytest.fixture(params=["zero-shot", "official", "robust"])
def protocol(request):
    shots = {"shots": load_config("tiny", "Full_Set"), "seed": 0} if request.param == "official" else {}
    return {"protocol": request.param, **shots}


@pytest.fixture
def forwards(tiny_model, monkeypatch):
    """Counts forward passes, and dies at the one asked for."""
    model, forward, state = tiny_model[0], tiny_model[0].model.forward, {"calls": 0, "die_at": None}

    def count(*arguments, **inputs):
        state["calls"] += 1
        if state["calls"] == state["die_at"]:
            raise Killed
        return forward(*arguments, **inputs)

    monkeypatch.setattr(model.model, "forward", count)
    return state


def test_a_killed_evaluation_goes_on_and_gives_the_same_table(tiny_model, people, protocol, forwards, tmp_path, monkeypatch):
    monkeypatch.setattr("manu_utils.evaluation.tables.CHUNK", 1)
    if protocol["protocol"] == "zero-shot":  # which has letters and likeliest options to remember, too
        monkeypatch.setitem(OPTIONS, "tasks", ["classification", "cloze"])
    expected = evaluate_by(*tiny_model, people, **protocol, **OPTIONS)
    forwards["calls"] = 0
    uninterrupted = evaluate_by(*tiny_model, people, **protocol, **OPTIONS, resume=tmp_path / "whole.jsonl")
    pd.testing.assert_frame_equal(uninterrupted, expected)
    whole, path = forwards["calls"], tmp_path / "new folder" / "answers.jsonl"
    kills = 0
    while kills < 20:
        forwards.update(calls=0, die_at=int(whole * 0.45))
        try:
            resumed = evaluate_by(*tiny_model, people, **protocol, **OPTIONS, resume=path)
            break
        except Killed:
            kills += 1
    assert 1 < kills < 5
    assert 0 < forwards["calls"] < 0.45 * whole  # the last run had only the rest to do
    pd.testing.assert_frame_equal(resumed, expected)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    forwards.update(calls=0, die_at=1)
    pd.testing.assert_frame_equal(evaluate_by(*tiny_model, people, **protocol, **OPTIONS, resume=path), expected)
    assert forwards["calls"] == 0  # nothing left to ask


SCRIPT = """
import os, signal, sys
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.models.loading import load_model
from manu_utils.evaluation import evaluate
model, processor = load_model("tiny", device="cpu")
forward, calls = model.model.forward, []
def count(*arguments, **inputs):
    calls.append(1)
    if len(calls) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(*arguments, **inputs)
model.model.forward = count
sets = {"forget": load_benchmark("tiny", 10).forget.select(range(8))}
evaluate(model, processor, sets, tasks=["cloze"], modalities=["text"], batch_size=1, progress=False, resume=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_after_sigkill(tmp_path, benchmark):
    path = tmp_path / "answers.jsonl"
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_answers(path)) == CHUNK
    with path.open("ab") as file:
        file.write(b'{"key": "c0ffee')  # as if it had died in the middle of a write
    sets = {"forget": benchmark.forget.select(range(8))}
    options = {"tasks": ["cloze"], "modalities": ["text"], "batch_size": 1, "progress": False}
    model, processor = load_model("tiny", device="cpu")
    resumed = evaluate_by(model, processor, sets, **options, resume=path)
    pd.testing.assert_frame_equal(resumed, evaluate_by(model, processor, sets, **options))
    assert len(read_answers(path)) == 16
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_answers_of_other_weights_protocols_and_questions_are_not_taken(tiny_model, people, benchmark, forwards, tmp_path):
    model, processor = tiny_model
    path = tmp_path / "answers.jsonl"
    cloze = OPTIONS | {"resume": path}

    def asked(sets=people, **changes):
        forwards["calls"] = 0
        evaluate_by(model, processor, sets, **cloze | changes)
        return forwards["calls"] > 0

    assert asked() and not asked()
    assert asked(protocol="robust") and not asked(protocol="robust")
    assert asked({"retain": benchmark.retain.select([0])})
    assert asked(modalities=["multimodal"]) and not asked(modalities=["multimodal"])
    assert not asked(batch_size=3)
    weight = model.model.language_model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] = 0  # one neuron pruned
    try:
        assert asked() and not asked()
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert not asked()  # both models' answers are in the file
    assert asked(model_key="by hand") and not asked(model_key="by hand") and asked(model_key="another")


def test_the_official_draw_is_part_of_the_question(tiny_model, people, forwards, tmp_path):
    options = OPTIONS | {"protocol": "official", "shots": load_config("tiny", "Full_Set"),
                         "resume": tmp_path / "answers.jsonl"}  # fmt: skip
    for seed, asked in ((0, True), (1, True), (0, False)):
        forwards["calls"] = 0
        evaluate_by(*tiny_model, people, seed=seed, **options)
        assert (forwards["calls"] > 0) is asked


def test_a_fingerprint_tells_weights_types_and_processors_apart(tiny_model):
    model, processor = tiny_model
    first = fingerprint(model, processor)
    assert fingerprint(model, processor) == first and len(first) == 64
    weight = model.model.vision_tower.embeddings.class_embedding
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] += 1e-6
        assert fingerprint(model, processor) != first
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert fingerprint(model, processor) == first
    shaped = []
    for extra in (torch.arange(4.0), torch.arange(4.0).view(2, 2)):  # the same bytes
        model.register_buffer("extra", extra)
        shaped.append(fingerprint(model, processor))
        del model.extra
    assert shaped[0] != shaped[1]
    size = processor.image_processor.size
    try:
        processor.image_processor.size = {"shortest_edge": 32}
        assert fingerprint(model, processor) != first
    finally:
        processor.image_processor.size = size
    changes = {
        "config": lambda m, p: setattr(m.config.text_config, "rope_theta", 5.0),
        "nested config": lambda m, p: setattr(m.config.vision_config, "layer_norm_eps", 0.5),
        "generation": lambda m, p: setattr(m.generation_config, "eos_token_id", [1, 7]),
        "dtype": lambda m, p: m.to(torch.bfloat16),
        "patch size": lambda m, p: setattr(p, "patch_size", 8),
        "image token": lambda m, p: setattr(p, "image_token", "<pad>"),
        "chat template": lambda m, p: setattr(p, "chat_template", "{{ messages }}"),
        "the tokenizer's chat template": lambda m, p: setattr(p.tokenizer, "chat_template", "{{ messages }}"),
        "end of sequence": lambda m, p: setattr(p.tokenizer, "eos_token", "<pad>"),
        "a new token": lambda m, p: p.tokenizer.add_tokens(["<new>"]),
        "lower case": lambda m, p: setattr(p.tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()),
        "resampling": lambda m, p: setattr(p.image_processor, "resample", 0),
        "activation": lambda m, p: setattr(m.model.language_model.layers[1].mlp, "act_fn", torch.nn.GELU()),
        "its setting": lambda m, p: setattr(m.model.language_model.norm, "variance_epsilon", 0.5),
        "attention": lambda m, p: m.set_attn_implementation("eager"),
        "rotary frequencies": lambda m, p: m.model.language_model.rotary_emb.inv_freq.mul_(0.5),
        "positions": lambda m, p: setattr(p.tokenizer, "model_max_length", 99),
    }
    for change in changes.values():
        changed = copy.deepcopy(tiny_model)
        assert fingerprint(*changed) == first
        change(*changed)
        assert fingerprint(*changed) != first
    processor.tokenizer(["a", "b c d e f g h i j"], padding=True)  # leaves its mark in the tokenizer
    changed = copy.deepcopy(tiny_model)
    changed[0].config._name_or_path = changed[0].config.text_config._name_or_path = "another/folder"
    assert fingerprint(*changed) == first
    assert fingerprint(torch.nn.Linear(2, 2).bfloat16(), processor) != fingerprint(torch.nn.Linear(2, 2), processor)
    with pytest.raises(ValueError, match="weight is off-loaded.*model_key"):
        fingerprint(torch.nn.Linear(2, 2, device="meta"), processor)


def test_scoring_in_text_alone_goes_on(tmp_path, monkeypatch):
    """The processor of a language model is a tokenizer and nothing else."""
    model, processor = llama()
    asked = [Question(str(i), f"Who is {i}?", f"A{i}", None, "training") for i in range(3)]
    options = {"resume": tmp_path, "progress": False}
    first = collect_attribution(model, processor, asked, **options)
    monkeypatch.setattr(model, "forward", None)  # read from the file
    monkeypatch.setattr(model.model, "forward", None)
    assert first.equal(collect_attribution(model, processor, asked, **options))
    assert fingerprint(model, llama(bos="<s>")[1]) != fingerprint(model, processor)


def test_a_fingerprint_sees_shapes_and_the_chat_template(tiny_model, monkeypatch):
    """Two layers of the same bytes, and two wordings of the prompt."""
    processor = tiny_model[1]
    layers = [torch.nn.Linear(*size, bias=False) for size in ((2, 3), (3, 2))]
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
    assert fingerprint(layers[0], processor) != fingerprint(layers[1], processor)
    before = fingerprint(layers[0], processor)
    monkeypatch.setattr(processor.tokenizer, "chat_template", "{{ messages }}")
    assert fingerprint(layers[0], processor) != before


def test_one_question_about_two_pictures_is_asked_twice(tiny_model, benchmark, tmp_path):
    """Pictures of one size; as a question, and as a prompt that is written out."""
    processor, asked = tiny_model[1], []
    questions = evaluation_questions(benchmark.test.select([0]), "cloze", "multimodal")
    views = [question for question in questions if question.question == questions[0].question]
    assert len(views) > 1 and len({view.image.size for view in views}) == 1

    def ask(items):
        asked.extend(items)
        return [str(len(asked))]

    for items in (views, [Prompt(view, "USER: <image>", (view.image,)) for view in views]):
        identity_of = partial(key_of, processor, protocol="p")
        answers = remembered(tmp_path / "answers.jsonl", "model", [*items, *items], identity_of, ask, 1)
        assert len(set(answers)) == len(views) and answers[: len(views)] == answers[len(views) :]
    assert len(asked) == 2 * len(views)


def test_answers_of_another_length_are_not_taken(tiny_model, people, forwards, tmp_path, monkeypatch):
    """A later version may cut answers elsewhere."""
    options = OPTIONS | {"tasks": ["classification"], "resume": tmp_path / "answers.jsonl"}
    for length, asked in ((5, True), (6, True), (5, False)):
        monkeypatch.setattr("manu_utils.evaluation.tables.LETTER_TOKENS", length)
        forwards["calls"] = 0
        evaluate_by(*tiny_model, people, **options)
        assert (forwards["calls"] > 0) is asked


def test_answers_are_asked_in_the_same_chunks_after_a_kill(tmp_path):
    path, asked = tmp_path / "answers.jsonl", []

    def ask(items):
        asked.append(items)
        if len(asked) == 2:
            raise Killed
        return [item.upper() for item in items]

    def identity(item):
        return {"protocol": "p", "person_id": "1", "question": item}

    call = (path, "model", list("abcdefg"), identity, ask, 3)
    with pytest.raises(Killed):
        remembered(*call)
    assert sorted(read_answers(path).values()) == ["A", "B", "C"]
    assert remembered(*call) == list("ABCDEFG")
    assert asked == [["a", "b", "c"], ["d", "e", "f"], ["d", "e", "f"], ["g"]]
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert {k: line[k] for k in ("protocol", "person_id", "question", "answer", "run")} == {
        "protocol": "p", "person_id": "1", "question": "a", "answer": "A", "run": "model"
    }  # fmt: skip


def test_half_a_chunk_is_not_a_chunk(tmp_path):
    """A write that was cut off in its middle: what is whole of it stays, and all of the chunk is asked again."""
    path, asked = tmp_path / "answers.jsonl", []
    call = (path, "model", list("abcd"), lambda item: {"protocol": "p", "person_id": "1", "question": item},
            lambda items: asked.append(items) or [item.upper() for item in items], 2)  # fmt: skip
    remembered(*call)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert remembered(*call) == list("ABCD")
    assert asked == [["a", "b"], ["c", "d"], ["c", "d"]]
    path.write_bytes(b"".join(lines[1:]))  # or the first of a chunk is missing
    assert remembered(*call) == list("ABCD") and asked[3:] == [["a", "b"]]


def test_nothing_is_asked_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def call(path, ask):
        return remembered(path, "model", ["a"], lambda item: {"protocol": "p", "person_id": "1", "question": item}, ask, 1)

    for path in (tmp_path / "file" / "answers.jsonl", tmp_path / "file" / "new" / "answers.jsonl"):
        with pytest.raises(OSError, match="Not a directory"):
            call(path, lambda items: pytest.fail("asked"))
    kept = tmp_path / "answers.jsonl"
    assert call(kept, lambda items: ["A"]) == ["A"]

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", closed)
    assert call(kept, lambda items: pytest.fail("asked")) == ["A"]  # what is done is read
    with pytest.raises(PermissionError):
        call(tmp_path / "other.jsonl", lambda items: pytest.fail("asked"))


def test_the_picture_is_part_of_the_question(tmp_path):
    """One person, one question, several portraits: an answer to one is not an answer to another."""
    images = [PIL.Image.new("RGB", (2, 2), colour) for colour in ("red", "blue", "red")]
    images += [PIL.Image.new("L", (2, 2)), PIL.Image.new("RGB", (1, 4), "red")]
    asked = []

    def ask(items):
        asked.extend(items)
        return [str(len(asked))] * len(items)

    def identity(item):
        return {"protocol": "p", "person_id": "1", "question": "Who?", "images": [images[i] for i in item]}

    items = [(0,), (1,), (2,), (3,), (4,), (), (0, 1), (1, 0)]
    answers = remembered(tmp_path / "answers.jsonl", "model", items, identity, ask, 1)
    assert asked == [item for item in items if item != (2,)]  # which is the first again
    assert answers[0] == answers[2] and len(set(answers)) == len(items) - 1


def record(digit, answer):
    return {"key": digit * 64, "run": "model", "answer": answer}


def test_a_line_that_was_cut_off_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "answers.jsonl"
    append_answers(path, [record("1", "é\nx")])
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        assert read_answers(path) == {"1" * 64: "é\nx"}
    path.write_bytes(whole + whole.replace(b"x", b"a long answer")[:-1])  # longer than what is written over it
    append_answers(path, [record("2", "b\u2028c")])
    assert path.read_bytes().count(b"\n") == 2 and path.read_bytes().endswith(b"}\n")
    assert read_answers(path) == {"1" * 64: "é\nx", "2" * 64: "b\u2028c"}
    assert read_answers(tmp_path / "none.jsonl") == {}
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith(".")) == ["answers.jsonl"]
    with pytest.raises(ValueError, match="64 hex digits"):
        append_answers(path, [{"key": "1", "answer": "b"}])


OURS = b'{"key": "' + b"a" * 64 + b'", "run": "m", "answer": "x"}\n'
OTHERS = {
    "a table": b"a,b\n1,2\n",
    "no newline": b'{"accuracy": 1.0}',
    "no newline, like ours": b'{"key": "value"}',
    "JSON over several lines": b'{\n  "key": "x",\n  "answer": "y"\n}',
    "JSON lines": b'{"key": 1}\n',
    "JSON lines with our keys": b'{"key": "capital of France", "answer": "Paris"}\n',
    "a list": b"[1]\n",
    "text": b"my notes",
    "empty": b"",
    "blank": b"\n",
    "binary": bytes(range(256)),
    "binary without newline": b"\x80\x04\x95",
    "UTF-16": "a,b\n".encode("utf-16"),
    "ours and another line": OURS + b"mine\n",
    "ours and the beginning of another": OURS + b"mine",
    "ours with another answer": OURS.replace(b'"x"', b"1"),
    "a line of ours without its end": OURS[:-1],
    "deep": OURS.replace(b'"m"', b"[" * 100_000),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_file_is_never_touched(tmp_path, name, tiny_model, people):
    path = tmp_path / "results.json"
    path.write_bytes(OTHERS[name])
    asked = []
    for call in (
        lambda: remembered(path, "m", ["a"], lambda item: {}, asked.append, 1),
        lambda: append_answers(path, [record("1", "x")]),
        lambda: evaluate_by(*tiny_model, people, **OPTIONS, resume=path),
    ):
        with pytest.raises(ValueError, match=r"results.json is not a file of answers .*left as it is; name another"):
            call()
    assert path.read_bytes() == OTHERS[name] and not asked


def test_links_and_folders_are_no_files_of_answers(tmp_path):
    target, link, dangling = tmp_path / "target.jsonl", tmp_path / "link.jsonl", tmp_path / "dangling.jsonl"
    target.write_bytes(OURS)
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "nowhere")
    for path, kind in ((link, "link"), (dangling, "link"), (tmp_path, "folder"), (Path(os.devnull), "device")):
        for call in (read_answers, lambda path: append_answers(path, [record("1", "x")])):
            with pytest.raises(ValueError, match=f"is a {kind}, not a file of answers"):
                call(path)
    assert target.read_bytes() == OURS and not (tmp_path / "nowhere").exists()


def test_a_file_of_an_older_version_is_kept_and_nothing_is_taken_from_it(tmp_path):
    """Its lines are of this form; their keys hashed less."""
    path = tmp_path / "answers.jsonl"
    line = {"key": "b" * 64, "run": "abc", "answer": "old", "protocol": "p", "person_id": "1", "question": "a"}
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    before = path.read_bytes()
    identity = {"protocol": "p", "person_id": "1", "question": "a"}
    assert remembered(path, "m", ["a"], lambda item: dict(identity), lambda items: ["new"], 1) == ["new"]
    assert path.read_bytes().startswith(before) and len(read_answers(path)) == 2


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    append_answers("~/answers.jsonl", [record("1", "x")])
    assert read_answers("~/answers.jsonl") == read_answers(tmp_path / "answers.jsonl") == {"1" * 64: "x"}


def test_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"

    def write(writer):
        for i in range(10):
            append_answers(path, [record(f"{writer}{i}{j}0", "x" * 2000) | {"key": f"{writer}{i}{j}0" * 16} for j in range(3)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(read_answers(path)) == 4 * 10 * 3
