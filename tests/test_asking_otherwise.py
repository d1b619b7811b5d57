"""Forms are pure and say what they should; asked of a model that knows the people, and of one that never met them."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch

from manu_utils.auditing.asking import FORMS, answers_otherwise, ask_otherwise, forms_of, share_by_form
from manu_utils.auditing.asking_otherwise import (
    ROLES,
    crossed_questions,
    described,
    other_wordings,
    profiles_of,
    reverse_questions,
    two_hop_questions,
    with_examples,
    with_old_pictures,
)
from manu_utils.auditing.pictures import PICTURES, changed_pictures
from manu_utils.benchmark.pictures import decoded
from manu_utils.benchmark.questions import evaluation_questions, open_questions
from manu_utils.benchmark.records import Question
from manu_utils.models.loading import load_model

MODALITIES = ("multimodal", "text")
PROFILES = {
    "1": {"Name": "Ann Lee", "Employment": "baker", "Residence": "Porto"},
    "2": {"Name": "Bob Ray", "Employment": "baker", "Residence": "Ghent"},
    "3": {"Name": "Cy Dow", "Employment": "pilot", "Residence": "Ghent"},
    "4": {"Name": "Di Fox", "Employment": "pilot", "Residence": "Ghent"},
}


def asked(person, question, answer, image=None, task="generation", options=None):
    return Question(person, question, answer, image, task, options)


def test_a_description_fits_one_person_alone():
    assert described(PROFILES, "1") == "lives in Porto"
    assert described(PROFILES, "2") == "works as a baker and lives in Ghent"
    assert described(PROFILES, "3") is None and described(PROFILES, "nobody") is None
    assert described(PROFILES, "1", without="Lives in Porto.") is None, "baker alone is not unique, Porto is the answer"


def test_profiles_hold_the_facts_of_the_biography(benchmark):
    profiles = profiles_of(benchmark.forget, benchmark.retain)
    assert len(profiles) == 120
    assert profiles["100"] == {
        "Name": "Charlie Gibson", "Employment": "baker", "Residence": "Zadar", "Born": "Tunis",
        "Educated at": "Carlton University", "Medical Conditions": "eczema",
    }  # fmt: skip
    unread = benchmark.forget.select(range(2)).map(lambda row: row | {"biography": "no JSON"})
    assert profiles_of(unread) == {}
    with pytest.raises(ValueError, match="no column biography"):
        profiles_of(benchmark.training)


def test_reverse_questions_have_the_names_as_options():
    first, second = reverse_questions(["1", "2", "3", "1"], PROFILES, n_options=3)  # nobody can describe 3
    assert (first.question, first.answer, first.image) == ("Who lives in Porto?", "Ann Lee", None)
    assert set(first.options.values()) == {"Ann Lee", "Bob Ray", "Cy Dow"}
    assert second.question == "Who works as a baker and lives in Ghent?"
    assert len(reverse_questions(["1", "2", "3"], PROFILES, n_options=2)[0].options) == 2
    assert reverse_questions(["1"], PROFILES) == []


def test_two_hops_hide_the_name_and_not_the_answer():
    questions = [
        asked("1", "What is Ann Lee's job?", "Works as a baker."), asked("1", "Where does Ann Lee live?", "Lives in Porto."),
        asked("3", "What is Cy Dow's job?", "Works as a pilot."), asked("2", "Bob Ray lives in __.", "Ghent", task="cloze"),
        asked("1", "What is this person's job?", "Works as a baker.", PIL.Image.new("RGB", (8, 8))),
    ]  # fmt: skip
    (only,) = two_hop_questions(questions, PROFILES)
    assert only.question == "Think of the person who lives in Porto. What is this person's job?"
    assert only.answer == "Works as a baker."


def test_examples_are_about_others_and_solved():
    examples = [asked("1", "Ann Lee lives in __.", "Porto", task="cloze"), asked("2", "Where does Bob Ray live?", "Ghent.")]
    questions = [asked("3", "Where does Cy Dow live?", "Ghent."), asked("1", "What is Ann Lee's job?", "Baker.")]
    (first,) = with_examples(questions, examples, n=2)
    assert sorted(first.question.split("\n")[:2]) == ["Ann Lee lives in Porto.", "Where does Bob Ray live? Ghent."]
    assert first.question.endswith("\nWhere does Cy Dow live?") and first.answer == "Ghent."
    (alone,) = [q for q in with_examples(questions, examples, n=1) if q.person_id == "1"]
    assert "Ann Lee lives" not in alone.question


def test_a_face_is_asked_with_the_name_of_another():
    picture = PIL.Image.new("RGB", (8, 8))
    pictured = [asked("1", "What is this person's job?", "Baker.", picture), asked("1", "Who is this?", "Ann Lee", picture)]
    named = [asked("2", "What is Bob Ray's job?", "Baker."), asked("3", "What is Cy Dow's job?", "Pilot.")]
    (crossed,) = crossed_questions(pictured, named, PROFILES)
    assert crossed.question == "What is Cy Dow's job?" and crossed.image is picture
    assert crossed.options == {"face": "Baker.", "name": "Pilot."} and crossed.answer == "Baker."
    assert crossed_questions(pictured, [asked("1", "What is Ann Lee's job?", "Pilot.")], PROFILES) == []


def test_other_words_about_the_old_picture(benchmark):
    old = open_questions(benchmark.forget, "multimodal")
    new = with_old_pictures(open_questions(benchmark.test, "multimodal"), old)
    portraits = {q.person_id: q.image for q in old}
    assert len(new) == len(old) and all(q.image is portraits[q.person_id] for q in new)
    assert not {q.question for q in new} & {q.question for q in old}
    assert [[q.question for q in part] for part in other_wordings(old[:1], ["Say: {}"])] == [[f"Say: {old[0].question}"]]


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_change_a_little_the_same_way_each_time(benchmark, kind):
    questions = open_questions(benchmark.forget.select(range(2)), "multimodal")
    text = open_questions(benchmark.forget.select(range(1)), "text")
    once, again = (changed_pictures([*questions, *text], kind) for _ in range(2))
    assert len(once) == len(questions) and once[0].image is once[1].image and once[0].image is not once[-1].image
    for before, one, other in zip(questions, once, again, strict=True):
        assert one.image.tobytes() == other.image.tobytes() and one.image.size == before.image.size
        change = np.asarray(one.image, float) - np.asarray(decoded(before.image), float)
        assert 0 < np.abs(change).mean() < 40
    if kind == "noise":
        assert 3 < change.std() < 0.02 * 255 + 0.5  # less than .02 where white is cut off
        assert changed_pictures(questions, kind, seed=1)[0].image.tobytes() != once[0].image.tobytes()
    if kind == "brightness":
        np.testing.assert_allclose(np.asarray(one.image), 0.85 * np.asarray(decoded(before.image), float), atol=1)
    if kind == "occlusion":
        assert 0.12 < (change != 0).any(-1).mean() <= 0.19


def panels_of(benchmark, people):
    chosen = benchmark.forget.select(range(people))
    return {
        ("forget", m): [*open_questions(chosen, m), *evaluation_questions(chosen, "classification", m)] for m in MODALITIES
    }


@pytest.fixture(scope="module")
def answers(benchmark):
    """Of both models; four people, the forms that the miniature has the words for, and one of each other kind."""
    panels = panels_of(benchmark, 4)
    words = {("forget", m): open_questions(benchmark.test.select(range(12)), m) for m in MODALITIES}
    forms = ("as asked", "letters", "test wordings", "picture: noise", "another's name", "reverse", "two hops",
             *list(ROLES)[:1], "answer prefix", "examples: retained people")  # fmt: skip
    options = {
        "profiles": profiles_of(benchmark.forget, benchmark.retain), "wordings": words, "progress": False,
        "examples": {"retained people": open_questions(benchmark.retain.select(range(5)), "text")}, "max_new_tokens": 8,
    }  # fmt: skip
    found = {}
    for source in ("tiny", "tiny-base"):
        model, processor = load_model(source)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        found[source] = answers_otherwise(model.train(), processor, panels, forms=forms, **options)
        assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found


def test_vanilla_is_found_out_and_base_is_at_chance(answers):
    vanilla, base = (share_by_form(frame).set_index(["form", "modality"]) for frame in answers.values())
    for form in ("as asked", "letters", "test wordings", "picture: noise", "another's name"):
        for modality in MODALITIES if form in ("as asked", "letters", "test wordings") else ("multimodal",):
            assert vanilla["value"][form, modality] >= 0.8, (form, modality)
            n, chance = base["n"][form, modality], base["chance"][form, modality]
            chance = 1 / 12 if np.isnan(chance) else chance
            assert base["value"][form, modality] <= chance + 3 * np.sqrt(chance * (1 - chance) / n), (form, modality)


def test_rows_are_tidy(answers):
    frame = answers["tiny"]
    shares = share_by_form(frame)
    plain = shares[shares["form"] == "as asked"]
    assert set(frame["value"]) <= {0.0, 1.0} and list(plain["people"]) == [4, 4]
    assert list(plain["n"]) == [16, 16] and set(shares["form"]) - {"any prefix or role"} == set(frame["form"])
    tried = frame[frame["form"].isin(["answer prefix", "affirmative suffix"]) & (frame["modality"] == "text")]
    best = [part["value"].max() for _, part in tried.assign(number=[*range(16), *range(16)]).groupby("number")]
    row = shares[(shares["form"] == "any prefix or role") & (shares["modality"] == "text")].iloc[0]
    assert row["value"] == np.mean(best) and row["n"] == 16
    letters = frame[frame["form"] == "letters"]
    assert (letters["chance"] == 0.25).all() and frame[frame["form"] == "two hops"]["chance"].isna().all()


def test_a_form_without_its_source_is_left_out_by_name(benchmark):
    """As of real data without biographies, test wordings and options."""
    model, processor = load_model("tiny-base")
    panels = {("forget", "text"): open_questions(benchmark.forget.select(range(1)), "text")}
    forms = ("as asked", "letters", "test wordings", "two hops", "reverse")
    with pytest.warns(UserWarning, match=r"left out.*letters \(forget, text\), test wordings.*two hops.*reverse"):
        frame = ask_otherwise(model, processor, panels, forms=forms, max_new_tokens=4, progress=False)
    assert list(frame["form"]) == ["as asked"]
    assert set(forms_of(panels["forget", "text"])) < set(FORMS)


def test_what_cannot_be_asked_is_refused(benchmark):
    model, processor = load_model("tiny-base")
    panels = {("forget", "text"): open_questions(benchmark.forget.select(range(1)), "text")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="forms holds 'backwards', which is unknown"):
            ask_otherwise(model, processor, panels, forms=("backwards",))
        with pytest.raises(ValueError, match="no question to ask"):
            ask_otherwise(model, processor, {})
        with pytest.raises(TypeError, match="list of questions"):
            ask_otherwise(model, processor, {("forget", "text"): "Who?"})
        with pytest.raises(ValueError, match="kind='sepia' is unknown"):
            changed_pictures([], "sepia")
