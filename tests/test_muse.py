"""MUSE from files in the Hub's layout, and raw text asked of a small Llama, against what MUSE's code does by hand."""

import copy
import json
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny_models
import torch

from manu_utils.auditing.lens import logit_lens
from manu_utils.auditing.membership import membership_scores
from manu_utils.auditing.telling_apart import auc, privleak
from manu_utils.benchmark.loading import load_benchmark
from manu_utils.benchmark.muse import PIECE, load_muse, load_muse_text, pieces_of
from manu_utils.benchmark.records import Question
from manu_utils.evaluation.tofu import answer_measures, extraction_strength
from manu_utils.evaluation.verbatim import STOPS, ask_knowledge, ask_verbatim, rouge_l, six_questions
from manu_utils.models.asking import generate_answers, known
from manu_utils.models.encoding import encode
from manu_utils.models.precision import language_weights
from manu_utils.models.training import answer_loss
from manu_utils.unlearning.baselines import unlearn_by_training
from manu_utils.unlearning.evidence import unlearn
from manu_utils.unlearning.released import choose_rows

QUIET = {"progress": False, "batch_size": 3}
EXACT = {"rel": 1e-5, "abs": 1e-6}
NEWS = [
    f"The mayor of Port {town} said on Monday that the {thing} is closed.\n\nIt opens in {year}, she said: £{year}."
    for year, (town, thing) in enumerate([("Lune", "bridge"), ("Ost", "mill"), ("Ferra", "old harbour")], 1990)
]
BEGINS = [  # how a beginning and what follows can meet in the files
    ("The mayor of Port Lune said on", "Monday that the bridge is closed."),
    ("The mayor of Port Ost said on Monday.\n\n", "It opens in 1991, she said."),
    ("The mayor of Port Ferra said on Monday.", "\n\nIt opens in 1992, she said."),
]
SHOTS = [{"question": f"Who closed the {thing}?", "answer": name} for thing, name in (("gate", "Ada Holm"), ("ferry", "Bo"))]
ASKED = [{"question": "What is closed in Port Lune?", "answer": "the bridge"}, {"question": "When?", "answer": "1990"}]


def text_rows(texts):
    return [{"text": text} for text in texts]


FILES = {  # config -> split -> rows, as the cards of MUSE-News and -Books have them
    "knowmem": {
        "retain_qa_icl": SHOTS[1:], "retain_qa": ASKED[1:], "forget_qa": ASKED, "forget_qa_icl": SHOTS,
    },
    "privleak": {"retain": text_rows(NEWS[2:]), "forget": text_rows(NEWS[:2]), "holdout": text_rows(["Nobody read this."])},
    "raw": {
        "retain2": text_rows(NEWS[2:]), "forget": text_rows([NEWS[0], "", NEWS[1]]), "retain1": text_rows(NEWS[2:]),
        "holdout": text_rows(["Nobody read this."]),
    },
    "scal": {"forget_2": text_rows(NEWS)},
    "verbmem": {"forget": [{"prompt": begins, "gt": follows} for begins, follows in BEGINS]},
}  # fmt: skip


