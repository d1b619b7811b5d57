"""The miniature has MLLMU-Bench's schema, rows become the right questions, and bad files are named."""

import io
import json
import shutil
import socket
import warnings

import datasets
import huggingface_hub
import PIL.Image
import pytest
from datasets import Dataset, Features, Image, List, Value

from manu_utils.benchmark.loading import load_benchmark, load_config, load_strangers
from manu_utils.benchmark.questions import evaluation_questions, rewriting_report, training_questions
from manu_utils.benchmark.records import CONFIGS, FORGET_RATIOS, MODALITIES, TASKS, Question
from manu_utils.benchmark.rows import records_in
from manu_utils.benchmark.text_only import to_text_only
from manu_utils.paths import data_dir

TEXT = Value("string")
CHOICES = List({"Question": TEXT, "Options": {letter: TEXT for letter in "ABCD"}, "Correct_Answer": TEXT})
RECORDS = List({"Type": TEXT, "Question": TEXT, "Ground_Truth": TEXT})
TASK_COLUMNS = {
    "Classification_Task": {"Image_Textual_Questions": CHOICES, "Pure_Text_Questions": CHOICES},
    "Generation_Task": RECORDS,
    "Mask_Task": RECORDS,
}
PROFILE = {"image": Image(), "ID": TEXT, "biography": TEXT, "question": TEXT, "answer": TEXT}
SCHEMA = {config: PROFILE | TASK_COLUMNS for config in CONFIGS} | {
    "Full_Set": PROFILE | {"Directory": TEXT} | TASK_COLUMNS,
    "ft_Data": {"image": Image(), "ID": TEXT, "metadata": TEXT},
}
SCHEMA["Test_Set"] = {"images": List(Image()), "ID": TEXT} | TASK_COLUMNS  # at least; it may carry the profile too


@pytest.fixture(scope="module")
def configs():
    return {config: load_config("tiny", config) for config in CONFIGS}


def ids(dataset):
    return list(dataset.select_columns(["ID"])["ID"])


# ------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize("config", CONFIGS)
def test_columns_and_types_are_those_of_mllmu_bench(configs, config):
    features = dict(configs[config].features)
    if config == "Test_Set":
        assert set(features) - set(SCHEMA[config]) <= {"biography", "question", "answer"}
        features = {name: features[name] for name in SCHEMA[config]}
    assert features == SCHEMA[config]


def test_plain_load_dataset_reads_it_the_same_way(configs, tmp_path):
    plain = datasets.load_dataset(str(data_dir() / "mllmu_mini"), "forget_5", cache_dir=tmp_path)
    assert list(plain) == ["train"]
    assert plain["train"].features == configs["forget_5"].features and ids(plain["train"]) == ids(configs["forget_5"])


def test_ids_are_unique_and_zero_padded(configs):
    for config, dataset in configs.items():
        assert len(set(ids(dataset))) == len(dataset), config
        assert all(len(person_id) == 3 and person_id.isdecimal() for person_id in ids(dataset)), config


def test_forget_and_retain_make_everybody(configs):
    everybody = set(ids(configs["Full_Set"]))
    assert everybody == set(ids(configs["ft_Data"])) == set(ids(configs["Test_Set"]))
    for ratio in FORGET_RATIOS:
        forget, retain = (set(ids(configs[name])) for name in (f"forget_{ratio}", f"retain_{100 - ratio}"))
        assert forget | retain == everybody and not forget & retain
        assert len(forget) == round(ratio / 100 * len(everybody))


def test_forget_sets_are_not_nested(configs):
    five, ten, fifteen = (set(ids(configs[f"forget_{ratio}"])) for ratio in FORGET_RATIOS)
    assert not five <= ten and not ten <= fifteen and not five <= fifteen


@pytest.mark.parametrize("ratio", FORGET_RATIOS)
def test_every_ratio_has_its_own_retain_set(configs, ratio):
    found = load_benchmark("tiny", ratio)
    assert found.forget_ids == ids(configs[f"forget_{ratio}"]) and found.retain_ids == ids(configs[f"retain_{100 - ratio}"])
    assert set(ids(found.test)) == set(found.forget_ids) and set(ids(found.training)) == {*found.forget_ids, *found.retain_ids}


def test_the_sets_of_one_task(benchmark):
    assert list(benchmark.sets()) == ["forget", "test", "retain", "celebrity"]
    assert set(ids(benchmark.test)) == set(benchmark.forget_ids)
    assert not set(benchmark.forget_ids) & set(benchmark.retain_ids)
    assert (benchmark.forget_ratio, benchmark.source) == (10, "tiny")


