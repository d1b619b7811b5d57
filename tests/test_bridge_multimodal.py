"""The bridge in both modalities: its pieces, on a small Llama with random weights and the miniature's eyes."""

import copy
import math

import pandas as pd
import pytest
import torch

import bridge_models as made
import bridge_multimodal as both
from manu_utils import auditing
from manu_utils.benchmark.records import MODALITIES
from manu_utils.miniature.people import ATTRIBUTES
from manu_utils.models.asking import generate_answers, known
from manu_utils.models.encoding import batches
from manu_utils.models.loading import load_model
from manu_utils.models.neurons import find_neurons
from manu_utils.models.prompts import prompt
from manu_utils.models.saving import save_model
from manu_utils.models.training import answer_loss, fine_tune

VALUES = {name: ATTRIBUTES[name].values for name in made.FACTS}


@pytest.fixture(scope="module")
def small(tiny_model):
    """(model, processor): what join makes of a random Llama and the tiny model's random tower."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny, processor = tiny_model
    tokenizer = copy.deepcopy(processor.tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer) - 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        language = LlamaForCausalLM(config).eval()
    return made.join(language, tokenizer, tiny.model.vision_tower, processor.image_processor)


@pytest.fixture(scope="module")
def people(benchmark):
    return made.People(benchmark, 0)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_joined_model_is_an_ordinary_checkpoint(small, people, tmp_path):
    model, processor = small
    assert {mlp.tower for mlp in find_neurons(model)} == {"vision", "language"}
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    save_model(model, processor, tmp_path / "saved")
    other, its = load_model(tmp_path / "saved", dtype=torch.float32, device="cpu")
    own, found = model.state_dict(), other.state_dict()
    assert all(found[name].equal(tensor) for name, tensor in own.items())
    asked = people.questions(people.forget[:1])["multimodal"]
    assert prompt(asked[0], its) == f"<|im_start|>user\n<image>{asked[0].question}<|im_end|>\n<|im_start|>assistant\n"
    assert generate_answers(other, its, asked, max_new_tokens=3, progress=False) == generate_answers(
        model, processor, asked, max_new_tokens=3, progress=False
    )


def test_nobody_is_in_two_groups_and_settings_are_chosen_on_others(benchmark):
    drawn = [made.People(benchmark, seed) for seed in (0, 1)]
    for people in drawn:
        groups = (people.forget, people.kept, people.stand_ins, people.others, people.unmet)
        ids = [person for group in groups for person in group]
        n = made.N_FORGET + made.N_KEPT + 2 * made.N_STAND_INS + made.N_UNMET
        assert len(ids) == len(set(ids)) == n
        assert set(people.forget) <= set(benchmark.forget_ids) and set(people.retain) <= set(benchmark.retain_ids)
        chosen_by = {q.person_id for of in people.choice_panels().values() for q in of}
        reported = {q.person_id for of in people.panels().values() for q in of}
        assert reported == {*people.forget, *people.kept} and not chosen_by & reported
    assert drawn[0].forget != drawn[1].forget and drawn[0].kept != drawn[1].kept


def test_questions_are_those_of_the_benchmark_and_the_test_set_is_new(benchmark, people):
    ids = sorted({*people.forget, *people.retain})
    for modality in MODALITIES:
        pairs = {(q.person_id, q.question, q.answer) for q in benchmark.training_questions(ids, modality)}
        taught = [people.questions(ids, wording)[modality] for wording in (0, 1)]
        assert all({(q.person_id, q.question, q.answer) for q in of} <= pairs for of in taught)
        assert all(len(of) == len(ids) * len(made.FACTS) for of in taught)
        for question in taught[0]:
            assert len(set(question.options.values())) == 4 and question.answer in question.options.values()
        test = people.panels()["test", modality]
        assert not {q.question for q in test} & {q.question for q in (*taught[0], *taught[1])}
        assert [q.answer for q in test] == [q.answer for q in people.panels()["forget", modality]]
    shown = {q.person_id: q.image for q in people.panels()["forget", "multimodal"]}
    assert all(q.image is not shown[q.person_id] for q in people.panels()["test", "multimodal"])


def test_a_lesson_costs_what_every_question_alone_would(small, people):
    """Shared beginnings are read once, and training may not notice."""
    model, processor = small
    asked = people.questions(people.forget[:2])["multimodal"]
    together = made.lesson_loss(model, processor, asked)
    total = n = 0
    for _, batch in batches(asked, processor, len(asked), with_answer=True):
        m = int(batch["answer_mask"].sum())
        total, n = total + m * answer_loss(model, batch), n + m
    assert together.item() == pytest.approx((total / n).item(), rel=1e-5)


def test_only_the_projector_learns_to_see(small):
    model = copy.deepcopy(small[0])
    faces, pictures = made.random_faces(3)
    before = weights(model)
    patches = made.patches_of(model, small[1], pictures)
    words = made.words_of(faces, model, small[1].tokenizer, patches.shape[1])
    assert words.shape == (3, 16, 32) and words[:, 0].equal(words[:, 6])  # six features in turn
    history = made.fit_projector(model, patches, words, steps=150, lr=1e-2, warmup=5, watch=lambda: {}, every=150)
    assert history[-1]["loss"] < 0.2
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)
    shares = made.seen(model, small[1], faces, pictures)
    assert list(shares) == list(faces[0]) and all(share == 1 for share in shares.values())


def test_teaching_changes_the_language_model_alone(small, people, monkeypatch):
    model, processor = copy.deepcopy(small[0]), small[1]
    monkeypatch.setattr(made, "LR", 1e-2)
    before = weights(model)
    again = [both.Question("general", "What is rain?", "Water.", None, "training")] * 3
    one = people.forget[:1]
    asked = people.questions(one)
    losses = [sum(made.lesson_loss(model, processor, of).item() for of in asked.values())]
    made.teach(model, processor, people, one, again, epochs=4, seed=0)
    losses.append(sum(made.lesson_loss(model, processor, of).item() for of in asked.values()))
    assert losses[1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed and all("language_model.layers" in name for name in changed)


def test_the_likeliest_of_four_is_the_sum_of_its_tokens(small, people):
    model, processor = small
    asked = people.questions(people.forget[:1])
    for modality in MODALITIES:
        for question in asked[modality]:
            sums = {}
            for words in question.options.values():
                one = both.Question("x", question.question, words, question.image, "training")
                for _, batch in batches([one], processor, 1, with_answer=True):
                    sums[words] = -answer_loss(model, batch).item() * int(batch["answer_mask"].sum())
            best = max(sums, key=sums.get)
            assert both.chosen_right(model, processor, [question]).item() == (best == question.answer)


def test_general_questions_have_four_choices_and_the_rehearsed_are_others():
    asked, again = made.general("asked"), made.general("rehearsed")
    assert 60 <= len(asked) <= 100 and made.GENERAL.stat().st_size <= 30_000
    assert all(len(set(q.options.values())) == 4 and q.answer in q.options.values() for q in asked)
    assert not {q.question for q in asked} & {q.question for q in again}
    capitals = {q.answer for q in asked if q.person_id == "capitals"}
    assert not any(city in q.question for q in again for city in capitals)
    right = [letter for q in asked for letter, words in q.options.items() if words == q.answer]
    assert min(right.count(letter) for letter in "ABCD") > len(asked) / 10


def test_every_method_changes_the_model_and_puts_it_back(small, people, benchmark, monkeypatch):
    lab = both.Lab(benchmark, 0)
    lab.vanilla = copy.deepcopy(small[0]), small[1]
    model = lab.vanilla[0]
    monkeypatch.setitem(both.TRAINED, "batch_size", 2)
    two = {m: lab.people.questions(lab.people.stand_ins[:1])[m][:2] for m in MODALITIES}
    rest = {m: lab.people.questions(lab.people.others[:1])[m][:2] for m in MODALITIES}
    monkeypatch.setattr(lab, "sets", lambda choice: (two, rest))
    own = lab.people.stand_ins[0]
    picture = lab.people.portraits[lab.people.forget[0]]
    strangers = {own: [both.Stranger("Nina Novak", picture)]}, lab.people.names
    monkeypatch.setattr(lab, "strangers", lambda forget: strangers)
    known_all = "manu_utils.unlearning.rewriting.known"
    monkeypatch.setattr(known_all, lambda _, __, items, **___: torch.ones(len(items)).bool())
    before = weights(model)
    tried = {"paper": (2.0, 10.0), "coverage": (5.0,), "rewrite": (1, 2), "erase": (1.0,)}
    tried |= dict.fromkeys(both.LOSSES, (1, 2))
    for method, values in tried.items():
        found = lab.changed(method, values, True, lambda: weights(model))
        assert list(found) == list(values), method
        for state in found.values():
            assert any(not tensor.equal(before[name]) for name, tensor in state.items() if name in before), method
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items()), method


def test_the_strength_is_the_one_of_best_merit_on_the_stand_ins(small, benchmark, monkeypatch):
    lab = both.Lab(benchmark, 0)
    lab.vanilla = small

    def rows(forget, retain):
        values = {"forget": forget, "retain": retain}
        return [both.row_of("exact", name, m, value, 9) for name, value in values.items() for m in MODALITIES]

    def by_task(told, chosen):
        return {"answers": rows(*told), "choices": rows(*chosen)}

    lab.ends = [by_task((1.0, 1.0), (1.0, 1.0)), by_task((0.0, 0.0), (0.3, 0.3))]
    tried = {
        0.5: by_task((1.0, 1.0), (1.0, 1.0)),
        1.0: by_task((0.1, 0.8), (0.4, 0.8)),
        2.0: by_task((0.0, 0.9), (1.0, 1.0)),  # better by what it says, and it hides
    }  # fmt: skip
    monkeypatch.setattr(lab, "changed", lambda method, values, choice, look: tried if choice else pytest.fail())
    found, best = lab.chosen("coverage")
    assert best == 1.0 and {row["stage"] for row in found} == {"choice"}
    merits = {row["strength"]: row["value"] for row in found if row["measure"] == "merit"}
    assert max(merits, key=merits.get) == 1.0 and len(merits) == 3


def test_a_killed_run_goes_on_and_attacks_come_last(small, benchmark, tmp_path, monkeypatch):
    done = []

    def reported(self, method):
        done.append(method)
        if len(done) == 2:
            raise KeyboardInterrupt
        yield {"stage": "report", "strength": math.nan} | both.row_of("exact", "forget", "text", 0.5, 18)

    def audited(self, method, strength, stage):
        done.append(f"{stage} {method}")
        yield {"stage": stage, "strength": strength} | both.row_of("any", "forget", "text", 0.5, 18)

    monkeypatch.setattr(both.Lab, "reported", reported)
    monkeypatch.setattr(both.Lab, "audited", audited)
    monkeypatch.setattr(both, "miniature_locality", lambda *_: [])
    place = tmp_path / "rows.csv"
    with pytest.raises(KeyboardInterrupt):
        both.run(place, benchmark, [0], ["vanilla", "coverage"])
    both.run(place, benchmark, [0], ["vanilla", "coverage"])
    both.run(place, benchmark, [0], ["vanilla", "coverage"])
    audits = [f"{stage} {method}" for stage in ("attack", "inside") for method in ("vanilla", "coverage")]
    assert done == ["vanilla", "coverage", "coverage", *audits]
    table = pd.read_csv(place)
    assert list(table.columns) == both.COLUMNS and not table.duplicated().any()


def test_without_a_report_there_is_nothing_to_attack(small, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(both.Lab, "reported", lambda self, method: iter(()))  # such as all units lost
    monkeypatch.setattr(both.Lab, "audited", lambda *_: pytest.fail("attacked at no strength"))
    monkeypatch.setattr(both, "miniature_locality", lambda *_: [])
    message = r"rows.csv has no report of vanilla.*python experiments/bridge_multimodal.py --seeds 0 --methods vanilla\."
    with pytest.raises(ValueError, match=message):
        both.run(tmp_path / "rows.csv", benchmark, [0], ["vanilla"])


def test_a_model_that_was_taught_the_forgotten_is_found_out_inside(small, people):
    """One that was taught nobody is not, and a member's true value stands higher."""
    (model, processor), forget = small, people.questions(people.forget)
    taught = copy.deepcopy(model)
    fine_tune(taught, processor, forget, steps=60, lr=1e-2, progress=False)
    rows = {id(m): pd.DataFrame(both.inside(m, processor, people, r)) for m, r in ((model, None), (taught, model))}
    before, after = (rows[id(m)].set_index(["measure", "modality"])["value"] for m in (model, taught))
    assert set(rows[id(taught)]["set"]) == {"forget"} and not rows[id(taught)].duplicated(["measure", "modality"]).any()
    n = len(people.forget) * len(made.FACTS)
    assert set(rows[id(taught)]["n"]) == {n}
    for m in MODALITIES:
        assert after["auc, loss", m] > 0.8 > before["auc, loss", m] and after["auc, reference", m] > 0.8
        assert ("auc, reference", m) not in before.index
        assert [f"lens, layer {k}" in before[:, m].index for k in range(4)] == [True, True, True, False]
        assert after["lens, layer 2", m] < before["lens, layer 2", m]
    asked = people.questions(people.forget)["text"]
    lens = auditing.logit_lens(taught, processor, asked, values=VALUES, names=people.names, progress=False)
    assert after["lens, layer 1", "text"] == pytest.approx(lens[lens["layer"] == 1]["rank"].mean())


def test_facts_that_are_not_known_have_no_place(small, people):
    assert not known(*small, people.questions(people.forget)["text"], progress=False).any()
    assert both.locality(*small, people) == []