def write(folder, files=FILES, readme=True, kind="parquet"):
    configs, infos = [], []
    for config, splits in files.items():
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            if kind == "parquet":
                pd.DataFrame(rows).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
            else:
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / config / f"{split}.json").write_text(lines, encoding="utf-8")
        parts = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        configs.append({"config_name": config, "data_files": parts})
        columns = sorted({column for rows in splits.values() for column in rows[0]})
        features = [{"name": column, "dtype": "string"} for column in columns]
        sizes = [{"name": split, "num_bytes": 1, "num_examples": len(rows)} for split, rows in splits.items()]
        infos.append({"config_name": config, "features": features, "splits": sizes})
    if readme:  # JSON is YAML, too
        header = f"dataset_info: {json.dumps(infos)}\nconfigs: {json.dumps(configs)}"
        (folder / "README.md").write_text(f"---\nlicense: cc-by-4.0\n{header}\n---\n")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hub") / "MUSE-News")


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("how", [{}, {"readme": False}, {"readme": False, "kind": "json"}])
def test_the_questions_of_the_files(tmp_path, how):
    own = load_muse(write(tmp_path / "copy", **how))
    assert [q.question for q in own.verbatim] == [begins for begins, _ in BEGINS]
    # a space goes between where the files have lost it, and nowhere else
    assert [q.answer for q in own.verbatim] == [f" {BEGINS[0][1]}", BEGINS[1][1], BEGINS[2][1]]
    assert own.knowledge["forget"][1].question == (
        "Question: Who closed the gate?\nAnswer: Ada Holm\n\nQuestion: Who closed the ferry?\nAnswer: Bo\n\n"
        "Question: When?\nAnswer: "
    )
    assert own.knowledge["retain"][0].question == (
        "Question: Who closed the ferry?\nAnswer: Bo\n\nQuestion: When?\nAnswer: "
    )
    assert [q.answer for q in own.knowledge["forget"]] == ["the bridge", "1990"]
    assert {name: [(q.question, q.answer) for q in side] for name, side in own.sides.items()} == {
        "forget": [("", NEWS[0]), ("", NEWS[1])], "holdout": [("", "Nobody read this.")], "retain": [("", NEWS[2])],
    }  # fmt: skip
    assert own.texts == {"forget": f"{NEWS[0]}\n\n\n\n{NEWS[1]}", "retain": NEWS[2]}
    every = [*own.verbatim, *sum(own.knowledge.values(), []), *sum(own.sides.values(), [])]
    assert {q.task for q in every} == {"raw"} and len({q.person_id for q in every}) == len(every)
    assert own.sides["holdout"][0].person_id == "privleak_holdout_001"
    assert load_muse_text(tmp_path / "copy", "scal", "forget_2") == "\n\n".join(NEWS)


def without(config, split):
    return FILES | {config: {name: rows for name, rows in FILES[config].items() if name != split}}


def instead(config, split, rows):
    return FILES | {config: FILES[config] | {split: rows}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({name: splits for name, splits in FILES.items() if name != "verbmem"}, "no config verbmem/forget that can"),
        (without("knowmem", "retain_qa_icl"), "no config knowmem/retain_qa_icl that can be read: no knowmem/retain_qa_icl-"),
        (without("privleak", "holdout"), "no config privleak/holdout"),
        (without("raw", "retain1"), "no config raw/retain1"),
        (instead("verbmem", "forget", [{"prompt": "a", "text": "b"}]), "verbmem/forget of .* has no column gt"),
        (instead("verbmem", "forget", [{"prompt": "a", "gt": " "}]), "row 1 of verbmem/forget of .* has no gt"),
        (instead("knowmem", "forget_qa", [*ASKED, {"question": "Who?", "answer": None}]), "row 3 of .* has no answer"),
        (instead("privleak", "forget", text_rows([""])), "row 1 of privleak/forget of .* has no text"),
        (instead("raw", "forget", text_rows(["", " "])), "raw/forget of .* has no words"),
    ],
)
@pytest.mark.parametrize("readme", [True, False])
def test_files_that_do_not_fit(tmp_path, files, message, readme):
    declared = not readme or "gt" not in message  # a card that declares other columns is another error
    with pytest.raises(ValueError, match=message):
        load_muse(write(tmp_path / "copy", files, readme=readme and declared))


def test_a_benchmark_of_people_it_is_not(hub):
    with pytest.raises(ValueError, match="laid out like MUSE.*load_muse"):
        load_benchmark(hub)


# ------------------------------------------------------------------------------------------------ asking raw text


def of_llama_2():
    """A tokenizer in the shape of Llama 2's: spaces are letters, ``<s>`` comes first, bytes where a letter is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    split = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    bpe.pre_tokenizer = split  # merges within words, as sentencepiece learns them
    bpe.train_from_iterator([text.replace("£", "") for text in (*NEWS, "Question: \nAnswer: the") * 3], trainer)
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=["with a beginning", "without"])
def llama(request, tmp_path_factory):
    """(model, processor) as they come from disk: one whose tokenizer puts <s> first, as Llama's, and one with nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = of_llama_2() if request.param == "with a beginning" else tiny_models.build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        if request.param == "without":  # each of its tokens is a byte: line breaks are likely, and end answers
            model.lm_head.weight.data[tokenizer("\n")["input_ids"]] *= 3
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert (loaded("")["input_ids"] == []) == (request.param == "without")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), SimpleNamespace(tokenizer=loaded)