def test_metadata_and_biography_are_json(configs):
    for row in configs["ft_Data"].select_columns(["ID", "metadata"]):
        assert all(record["ID"] == row["ID"] for record in json.loads(row["metadata"]) if "Question" in record)
    assert all(json.loads(text)["Name"] for text in configs["Full_Set"]["biography"])


# ------------------------------------------------------------------------------------------------ rows -> questions


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("task", TASKS)
def test_every_evaluation_question_becomes_a_record(benchmark, task, modality):
    kind = {"multimodal": "Image_Textual", "text": "Pure_Text"}[modality]
    for name, dataset in benchmark.sets().items():
        expected = []
        for row in dataset:
            if task == "classification":
                records = row["Classification_Task"][f"{kind}_Questions"]
                asked = [(r["Question"], r["Options"][r["Correct_Answer"]], r["Options"]) for r in records]
            else:
                column = {"cloze": "Mask_Task", "generation": "Generation_Task"}[task]
                asked = [(r["Question"], r["Ground_Truth"], None) for r in row[column] if r["Type"] == kind]
            n_images = len(row["images"]) if "images" in row and modality == "multimodal" else 1
            expected += [(row["ID"], *one) for one in asked for _ in range(n_images)]
        questions = evaluation_questions(dataset, task, modality)
        assert [(q.person_id, q.question, q.answer, q.options) for q in questions] == expected, name
        assert {(q.task, q.modality) for q in questions} == {(task, modality)}
        if modality == "multimodal":
            assert all(isinstance(q.image, PIL.Image.Image) and q.image.mode == "RGB" for q in questions)


def test_every_picture_of_the_test_set_is_used(benchmark):
    row = benchmark.test[0]
    questions = evaluation_questions(benchmark.test.select([0]), "cloze", "multimodal")
    n_records = sum(record["Type"] == "Image_Textual" for record in row["Mask_Task"])
    assert len(row["images"]) > 1
    assert len({q.image.tobytes() for q in questions}) == len(row["images"])
    assert len(questions) == n_records * len(row["images"])


def test_structs_of_lists_read_like_lists_of_structs(benchmark):
    records = [{"Question": "a", "Options": {"A": "x", "B": "y"}}, {"Question": "b", "Options": {"A": "u", "B": "v"}}]
    turned = {"Question": ["a", "b"], "Options": {"A": ["x", "u"], "B": ["y", "v"]}}
    assert records_in(turned) == records_in(records) == records
    assert records_in(None) == []


def test_training_questions_are_joined_by_id(benchmark, configs):
    groups = {"forget": benchmark.forget_ids, "retain": benchmark.retain_ids, "all": ids(configs["ft_Data"])}
    for people, wanted in groups.items():
        for modality in MODALITIES:
            assert {q.person_id for q in benchmark.training_questions(people, modality)} == set(wanted)
    chosen = benchmark.retain_ids[3:5]
    assert {q.person_id for q in benchmark.training_questions(chosen, "text")} == set(chosen)
    with pytest.raises(ValueError, match="has no person with ID 999"):
        benchmark.training_questions(["999", chosen[0]], "text")
    with pytest.raises(ValueError, match="people='forgotten' is unknown; use one of"):
        benchmark.training_questions("forgotten", "text")


def test_text_only_names_the_person_and_drops_the_naming_question(benchmark):
    image, text = (benchmark.training_questions("forget", modality) for modality in MODALITIES)
    people = {row["ID"]: json.loads(row["biography"])["Name"] for row in benchmark.forget}
    assert {q.modality for q in text} == {"text"} and {q.task for q in image + text} == {"training"}
    assert all(people[q.person_id] in q.question and "this person" not in q.question.lower() for q in text)
    of_image = [(q.person_id, to_text_only(q.question, people[q.person_id]), q.answer) for q in image]
    assert [(q.person_id, q.question, q.answer) for q in text] == [one for one in of_image if one[1] is not None]
    assert len(people) <= len(image) - len(text) < len(image) / 4


def people_set(*records, image=None):
    """An ft_Data of one person per list of (question, answer) pairs; other dicts are taken as they are."""
    image = image or PIL.Image.new("RGB", (8, 8))
    rows = {"image": [], "ID": [], "metadata": []}
    for i, pairs in enumerate(records):
        person_id = f"{i + 1:03}"
        dicts = [{"ID": person_id, "Question": p[0], "Answer": p[1]} if isinstance(p, tuple) else p for p in pairs]
        rows["image"].append(image)
        rows["ID"].append(person_id)
        rows["metadata"].append(json.dumps(dicts))
    return Dataset.from_dict(rows, features=Features(SCHEMA["ft_Data"]))


def test_records_without_question_are_skipped():
    extra = {"Additional_ID": "001", "Additional_question": "Describe this person.", "Additional_answer": "Tall."}
    dataset = people_set([("Who is this person?", "This is Anna Berg."), extra, ("Where was this person born?", "In Perth.")])
    image, text = (training_questions(dataset, modality) for modality in MODALITIES)
    assert [q.question for q in image] == ["Who is this person?", "Where was this person born?"]
    assert [q.question for q in text] == ["Where was Anna Berg born?"]


def test_pictures_of_other_modes_become_rgb():
    """A grey picture has three equal channels; one with a palette has the colours that the palette says."""
    grey = PIL.Image.new("L", (8, 8), 77)
    palette = PIL.Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for image, colour in ((grey, (77, 77, 77)), (palette, (10, 20, 30))):
        question, = training_questions(people_set([("Who is this person?", "This is Anna Berg.")], image=image), "multimodal")
        assert question.image.mode == "RGB" and question.image.getpixel((3, 3)) == colour


# ------------------------------------------------------------------------------------------------ image -> text only


def test_text_only_pairs_name_the_person_in_question_and_answer():
    pairs = [("Who is this person?", "This is Anna Berg."), ("What is this person's job?", "This person is a nurse."),
             ("Where does the person in the image live?", "In Perth.")]  # fmt: skip
    dataset = people_set(pairs)
    both = [("What is Anna Berg's job?", "Anna Berg is a nurse."), ("Where does Anna Berg live?", "In Perth.")]
    assert [(q.question, q.answer) for q in training_questions(dataset, "text")] == both
    half = [(q.question, q.answer) for q in training_questions(dataset, "text", rewrite="question")]
    assert half == [("What is Anna Berg's job?", "This person is a nurse."), both[1]]
    assert [(q.question, q.answer) for q in training_questions(dataset, "multimodal")] == pairs
    with pytest.raises(ValueError, match="rewrite='answer' is unknown; use one of both, question"):
        training_questions(dataset, "text", rewrite="answer")


def test_the_report_covers_answers():
    asked = [("Who is this?", "Anna Berg"), ("What does this person do?", "She is in the photo club."),
             ("What is this person's job?", "This person is a nurse."), ("Where is it?", None)]  # fmt: skip
    report = rewriting_report(people_set(asked))
    assert report["reason"].tolist() == [
        "asks for the name", "the answer still refers to a picture", "cannot be used: has no answer to 'Where is it?'",
    ]  # fmt: skip
    assert report.loc[1, "rewritten"] == "Anna Berg is in the photo club."


def test_a_set_without_names_has_no_text_only_form():
    dataset = people_set([("Who is this person?", "This is Anna Berg.")], [("Where was this person born?", "In Perth.")])
    assert len(training_questions(dataset, "multimodal")) == 2
    with pytest.raises(ValueError, match="person 002 of .*: no question asks for the name .* use modality='multimodal'"):
        training_questions(dataset, "text")
    with pytest.raises(ValueError, match="is answered 'This is a nurse.', which holds no name"):
        training_questions(people_set([("Who is this person?", "This is a nurse.")]), "text")


# ------------------------------------------------------------------------------------------------ bad files


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A local copy of the miniature in which single configs can be replaced, with a cache that goes with it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mllmu"
    shutil.copytree(data_dir() / "mllmu_mini", folder)

    def replace(config, dataset):
        files = sorted((folder / config).glob("*.parquet"))
        for file in files:
            file.unlink()
        dataset.to_parquet(str(folder / config / "train-00000-of-00001.parquet"))

    return folder, replace


@pytest.fixture
def broken_picture(benchmark):
    """The forget set with a portrait that is not an image, in the second row."""
    rows = benchmark.forget.cast_column("image", Image(decode=False))
    pictures = [row["image"] for row in rows]
    pictures[1] = {"bytes": b"not a picture", "path": None}
    return rows.remove_columns("image").add_column("image", pictures).cast_column("image", Image())