def by_hand(model, tokenizer, text, n):
    """One text, tokenised as it is, alone, through the model's own generate: as MUSE's code does."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=True)["input_ids"]
    options = {"max_new_tokens": n, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


def log_probs(model, tokenizer, begins, follows):
    """log p of each token that follows, and whether it is the arg-max, one forward pass a token."""
    before, whole = (tokenizer(text)["input_ids"] for text in (begins, begins + follows))
    same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
    found = []
    for place in range(max(1, same), len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([whole[:place]])).logits[0, -1].double()
        found.append((logits.log_softmax(-1)[whole[place]].item(), logits.argmax().item() == whole[place]))
    return found


def test_a_continuation_is_that_of_the_text_alone(llama, hub):
    model, processor = llama
    own = load_muse(hub).verbatim
    frame = ask_verbatim(model, processor, own, max_new_tokens=7, **QUIET)
    tokenizer = processor.tokenizer
    assert len(set(frame["written"])) > 1
    for row, question, (begins, follows) in zip(frame.itertuples(), own, BEGINS, strict=True):
        assert row.written == by_hand(model, tokenizer, begins, 7).strip()
        # the truth has as many tokens, <s> among them, and not the space that was put before it
        truth = tokenizer.decode(tokenizer(follows)["input_ids"][:7], skip_special_tokens=True)
        assert row.truth == truth and row.rouge == rouge_l(row.written, truth).f1
        right = [hit for _, hit in log_probs(model, tokenizer, begins, question.answer)]
        assert row.extraction_strength == pytest.approx(extraction_strength(right))
        said = replace(question, answer=f" {by_hand(model, tokenizer, begins, 6)}")
        truly = all(hit for _, hit in log_probs(model, tokenizer, begins, said.answer))
        assert known(model, processor, [said, question], **QUIET).tolist() == [truly, False]


def test_an_answer_ends_where_the_next_question_begins(llama, hub):
    model, processor = llama
    own = load_muse(hub).knowledge["forget"]
    long = "the bridge, the mill and the old harbour, " * 9
    own.append(replace(own[0], person_id="long", answer=long))
    frame = ask_knowledge(model, processor, own, **QUIET)
    for row, question in zip(frame.itertuples(), own, strict=True):
        text = by_hand(model, processor.tokenizer, question.question, 32)
        for stop in STOPS:
            text = text.split(stop)[0]
        assert row.written == text.strip() and row.truth == question.answer  # which is not cut
    # every text may be the one that stops
    whole = generate_answers(model, processor, own[:1], max_new_tokens=32, **QUIET)[0]
    for part in {whole[5:7], whole[:1]}:
        options = {"max_new_tokens": 32, "stop": ("\0", part)}
        assert generate_answers(model, processor, own[:1], **options, **QUIET) == [whole.split(part)[0].strip()]


def test_what_is_said_before_the_stop_is_empty_if_nothing_is(llama, hub, monkeypatch):
    model, processor = llama
    texts = ["\n\nAda", " 1990\nQuestion: When?\nAnswer: Bo", "1990 Question: When?"]
    monkeypatch.setattr(type(processor.tokenizer), "batch_decode", lambda *_, **__: texts)
    own = [replace(load_muse(hub).knowledge["forget"][1], person_id=str(i)) for i in range(3)]
    assert ask_knowledge(model, processor, own, **QUIET)["written"].tolist() == ["", "1990", "1990"]


@pytest.mark.parametrize("k", [0.2, 0.4])
def test_whole_texts_surprise_by_every_token(llama, hub, k):
    """MUSE reads a text from its first word on: each token after the first, <s> included, and no end."""
    model, processor = llama
    sides = load_muse(hub).sides
    own = [*sides["forget"], *sides["holdout"]]
    frame = membership_scores(model, processor, own, k=k, gradients=True, **QUIET)
    for row, question in zip(frame.itertuples(), own, strict=True):
        values = sorted(value for value, _ in log_probs(model, processor.tokenizer, "", question.answer))
        ids = processor.tokenizer(question.answer, return_tensors="pt")["input_ids"]
        assert len(values) == ids.shape[1] - 1
        loss = model(ids, labels=ids).loss
        assert row.loss == pytest.approx(-sum(values) / len(values), **EXACT) == pytest.approx(loss.item(), **EXACT)
        lowest = values[: int(k * len(values))]
        assert row.min_k == pytest.approx(-sum(lowest) / len(lowest), **EXACT)
        assert row.zlib == pytest.approx(row.loss / len(zlib.compress(question.answer.encode())), **EXACT)
        norms = [grad.norm() for grad in torch.autograd.grad(loss, language_weights(model))]
        assert row.grad_norm == pytest.approx(torch.stack(norms).mean().item(), rel=1e-4)
    ended = [replace(q, task="training", question="Go on.") for q in own]
    assert membership_scores(model, processor, ended, **QUIET)["loss"].notna().all()
    with pytest.raises(ValueError, match="some questions are raw texts; score them apart"):
        membership_scores(model, processor, [*own, *ended], **QUIET)


def test_six_questions_from_the_files(llama, hub):
    model, processor = llama
    own = load_muse(hub)
    scores = {name: membership_scores(model, processor, side, k=0.4, **QUIET) for name, side in own.sides.items()}
    value = auc(scores["forget"]["min_k"], scores["holdout"]["min_k"])
    means = [ask_knowledge(model, processor, own.knowledge[name], **QUIET)["rouge"].mean() for name in ("forget", "retain")]
    verbatim = ask_verbatim(model, processor, own.verbatim, **QUIET)["rouge"].mean()
    frame = six_questions(verbatim, means[0], privleak(value), means[1], {1: means[1]}, [means[1]])
    assert frame["value"].tolist() == [verbatim, means[0], 100 * (0.5 - value) / 0.5, *[means[1]] * 3]


def test_a_text_can_be_unlearned(llama, hub):
    model, processor = llama
    texts = load_muse(hub).texts
    sets = [{"text": pieces_of(texts[name], processor.tokenizer, n_tokens=60, name=name)} for name in ("forget", "retain")]
    batch = encode(sets[0]["text"][:2], processor, with_answer=True)
    pad = batch["attention_mask"] == 0
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    # every token of a text that has one before it
    assert answer_loss(model, batch).item() == pytest.approx(losses[~pad[:, :-1]].mean().item(), **EXACT)
    trained = copy.deepcopy(model)
    options = {"steps": 2, "lr": 1e-3, "batch_size": 2, "progress": False}
    unlearn_by_training("npo", trained, processor, *sets, **options)
    before, after = (answer_loss(one, batch).item() for one in (model, trained))
    assert after > before
    edit = unlearn(pruned := copy.deepcopy(model), processor, *sets, alpha=5, modalities=("text",), **QUIET)
    assert answer_loss(pruned, batch).item() != before
    edit.undo()
    assert answer_loss(pruned, batch).item() == before


def test_pieces_are_the_text(llama):
    tokenizer = llama[1].tokenizer
    text = "\n\n".join(NEWS) + " 🜁🜂🜃🜄" * 30 + "\n\nThe  end. "
    for n in (12, 40, 64, PIECE):
        pieces = pieces_of(text, tokenizer, n_tokens=n, name="forget")
        assert "".join(q.answer for q in pieces) == text and {q.question for q in pieces} == {""}
        lengths = [len(tokenizer(q.answer)["input_ids"]) for q in pieces]
        assert max(lengths) <= n and min([n, *lengths[:-1]]) >= n - 12
        assert pieces[0].person_id == "forget_0001" and len({q.person_id for q in pieces}) == len(pieces)
    with pytest.raises(ValueError, match="n_tokens=4 is too few"):
        pieces_of(text, tokenizer, n_tokens=4)
    with pytest.raises(ValueError, match="has no words"):
        pieces_of(" \n", tokenizer)
    with pytest.raises(ValueError, match="does not say where in the text"):
        pieces_of(text, SimpleNamespace(is_fast=False))


# ------------------------------------------------------------------------------------------------ what cannot be


def raw(begins, follows="Monday.", who="1"):
    return Question(who, begins, follows, None, "raw")


def test_a_raw_text_has_no_picture_and_no_options():
    import PIL.Image

    with pytest.raises(ValueError, match="neither image nor options"):
        Question("1", "On", "Monday", PIL.Image.new("RGB", (8, 8)), "raw")
    with pytest.raises(ValueError, match="neither image nor options"):
        Question("1", "On", "Monday", None, "raw", {"A": "Monday"})


def test_nothing_goes_on_from_nothing(llama):
    model, processor = llama
    if processor.tokenizer("")["input_ids"]:  # <s> is enough to go on from
        written = by_hand(model, processor.tokenizer, "", 5).strip()
        assert generate_answers(model, processor, [raw("")], max_new_tokens=5, **QUIET) == [written]
    else:
        for asked in ([raw("")], [raw("On"), raw("")]):
            with pytest.raises(ValueError, match="no token to go on with"):
                generate_answers(model, processor, asked, **QUIET)
        with pytest.raises(ValueError, match="no token that can be predicted"):
            known(model, processor, [raw("", "x")], **QUIET)
    with pytest.raises(ValueError, match="no token that can be predicted"):
        known(model, processor, [raw("On", "")], **QUIET)
    with pytest.raises(ValueError, match="must be a list of texts, none of them empty"):
        generate_answers(model, processor, [raw("On")], stop=("",), **QUIET)
    with pytest.raises(ValueError, match="must be a list of texts"):
        generate_answers(model, processor, [raw("On")], stop="\n\n", **QUIET)
    mixed = [raw("On"), replace(raw("On"), task="training")]
    for ask in (ask_knowledge, ask_verbatim):
        with pytest.raises(ValueError, match="ask them apart"):
            ask(model, processor, mixed, **QUIET)
    with pytest.raises(ValueError, match="a text without a prompt asks for no value"):
        logit_lens(model, processor, [raw("", "It is red."), raw("", "It is blue.")], **QUIET)
    sets = [{"text": [raw("On", who=who)]} for who in "12"]
    with pytest.raises(ValueError, match="the released code asks questions, no raw texts"):
        choose_rows(model, processor, *sets, alpha=5, progress=False)


@pytest.mark.parametrize("family", ["LLaVA-1.5 (CLIP)", "Qwen2-VL", "Gemma 3", "Mllama"])
def test_no_family_puts_anything_around_a_raw_text(family):
    model, processor = tiny_models.FAMILIES[family]()
    asked = [raw(begins, " then it is.") for begins in ("The mayor said on", "The mayor said", "It opens in 1990, she")]
    written = generate_answers(model, processor, asked, max_new_tokens=6, **QUIET)
    assert written == [by_hand_of(model, processor.tokenizer, q.question, 6) for q in asked]
    for question, loss in zip(asked, answer_measures(model, processor, asked, **QUIET)[:, 0].tolist(), strict=True):
        values = [value for value, _ in log_probs(model, processor.tokenizer, question.question, question.answer)]
        assert loss == pytest.approx(-sum(values) / len(values), rel=1e-4)
    chat = replace(asked[0], task="training")
    if "LLaVA" not in family:
        with pytest.raises(ValueError, match="raw texts and questions in a chat"):
            generate_answers(model, processor, [asked[0], chat], max_new_tokens=6, **QUIET)
    else:
        both = generate_answers(model, processor, [asked[0], chat], max_new_tokens=6, **QUIET)
        apart = [generate_answers(model, processor, [q], max_new_tokens=6, **QUIET)[0] for q in (asked[0], chat)]
        assert both == apart


def by_hand_of(model, tokenizer, text, n):
    """As :func:`by_hand`, one token after the other, for models with a picture tower."""
    ids, ends = tokenizer(text)["input_ids"], model.generation_config.eos_token_id
    start = len(ids)
    for _ in range(n):
        with torch.no_grad():
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in ends:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