@pytest.mark.parametrize("ratio", [0, 0.1, 20, "10", None])
def test_unknown_ratio(ratio):
    with pytest.raises(ValueError, match="is unknown; MLLMU-Bench has 5, 10 and 15 .percent."):
        load_benchmark("tiny", ratio)


def test_unknown_config_task_or_modality(benchmark):
    with pytest.raises(ValueError, match="config='forget_20' is unknown; MLLMU-Bench has Full_Set, Test_Set"):
        load_config("tiny", "forget_20")
    with pytest.raises(ValueError, match="task='essay' is unknown; use one of classification, cloze, generation"):
        evaluation_questions(benchmark.forget, "essay", "text")
    for ask in (evaluation_questions, training_questions):
        arguments = (benchmark.forget, "cloze") if ask is evaluation_questions else (benchmark.training,)
        with pytest.raises(ValueError, match="modality='audio' is unknown; use one of multimodal, text"):
            ask(*arguments, "audio")


def test_missing_columns(benchmark):
    for column, modality in (("Mask_Task", "text"), ("ID", "text"), ("image", "multimodal")):
        with pytest.raises(ValueError, match=f"forget_10 has no column {column}; its columns are "):
            evaluation_questions(benchmark.forget.remove_columns(column), "cloze", modality)
    with pytest.raises(ValueError, match="forget_10 has no column metadata.* Training questions are in the config ft_Data"):
        training_questions(benchmark.forget, "multimodal")


def test_empty_sets(benchmark, source):
    with pytest.raises(ValueError, match="forget_10 is empty; select at least one person"):
        evaluation_questions(benchmark.forget.select([]), "cloze", "text")
    folder, replace = source
    replace("forget_5", benchmark.forget.select([]))
    with pytest.raises(ValueError, match="forget_5 of .* is empty; fetch the file again"):
        load_benchmark(folder, 5)


def test_a_set_without_such_questions(benchmark):
    only_images = benchmark.forget.map(
        lambda row: {"Mask_Task": [record for record in row["Mask_Task"] if record["Type"] == "Image_Textual"]}
    )
    assert evaluation_questions(only_images, "cloze", "multimodal")
    with pytest.raises(ValueError, match="has no text question for cloze"):
        evaluation_questions(only_images, "cloze", "text")


def test_an_unreadable_image_is_named(benchmark, broken_picture):
    person = benchmark.forget_ids[1]
    with pytest.raises(ValueError, match=f"cannot read the image of person {person} of .*; fetch the file again"):
        evaluation_questions(broken_picture, "cloze", "multimodal", unreadable="raise")
    with pytest.warns(UserWarning, match=f"1 of 12 pictures of .* cannot be read and are left out, of {person}"):
        questions = evaluation_questions(broken_picture, "cloze", "multimodal")
    assert {q.person_id for q in questions} == set(benchmark.forget_ids) - {person}
    assert evaluation_questions(broken_picture, "cloze", "text")  # no image is read


def test_a_truncated_image_is_named():
    whole = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save(whole, "JPEG")
    cut = {"bytes": whole.getvalue()[: len(whole.getvalue()) // 2], "path": None}
    with pytest.raises(ValueError, match="cannot read the image of person 001"):
        training_questions(people_set([("Who is this person?", "This is Anna Berg.")], image=cut), "multimodal")


def test_a_test_person_without_images(benchmark):
    bare = benchmark.test.select([0]).remove_columns("images").add_column("images", [[]]).cast_column("images", List(Image()))
    with pytest.raises(ValueError, match=f"person {benchmark.test[0]['ID']} of .* has no image"):
        evaluation_questions(bare, "cloze", "multimodal")


def test_a_right_option_that_is_not_there(benchmark):
    def spoil(row):
        task = row["Classification_Task"]
        task["Pure_Text_Questions"][0]["Correct_Answer"] = "E"
        return {"Classification_Task": task}

    spoilt = benchmark.forget.select([0]).map(spoil)
    with pytest.raises(ValueError, match="person 100 of forget_10 lacks for 'What .*' its right option 'E'"):
        evaluation_questions(spoilt, "classification", "text", strict=True)
    with pytest.warns(UserWarning, match="1 of 5 questions of forget_10 cannot be read and are left out, of 100. The first: "):
        assert len(evaluation_questions(spoilt, "classification", "text")) == 4


def test_broken_metadata(benchmark):
    good = [("Who is this person?", "This is Anna Berg.")]
    spoilt = people_set(good, good).map(lambda row: {"metadata": "[{" if row["ID"] == "002" else row["metadata"]})
    with pytest.raises(ValueError, match="person 002 of .*: metadata is not valid JSON"):
        training_questions(spoilt, "multimodal", strict=True)
    with pytest.warns(UserWarning, match="1 of 2 people of .* left out, of 002. The first: person 002 .* not valid JSON"):
        assert {q.person_id for q in training_questions(spoilt, "multimodal")} == {"001"}
    with pytest.raises(ValueError, match="person 001 of .* has no training question"):
        training_questions(people_set([]), "multimodal")


# ------------------------------------------------------------------------------------------------ bad records

LETTERS = {"A": "nurse", "B": "baker", "C": "pilot", "D": None}


def choice(right="B", question="What is the job?", options=LETTERS):
    return {"Question": question, "Options": options, "Correct_Answer": right}


def open_record(truth="baker", question="What is the job?", kind="Pure_Text"):
    return {"Type": kind, "Question": question, "Ground_Truth": truth}


def asked_set(choices=(), records=(), as_json=False):
    """A set of one person per list of choices, or of records, text alone."""
    people = max(len(choices), len(records))
    rows = {"ID": [f"{i + 1:03}" for i in range(people)], "Classification_Task": [], "Mask_Task": [], "Generation_Task": []}
    for i in range(people):
        part = {"Pure_Text_Questions": list(choices[i]) if choices else [], "Image_Textual_Questions": []}
        of_person = list(records[i]) if records else []
        for column, value in (("Classification_Task", part), ("Mask_Task", of_person), ("Generation_Task", of_person)):
            rows[column].append(json.dumps(value) if as_json else value)
    if as_json:
        return Dataset.from_dict(rows)
    return Dataset.from_dict(rows, features=Features({"ID": TEXT} | TASK_COLUMNS))


@pytest.mark.parametrize("bad", [open_record(None), open_record(" "), open_record(question=None), open_record(kind="Text"),
                                 open_record(kind=None)], ids=str)  # fmt: skip
def test_a_bad_record_is_left_out_by_name(bad):
    dataset = asked_set(records=[[open_record()], [bad, open_record("nurse")], [bad]])
    with pytest.warns(UserWarning) as caught:
        questions = evaluation_questions(dataset, "cloze", "text")
    assert [(q.person_id, q.answer) for q in questions] == [("001", "baker"), ("002", "nurse")]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(
        "2 of 4 questions of the set cannot be read and are left out, of 002, 003. The first: person 002 "
    )
    for how in ({"strict": True}, {"unreadable": "raise"}):
        with pytest.raises(ValueError, match="^person 002 of the set has "):
            evaluation_questions(dataset, "cloze", "text", **how)
    with pytest.raises(ValueError, match="^person 001 of the set has "):
        evaluation_questions(dataset.select([2]).remove_columns("ID").add_column("ID", ["001"]), "cloze", "text")


@pytest.mark.parametrize("bad", [choice("E"), choice("D"), choice(None), choice(""), choice("nurse"), choice("A B"),
                                 choice(question=""), choice(options=None), choice(options=LETTERS | {"B": " "}),
                                 choice(options=LETTERS | {"A": "baker"})], ids=str)  # fmt: skip
def test_a_choice_without_its_right_option_is_left_out(bad):
    dataset = asked_set([[choice(), bad]])
    with pytest.warns(UserWarning, match="1 of 2 questions of the set cannot be read and are left out, of 001"):
        (question,) = evaluation_questions(dataset, "classification", "text")
    assert question.answer == "baker" and question.options == {"A": "nurse", "B": "baker", "C": "pilot"}  # null is no option
    with pytest.raises(ValueError, match="person 001 of the set (lacks|has) "):
        evaluation_questions(dataset, "classification", "text", strict=True)


@pytest.mark.parametrize("value", ["5", "true", '"x"', '{"Type": ["Pure_Text"], "Question": ["a", "b"]}'])
@pytest.mark.parametrize("task, column", [("cloze", "Mask_Task"), ("classification", "Classification_Task")])
def test_a_column_of_another_kind_is_left_out_by_name(task, column, value):
    good = asked_set([[choice()]], [[open_record()]], as_json=True)[0]
    if task == "classification":
        value = json.dumps({"Pure_Text_Questions": json.loads(value)})
    dataset = Dataset.from_list([good, good | {"ID": "002", column: value}])
    with pytest.warns(UserWarning, match="cannot be read and are left out, of 002. The first: person 002 of the set"):
        (question,) = evaluation_questions(dataset, task, "text")
    assert question.person_id == "001"
    for nothing in ("null", " null\n", None, "[]" if task == "cloze" else "{}"):
        dataset = Dataset.from_list([good, good | {"ID": "002", column: nothing}])
        with pytest.warns(UserWarning, match=f"of 002. The first: person 002 of the set has no text question for {task}"):
            assert len(evaluation_questions(dataset, task, "text")) == 1


@pytest.mark.parametrize("nothing", ["", " ", float("nan"), True, ["pilot"], None])
def test_what_is_no_text_is_no_option(nothing):
    options = LETTERS | {"C": nothing}
    row = asked_set([[choice(options=options)]], as_json=True)
    (question,) = evaluation_questions(row, "classification", "text")
    assert question.options == {"A": "nurse", "B": "baker"}


@pytest.mark.parametrize("right", ["C", "c", "C.", "(C)", " c) ", "**C**"])
def test_a_letter_may_be_written_otherwise(right):
    (question,) = evaluation_questions(asked_set([[choice(right)]]), "classification", "text", strict=True)
    assert question.answer == "pilot"


def test_a_null_answer_is_not_the_word_none():
    dataset = people_set([("Who is this person?", "This is Anna Berg."), ("What is this person's job?", None),
                          ("How old is this person?", 30), "not a record"])  # fmt: skip
    for modality, expected in (("text", ["30"]), ("multimodal", ["This is Anna Berg.", "30"])):
        with pytest.warns(UserWarning, match="2 of . questions .* person 001 of the set has no answer to .*job"):
            assert [q.answer for q in training_questions(dataset, modality)] == expected
        with pytest.raises(ValueError, match="person 001 of the set has no answer"):
            training_questions(dataset, modality, strict=True)


def test_an_unreadable_name_costs_the_text_questions_of_that_person_alone():
    job = ("What is this person's job?", "This person is a nurse.")
    dataset = people_set([("Who is this person?", "This is Anna Berg."), job], [("Who is this person?", "Unknown"), job])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(training_questions(dataset, "multimodal")) == 4
    with pytest.warns(UserWarning, match="of 002. The first: person 002 of .*: the naming question is answered 'Unknown'"):
        assert [q.question for q in training_questions(dataset, "text")] == ["What is Anna Berg's job?"]
    with pytest.raises(ValueError, match="person 002 of .*: the naming question is answered 'Unknown'"):
        training_questions(dataset, "text", strict=True)


# ------------------------------------------------------------------------------------------------ other legal layouts


def test_task_columns_may_be_json_and_options_a_list():
    choices, records = [[choice(), choice("C", options=["x", "y", "z"])]], [[open_record(1990)]]
    dataset = asked_set(choices, records, as_json=True)
    asked = evaluation_questions(dataset, "classification", "text", strict=True)
    assert [(q.answer, q.options) for q in asked] == [
        ("baker", {"A": "nurse", "B": "baker", "C": "pilot"}), ("z", {"A": "x", "B": "y", "C": "z"}),
    ]  # fmt: skip
    assert [q.answer for q in evaluation_questions(dataset, "generation", "text", strict=True)] == ["1990"]
    broken = dataset.map(lambda row: {"Mask_Task": "[{"})
    with pytest.raises(ValueError, match="person 001 of the set: a column is not valid JSON"):
        evaluation_questions(broken, "cloze", "text")


def png(color, size=(8, 8)):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("layout", ["struct of lists", "list of structs", "bytes"])
def test_images_in_other_layouts(layout):
    one, two = png("red"), png("blue")
    images = {
        "struct of lists": {"bytes": [one, two], "path": [None, None]},
        "list of structs": [{"bytes": one, "path": None}, {"bytes": two, "path": None}],
        "bytes": [one, two],
    }[layout]
    rows = asked_set(records=[[open_record(kind="Image_Textual")]]).to_list()
    dataset = Dataset.from_list([row | {"images": images} for row in rows])
    questions = evaluation_questions(dataset, "cloze", "multimodal", strict=True)
    assert [q.image.getpixel((0, 0)) for q in questions] == [(255, 0, 0), (0, 0, 255)]


def test_ids_that_went_through_csv(benchmark, source):
    folder, replace = source

    def with_numbers(dataset):
        return dataset.remove_columns("ID").add_column("ID", [int(person) for person in ids(dataset)])

    replace("forget_10", with_numbers(benchmark.forget))
    replace("Test_Set", with_numbers(load_config("tiny", "Test_Set")))
    replace("ft_Data", with_numbers(load_config("tiny", "ft_Data")))
    loaded = load_benchmark(folder, 10)
    assert loaded.forget_ids == benchmark.forget_ids and ids(loaded.test) == ids(benchmark.test)
    assert ids(loaded.forget) == benchmark.forget_ids
    for modality in MODALITIES:
        expected = [(q.person_id, q.answer) for q in benchmark.training_questions("forget", modality)]
        assert [(q.person_id, q.answer) for q in loaded.training_questions("forget", modality)] == expected
    straight = with_numbers(benchmark.forget)
    assert {q.person_id for q in evaluation_questions(straight, "cloze", "text")} == set(benchmark.forget_ids)
    assert load_benchmark(folder, 10, modalities=("text",)).forget_ids == benchmark.forget_ids


@pytest.mark.parametrize("none", [None, float("nan"), ""])
def test_people_without_an_id_are_left_out_by_name(benchmark, source, none):
    """They are no person named None or nan, and not one and the same."""

    def without(rows, *lost):
        ids_there = [none if i in lost else int(person) for i, person in enumerate(ids(rows))]
        ids_there = [str(i) if isinstance(none, str) and i != none else i for i in ids_there]
        return rows.remove_columns("ID").add_column("ID", ids_there)

    rows = without(benchmark.forget, 0, 2)
    with pytest.warns(UserWarning, match="2 of 12 people of .* are left out, of nobody. The first: row 0 of .* has no ID"):
        found = evaluation_questions(rows, "cloze", "text")
    assert len({question.person_id for question in found}) == 10
    folder, replace = source
    replace("forget_10", rows)
    replace("retain_90", without(benchmark.retain, 5))
    loaded = load_benchmark(folder, 10)  # nobody is in both
    assert len(loaded.forget_ids) == 10 and len(loaded.retain_ids) == 107
    assert "" not in loaded.forget_ids + loaded.retain_ids


def test_people_may_be_named_by_numbers(benchmark):
    assert benchmark.training_questions([1, 100], "text") == benchmark.training_questions(["001", "100"], "text")
    for nothing in (None, 5):
        with pytest.raises(TypeError, match=f"people={nothing} must be a group or a list of IDs"):
            benchmark.training_questions(nothing, "text")


@pytest.mark.parametrize("place", [None, 5, b"tiny", ["tiny"], True])
def test_a_source_is_a_path(place):
    for load in (load_benchmark, load_strangers, lambda where: load_config(where, "forget_5")):
        with pytest.raises(TypeError, match="source=.* must be a path, a Hub id or 'tiny', not "):
            load(place)


def test_a_set_is_one_split_that_is_there(benchmark):
    splits = datasets.DatasetDict({"train": benchmark.forget})
    for other in (splits, benchmark.forget.to_iterable_dataset(), None):
        for read in (lambda rows: evaluation_questions(rows, "cloze", "text"), lambda rows: training_questions(rows, "text")):
            with pytest.raises(TypeError, match="a set is .*; give a datasets.Dataset, such as the split"):
                read(other)


def test_a_ratio_may_be_a_float():
    loaded = load_benchmark("tiny", 10.0)
    assert loaded.forget_ratio == 10 and isinstance(loaded.forget_ratio, int)
    for ratio in (True, 10.5, float("nan")):
        with pytest.raises(ValueError, match="is unknown; MLLMU-Bench has 5, 10 and 15"):
            load_benchmark("tiny", ratio)


# ------------------------------------------------------------------------------------------------ only pictures of the dataset


def test_nothing_outside_the_dataset_is_opened(source, tmp_path, monkeypatch):
    folder, _ = source
    (folder / "portraits").mkdir()
    (folder / "portraits" / "a.png").write_bytes(png("red"))
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("blue"))
    (folder / "portraits" / "link.png").symlink_to(secret)
    names = ["portraits/a.png", str(secret), "../secret.png", "portraits/link.png", "http://127.0.0.1:9/a.png",
             "portraits/no.png", "a" * 5000, "hf://datasets/a/b/c.png"]  # fmt: skip
    shutil.rmtree(folder / "ft_Data")
    told = json.dumps([{"Question": "Who is this person?", "Answer": "This is Anna Berg."}])
    rows = [{"ID": f"{i + 1:03}", "metadata": told, "image": name} for i, name in enumerate(names)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.chdir(tmp_path)

    def written(kind):
        if kind == "json":
            text = "\n".join(json.dumps(row) for row in rows)
            (folder / "ft_Data.json").write_text(text)
        else:
            (folder / "ft_Data.json").unlink()
            (folder / "ft_Data").mkdir()
            structs = [row | {"image": {"bytes": None, "path": row["image"]}} for row in rows]
            Dataset.from_list(structs).to_parquet(str(folder / "ft_Data" / "train-00000-of-00001.parquet"))
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)

    for kind in ("json", "parquet"):
        written(kind)
        loaded = load_config(folder, "ft_Data")
        with pytest.warns(UserWarning, match="7 of 8 pictures of ft_Data cannot be read and are left out, of 002, "):
            (question,) = training_questions(loaded, "multimodal")
        assert question.image.getpixel((0, 0)) == (255, 0, 0)
        for row in range(1, len(names)):
            with pytest.raises(Exception, match="cannot identify image"):  # nor by whoever looks at the rows
                loaded[row]["image"]
    for name in names[1:]:  # a table that nobody has looked through
        rows = people_set([("Who is this person?", "This is Anna Berg.")]).remove_columns("image")
        rows = rows.add_column("image", [{"bytes": None, "path": name}]).cast_column("image", Image())
        with pytest.raises(ValueError, match="the image of person 001 of .* is the name '.*', not the picture itself"):
            training_questions(rows, "multimodal")


@pytest.mark.parametrize("image", ["http://127.0.0.1:9/a.png", "/etc/passwd", b"bytes", 7])
def test_a_question_takes_a_picture_and_no_name_of_one(image):
    with pytest.raises(
        ValueError, match="person 001: the image is a .*, not a picture; open it yourself and give the PIL image"
    ):
        Question("001", "Who is this?", "Anna Berg", image, "training")


@pytest.mark.parametrize(
    "name, given", [("person_id", (7, "Who?")), ("person_id", (None, "Who?")), ("question", ("007", None))]
)
def test_a_question_and_its_person_are_text(name, given):
    """7 and "007" are one person, and nobody would see that they are in both sets."""
    with pytest.raises(TypeError, match=f"{name}=(7|None) of a question must be text"):
        Question(*given, "Anna Berg", None, "training")


def test_forget_and_retain_must_not_overlap(benchmark, source):
    folder, replace = source
    replace("retain_90", datasets.concatenate_datasets([benchmark.retain, benchmark.forget.select([0])]))
    both = f"1 people are in both forget_10 and retain_90 of .*, such as {benchmark.forget_ids[0]}"
    with pytest.raises(ValueError, match=both):
        load_benchmark(folder, 10)


def test_nobody_to_test(benchmark, source):
    folder, replace = source
    full = load_config("tiny", "Test_Set")
    replace("Test_Set", full.select([i for i, person in enumerate(ids(full)) if person not in benchmark.forget_ids]))
    with pytest.raises(ValueError, match="Test_Set of .* has none of the people asked for, such as "):
        load_benchmark(folder, 10)


def test_a_source_that_is_not_there(tmp_path, source, monkeypatch):
    with pytest.raises(FileNotFoundError, match="found no .*; check the spelling, or that a folder has a README.md"):
        load_config(tmp_path / "nothing" / "here", "forget_5")
    folder, _ = source
    shutil.rmtree(folder / "forget_5")
    with pytest.raises(ValueError, match="has no config forget_5 that can be read"):
        load_config(folder, "forget_5")
    monkeypatch.setenv("MANU_DATA", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="MANU_DATA=.* is not a folder; set MANU_DATA"):
        load_config("tiny", "forget_5")


def test_a_rebuilt_file_is_read_anew(benchmark, source):
    """`datasets` itself would give the cached rows of the first call."""
    folder, replace = source
    assert ids(load_config(folder, "forget_10")) == benchmark.forget_ids
    replace("forget_10", benchmark.retain.select([0, 1]))
    assert ids(load_config(folder, "forget_10")) == benchmark.retain_ids[:2]


# ------------------------------------------------------------------------------------------------ no network


def test_the_miniature_needs_no_network(monkeypatch):
    def unplugged(*_, **__):
        raise OSError("unplugged")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)
    assert len(load_benchmark("tiny", 5).forget) > 0


def test_no_network_is_said(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = "cannot reach the Hub for nobody/nothing-here; .* use source='tiny', which needs no network"
    with pytest.raises(ConnectionError, match=message):
        load_config("nobody/nothing-here", "forget_5")
